"""Modules with ambiguous names are recognised by order and shape, or refused."""

import re

import numpy as np
import pytest

import resnet_jax
from resnet_jax.errors import DataError
from tests.weights import publishers
from tests.weights.test_load import (
    BASIC,
    BIT,
    WIDE,
    _assert_equal,
    _load,
    _published,
    _random,
)

# The projection of its first block has a shape that no convolution of the branch has.
BIT_WIDE_STEM = BIT | {"stem_width": 64}


@pytest.mark.parametrize("shortcut", ["A", "B"])
def test_a_first_block_that_normalises_for_itself_is_not_taken_for_one_that_shares(
    shortcut, tmp_path
):
    """Its shortcut takes what comes before, ours what comes after the stem's normalisation."""
    fields = WIDE | {"shortcut": shortcut, "width": 16 if shortcut == "A" else 8}
    model = resnet_jax.ResNet(**fields, stem_norm=False)
    arrays = _published(_random(model), publishers.wide)
    with pytest.raises(
        DataError, match=r"'block1.layer.0.bn1' in its first block.*stem_norm=False"
    ):
        _load(model.copy(stem_norm=True), arrays, tmp_path)
    _load(model, arrays, tmp_path)


def _renamed(old, new):
    return lambda leaf: re.sub(old, new, publishers.torchvision(leaf))


def _words(leaf):
    words = {"conv1.w": "first.w", "conv2.w": "second.w"}
    name = publishers.torchvision(leaf)
    return re.sub(r"(?<=\.)conv\d\.w", lambda match: words[match[0]], name)


ONE_STAGE = WIDE | {"stage_sizes": (2,), "width": 8, "shortcut": "A"}


@pytest.mark.parametrize(
    ("rename", "fields", "message"),
    [
        (_words, BASIC, "has 'layer1.0.first' and 'layer1.0.second' of one shape, and their names"),
        (_renamed("bn_final", "norm"), ONE_STAGE, "has 'bn1' and 'norm' of one shape"),
        (_renamed("bn_final", "norm_last"), ONE_STAGE, None),
        (_renamed("bn_final", "bn2"), ONE_STAGE, None),
        (_renamed("bn_final", "norm"), ONE_STAGE | {"stage_sizes": (1, 1)}, None),
        (_renamed(r"downsample\.0", "conv3"), BASIC | {"order": "preact"}, None),
        (_renamed(r"downsample\.0", "conv4"), BIT_WIDE_STEM, None),
        (_renamed(r"downsample\.0", "conv4"), BIT, "conv3' and 'layer1.0.conv4' of one shape"),
    ],
)
def test_names_that_do_not_tell_the_order_are_refused(rename, fields, message, tmp_path):
    model = resnet_jax.ResNet(**fields)
    values = _random(model)
    arrays = _published(values, rename)
    if message is None:
        _assert_equal(_load(model, arrays, tmp_path), values)
        return
    with pytest.raises(DataError, match=message) as refused:
        _load(model, arrays, tmp_path)
    assert "\n" not in str(refused.value)


def test_two_arrays_of_one_kind_are_refused(tmp_path):
    """Whichever was meant, the other must not be dropped without a word."""
    model = resnet_jax.ResNet(**BASIC)
    arrays = _published(_random(model), publishers.torchvision)
    arrays["bn1.gamma"] = arrays["bn1.weight"] + 1
    with pytest.raises(DataError, match=r"it also has bn1\.(gamma|weight)"):
        _load(model, arrays, tmp_path)


def test_a_first_block_without_a_branch_is_refused(tmp_path):
    model = resnet_jax.create_model("preresnet20")
    arrays = {"layer1.0.downsample.0.weight": np.ones((16, 16, 1, 1), np.float32)}
    with pytest.raises(DataError, match="doesn't fit the model"):
        _load(model, arrays, tmp_path)
