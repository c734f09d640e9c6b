"""Class probabilities and scores of images, by programs compiled once per batch size."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, UInt8

from resnet_jax.data.datasets import ImageSet
from resnet_jax.data.images.fit import Fit
from resnet_jax.errors import ConfigError, DataError, NumericalError
from resnet_jax.models.folding import fold_batch_norm
from resnet_jax.models.network import Network
from resnet_jax.ops.fusion import fuse
from resnet_jax.ops.prepared import Prepared
from resnet_jax.parallel.mesh import make_mesh, put_global, replicated
from resnet_jax.train.evaluate import Evaluation, Evaluator, predict_logits

_MAX_BATCH = 32
"""Largest batch, in images."""

_MAX_BATCH_PIXELS = 2**22
"""Limits the batch of large images, in pixels of all images together."""


class Predictor:
    """Inference with a trained network: resize, normalise, apply, softmax.

    Batch normalisation is folded into the convolutions, whose sums and ReLU are fused
    (`fold_batch_norm`, `fuse`). Logits are those of `model.apply` up to rounding.

    Attributes:
        fit: gives images the shape that the network takes.
    """

    def __init__(
        self, model: Network, variables: Any, normalization: Mapping[str, Any], fit: Fit
    ) -> None:
        """Keep the variables on the default device; compile nothing yet.

        Args:
            model: the network.
            variables: its variables.
            normalization: {"mean", "std"} in grey levels.
            fit: gives images the shape that the network takes.

        Raises:
            NumericalError: a variable isn't finite.
        """
        self.fit = fit
        self._model = model
        if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(variables)):
            raise NumericalError(
                "The network's weights aren't finite: the training that made them diverged, or they"
                " are damaged. Use an earlier checkpoint, or train again."
            )
        folded = fold_batch_norm(model, variables, fit.shape)
        self._arrays = jax.device_put((folded, dict(normalization)))
        self._apply = fuse(model.apply)

        def probabilities(arrays: Any, images: jax.Array) -> jax.Array:
            return jax.nn.softmax(predict_logits(model.apply, arrays[0], images, arrays[1]))

        self._probabilities = Prepared(probabilities, self._arrays)

    def with_fit(self, fit: Fit) -> "Predictor":
        """A predictor of the same network for images prepared in another way."""
        variables, normalization = self._arrays
        return Predictor(self._model, variables, normalization, fit)

    def batch_size(self, images: int) -> int:
        """The batch size for this number of images: a power of two, so that there are few."""
        height, width, _ = self.fit.shape
        most = max(1, min(_MAX_BATCH, _MAX_BATCH_PIXELS // (height * width)))
        return min(2 ** max(0, images - 1).bit_length(), 2 ** (most.bit_length() - 1))

    def predict(self, images: Sequence[UInt8[np.ndarray, "h w c"]]) -> Float[np.ndarray, "n k"]:
        """Probabilities of the classes for images as they are in files, which `fit` prepares.

        Raises:
            DataError: an image has another type, number of channels or size.
            NumericalError: the probabilities aren't finite.
        """
        return self([self._fitted(index, image) for index, image in enumerate(images)])

    def _fitted(self, index: int, image: Any) -> UInt8[np.ndarray, "h w c"]:
        try:
            return self.fit.apply(image)
        except DataError as error:
            raise DataError(f"image {index} can't be used: {error}.") from None
        except ConfigError as error:
            raise DataError(
                f"image {index} can't be used: {error}, and this run didn't scale images; scale"
                " and crop it first."
            ) from None

    def __call__(
        self, images: Sequence[UInt8[np.ndarray, "h w c"]], *, batch_size: int | None = None
    ) -> Float[np.ndarray, "n k"]:
        """Probabilities of the classes for images of the shape `fit.shape`.

        Args:
            images: any number of images.
            batch_size: images per program call; the last batch is padded. None is the
                `batch_size` of their number.

        Raises:
            DataError: an image has another shape or type.
            NumericalError: the probabilities aren't finite.
        """
        size = batch_size or self.batch_size(len(images))
        parts = []
        for start in range(0, max(1, len(images)), size):
            batch = self._padded(images[start : start + size], size)
            parts.append(np.asarray(self._probabilities(batch)))
        values = np.concatenate(parts)[: len(images)]
        if not np.isfinite(values).all():
            raise NumericalError(
                "The network's logits aren't finite; its weights don't go together with the"
                " model's fields or with the normalisation of the images."
            )
        return values

    def _padded(self, images: Sequence[np.ndarray], size: int) -> UInt8[np.ndarray, "n h w c"]:
        shape = self.fit.shape
        batch = np.zeros((size, *shape), np.uint8)
        for row, image in zip(batch, images, strict=False):
            if image.shape != shape or image.dtype != np.uint8:
                raise DataError(
                    f"An image is {image.dtype} of shape {image.shape}; the network takes"
                    f" uint8 of shape {shape}."
                )
            row[...] = image
        return batch

    def evaluate(
        self,
        data: ImageSet,
        *,
        batch_size: int,
        mirrored: bool = False,
        metrics: Sequence[str] = (),
    ) -> Evaluation:
        """Evaluate on a split, on all devices; every example counts exactly once.

        Args:
            data: images of the shape `fit.shape`, and their labels.
            batch_size: examples per batch; the result doesn't depend on it.
            mirrored: use the mean of the logits of each image and of its mirror image.
            metrics: names of registered metrics to score, too.

        Returns:
            The means of loss, top-1, top-5 and `metrics` over the examples, and the confusion
            matrix. They may be infinite or NaN: other than in `predict`, logits aren't checked.

        Raises:
            KeyError: there is no metric of such a name.
            AssertionError: not every example was counted exactly once.
        """
        mesh = make_mesh()
        evaluator = Evaluator(self._apply, data, batch_size=batch_size, mesh=mesh, metrics=metrics)
        return evaluator(*put_global(self._arrays, replicated(mesh)), mirrored=mirrored)
