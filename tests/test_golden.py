"""Parameters and recipes as text under version control: a change shows up as a diff to review.

UPDATE_GOLDEN=1 make test FLAGS=tests/test_golden.py   rewrites the files
"""

import importlib.util
import os
from pathlib import Path

import jax
import numpy as np
import pytest

import resnet_jax
from resnet_jax.models.presets import PRESETS
from resnet_jax.train.config import flatten

GOLDEN = Path(__file__).parent / "golden"
ROOT = Path(__file__).parents[1]


def _compare(name: str, lines: list[str]) -> None:
    path = GOLDEN / f"{name}.txt"
    text = "\n".join(lines) + "\n"
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(text)
    assert text == path.read_text()


@pytest.mark.parametrize("name", ["resnet20", "resnet18", "resnet50"])
def test_parameters(name):
    """Path, shape, and mean and deviation of the initial values to two digits."""
    model = resnet_jax.create_model(name)
    variables = resnet_jax.init_variables(model, jax.random.key(0), PRESETS[name].image_shape)
    lines = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
        label = "/".join(key.key for key in path)
        leaf = np.asarray(leaf)  # noqa: PLW2901
        # The sample's mean is noise around zero, so only a constant's is worth a line.
        moments = f"= {leaf.flat[0]:g}" if np.ptp(leaf) == 0 else f"std {leaf.std():.2g}"
        lines.append(f"{label} {leaf.dtype} {'×'.join(map(str, leaf.shape))} {moments}")
    _compare(f"params_{name}", lines)


@pytest.mark.parametrize(
    "config", ["digits", "cifar10:resnet20", "cifar10:resnet20,cpu", "cifar10:resnet110"]
)
def test_recipes(config):
    file, _, argument = config.partition(":")
    spec = importlib.util.spec_from_file_location(file, ROOT / "configs" / f"{file}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    values = module.get_config(*filter(None, [argument]))
    lines = [f"{name} = {value!r}" for name, value in flatten(values).items()]
    _compare(f"config_{config.replace(':', '_').replace(',', '_')}", lines)
