"""The loader of training splits that are decoded in host memory."""

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Int

from resnet_jax.data.datasets import ImageSet
from resnet_jax.data.loaders.loader import DeviceBatches
from resnet_jax.data.loaders.sampler import Sampler
from resnet_jax.parallel.mesh import put_global, replicated


class InMemoryLoader:
    """Loads batches from host memory or from a copy of the split on every device; see `Loader`."""

    def __init__(
        self,
        data: ImageSet,
        sampler: Sampler,
        *,
        shape: tuple[int, int, int],
        layout: NamedSharding,
        mesh: Mesh,
        resident: bool,
    ) -> None:
        """Copy the training split to every device if `resident`.

        Args:
            data: the training split, in host memory.
            sampler: the order of its examples.
            shape: (steps per dispatch, micro-batches per step, examples per micro-batch).
            layout: sharding of the per-step arrays.
            mesh: the devices.
            resident: keep the whole split on every device. Otherwise the images of each dispatch
                are copied from the host.
        """
        self.waited_s = 0.0  # the images are in memory
        self._data, self._sampler = data, sampler
        self._shape, self._layout = shape, layout
        self._whole = put_global((data.images, data.labels), replicated(mesh)) if resident else None

    def start(self, step: int) -> None:
        """Do nothing: the images are in memory."""

    def take(self, step: int) -> DeviceBatches:
        """Return the batches of the dispatch whose first step is `step`."""
        by_step = self._sampler.take(step, self._shape[0])
        ids, epochs = (array.reshape(*array.shape[:-2], *self._shape) for array in by_step)
        numbers = put_global((ids, epochs), self._layout)
        if self._whole:
            return DeviceBatches(*self._whole, *numbers)
        return DeviceBatches(
            _gather(self._data.images, ids, self._layout),
            _gather(self._data.labels, ids, self._layout),
            *numbers,
        )

    def close(self) -> None:
        """Do nothing: the loader has no processes and no threads."""


def _gather(array: np.ndarray, ids: Int[np.ndarray, "..."], layout: NamedSharding) -> jax.Array:
    """Return `array[ids]` on the devices; the host copies only the rows of its own devices."""
    shape = (*ids.shape, *array.shape[1:])
    return jax.make_array_from_callback(shape, layout, lambda part: array[ids[part[: ids.ndim]]])  # type: ignore[index]
