"""Evaluation counts every example exactly once, on any mesh, with any batch size."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax.data.datasets import ImageSet
from resnet_jax.parallel.mesh import make_mesh
from resnet_jax.parallel.shards import FixedShards
from resnet_jax.train import evaluate
from resnet_jax.train.evaluate import Evaluator
from tests.compilations import compilations


def brightness(variables, images):
    """The logits of a stand-in for a network: the image's first row."""
    return images[:, 0, :, 0] * variables["gain"]


def _image_set(n: int) -> ImageSet:
    rng = np.random.default_rng(n)
    images = rng.permuted(np.tile(np.arange(7, dtype=np.uint8) * 30, (n, 1)), axis=1)
    return ImageSet(images.reshape(n, 1, 7, 1), rng.integers(0, 7, n).astype(np.int32))


@pytest.mark.parametrize(
    ("n", "batch", "devices"), [(50, 8, 1), (50, 16, 8), (13, 64, 4), (8, 8, 8), (20, 3, 8)]
)
@pytest.mark.parametrize("chunk", [None, 7 * 8, 7 * 4, 7])
def test_scores_equal_those_of_numpy(n, batch, devices, chunk, monkeypatch):
    """However much of the split lies on the devices at a time."""
    if chunk:
        monkeypatch.setattr(evaluate, "_RESIDENT_BYTES", 0)
        monkeypatch.setattr(evaluate, "_CHUNK_BYTES", chunk)
    data = _image_set(n)
    evaluator = Evaluator(brightness, data, batch_size=batch, mesh=make_mesh(data=devices))
    scores = evaluator({"gain": jnp.float32(0.01)}, {"mean": np.float32(0), "std": np.float32(1)})

    logits = data.images[:, 0, :, 0].astype(np.float64) * 0.01
    order = np.argsort(-logits, axis=1)
    hits = order == data.labels[:, None]
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    confusion = np.zeros((7, 7), int)
    np.add.at(confusion, (data.labels, order[:, 0]), 1)
    assert scores.examples == n
    assert scores.top1 == hits[:, 0].sum() / n
    assert scores.top5 == hits[:, :5].sum() / n
    assert scores.loss == pytest.approx(-log_p[np.arange(n), data.labels].mean(), rel=1e-5)
    np.testing.assert_array_equal(scores.confusion, confusion)


def test_logits_of_mirror_images_are_averaged():
    data = _image_set(20)
    evaluator = Evaluator(brightness, data, batch_size=8, mesh=make_mesh(data=1))
    constants = {"gain": jnp.float32(0.01)}, {"mean": np.float32(0), "std": np.float32(1)}
    logits = data.images[:, 0, :, 0].astype(np.float64) * 0.01
    mean = (logits + logits[:, ::-1]) / 2  # this network's logits are mirrored with the image
    log_p = mean - np.log(np.exp(mean).sum(axis=1, keepdims=True))
    expected = -log_p[np.arange(20), data.labels].mean()
    assert evaluator(*constants, mirrored=True).loss == pytest.approx(expected, rel=1e-5)
    assert evaluator(*constants).loss != pytest.approx(expected, rel=1e-3)


def test_equal_logits_score_as_argmax_would():
    """A dead network must not look perfect."""
    data = _image_set(70)
    evaluator = Evaluator(brightness, data, batch_size=8, mesh=make_mesh(data=1))
    scores = evaluator({"gain": jnp.float32(0)}, {"mean": np.float32(0), "std": np.float32(1)})
    assert scores.top1 == (data.labels == 0).mean() == np.trace(scores.confusion) / 70
    assert scores.top5 == (data.labels < 5).mean()


def test_a_network_of_nans_scores_nothing():
    data = _image_set(20)
    evaluator = Evaluator(brightness, data, batch_size=8, mesh=make_mesh(data=1))
    scores = evaluator(
        {"gain": jnp.float32(jnp.nan)}, {"mean": np.float32(0), "std": np.float32(1)}
    )
    assert (scores.top1, scores.top5) == (0, 0)
    assert np.isnan(scores.loss)


def test_an_infinite_logit_counts_as_wrong_among_few_classes_too():
    """With three, each is among the first five; the loss is finite."""

    def infinite(variables, images):
        return images[:, 0, :, 0] - jnp.array([jnp.inf, 0, 0])

    data = ImageSet(np.zeros((4, 1, 3, 1), np.uint8), np.ones(4, np.int32))
    evaluator = Evaluator(infinite, data, batch_size=4, mesh=make_mesh(data=1))
    scores = evaluator({}, {"mean": np.float32(0), "std": np.float32(1)})
    assert (scores.top1, scores.top5) == (0, 0)
    assert scores.loss == pytest.approx(np.log(2))


def test_a_miscount_is_an_error(monkeypatch):
    data = _image_set(20)
    evaluator = Evaluator(brightness, data, batch_size=8, mesh=make_mesh(data=1))
    images, labels, mask = evaluator._resident
    monkeypatch.setattr(evaluator, "_resident", (images, labels, jnp.ones_like(mask)))
    with pytest.raises(AssertionError, match="scored 24 examples of a split of 20"):
        evaluator({"gain": jnp.float32(1)}, {"mean": np.float32(0), "std": np.float32(1)})


def test_jax_is_given_eight_devices():
    """The meshes of this suite would otherwise all be the same."""
    assert jax.device_count() == 8


@pytest.mark.parametrize("fixed", [False, pytest.param(True, marks=pytest.mark.thorough)])
def test_chunks_are_evaluated_by_one_program(fixed, monkeypatch):
    monkeypatch.setattr(evaluate, "_RESIDENT_BYTES", 0)
    monkeypatch.setattr(evaluate, "_CHUNK_BYTES", 7 * 8)
    mesh = make_mesh(data=2)
    shards = FixedShards(4, mesh) if fixed else None
    evaluator = Evaluator(brightness, _image_set(50), batch_size=8, mesh=mesh, shards=shards)
    assert evaluator._chunks[0] > 2
    constants = {"gain": jnp.float32(0.01)}, {"mean": np.float32(0), "std": np.float32(1)}
    with compilations() as programs:
        evaluator(*constants)
    assert len(programs) == 1


@pytest.mark.thorough
def test_scores_by_fixed_shards_have_the_same_bits_on_another_mesh_and_in_chunks(monkeypatch):
    data, norm = _image_set(50), {"mean": np.float32(0), "std": np.float32(7)}
    scores = []
    for devices, chunk in [(1, None), (4, 7 * 8)]:
        if chunk:
            monkeypatch.setattr(evaluate, "_RESIDENT_BYTES", 0)
            monkeypatch.setattr(evaluate, "_CHUNK_BYTES", chunk)
        mesh = make_mesh(data=devices)
        evaluator = Evaluator(
            brightness, data, batch_size=13, mesh=mesh, shards=FixedShards(8, mesh)
        )
        scores.append(evaluator({"gain": jnp.float32(0.3)}, norm))
    logits = data.images[:, 0, :, 0].astype(np.float64) / 7 * 0.3
    losses = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(50), data.labels]
    assert scores[0].loss == pytest.approx(losses.mean(), rel=1e-5)
    assert scores[1].metrics == scores[0].metrics
    np.testing.assert_array_equal(scores[1].confusion, scores[0].confusion)
