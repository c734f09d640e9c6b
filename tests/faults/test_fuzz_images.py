"""Mutated images through both doors: a refusal, or what Pillow sees in the whole file."""

import pytest

from tests.faults.fuzz import outcome


@pytest.mark.thorough
def test_two_thousand_mutated_images(tmp_path, record_property):
    result = outcome("images", tmp_path)
    record_property("tries", result["accepted"] + result["refused"])
    assert result["accepted"] > 200
    assert result["compared"] > 150
    assert result["kinds_of_refusal"] > 15
    assert result["warnings"] == []
