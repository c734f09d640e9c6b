"""Batches of one image, classes without any, splits smaller than a batch: trained and scored."""

import math

import numpy as np
import pytest

import resnet_jax
from resnet_jax.data.readers.digits import Digits


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("train", "batch_size"),
    [("train[:256]", 1), ("train[:7]", 7)],
    ids=["batches of one", "classes without examples"],
)
def test_a_run_is_defined_and_counts_every_image_once(train, batch_size, tiny_config, tmp_path):
    labels = Digits().read("train").labels
    assert set(labels[:7]) == {0, 2, 3, 4, 5, 6}  # most of which it has once
    tiny_config.data.train = train
    tiny_config.data.validation = "train[256:259]"  # less than a batch
    tiny_config.data.test = "test[:70]"  # more than one, less than two
    tiny_config.batch_size = batch_size
    tiny_config.duration = 4.0 * batch_size
    tiny_config.schedule.warmup = 0.0
    result = resnet_jax.fit(tiny_config, tmp_path)
    assert int(result.state.step) == 4
    assert all(math.isfinite(record["loss"]) for record in result.history)
    counts = {name: scores.examples for name, scores in result.evaluation.items()}
    test = {"test": 70, "test_ema": 70, "test_best": 70}
    assert counts == {"validation": 3, "validation_ema": 3} | test
    labels = Digits().read("test").labels
    confusion = result.evaluation["test"].confusion
    np.testing.assert_array_equal(confusion.sum(axis=1), np.bincount(labels[:70], minlength=10))
