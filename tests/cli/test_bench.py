"""resnet-jax bench data: the stages of the pipeline that decodes images as they're needed."""

import json

import pytest
from rich.console import Console

from resnet_jax.cli import bench
from resnet_jax.cli.main import main
from tests.cli.mistakes import assert_one_line
from tests.data.readers.test_folders import write
from tests.data.tiny_dataset import own_cache
from tests.runs import TINY, streamed

__all__ = ["own_cache"]


@pytest.fixture
def arguments(tmp_path):
    images = write(tmp_path / "images", {"cat": 40, "dog": 40}, shape=(12, 14))
    fields = streamed(images, duration=32 * 200)
    return ["bench", "data", *TINY, *fields, "--seconds=0.1"]


@pytest.mark.thorough
def test_every_stage_is_measured(arguments, capsys):
    assert main([*arguments, "--train", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert len(document["img_per_s"]) == 6
    assert all(rate > 0 for rate in document["img_per_s"].values())
    assert document["training_images"] == 64
    assert document["training"]["img_per_s"] > 0
    assert 0 <= document["training"]["data_wait"] <= 1


def test_people_see_a_table(arguments, capsys):
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert "end to end" in out
    assert "kB per image; 0 processes on" in out


def test_mistakes_are_one_line(capsys):
    assert_one_line(["bench", "data"], 64, "--config is missing", capsys)
    assert_one_line(["bench", "speed"], 64, "invalid choice: 'speed'", capsys)
    digits = ["bench", "data", "--config=configs/digits.py"]
    assert_one_line(digits, 78, "decoded once, and then in memory", capsys)
    assert_one_line([*digits, "--seconds=0"], 64, "--seconds is 0.0", capsys)


@pytest.mark.thorough
def test_steps_are_measured_on_random_images(capsys):
    arguments = ["bench", "step", *TINY, "--config.mesh.data=1", "--seconds=0.05"]
    assert main([*arguments, "--config.seeds=(0,1)", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    train, best = document["train"], document["ceilings"]
    # Two networks of 32 images each, six operations to a multiply-add.
    flops = 6 * document["macs"] * 2 * 32
    assert train["img_per_s"] == pytest.approx(2 * 32 / train["step_ms"] * 1000)
    mfu = flops / train["step_ms"] * 1000 / best["matmul_tflop_per_s"] / 1e12
    assert train["mfu"] == pytest.approx(mfu)
    assert train["step_ms_min"] <= train["step_ms"] <= train["step_ms_max"]
    assert set(document["inference"]) == {"1", "32"}
    assert document["evaluation"]["img_per_s"] > 0
    bench.show(document, Console())
    assert "of memory" in capsys.readouterr().out


def test_steps_of_unknown_data_are_refused(capsys):
    arguments = ["bench", "step", *TINY, "--config.data.name=svhn_cropped"]
    assert_one_line(arguments, 78, "whose sizes aren't known without reading it", capsys)
    assert_one_line(["bench", "step", "--train", *TINY], 64, "--train is for `resnet", capsys)
