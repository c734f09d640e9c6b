"""Mixup and CutMix: images and labels have the same shares, with the right distribution."""

import jax
import numpy as np
import pytest

from resnet_jax.data.augment.mixing import mix


def _mixed(n=400, *, mixup=0.0, cutmix=0.0, shape=(16, 12), odd=0):
    """Mix images that are constant, equal to their index: a pixel identifies its image."""
    n += odd
    images = np.broadcast_to(np.arange(n, dtype=np.float32)[:, None, None, None], (n, *shape, 1))
    targets = np.eye(n, dtype=np.float32)
    keys = jax.random.split(jax.random.key(0), n)
    mixing = jax.jit(lambda x, t, k: mix(x, t, k, mixup=mixup, cutmix=cutmix))
    mixed, labels = map(np.asarray, mixing(images, targets, keys))
    own = np.arange(n)
    other = np.where(own ^ 1 < n, own ^ 1, own)
    share = labels[own, own]
    return mixed[..., 0], labels, share, own, other


def test_without_mixup_and_cutmix_nothing_changes():
    images, targets = np.ones((4, 2, 2, 1)), np.eye(4)
    found = mix(images, targets, None, mixup=0.0, cutmix=0.0)
    assert found[0] is images
    assert found[1] is targets


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.3, 0.0), (0.0, 1.0), (0.2, 1.0)])
def test_labels_have_the_shares_of_the_pixels(mixup, cutmix):
    mixed, labels, share, own, other = _mixed(mixup=mixup, cutmix=cutmix)
    np.testing.assert_allclose(labels.sum(axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(labels[own, other], 1 - share, atol=1e-6)
    mean = share * own + (1 - share) * other
    np.testing.assert_allclose(mixed.mean(axis=(1, 2)), mean, rtol=1e-4, atol=1e-3)


def test_shares_of_mixup_are_beta_distributed():
    for alpha in (0.2, 1.0):
        _, _, share, _, _ = _mixed(2000, mixup=alpha, shape=(1, 1))
        assert abs(share.mean() - 0.5) < 0.04
        assert share.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.1)


def test_cutmix_replaces_a_box():
    mixed, _, share, own, other = _mixed(cutmix=1.0)
    replaced = mixed == other[:, None, None]
    np.testing.assert_array_equal(
        mixed[~replaced], np.broadcast_to(own[:, None, None], mixed.shape)[~replaced]
    )
    np.testing.assert_allclose(replaced.mean(axis=(1, 2)), 1 - share, atol=1e-6)
    for one in replaced:
        np.testing.assert_array_equal(one, one.any(axis=1)[:, None] & one.any(axis=0)[None, :])
    # The box covers a share 1 - λ, λ uniform; the part outside of the image is clipped.
    assert 0.25 < 1 - share.mean() < 0.5


def test_both_are_chosen_about_equally():
    mixed, *_ = _mixed(1000, mixup=0.5, cutmix=1.0)
    constant = (mixed == mixed[:, :1, :1]).all(axis=(1, 2))
    assert 0.4 < constant.mean() < 0.65


def test_the_last_of_an_odd_number_stays():
    mixed, labels, *_ = _mixed(4, mixup=1.0, odd=1)
    np.testing.assert_array_equal(mixed[-1], 4)
    np.testing.assert_allclose(labels[-1], np.eye(5)[-1])
