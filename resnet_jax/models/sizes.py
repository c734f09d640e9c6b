"""Parameters and multiply-adds of the presets, as benchmarks/sizes.py has counted them."""

import importlib.resources
import json
from typing import NamedTuple

TABLE = "sizes.json"


class Size(NamedTuple):
    """Of a preset, on one image of its paper's size.

    Attributes:
        params: number of parameters.
        macs: multiply-adds per image, as `resnet_jax.summarize` counts them.
    """

    params: int
    macs: int


def preset_sizes() -> dict[str, Size]:
    """The size of every preset, by its name."""
    text = importlib.resources.files(__package__).joinpath(TABLE).read_text("utf-8")
    return {name: Size(*counts) for name, counts in json.loads(text).items()}
