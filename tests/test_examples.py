"""The scripts in examples/ do what they say, on a tiny network and a folder of images."""

import importlib.util
import json
from pathlib import Path

import jax
import pytest
from PIL import Image

import resnet_jax
from tests.data.readers.test_folders import write
from tests.data.tiny_dataset import own_cache

__all__ = ["own_cache"]

FIELDS = {"stage_sizes": (1, 1), "width": 4, "shortcut": "B"}


@pytest.fixture(scope="module")
def example():
    path = Path(__file__).parents[1] / "examples/pretrained.py"
    spec = importlib.util.spec_from_file_location("pretrained", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.thorough
def test_a_probe_fine_tuning_and_a_picture(example, tmp_path):
    images = write(tmp_path / "images", {"cat": 30, "dog": 30}, shape=(12, 10))
    model = resnet_jax.create_model("resnet20", num_classes=10, **FIELDS)
    variables = resnet_jax.init_variables(model, jax.random.key(0), (8, 8, 3))
    resnet_jax.save_weights(tmp_path / "ten.safetensors", model, variables)
    arguments = ["--weights", tmp_path / "ten.safetensors", "--model", "resnet20", "--size", 8]
    for name, value in FIELDS.items():
        arguments += ["--field", f"{name}={value}"]
    arguments += ["--images", images, "--out", tmp_path / "out", "--epochs", 2]
    assert example.main([str(argument) for argument in arguments]) == 0
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert scores["training images"] == 48
    assert scores["test images"] == 12
    assert all(0 <= scores[name] <= 1 for name in ("linear probe", "fine-tuned"))
    evaluated = resnet_jax.restore_run(tmp_path / "out" / "run").evaluate("test")
    assert scores["fine-tuned"] == evaluated.top1
    assert min(Image.open(tmp_path / "out" / "grad_cam.png").size) > 200


def test_a_mistake_is_one_line(example, tmp_path, capsys):
    arguments = ["--weights", "none.safetensors", "--model", "resnet20", "--size", "8"]
    write(tmp_path / "images", {"cat": 5, "dog": 5}, shape=(8, 8))
    arguments += ["--images", str(tmp_path / "images"), "--out", str(tmp_path / "out")]
    assert example.main(arguments) == 65
    assert "error: none.safetensors can't be read: No such file" in capsys.readouterr().err
