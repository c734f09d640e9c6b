"""The order of the examples is a function of the seed and the position."""

import hashlib
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resnet_jax.data.loaders import sampler
from resnet_jax.data.loaders.sampler import IndexSampler, batches_digest, epoch_permutation
from resnet_jax.train.multi_seed import SeedSamplers


@settings(max_examples=50)
@given(n=st.integers(1, 60), batch=st.integers(1, 70), seed=st.integers(0, 2**32))
def test_each_epoch_visits_every_example_once(n, batch, seed):
    steps = -(-3 * n // batch)
    ids, epochs = IndexSampler(seed, n, batch).take(0, steps)
    for epoch in range(3):
        assert sorted(ids[epochs == epoch]) == list(range(n))


@settings(max_examples=50)
@given(start=st.integers(0, 40), first=st.integers(1, 5), second=st.integers(1, 5))
def test_the_order_does_not_depend_on_how_it_is_cut(start, first, second):
    order = IndexSampler(7, 23, 5)
    whole = order.take(start, first + second)
    parts = order.take(start, first), order.take(start + first, second)
    for i in range(2):
        np.testing.assert_array_equal(whole[i], np.concatenate([part[i] for part in parts]))


@pytest.mark.parametrize("repeats", [1, 3])
def test_each_epoch_of_each_of_many_seeds_is_put_in_order_once(repeats, monkeypatch):
    asked = []

    def counted(seed, epoch, num_examples):
        asked.append((seed, epoch))
        return epoch_permutation(seed, epoch, num_examples)

    monkeypatch.setattr(sampler, "epoch_permutation", counted)
    seeds = SeedSamplers(tuple(IndexSampler(seed, 20, 6, repeats) for seed in range(8)))
    for step in range(0, 20, 2):  # 120 examples, which are 6 epochs or, repeated, 2
        seeds.take(step, 2)
    assert sorted(asked) == [(seed, epoch) for seed in range(8) for epoch in range(6 // repeats)]


def test_a_sampler_is_the_same_in_another_process():
    order = IndexSampler(7, 23, 5, repeats=2)
    before = order.take(3, 2)
    again = pickle.loads(pickle.dumps(order))
    assert again == order
    for ours, wanted in zip(again.take(3, 2), before, strict=True):
        np.testing.assert_array_equal(ours, wanted)


def test_the_order_is_the_same_in_every_version():
    """Runs that were begun with another version of NumPy, or on another machine, must resume."""
    assert epoch_permutation(0, 0, 10).tolist() == [0, 2, 9, 1, 8, 5, 4, 3, 6, 7]
    assert epoch_permutation(1, 2, 10).tolist() == [4, 2, 0, 6, 1, 5, 9, 8, 7, 3]


def test_epochs_and_seeds_differ():
    orders = {tuple(epoch_permutation(s, e, 100)) for s in range(5) for e in range(5)}
    assert len(orders) == 25


def test_the_digest_of_batches_is_that_of_their_ids_and_epochs(monkeypatch):
    order = IndexSampler(7, 23, 5)
    digest = batches_digest([order], 3, 17)
    expected = hashlib.blake2b(digest_size=8)
    for step in range(3, 17):
        for numbers in order.take(step, 1):
            expected.update(numbers.astype("<i4").tobytes())
    assert digest == expected.hexdigest()
    monkeypatch.setattr(sampler, "_STEPS_AT_ONCE", 4)
    assert batches_digest([order], 3, 17) == digest
    others = [IndexSampler(8, 23, 5)], [IndexSampler(7, 22, 5)], [order, order]
    assert digest not in [batches_digest(other, 3, 17) for other in others]
    assert batches_digest([order], 3, 16) != digest != batches_digest([order], 26, 40)
