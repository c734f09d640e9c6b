"""Split expressions, roles that must not overlap, and the bundled digits."""

import hashlib

import numpy as np
import pytest

from resnet_jax.data.datasets import load_dataset
from resnet_jax.data.splits import Span, parse_split
from resnet_jax.errors import ConfigError

# --- digits ---------------------------------------------------------------------------------------


def digits(**splits):
    return load_dataset("digits", splits=splits or {"train": "train", "test": "test"})


def test_digits_hold_every_bundled_image_once_scaled_to_bytes():
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    data = digits()
    assert {role: len(one) for role, one in data.splits.items()} == {"train": 1437, "test": 360}
    assert data.image_shape == (8, 8, 1)
    assert data.class_names == tuple("0123456789")
    assert data.num_classes == 10
    bunch = load_digits()
    expected = sorted(
        (bytes(round(v * 255 / 16) for v in image.ravel()), int(label))
        for image, label in zip(bunch.images, bunch.target, strict=True)
    )
    train, test = train_test_split(
        np.arange(len(bunch.target)), test_size=360, stratify=bunch.target, random_state=2015
    )
    np.testing.assert_array_equal(data.splits["train"].labels, bunch.target[train])
    np.testing.assert_array_equal(data.splits["test"].labels, bunch.target[test])
    found = sorted(
        (image.tobytes(), int(label))
        for one in data.splits.values()
        for image, label in zip(one.images, one.labels, strict=True)
    )
    assert found == expected
    assert all(one.images.dtype == np.uint8 for one in data.splits.values())
    assert all(one.labels.dtype == np.int32 for one in data.splits.values())


def test_digits_split_is_stratified_and_any_slice_of_it_about_balanced():
    data = digits()
    total = sum(np.bincount(one.labels, minlength=10) for one in data.splits.values())
    np.testing.assert_allclose(np.bincount(data.splits["test"].labels), total * 360 / 1797, atol=1)
    labels = data.splits["train"].labels
    for start in range(0, 1437 - 400, 100):
        counts = np.bincount(labels[start : start + 400], minlength=10)
        assert counts.min() >= 20, f"{counts} from {start}"  # 40 each if it were exact


def test_digits_split_never_changes():
    data = digits()
    digest = hashlib.sha256()
    for role in ("train", "test"):
        digest.update(data.splits[role].images.tobytes())
        digest.update(data.splits[role].labels.astype("<i4").tobytes())
    assert digest.hexdigest() == DIGITS_SHA256
    sliced = digits(train="train[:3]", validation="train[3:]", test="test")
    assert data.fingerprint == sliced.fingerprint == DIGITS_FINGERPRINT


DIGITS_FINGERPRINT = "df5e5b479bea80c75176755adfbe86ce"
DIGITS_SHA256 = "d0b5c8236943491e818603065594599a8d318b4576198efb24d896f32c885617"


# --- split expressions ----------------------------------------------------------------------------

LENGTHS = {"train": 1437, "test": 360}


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("train", [Span("train", 0, 1437)]),
        ("train[:90%]", [Span("train", 0, 1293)]),
        ("train[90%:]", [Span("train", 1293, 1437)]),
        ("train[1000:]", [Span("train", 1000, 1437)]),
        ("train[-37:]", [Span("train", 1400, 1437)]),
        ("train[:5]+test[:7]", [Span("train", 0, 5), Span("test", 0, 7)]),
        ("train[:5] + train[5:6]", [Span("train", 0, 5), Span("train", 5, 6)]),
        ("all", [Span("train", 0, 1437), Span("test", 0, 360)]),
    ],
)
def test_split_expressions(spec, expected):
    assert parse_split(spec, LENGTHS, "digits") == expected


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("tset", "no split 'tset'; the splits are test, train. Did you mean 'test'?"),
        ("train+val", "no split 'val'"),
        ("train[::2]", "can't be parsed"),
        ("train[", "can't be parsed"),
        ("", "can't be parsed"),
        ("train[a:]", "can't be parsed"),
        ("train[:200%]", "can't be parsed"),
        ("train[5]", "can't be parsed"),
        ("all[:5]", "can't be parsed"),
        ("train[:2000]", "incompatible with 1437 examples"),
        ("train[:0]", "selects no example"),
        ("train[9:3]", "selects no example"),
        ("train[:9]+train[5:10]", "examples 5 to 8 of train more than once"),
    ],
)
def test_bad_split_expressions_name_the_trouble(spec, says):
    with pytest.raises(ConfigError) as caught:
        parse_split(spec, LENGTHS, "digits")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_slices_are_taken_in_order_and_share_memory():
    whole = digits().splits["train"]
    data = digits(train="train[:1000]", validation="train[1000:]", mix="test[3:5]+test[:2]")
    np.testing.assert_array_equal(data.splits["train"].images, whole.images[:1000])
    np.testing.assert_array_equal(data.splits["validation"].labels, whole.labels[1000:])
    test = digits(test="test").splits["test"]
    np.testing.assert_array_equal(data.splits["mix"].images, test.images[[3, 4, 0, 1]])
    base = data.splits["train"].images.base
    assert base is not None
    assert base is data.splits["validation"].images.base
    for one in data.splits.values():
        with pytest.raises(ValueError, match="read-only"):
            one.images[0, 0, 0, 0] = 1


@pytest.mark.parametrize(
    ("splits", "shared"),
    [
        ({"train": "train[:1300]", "validation": "train[1200:]"}, "examples 1200 to 1299 of train"),
        ({"train": "train+test", "test": "test"}, "examples 0 to 359 of test"),
        ({"test": "test[:10]", "train_more": "test[9:]"}, "examples 9 to 9 of test"),
    ],
)
def test_training_examples_are_refused_elsewhere(splits, shared):
    with pytest.raises(ConfigError, match=shared):
        digits(**splits)


def test_selection_and_test_may_not_share_examples():
    with pytest.raises(
        ConfigError, match="validation='test' and test=.test. of .*0 to 359 of test"
    ):
        digits(train="train", validation="test", test="test")


def test_shards_are_not_counted():
    with pytest.raises(ConfigError, match="counts shards, of which preparations have different"):
        digits(train="train[:1shard]")


def test_no_split_is_refused():
    with pytest.raises(ConfigError, match="no split"):
        load_dataset("digits", splits={})
