"""Parameters and recipes as text under version control: a change shows up as a diff to review.

UPDATE_GOLDEN=1 make test FLAGS=tests/test_golden.py   rewrites the files
"""

import importlib.util
import os
from pathlib import Path

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

import resnet_jax
from resnet_jax.config.recipes import RECIPES, make
from resnet_jax.config.schema import default_config, flatten
from resnet_jax.models.presets import PRESETS
from resnet_jax.parallel.mesh import make_mesh
from resnet_jax.train.spec import TrainSpec

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
    "config",
    [
        "digits",
        "cifar10:resnet20",
        "cifar10:resnet20,cpu",
        "cifar10:resnet110",
        "imagenet:resnet50",
        "finetune",
    ],
)
def test_recipes(config):
    lines = [f"{name} = {value!r}" for name, value in flatten(_config(config)).items()]
    _compare(f"config_{config.replace(':', '_').replace(',', '_')}", lines)


@pytest.mark.parametrize("name", RECIPES)
def test_published_recipes(name):
    """What each changes of the defaults, on ImageNet and scaled to CIFAR-10."""
    defaults, lines = flatten(default_config()), []
    for data in ("imagenet2012", "cifar10"):
        fields = flatten(make(name, data=data)).items()
        lines += [f"{data}:", *(f"  {k} = {v!r}" for k, v in fields if v != defaults[k])]
    _compare(f"recipes/{name}", lines)


def _config(name: str) -> ConfigDict:
    file, _, argument = name.partition(":")
    spec = importlib.util.spec_from_file_location(file, ROOT / "configs" / f"{file}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(*filter(None, [argument]))


def test_statistics_of_the_batch_are_set_for_every_network_that_has_them():
    assert _config("digits:alphagozero19").precise_bn == _config("digits:resnet20").precise_bn > 0
    assert _config("digits:fixup_resnet20").precise_bn == 0
    assert _config("cifar10:alphagozero19").model.bn_group_size == 64


@pytest.mark.parametrize(
    ("config", "image_shape", "classes"),
    [("digits", (8, 8, 1), 10), ("imagenet:resnet50", (224, 224, 3), 1000)],
)
@pytest.mark.parametrize("fsdp", [1, 4])
def test_shardings(config, image_shape, classes, fsdp):
    """How the state lies on a mesh of 8 devices."""
    recipe = _config(config)
    mesh = make_mesh(fsdp=fsdp)
    sizes = {"image_shape": image_shape, "num_classes": classes, "train_examples": 10**6}
    spec = TrainSpec.make(recipe, mesh=mesh, **sizes)
    lines = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(spec.abstract_state):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        axes = ", ".join(str(axis or "–") for axis in leaf.sharding.spec) or "whole"
        lines.append(f"{name} {leaf.dtype} {'×'.join(map(str, leaf.shape)) or 'scalar'}: {axes}")
    _compare(f"sharding_{config.replace(':', '_')}_{mesh.shape['data']}x{fsdp}", lines)
