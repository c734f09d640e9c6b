"""JSON objects with duplicate keys, which the standard library accepts."""

import json

import pytest

from resnet_jax.utils.json_objects import DuplicateKeyError, unique_keys


def test_an_object_without_duplicates_is_that_of_the_library():
    text = '{"b": 1, "a": {"b": [{"b": null}]}}'
    assert json.loads(text, object_pairs_hook=unique_keys) == json.loads(text)


@pytest.mark.parametrize("text", ['{"a": 1, "b": 2, "b": 2}', '{"a": [{"b": 1, "b": 2}]}'])
def test_a_duplicate_is_named(text):
    with pytest.raises(DuplicateKeyError, match="the key 'b' twice") as found:
        json.loads(text, object_pairs_hook=unique_keys)
    assert found.value.key == "b"
