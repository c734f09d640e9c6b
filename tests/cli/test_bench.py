"""resnet-jax bench data: the stages of the pipeline that decodes images as they're needed."""

import json

import pytest

from resnet_jax.cli.main import main
from tests.cli.mistakes import assert_one_line
from tests.data.test_folders import write
from tests.data.test_sources import own_cache
from tests.runs import TINY, streamed

__all__ = ["own_cache"]


@pytest.fixture
def arguments(tmp_path):
    images = write(tmp_path / "images", {"cat": 40, "dog": 40}, shape=(12, 14))
    fields = streamed(images, duration=32 * 200)
    return ["bench", "data", *TINY, *fields, "--seconds=0.1"]


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
