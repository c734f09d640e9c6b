"""Class probabilities of images, by programs that are compiled once for each size of a batch."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, UInt8

from resnet_jax.errors import DataError, NumericalError

_BATCH = 32  # images
_BATCH_PIXELS = 2**22  # no more of them than this, if the images are large


class Predictor:
    """A network with its variables on the default device: `predictor(images)`."""

    def __init__(
        self,
        model: Any,
        variables: Any,
        normalize: Callable[[jax.Array], jax.Array],
        image_shape: tuple[int, int, int],
    ) -> None:
        """Compile nothing yet.

        Args:
            model: linen module.
            variables: for `model.apply`.
            normalize: uint8 [n, h, w, c] → float32, under `jit`.
            image_shape: (h, w, c).
        """
        self._variables = jax.device_put(variables)
        self._shape = image_shape

        def probabilities(variables: Any, images: jax.Array) -> jax.Array:
            logits: Any = model.apply(variables, normalize(images))
            return jax.nn.softmax(logits)

        self._probabilities = jax.jit(probabilities)

    def batch_size(self, images: int) -> int:
        """How many images a program takes at a time: a power of two, so that there are few."""
        height, width, _ = self._shape
        most = max(1, min(_BATCH, _BATCH_PIXELS // (height * width)))
        return min(2 ** max(0, images - 1).bit_length(), 2 ** (most.bit_length() - 1))

    def __call__(
        self, images: Sequence[UInt8[np.ndarray, "h w c"]], *, batch_size: int | None = None
    ) -> Float[np.ndarray, "n k"]:
        """Probabilities of the classes.

        Args:
            images: any number of them, of `image_shape`.
            batch_size: images at a time, the last of which are filled up; None is the
                `batch_size` of their number.

        Raises:
            DataError: an image has another shape or type.
            NumericalError: the network gives something else than numbers.
        """
        size = batch_size or self.batch_size(len(images))
        parts = []
        for start in range(0, max(1, len(images)), size):
            some = images[start : start + size]
            batch = np.zeros((size, *self._shape), np.uint8)
            for row, image in zip(batch, some, strict=False):
                if image.shape != self._shape or image.dtype != np.uint8:
                    raise DataError(
                        f"An image is {image.dtype} of shape {image.shape}; the network takes"
                        f" uint8 of shape {self._shape}."
                    )
                row[...] = image
            parts.append(np.asarray(self._probabilities(self._variables, batch))[: len(some)])
        values = np.concatenate(parts)
        if not np.isfinite(values).all():
            raise NumericalError(
                "The network's logits aren't finite; its weights don't go together with the"
                " model's fields or with the normalisation of the images."
            )
        return values
