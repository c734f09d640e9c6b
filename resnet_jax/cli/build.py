"""resnet-jax build: oneDNN's convolutions for training on a CPU."""

import argparse
from typing import Any

from rich.console import Console

HELP = "Compile oneDNN's convolutions, which a single CPU device then uses."
EXAMPLE = "apt install g++ libdnnl-dev && resnet-jax build"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """There are none."""


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Compile, and try to load what came of it."""
    from resnet_jax.errors import ConfigError  # noqa: PLC0415
    from resnet_jax.native.build import build  # noqa: PLC0415
    from resnet_jax.native.conv import is_loaded  # noqa: PLC0415 - imports JAX

    library = build()
    is_loaded.cache_clear()
    if not is_loaded():
        raise ConfigError(f"{library} was compiled, but can't be loaded: is oneDNN where it was?")
    return {"library": str(library)}


def show(document: dict[str, Any], console: Console) -> None:
    """Say where it is."""
    console.print(f"compiled: {document['library']}")
    console.print("used on a single CPU device; RESNET_JAX_NATIVE=0 leaves it alone")
