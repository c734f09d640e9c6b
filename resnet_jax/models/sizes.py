"""Parameters and multiply-adds of the presets, counted by benchmarks/sizes.py."""

import importlib.resources
import json
from typing import NamedTuple

TABLE = "sizes.json"


class Size(NamedTuple):
    """Size of a preset, for one image of its paper's size.

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
