"""Which examples make up each training batch: a pure function of (seed, position in the run).

The stream of a run is epoch after epoch, each a fresh permutation of the training split; batches
are cut from it without regard to epoch boundaries, so no example is ever dropped. Because a
position determines its example, resuming needs only the step number, and neither the number of
devices nor of processes can change the order.
"""

import bisect
import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple, Protocol

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Int, UInt8

from resnet_jax.data.datasets import ImageSet
from resnet_jax.parallel.mesh import put_global, replicated


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
    """The training examples of a run in their order.

    With `repeats` an image is that many times in a batch (Hoffer et al. 2019, 1901.09335), in as
    many parts of it; an epoch is as long as ever, and has as many fewer images.
    """

    seed: int
    num_examples: int
    batch_size: int
    repeats: int = 1

    def __reduce__(self) -> tuple[type["ExampleStream"], tuple[int, ...]]:
        """Another process remembers orders of its own."""
        return ExampleStream, (self.seed, self.num_examples, self.batch_size, self.repeats)

    @functools.cached_property
    def _order(self) -> Callable[[int], Int[np.ndarray, " n"]]:
        """`epoch_permutation` by the epoch. It keeps the last few: a batch may straddle two."""
        order = functools.partial(epoch_permutation, self.seed, num_examples=self.num_examples)
        return functools.lru_cache(maxsize=4)(order)

    @functools.cached_property
    def _distinct(self) -> "ExampleStream":
        """With repeats, the images of a batch without them."""
        images = -(-self.batch_size // self.repeats)
        return dataclasses.replace(self, batch_size=images, repeats=1)

    def take(
        self, step: int, steps: int
    ) -> tuple[Int[np.ndarray, "steps b"], Int[np.ndarray, "steps b"]]:
        """Return (example ids, their epochs) of `steps` batches, beginning with number `step`.

        With repeats, the "epoch" of each is another number: no two (id, epoch) are the same.
        """
        if self.repeats > 1:
            ids, epochs = self._distinct.take(step, steps)
            number = np.repeat(np.arange(self.repeats, dtype=np.int32), ids.shape[1])
            tiled = np.tile(epochs, self.repeats) * self.repeats + number
            return np.tile(ids, self.repeats)[:, : self.batch_size], tiled[:, : self.batch_size]
        start, stop = step * self.batch_size, (step + steps) * self.batch_size
        position = np.arange(start, stop, dtype=np.int64)
        epochs, within = np.divmod(position, self.num_examples)
        ids = np.empty(len(position), np.int32)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            ids[here] = self._order(int(epoch))[within[here]]
        shape = (steps, self.batch_size)
        return ids.reshape(shape), epochs.astype(np.int32).reshape(shape)


@dataclasses.dataclass(frozen=True)
class CropSizes:
    """The size of crops, in pixels, by the step: `sizes[i]` up to `edges[i]`, then the last."""

    sizes: tuple[int, ...]
    edges: tuple[float, ...] = ()

    def at(self, step: int) -> int:
        """The size in a step."""
        return self.sizes[bisect.bisect_right(self.edges, step)]


class DeviceBatches(NamedTuple):
    """The examples of one dispatch, on the devices: k steps of m micro-batches of n examples.

    `images` and `labels` are those of the steps, [k, m, n, …], split over the mesh along n; or
    the whole training split, on every device, into which `ids` point. Of several seeds, what is
    of steps has an axis of them in front.
    """

    images: UInt8[Array, "*examples h w c"]
    labels: Int[Array, "*examples"]
    ids: Int[Array, "*seeds k m n"]
    epochs: Int[Array, "*seeds k m n"]


class Stream(Protocol):
    """The order of examples, of one seed or, with an axis in front, of several."""

    def take(
        self, step: int, steps: int
    ) -> tuple[Int[np.ndarray, "*seeds steps b"], Int[np.ndarray, "*seeds steps b"]]:
        """See `ExampleStream.take`."""


class Batches:
    """Brings the batches of a run to the devices, each process those of its own devices.

    Attributes:
        waited_s: seconds that the host waited for images; none, as they're in its memory.
    """

    waited_s = 0.0

    def __init__(
        self,
        data: ImageSet,
        stream: Stream,
        *,
        shape: tuple[int, int, int],
        layout: NamedSharding,
        mesh: Mesh,
        resident: bool,
    ) -> None:
        """Place the training split on every device if it is to be `resident` there.

        Args:
            data: the training split, in host memory.
            stream: its order.
            shape: (steps per dispatch, micro-batches per step, examples of each).
            layout: of what is of steps.
            mesh: of the devices.
            resident: otherwise images are sent from the host, those of a dispatch at a time.
        """
        self._data, self._stream = data, stream
        self._shape, self._layout = shape, layout
        self._whole = put_global((data.images, data.labels), replicated(mesh)) if resident else None

    def take(self, step: int) -> DeviceBatches:
        """The batches of a dispatch that begins with number `step`."""
        by_step = self._stream.take(step, self._shape[0])
        ids, epochs = (array.reshape(*array.shape[:-2], *self._shape) for array in by_step)
        numbers = put_global((ids, epochs), self._layout)
        if self._whole:
            return DeviceBatches(*self._whole, *numbers)
        return DeviceBatches(
            _gather(self._data.images, ids, self._layout),
            _gather(self._data.labels, ids, self._layout),
            *numbers,
        )

    def start(self, step: int) -> None:
        """Nothing need be read ahead."""

    def close(self) -> None:
        """Nothing is open."""


def _gather(array: np.ndarray, ids: Int[np.ndarray, "..."], layout: NamedSharding) -> jax.Array:
    """`array[ids]` on the devices; the host copies only the rows that its devices hold."""
    shape = (*ids.shape, *array.shape[1:])
    return jax.make_array_from_callback(shape, layout, lambda part: array[ids[part[: ids.ndim]]])  # type: ignore[index]
