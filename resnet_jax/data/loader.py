"""Which examples make up each training batch: a pure function of (seed, position in the run).

The stream of a run is epoch after epoch, each a fresh permutation of the training split; batches
are cut from it without regard to epoch boundaries, so no example is ever dropped. Because a
position determines its example, resuming needs only the step number, and neither the number of
devices nor of processes can change the order.
"""

import dataclasses
import functools

import numpy as np
from jaxtyping import Int


@functools.lru_cache(maxsize=4)  # a batch may straddle two epochs
def epoch_permutation(seed: int, epoch: int, num_examples: int) -> Int[np.ndarray, " n"]:
    """Order of the examples in one epoch, int32 [num_examples], equal on every platform.

    It sorts raw Philox bits, whose stream NumPy keeps stable between versions, unlike that of
    `Generator.permutation`.
    """
    bits = np.random.Philox(key=np.array([seed, epoch], np.uint64)).random_raw(num_examples)
    order = np.argsort(bits, kind="stable").astype(np.int32)
    order.setflags(write=False)
    return order


@dataclasses.dataclass(frozen=True)
class ExampleStream:
    """The training examples of a run in their order."""

    seed: int
    num_examples: int
    batch_size: int

    def take(
        self, step: int, steps: int
    ) -> tuple[Int[np.ndarray, "steps b"], Int[np.ndarray, "steps b"]]:
        """Return (example ids, their epochs) of `steps` batches, beginning with number `step`."""
        start, stop = step * self.batch_size, (step + steps) * self.batch_size
        position = np.arange(start, stop, dtype=np.int64)
        epochs, within = np.divmod(position, self.num_examples)
        ids = np.empty(len(position), np.int32)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            order = epoch_permutation(self.seed, int(epoch), self.num_examples)
            ids[here] = order[within[here]]
        shape = (steps, self.batch_size)
        return ids.reshape(shape), epochs.astype(np.int32).reshape(shape)
