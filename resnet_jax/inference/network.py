"""A trained network with all that it needs to classify images."""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, UInt8
from ml_collections import ConfigDict

from resnet_jax.config.schema import streams
from resnet_jax.data.dataset_info import FROM_PYTHON
from resnet_jax.data.datasets import ImageSet, load_dataset
from resnet_jax.data.images.fit import Fit
from resnet_jax.data.images.preprocessing import Preprocessing, encode_mean_image
from resnet_jax.data.readers.from_python import PythonData, open_python_data
from resnet_jax.data.readers.python_examples import Examples
from resnet_jax.errors import ConfigError, DataError
from resnet_jax.inference.predictor import Predictor
from resnet_jax.models.network import Network
from resnet_jax.parallel.mesh import make_mesh, put_global, replicated
from resnet_jax.parallel.shards import fix_thread_pool, make_shards
from resnet_jax.train.data_sizes import evaluation_crop
from resnet_jax.train.evaluate import Evaluation, Evaluator
from resnet_jax.train.experiment import ROLES, load_data


@dataclasses.dataclass(frozen=True, repr=False)
class TrainedNetwork:
    """The network of a checkpoint of a run.

    Attributes:
        config: the run's configuration.
        step: the step of the checkpoint.
        model: the linen module.
        variables: the variables for `model.apply`.
        normalization: {"mean", "std"} of the training images, in grey levels.
        class_names: one name per logit.
        image_shape: (h, w, c) of the images that the network takes.
        source: the run's directory.
    """

    config: ConfigDict
    step: int
    model: Network
    variables: dict[str, Any]
    normalization: dict[str, jax.Array]
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    source: str = ""

    def __repr__(self) -> str:
        """Describe the network in a line, without its arrays."""
        count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(self.variables["params"]))
        height, width, channels = self.image_shape
        crop = self.image_fit.crop
        how = (
            f"scaled to {crop.cover[0]}×{crop.cover[1]} and cropped" if crop and crop.cover else ""
        )
        return (
            f"<TrainedNetwork {self.config.model.name}: {count:,} parameters,"
            f" {len(self.class_names)} classes, uint8 images"
            f" {how or 'as they are'} ({height}×{width}×{channels}),"
            f" step {self.step:,} of {self.source or 'a run'}>"
        )

    @property
    def image_fit(self) -> Fit:
        """How the run gave its evaluation images the shape that the network takes.

        Without a crop, images must have that shape. Colours are converted if images were cropped
        or come from a folder, and refused otherwise.
        """
        crop = evaluation_crop(self.config)
        convert = crop is not None or self.config.data.name == "folder"
        return Fit(self.image_shape, crop, convert=convert)

    def preprocessing(self) -> Preprocessing | None:
        """How images are prepared for the network, for a weight file.

        None if a weight file can't say it: with images that aren't square, or that have neither
        one nor three channels.

        Raises:
            ConfigError: the name of a class isn't a line of text.
        """
        height, width, channels = self.image_shape
        if height != width or channels not in (1, 3):
            return None
        mean, std = (np.asarray(self.normalization[name], float) for name in ("mean", "std"))
        data, crop = self.config.data, self.image_fit.crop
        of_channels = mean.mean(axis=(0, 1)) if mean.ndim == 3 else mean
        return Preprocessing(
            mean=tuple(map(float, data.mean)) or tuple((of_channels / 255).tolist()),
            std=tuple(map(float, data.std))
            or tuple((np.broadcast_to(std, channels) / 255).tolist()),
            size=height,
            resize=crop.cover[0] if crop and crop.cover else None,
            interpolation=crop.interpolation if crop else "bilinear",
            class_names=self.class_names,
            mean_image=encode_mean_image(mean) if mean.ndim == 3 else None,
        )

    @functools.cached_property
    def predictor(self) -> Predictor:
        """The predictor that `predict` and `evaluate` call."""
        return Predictor(self.model, self.variables, self.normalization, self.image_fit)

    def predict(self, images: Sequence[UInt8[np.ndarray, "h w c"]]) -> Float[np.ndarray, "n k"]:
        """Probabilities of the classes for images as they are in files.

        The images are prepared as the run prepared its evaluation images: scaled and cropped if
        the run did so (`image_fit`), and normalised. A program is compiled for each power of two
        up to 32 images, when it is first needed.

        Args:
            images: uint8 [h, w, c] each, upright, with the channels of `image_shape`. If the run
                didn't scale its images, all have `image_shape`.

        Raises:
            DataError: an image has another type, number of channels or size.
            NumericalError: the probabilities aren't finite.
        """
        return self.predictor.predict(images)

    def evaluate(
        self,
        split: str,
        *,
        data_dir: str | None = None,
        datasets: Mapping[str, Examples] | None = None,
        mirrored: bool = False,
    ) -> Evaluation:
        """Evaluate on a split of the run's data, or of other data, on all devices.

        With fixed shards (`mesh.shards`) the scores have the bits of the run's own evaluation, on
        as many devices as divide the shards. On CPUs this needs as many threads of XLA as there
        are shards; a warning is logged if JAX has started with another number.

        Args:
            split: "train", "validation" or "test"; with `datasets` any of their names.
            data_dir: where the data are; None is the `data.dir` of the run.
            datasets: data to use instead, as of `fit`, of the classes of the network. If the run
                was trained on `datasets`, `split` selects the examples that `data.train`,
                `data.validation` or `data.test` of its config names.
            mirrored: use the mean of the logits of each image and of its mirror image.

        Raises:
            ConfigError: the run's config names no such split, or the run was trained on `datasets`
                and there are none.
            DataError: the data are missing, or have other classes or images than the network.
        """
        if datasets is None:
            data = self._load_run_data(split, data_dir)
        else:
            data = self._load_given_data(split, PythonData(datasets, self.class_names))
        config = self.config
        scored = self._evaluate_as_trained if config.mesh.shards else self.predictor.evaluate
        return scored(
            data,
            batch_size=config.eval_batch_size,
            mirrored=mirrored,
            metrics=config.metrics,
        )

    def _load_run_data(self, split: str, data_dir: str | None) -> ImageSet:
        """Read a split of the data that the run's config names."""
        config = self.config.copy_and_resolve_references()
        named = [role for role in ROLES if config.data[role]]
        if split not in named:
            raise ConfigError(f"The run's config names no {split} split, but {', '.join(named)}.")
        if data_dir:
            config.data.dir = data_dir
        if config.data.name == FROM_PYTHON:
            raise ConfigError(
                "The data of this run were passed in Python and are in no file. Pass them again, in"
                f" Python: resnet_jax.restore_run({self.source!r}).evaluate({split!r},"
                f" datasets={{{split!r}: (images, labels)}})."
            )
        if split == "train" and streams(config):
            raise ConfigError("The training images of this run are decoded as needed, not scored.")
        dataset = load_data(config)
        if dataset.class_names != self.class_names:
            raise DataError(
                f"{config.data.name} has other classes now than when the network was trained."
            )
        return dataset.splits[split]

    def _load_given_data(self, split: str, data: PythonData) -> ImageSet:
        """Read a split of data that are passed in Python."""
        of_run = self.config.data.name == FROM_PYTHON and split in ROLES
        dataset = load_dataset(
            FROM_PYTHON,
            splits={split: (self.config.data[split] if of_run else "") or split},
            corrupt=self.config.data.corrupt,
            source=open_python_data(data, crop=self.image_fit.crop, channels=None),
        )
        if dataset.image_shape != self.image_shape:
            found, wanted = ("{}×{}×{}".format(*s) for s in (dataset.image_shape, self.image_shape))
            raise DataError(f"The images of {split!r} are {found}; the network takes {wanted}.")
        return dataset.splits[split]

    def _evaluate_as_trained(
        self, data: ImageSet, *, batch_size: int, mirrored: bool, metrics: Sequence[str]
    ) -> Evaluation:
        """Evaluate by the program of the run, where `Predictor` has another, which is faster."""
        count = self.config.mesh.shards
        fix_thread_pool(count)
        mesh = make_mesh(data=math.gcd(count, jax.device_count()))
        shards = make_shards(count, mesh)
        evaluator = Evaluator(
            self.model.apply,
            data,
            batch_size=batch_size,
            mesh=mesh,
            metrics=metrics,
            shards=shards,
        )
        arrays = put_global((self.variables, self.normalization), replicated(mesh))
        return evaluator(*arrays, mirrored=mirrored)
