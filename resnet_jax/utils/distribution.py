"""The name of the installed distribution, which differs from the name of the package."""

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
