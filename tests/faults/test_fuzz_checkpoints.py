"""Mutated documents of a run: refused with a typed error, or what was written."""

import pytest

from resnet_jax.errors import DataError
from resnet_jax.logging.metrics_log import read_metrics
from tests.faults.fuzz import outcome


@pytest.mark.thorough
def test_two_thousand_mutated_documents(tmp_path, record_property):
    result = outcome("checkpoints", tmp_path)
    record_property("tries", result["accepted"] + result["refused"])
    assert result["accepted"] > 100
    assert result["kinds_of_refusal"] > 50
    assert result["forged"] == 0


@pytest.mark.parametrize(
    "line",
    ['{"step": Infinity, "split": "train"}', '{"step": NaN, "split": "train"}', "[" * 50_000],
)
def test_a_line_that_is_json_only_by_name_is_damaged(line, tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(DataError, match="Line 1 of .* is damaged"):
        read_metrics(path)
