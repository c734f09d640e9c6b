"""Mutated prepared data sets: a refusal, or images that were written; opened and read in full."""

import json

import pytest

from resnet_jax.data.datasets import load_dataset
from resnet_jax.errors import DataError
from tests.data.tiny_dataset import write_tfds
from tests.faults.fuzz import outcome


@pytest.mark.thorough
def test_two_thousand_mutated_data_sets(tmp_path, record_property):
    result = outcome("datasets", tmp_path)
    record_property("tries", result["accepted"] + result["refused"])
    assert result["accepted"] > 300
    assert result["strangers"] == 0
    assert result["kinds_of_refusal"] > 50


def test_a_template_that_names_no_file_is_refused(tmp_path):
    path = write_tfds(tmp_path / "tfds") / "dataset_info.json"
    info = json.loads(path.read_text())
    info["splits"][0]["filepathTemplate"] = "{DATASET}-{SPLIT}.{ILEFORMAT}-{SHARD_X_OF_Y}"
    path.write_text(json.dumps(info))
    with pytest.raises(DataError, match=r"'tiny' in .* can't be opened \(Could not format"):
        load_dataset("tiny", splits={"train": "train"}, data_dir=str(tmp_path / "tfds"))
