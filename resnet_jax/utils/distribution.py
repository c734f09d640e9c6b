"""How this package is installed: its name there is not the name it is imported by."""

DISTRIBUTION = "resnet-linen"
"""The name in pyproject.toml. `resnet-jax` on PyPI is an unrelated package."""


def how_to_add(extra: str) -> str:
    """The commands that install an optional dependency, for error messages.

    Args:
        extra: its name in pyproject.toml's `optional-dependencies`.
    """
    return (
        f"in a checkout, pip install -e '.[{extra}]'; with a wheel, pip install 'FILE.whl[{extra}]'"
    )
