"""The order of the training examples: a pure function of (seed, position in the run).

The order of a run is a concatenation of epochs; each epoch is a permutation of the training split.
Batches are consecutive parts of this order and may straddle two epochs: no example is dropped. A
position determines its example. Resuming therefore needs only the step number, and the order
doesn't depend on the number of devices or processes.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from jaxtyping import Int


class Sampler(Protocol):
    """The order of the examples of one seed or, with a leading seed axis, of several seeds."""

    def take(
        self, step: int, steps: int
    ) -> tuple[Int[np.ndarray, "*seeds steps b"], Int[np.ndarray, "*seeds steps b"]]:
        """Return example ids and epochs; see `IndexSampler.take`."""


def epoch_permutation(seed: int, epoch: int, num_examples: int) -> Int[np.ndarray, " n"]:
    """Return the order of the examples in one epoch, int32 [num_examples], read-only.

    The order is an argsort of raw Philox bits. NumPy keeps their stream stable between versions
    and platforms, unlike the stream of `Generator.permutation`.
    """
    bits = np.random.Philox(key=np.array([seed, epoch], np.uint64)).random_raw(num_examples)
    order = np.argsort(bits, kind="stable").astype(np.int32)
    order.setflags(write=False)
    return order


@dataclasses.dataclass(frozen=True)
class IndexSampler:
    """Chooses the training examples of each step.

    Attributes:
        seed: the run's seed.
        num_examples: examples of the training split.
        batch_size: examples per step.
        repeats: how often a batch contains each of its images (Hoffer et al. 2019, 1901.09335).
            The batch is a concatenation of `repeats` copies of a smaller batch. An epoch has as
            many steps as without repeats, and `repeats` times fewer distinct images.
    """

    seed: int
    num_examples: int
    batch_size: int
    repeats: int = 1

    def __reduce__(self) -> tuple[type["IndexSampler"], tuple[int, ...]]:
        """Pickle the fields only: the cached orders can't be pickled."""
        return IndexSampler, (self.seed, self.num_examples, self.batch_size, self.repeats)

    @functools.cached_property
    def _order(self) -> Callable[[int], Int[np.ndarray, " n"]]:
        """`epoch_permutation` of an epoch, cached for the last few epochs."""
        order = functools.partial(epoch_permutation, self.seed, num_examples=self.num_examples)
        return functools.lru_cache(maxsize=4)(order)

    @functools.cached_property
    def _without_repeats(self) -> "IndexSampler":
        """The sampler of the distinct images of each batch."""
        images = -(-self.batch_size // self.repeats)
        return dataclasses.replace(self, batch_size=images, repeats=1)

    def take(
        self, step: int, steps: int
    ) -> tuple[Int[np.ndarray, "steps b"], Int[np.ndarray, "steps b"]]:
        """Return the example ids and their epochs for `steps` steps, starting at `step`.

        With repeats, the epoch of each copy is a different number: every pair (id, epoch) occurs
        once in a run, and so no augmentation is drawn twice.
        """
        if self.repeats > 1:
            ids, epochs = self._without_repeats.take(step, steps)
            copy = np.repeat(np.arange(self.repeats, dtype=np.int32), ids.shape[1])
            tiled = np.tile(epochs, self.repeats) * self.repeats + copy
            return np.tile(ids, self.repeats)[:, : self.batch_size], tiled[:, : self.batch_size]
        start, stop = step * self.batch_size, (step + steps) * self.batch_size
        position = np.arange(start, stop, dtype=np.int64)
        epochs, within = np.divmod(position, self.num_examples)
        ids = np.empty(len(position), np.int32)
        for epoch in np.unique(epochs):
            in_epoch = epochs == epoch
            ids[in_epoch] = self._order(int(epoch))[within[in_epoch]]
        shape = (steps, self.batch_size)
        return ids.reshape(shape), epochs.astype(np.int32).reshape(shape)


_STEPS_AT_ONCE = 64


def batches_digest(orders: Sequence[IndexSampler], first: int, stop: int) -> str:
    """Return a digest of the batches of the steps from `first` up to `stop`, exclusive.

    Args:
        orders: the order of the examples of each seed.
        first, stop: step numbers, from 0.

    Returns:
        BLAKE2b, 64 bits in hexadecimal, of the ids and the epochs of all examples in their order.
    """
    digest = hashlib.blake2b(digest_size=8)
    for order in orders:
        for step in range(first, stop, _STEPS_AT_ONCE):
            for batch in zip(*order.take(step, min(_STEPS_AT_ONCE, stop - step)), strict=True):
                for numbers in batch:  # ids, epochs
                    digest.update(numbers.astype("<i4").tobytes())
    return digest.hexdigest()
