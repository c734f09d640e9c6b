"""The installed distribution and its releases."""

from packaging.version import Version

DISTRIBUTION = "resnet-linen"
"""The name in pyproject.toml. `resnet-jax` on PyPI is an unrelated package."""


def install_hint(extra: str) -> str:
    """Commands that install an extra, for error messages.

    Args:
        extra: name in `optional-dependencies` of pyproject.toml.
    """
    return (
        f"in a checkout, pip install -e '.[{extra}]'; with a wheel, pip install 'FILE.whl[{extra}]'"
    )


def is_same_release(version: str, other: str) -> bool:
    """Whether two versions are of one release: "0.9.0.post1" is of 0.9.0.

    JAX ignores a CUDA plugin of another release than jaxlib's (jaxlib/plugin_support.py).
    """
    return Version(version).release == Version(other).release
