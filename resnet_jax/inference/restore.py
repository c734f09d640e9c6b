"""A trained network from a run's directory: to score, or to classify images with."""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from jaxtyping import Float, UInt8
from ml_collections import ConfigDict

from resnet_jax.checkpoint.checkpointer import Checkpointer
from resnet_jax.checkpoint.workdir import CHECKPOINTS, CONFIG, read_config
from resnet_jax.config.io import from_json
from resnet_jax.config.schema import model_overrides, streams
from resnet_jax.data.images.fit import Fit
from resnet_jax.data.images.normalization import normalize
from resnet_jax.data.images.preprocessing import Preprocessing
from resnet_jax.errors import ConfigError, DataError, UsageError
from resnet_jax.inference.predictor import Predictor
from resnet_jax.models.presets import Network, create_model
from resnet_jax.parallel.mesh import make_mesh, put_global, replicated
from resnet_jax.train.evaluate import Evaluation, Evaluator
from resnet_jax.train.experiment import load_data
from resnet_jax.train.multi_seed import single_configs
from resnet_jax.train.spec import evaluation_crop
from resnet_jax.utils.paths import as_path


@dataclasses.dataclass(frozen=True, repr=False)
class TrainedNetwork:
    """A checkpoint of a run, ready to use.

    Attributes:
        config: of the run.
        step: of the checkpoint.
        model: the linen module.
        variables: for `model.apply`.
        normalization: {"mean", "std"} of the training images, in grey levels.
        class_names: one per logit.
        image_shape: (h, w, c) of the images it was scored on, and takes.
        source: the directory of the run.
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
        """Say in a line what it is, without its arrays."""
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
        """How the run gave its images the shape that the network takes.

        Images that weren't scaled must have that shape; the colours of those of a folder, and of
        those that were scaled, were converted.
        """
        crop = evaluation_crop(self.config)
        convert = crop is not None or self.config.data.name == "folder"
        return Fit(self.image_shape, crop, convert=convert)

    def preprocessing(self) -> Preprocessing | None:
        """How images are prepared for the network, as a weight file says it.

        None if it can't be said so: of a mean image, of grey images, or of others than squares.

        Raises:
            ConfigError: the name of a class isn't a line of text.
        """
        height, width, channels = self.image_shape
        mean, std = (np.asarray(self.normalization[name], float) for name in ("mean", "std"))
        if (height, channels) != (width, 3) or mean.shape != (3,):
            return None
        data, crop = self.config.data, self.image_fit.crop
        return Preprocessing(
            mean=tuple(map(float, data.mean)) or tuple((mean / 255).tolist()),  # type: ignore[arg-type]
            std=tuple(map(float, data.std)) or tuple((std / 255).tolist()),  # type: ignore[arg-type]
            size=height,
            resize=crop.cover[0] if crop and crop.cover else None,
            interpolation=crop.interpolation if crop else "bilinear",
            class_names=self.class_names,
        )

    @functools.cached_property
    def predictor(self) -> Predictor:
        """What `predict` calls with images that have the network's shape."""
        statistics = jax.device_put(self.normalization)
        return Predictor(
            self.model,
            self.variables,
            lambda images: normalize(images, statistics),
            self.image_shape,
        )

    def predict(self, images: Sequence[UInt8[np.ndarray, "h w c"]]) -> Float[np.ndarray, "n k"]:
        """Probabilities of the classes for images as they are in files.

        The images are prepared as the run prepared those that it was scored on: scaled and cropped
        if the run did so (`image_fit`), and normalised. A program is compiled for each power of
        two up to 32 images, when it is first needed.

        Args:
            images: uint8 [h, w, c] each, upright, with the channels of `image_shape`. Of a run
                that didn't scale its images, all have `image_shape`.

        Raises:
            DataError: an image is of another type, shape or size.
            NumericalError: the network gives something else than numbers.
        """
        return self.predictor([self._fitted(number, one) for number, one in enumerate(images)])

    def _fitted(self, number: int, image: Any) -> UInt8[np.ndarray, "h w c"]:
        try:
            return self.image_fit.apply(image)
        except DataError as error:
            raise DataError(f"image {number} can't be used: {error}.") from None
        except ConfigError as error:
            raise DataError(
                f"image {number} can't be used: {error}, and this run didn't scale images; scale"
                " and crop it first."
            ) from None

    def evaluate(
        self, split: str, *, data_dir: str | None = None, mirrored: bool = False
    ) -> Evaluation:
        """Score on "train", "validation" or "test" of the run's data, on all devices.

        With `mirrored` the logits are means of those of an image and of its mirror image.

        Raises:
            ConfigError: the run's config names no such split.
            DataError: the data are missing, or aren't those that the network was made for.
        """
        config = self.config.copy_and_resolve_references()
        if data_dir:
            config.data.dir = data_dir
        if not config.data[split]:
            raise ConfigError(f"The run's config names no {split} split.")
        if split == "train" and streams(config):
            raise ConfigError("The training images of this run are decoded as needed, not scored.")
        dataset = load_data(config)
        if dataset.class_names != self.class_names:
            raise DataError(
                f"{config.data.name} has other classes now than when the network was trained."
            )
        mesh = make_mesh()
        evaluator = Evaluator(
            self.model, dataset.splits[split], batch_size=config.eval_batch_size, mesh=mesh
        )
        arrays = put_global((self.variables, self.normalization), replicated(mesh))
        return evaluator(*arrays, mirrored=mirrored)


def seeds_of(workdir: epath.PathLike) -> tuple[int, ...]:
    """The seeds of a run, of which a `restore_run` takes one.

    Raises:
        UsageError: `workdir` isn't the name of a folder.
        ConfigError: it isn't a run.
    """
    config = _config_of(as_path(workdir))
    return tuple(config.seeds) or (config.seed,)


def _config_of(workdir: epath.Path) -> ConfigDict:
    try:
        return from_json(read_config(workdir))
    except ConfigError as error:
        raise ConfigError(f"{workdir / CONFIG} can't be used: {error}") from None


def restore_run(
    workdir: epath.PathLike,
    *,
    checkpoint: str = "last",
    ema: bool = False,
    seed_index: int = 0,
) -> TrainedNetwork:
    """Load a network that `fit` trained.

    Args:
        workdir: directory of the run.
        checkpoint: "last", "best" on the validation split, or a step.
        ema: take the moving averages.
        seed_index: which network of a run of several seeds, from 0.

    Raises:
        UsageError: `workdir` isn't the name of a folder, or the run has fewer seeds.
        ConfigError: `workdir` isn't a run, or has no moving averages.
        DataError: it has no such checkpoint, or the checkpoint is damaged.
    """
    workdir = as_path(workdir)
    config = _config_of(workdir)
    if ema and not config.ema_decay:
        raise ConfigError(f"{workdir} has no moving averages: its ema_decay is 0.")
    seeds = tuple(config.seeds) or (config.seed,)
    if not 0 <= seed_index < len(seeds):
        listed = ", ".join(map(str, seeds))
        raise UsageError(f"seed_index is {seed_index}; {workdir} has the seeds {listed}.")
    checkpoints = Checkpointer(workdir / CHECKPOINTS, keep=None)
    steps = checkpoints.steps()
    if not steps:
        raise DataError(f"{workdir} has no finished checkpoint yet.")
    step = steps[-1]
    if checkpoint == "best":
        step = (checkpoints.progress(step)["best"] or {}).get("step", step)
    elif checkpoint != "last":
        step = int(checkpoint) if checkpoint.isdecimal() else -1
    if step not in steps:
        listed = ", ".join(map(str, steps))
        raise DataError(
            f"{workdir} has no checkpoint {checkpoint!r}; it has last, best and the steps {listed}."
        )
    state, progress = checkpoints.restore_on_one_device(step)
    checkpoints.close()
    if config.seeds:
        state = jax.tree.map(lambda leaf: leaf[seed_index], state)
        config = single_configs(config)[seed_index]
    class_names = tuple(progress["class_names"])
    model = create_model(config.model.name, **model_overrides(config), num_classes=len(class_names))
    variables = {name: state[name] for name in ("params", "batch_stats")}
    return TrainedNetwork(
        config=config,
        step=step,
        model=model,
        variables=state["ema"] if ema else variables,
        normalization=state["normalization"],
        class_names=class_names,
        image_shape=tuple(progress["image_shape"]),
        source=str(workdir),
    )
