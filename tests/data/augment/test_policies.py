"""Image operations equal Pillow's; policies draw as in their references."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from resnet_jax.data.augment import image_ops as ops
from resnet_jax.data.augment import policies
from tests.data.hostile_images import pixels

NEAREST, AFFINE = Image.Resampling.NEAREST, Image.Transform.AFFINE


def _pictures():
    rng = np.random.default_rng(0)
    yield pixels(17, 12, seed=1)
    yield rng.integers(0, 256, (13, 17, 3), np.uint8)
    yield rng.integers(90, 110, (12, 12, 3), np.uint8)  # little contrast
    yield np.full((9, 8, 3), 77, np.uint8)


def _affine(*matrix):
    def transform(image, value):
        numbers = [m(value) if callable(m) else m for m in matrix]
        return image.transform(image.size, AFFINE, numbers, NEAREST, fillcolor=(0, 0, 0))

    return transform


PILLOW = {
    "brightness": lambda image, v: ImageEnhance.Brightness(image).enhance(v),
    "color": lambda image, v: ImageEnhance.Color(image).enhance(v),
    "contrast": lambda image, v: ImageEnhance.Contrast(image).enhance(v),
    "sharpness": lambda image, v: ImageEnhance.Sharpness(image).enhance(v),
    "posterize": lambda image, v: ImageOps.posterize(image, int(v)),
    "solarize": ImageOps.solarize,
    "invert": lambda image, _: ImageOps.invert(image),
    "autocontrast": lambda image, _: ImageOps.autocontrast(image),
    "equalize": lambda image, _: ImageOps.equalize(image),
    "identity": lambda image, _: image,
    "shear_x": _affine(1, lambda v: v, 0, 0, 1, 0),
    "shear_y": _affine(1, 0, 0, lambda v: v, 1, 0),
    "translate_x": _affine(1, 0, lambda v: -v, 0, 1, 0),
    "translate_y": _affine(1, 0, 0, 0, 1, lambda v: -v),
    "rotate": lambda image, v: image.rotate(v, NEAREST),
}
VALUES = {
    "posterize": (2, 5, 8),
    "solarize": (0.0, 100.5, 255.0),
    "shear_x": (-0.7, 0.31),
    "shear_y": (-0.7, 0.31),
    "translate_x": (-3, 0, 5),
    "translate_y": (-3, 0, 5),
    "rotate": (-97.0, 13.0, 44.0),
}


@pytest.mark.parametrize("name", PILLOW)
def test_operations_are_pillows(name):
    operation = jax.jit(getattr(ops, name))
    geometric = name in ("shear_x", "shear_y", "rotate")
    for picture in _pictures():
        for value in VALUES.get(name, (0.01, 0.6, 1.0, 1.7)):
            expected = np.asarray(PILLOW[name](Image.fromarray(picture), value)).astype(int)
            found = np.asarray(operation(picture, jnp.float32(value))).astype(int)
            assert found.shape == expected.shape
            if geometric:  # Pillow's fixed point: a pixel on an edge may be its neighbour
                assert (found != expected).any(axis=-1).mean() <= 0.03
            else:
                assert np.abs(found - expected).max() <= (1 if value != 1 else 0)
                assert (found != expected).mean() <= 0.03


def test_smoothing_is_what_sharpness_takes_away():
    picture = next(_pictures())
    smooth = np.asarray(Image.fromarray(picture).filter(ImageFilter.SMOOTH)).astype(int)
    found = np.asarray(ops.sharpness(picture, jnp.float32(0))).astype(int)
    assert np.abs(found - smooth).max() <= 1


def test_solarize_add_leaves_bright_values():
    picture = np.array([[[0, 100, 127]], [[128, 200, 255]]], np.uint8)
    found = ops.solarize_add(picture, jnp.float32(40.0))
    np.testing.assert_array_equal(found, [[[40, 140, 167]], [[128, 200, 255]]])


def test_trivial_augment_has_torchvisions_strengths():
    """The table of torchvision 0.28's TrivialAugmentWide: first, tenth and last of 31."""
    table = {op.__name__: (base, values) for op, base, values, _ in policies._TRIVIAL}
    assert len(table) == 14
    for name, expected in {
        "shear_x": (0.0, 0.297, 0.99),
        "translate_y": (0, 9, 32),
        "rotate": (0.0, 40.5, 135.0),
        "contrast": (0.0, 0.297, 0.99),
        "solarize": (255.0, 178.5, 0.0),
    }.items():
        np.testing.assert_allclose(table[name][1][[0, 9, 30]], expected, rtol=1e-6)
    base, values = table["posterize"]
    assert (base + values)[[0, 2, 3, 30]].tolist() == [8, 8, 7, 2]


def test_rand_augment_has_timms_levels():
    """timm 1.0's LEVEL_TO_ARG for the increasing set, at 7 of 10, for 200×100 images."""
    names = [op.__name__ for op in policies._RANDAUGMENT]
    for sign in (1.0, -1.0):
        values = policies.randaugment_values(jnp.float32(0.7), jnp.float32(sign), 100, 200)
        found = dict(zip(names, np.asarray(values).tolist(), strict=True))
        expected = {
            "rotate": sign * 21, "posterize": 2, "solarize": 256 - 179, "solarize_add": 77,
            "color": 1 + sign * 0.63, "sharpness": 1 + sign * 0.63, "shear_x": sign * 0.21,
            "translate_x": sign * 63, "translate_y": sign * 31.5,
        }  # fmt: skip
        for name, value in expected.items():
            assert found[name] == pytest.approx(value, abs=1e-4), name


def _keys(n, seed=0):
    return jax.random.split(jax.random.key(seed), n)


IMAGES = np.stack([pixels(16, 16, seed=i) for i in range(24)])


@pytest.mark.thorough
@pytest.mark.parametrize("policy", ["trivial", "randaugment"])
def test_what_is_drawn_depends_on_the_example_alone(policy):
    augment = jax.jit(
        lambda images, keys: policies.apply_policy(
            images, keys, policy, magnitude=7.0, magnitude_std=0.5
        )
    )
    keys = _keys(24)
    whole = np.asarray(augment(IMAGES, keys))
    assert whole.dtype == np.uint8
    order = np.array([7, 3, 21])
    np.testing.assert_array_equal(augment(IMAGES[order], keys[order]), whole[order])
    changed = (whole != IMAGES).any(axis=(1, 2, 3))
    assert 0.5 < changed.mean() <= 1
    same = np.repeat(IMAGES[:1], 24, axis=0)
    assert len({one.tobytes() for one in np.asarray(augment(same, keys))}) > 12


def _recorded(monkeypatch, name, augment, *, draws=4000):
    """What a policy draws: for each image the operations and values that were applied, in order."""
    table = getattr(policies, name)

    def recorder(number):
        def operation(image, value):  # one pixel of five channels: count, operation, value, …
            count = image[0, 0, 0].astype(jnp.int32)
            image = image.at[0, 0, 1 + 2 * count].set(number)
            return image.at[0, 0, 2 + 2 * count].set(value).at[0, 0, 0].add(1)

        return operation

    stand_ins = [
        recorder(number) if callable(entry) else (recorder(number), *entry[1:])
        for number, entry in enumerate(table)
    ]
    monkeypatch.setattr(policies, name, stand_ins)
    found = np.asarray(augment(jnp.zeros((draws, 1, 1, 5)), _keys(draws)))[:, 0, 0]
    names = [(entry if callable(entry) else entry[0]).__name__ for entry in table]
    return [
        [(names[int(one[1 + 2 * i])], float(one[2 + 2 * i])) for i in range(int(one[0]))]
        for one in found
    ]


def test_rand_augment_draws_as_timm_does(monkeypatch):
    found = _recorded(
        monkeypatch,
        "_RANDAUGMENT",
        lambda images, keys: policies.rand_augment(images, keys, magnitude=7.0, magnitude_std=0.5),
    )
    counts = np.bincount([len(of) for of in found]) / len(found)
    np.testing.assert_allclose(counts, [0.25, 0.5, 0.25], atol=0.03)  # of two, each with 1/2
    applied = [one for of in found for one in of]
    shares = np.unique([name for name, _ in applied], return_counts=True)[1] / len(applied)
    np.testing.assert_allclose(shares, np.full(15, 1 / 15), atol=0.015)
    largest = {"rotate": 30, "shear_x": 0.3, "shear_y": 0.3}
    levels = np.array([value / largest[name] for name, value in applied if name in largest])
    assert abs(np.sign(levels).mean()) < 0.15
    assert np.abs(levels).mean() == pytest.approx(0.7, abs=0.01)
    assert np.abs(levels).std() == pytest.approx(0.05, abs=0.01)


def test_magnitudes_are_clipped(monkeypatch):
    found = _recorded(
        monkeypatch,
        "_RANDAUGMENT",
        lambda images, keys: policies.rand_augment(images, keys, magnitude=9.0, magnitude_std=6.0),
    )
    levels = np.abs([v / 30 for of in found for name, v in of if name == "rotate"])
    assert levels.max() == pytest.approx(1)
    assert (levels > 0.999).mean() == pytest.approx(0.43, abs=0.12)  # 10 is 1/6 deviation above
    assert (levels < 1e-6).any()


def test_trivial_augment_draws_as_torchvision_does(monkeypatch):
    table = {op.__name__: (base, values) for op, base, values, _ in policies._TRIVIAL}
    found = _recorded(monkeypatch, "_TRIVIAL", policies.trivial_augment)
    assert {len(of) for of in found} == {1}
    applied = [one for of in found for one in of]
    shares = np.unique([name for name, _ in applied], return_counts=True)[1] / len(applied)
    np.testing.assert_allclose(shares, np.full(14, 1 / 14), atol=0.015)
    for name in ("rotate", "contrast"):  # one around 0, one around 1; signs are random
        base, strengths = table[name]
        drawn = np.array([value for which, value in applied if which == name]) - base
        bins = np.abs(np.abs(drawn)[:, None] - strengths).argmin(axis=1)
        np.testing.assert_allclose(np.abs(drawn), strengths[bins], atol=1e-4)
        assert len(set(bins)) >= 29
        assert abs(np.sign(drawn[bins > 0]).mean()) < 0.2
    bits = {value for which, value in applied if which == "posterize"}
    assert bits == {8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0}


def test_no_policy_is_no_change():
    assert policies.apply_policy(IMAGES, _keys(24), "", magnitude=0.0, magnitude_std=0.0) is IMAGES


def test_what_is_erased_is_a_rectangle_of_the_right_sizes():
    images = np.ones((400, 20, 30, 1), np.float32)
    erased = np.asarray(
        jax.jit(lambda x, k: policies.erase(x, k, probability=0.5))(images, _keys(400))
    )
    zeros = erased[..., 0] == 0
    share = zeros.mean(axis=(1, 2))
    hit = share > 0
    assert 0.4 < hit.mean() < 0.6
    assert share[hit].min() >= 0.01
    assert share[hit].max() <= 0.37
    assert abs(share[hit].mean() - 0.17) < 0.03
    for one in zeros[hit]:
        rows, columns = one.any(axis=1), one.any(axis=0)
        np.testing.assert_array_equal(one, rows[:, None] & columns[None, :])
        assert np.flatnonzero(np.diff(rows.astype(int))).size <= 2
    np.testing.assert_array_equal(erased[~zeros], 1)
