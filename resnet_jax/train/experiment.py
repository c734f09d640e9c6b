"""The parts that a config stands for: data, model, mesh, optimiser, and when things happen."""

import dataclasses
import functools
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from jax.sharding import Mesh

from resnet_jax.data.augment import (
    given_normalization,
    measure_normalization,
    normalization_shapes,
)
from resnet_jax.data.loader import Batches, CropSizes, ExampleStream
from resnet_jax.data.preprocessing import Preprocessing
from resnet_jax.data.sources import Dataset, load_dataset
from resnet_jax.errors import ConfigError
from resnet_jax.models.presets import Network, create_model, init_variables
from resnet_jax.models.resnet import ResNet
from resnet_jax.parallel.mesh import make_mesh, place, replicated, split
from resnet_jax.parallel.sharding import state_shardings
from resnet_jax.train.config import model_overrides, streams
from resnet_jax.train.evaluate import Evaluator
from resnet_jax.train.optimizer import make_optimizer
from resnet_jax.train.plan import Plan, check_batch
from resnet_jax.train.precise_bn import PreciseStatistics
from resnet_jax.train.pretrained import Pretrained, read_pretrained
from resnet_jax.train.schedule import make_schedule
from resnet_jax.train.state import TrainState, init_state
from resnet_jax.train.step import Recipe, make_train_steps
from resnet_jax.train.teacher import Teacher, read_teacher, teacher_model

if TYPE_CHECKING:
    from resnet_jax.data.stream import StreamedBatches


def evaluation_preprocessing(config: ml_collections.ConfigDict) -> Preprocessing:
    """How images that aren't trained on are prepared, if those that are are decoded as needed.

    Raises:
        ConfigError: a size can't be.
    """
    data = config.data
    return Preprocessing(
        mean=tuple(map(float, data.mean)),  # type: ignore[arg-type]
        std=tuple(map(float, data.std)),  # type: ignore[arg-type]
        size=data.eval_size or data.image_size,
        resize=data.eval_resize or data.eval_size or data.image_size,
        interpolation=data.interpolation,
    )


def load_data(config: ml_collections.ConfigDict) -> Dataset:
    """Read the splits that `config.data` names: "train", "validation", "test".

    Raises:
        ConfigError: no such data or splits, or the splits share examples.
        DataError: data that are missing or damaged.
    """
    splits = {role: config.data[role] for role in ("train", "validation", "test")}
    reading: dict[str, Any] = {"image_size": config.data.image_size}
    if streams(config):
        reading = {"prepare": evaluation_preprocessing(config), "streamed": ("train",)}
    return load_dataset(
        config.data.name,
        splits={role: spec for role, spec in splits.items() if spec},
        data_dir=config.data.dir,
        corrupt=config.data.corrupt,
        **reading,
    )


def _check_fine_tuning(config: ml_collections.ConfigDict, model: Network) -> None:
    fields = {
        "init_from": config.init_from,
        "optimizer.trainable": config.optimizer.trainable != "all",
        "optimizer.layer_decay": config.optimizer.layer_decay < 1,
    }
    used = [name for name, is_set in fields.items() if is_set]
    if used and not isinstance(model, ResNet):
        raise ConfigError(
            f"{used[0]} is for ResNets, and model.name is {config.model.name!r}, a"
            f" {type(model).__name__}."
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Blueprint:
    """What a config stands for, given the sizes of its data. Nothing is read, nothing computed.

    Attributes:
        config: it.
        mesh: of the devices.
        image_shape: (h, w, c).
        model, plan, schedule, optimizer: the parts.
        teacher_model: the network to learn from, or None.
    """

    config: ml_collections.ConfigDict
    mesh: Mesh
    image_shape: tuple[int, int, int]
    model: Network
    plan: Plan
    schedule: optax.Schedule
    optimizer: optax.GradientTransformation
    teacher_model: ResNet | None

    @classmethod
    def parts(
        cls,
        config: ml_collections.ConfigDict,
        *,
        mesh: Mesh,
        image_shape: tuple[int, int, int],
        num_classes: int,
        train_examples: int,
    ) -> dict[str, Any]:
        """The attributes, by name, for a config that is valid.

        Raises:
            ConfigError: an impossible config.
        """
        height, width, channels = image_shape
        given = len(config.data.mean)
        if given not in (0, channels):
            raise ConfigError(
                f"data.mean and data.std have {given} values, but the images {channels} channels."
            )
        if config.data.policy and channels != 3:
            raise ConfigError(
                f"data.policy is {config.data.policy!r}, whose operations are on RGB images; these"
                f" have {channels} channel{'s' * (channels != 1)}."
            )
        pad = config.data.crop_padding
        if pad >= min(height, width):
            raise ConfigError(
                f"data.crop_padding is {pad}, as much as the {height}×{width} images themselves."
            )
        plan = Plan.make(config, train_examples=train_examples)
        schedule = make_schedule(
            config.schedule,
            batch_size=config.batch_size,
            unit=plan.train_examples if config.duration_unit == "epochs" else 1,
            total_steps=plan.total_steps,
        )
        overrides = model_overrides(config)
        model = create_model(config.model.name, **overrides, num_classes=num_classes)
        _check_fine_tuning(config, model)
        if config.precise_bn and not hasattr(model, "bn_momentum"):
            raise ConfigError(
                f"precise_bn is {config.precise_bn}, and {config.model.name} isn't a network for"
                " which statistics can be measured anew; set it to 0."
            )
        return {
            "config": config,
            "mesh": mesh,
            "image_shape": image_shape,
            "model": model,
            "plan": plan,
            "schedule": schedule,
            "optimizer": make_optimizer(config.optimizer, schedule),
            "teacher_model": teacher_model(config, num_classes),
        }

    @functools.cached_property
    def abstract_state(self) -> TrainState:
        """Shapes, types and shardings of the state, without computing it."""
        shapes = jax.eval_shape(self._initial_state)
        return jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            shapes,
            state_shardings(shapes, self.mesh),
        )

    def _initial_state(
        self,
        normalization: dict[str, Any] | None = None,
        pretrained: dict[str, Any] | None = None,
    ) -> TrainState:
        if normalization is None:
            shapes = normalization_shapes(self.image_shape, self.config.data.normalize)
            normalization = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
        return init_state(
            self.model,
            self.optimizer,
            seed=self.config.seed,
            image_shape=self.image_shape,
            normalization=normalization,
            with_ema=self.config.ema_decay > 0,
            pretrained=pretrained,
        )

    @property
    def recipe(self) -> Recipe:
        """What a step does, beside the model and the optimiser."""
        return Recipe(
            crop_padding=self.config.data.crop_padding,
            flip=self.config.data.flip,
            policy=self.config.data.policy,
            magnitude=self.config.data.magnitude,
            magnitude_std=self.config.data.magnitude_std,
            random_erasing=self.config.data.random_erasing,
            mixup=self.config.mixup,
            cutmix=self.config.cutmix,
            label_smoothing=self.config.label_smoothing,
            ema_decay=self.config.ema_decay,
            loss=self.config.loss,
            ema_every=self.config.ema_every,
            ema_warmup=self.config.ema_warmup,
            sam_radius=self.config.sam_radius,
            sam_every=self.config.sam_every,
            distill_weight=self.config.distill.weight,
            distill_temperature=self.config.distill.temperature,
            head_only=self.config.optimizer.trainable == "head",
            skip_nonfinite=self.config.nonfinite.policy == "skip",
        )

    def precise_statistics(self) -> PreciseStatistics:
        """What measures running statistics anew, if the config wants it."""
        return PreciseStatistics(
            self.model,
            steps=self.config.precise_bn,
            recipe=self.recipe,
            mesh=self.mesh,
            resident=self.resident,
        )

    def train_steps(self) -> jax.stages.Wrapped:
        """The jitted training steps; see `make_train_steps`."""
        return make_train_steps(
            self.model,
            self.optimizer,
            recipe=self.recipe,
            mesh=self.mesh,
            state=self.abstract_state,
            resident=self.resident,
            teacher=self.teacher_model,
        )

    def batch_shape(self) -> tuple[int, int, int]:
        """(steps per dispatch, micro-batches per step, examples of each)."""
        micro_batches = self.config.accumulate
        examples = self.config.batch_size // micro_batches
        return self.plan.steps_per_dispatch, micro_batches, examples

    def evaluation_shape(self) -> tuple[int, int, int]:
        """(h, w, c) of the images that are scored."""
        if not streams(self.config):
            return self.image_shape
        size = evaluation_preprocessing(self.config).size
        return size, size, 3

    @property
    def resident(self) -> bool:
        """Whether the training split lies on every device."""
        return self.config.data.resident and not streams(self.config)

    @functools.cached_property
    def image_sizes(self) -> CropSizes:
        """Pixels of a side of the training images, by the step."""
        unit = self.plan.train_examples if self.config.duration_unit == "epochs" else 1
        edges = [e * unit / self.plan.batch_size for e in self.config.data.size_boundaries]
        return CropSizes((*self.config.data.early_sizes, self.image_shape[0]), tuple(edges))

    def abstract_batches(self, *, image_size: int | None = None) -> tuple[Any, ...]:
        """Shapes of what `train_steps` takes beside the state and the number of steps.

        Images are of the `image_shape`, or squares of `image_size` where they're cropped to that.
        """
        height, width, channels = self.image_shape
        if image_size and streams(self.config):
            height = width = image_size
        examples, whole = split(self.mesh, axis=2), replicated(self.mesh)
        shape: tuple[int, ...] = self.batch_shape()
        data = examples
        ids = jax.ShapeDtypeStruct(shape, jnp.int32, sharding=examples)
        if self.resident:
            shape, data = (self.plan.train_examples,), whole
        images_shape = (*shape, height, width, channels)
        images = jax.ShapeDtypeStruct(images_shape, jnp.uint8, sharding=data)
        labels = jax.ShapeDtypeStruct(shape, jnp.int32, sharding=data)
        return images, labels, ids, ids

    def abstract_teacher(self) -> tuple[Any, ...]:
        """What `train_steps` takes last: shapes of the teacher's variables, or nothing."""
        if self.teacher_model is None:
            return ()
        init = functools.partial(init_variables, self.teacher_model, image_shape=self.image_shape)
        whole = replicated(self.mesh)
        return (
            jax.tree.map(
                lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=whole),
                jax.eval_shape(init, jax.random.key(0)),
            ),
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Experiment(Blueprint):
    """A blueprint and its data. Making one reads the data, but compiles nothing."""

    dataset: Dataset
    normalization: dict[str, np.ndarray]  # that the config gives, or of the training images

    @classmethod
    def make(cls, config: ml_collections.ConfigDict) -> "Experiment":
        """Build the parts of a config that is valid, cheap checks first.

        Raises:
            ConfigError: an impossible config.
            DataError: data that are missing or damaged.
        """
        create_model(config.model.name, **model_overrides(config))
        mesh = make_mesh(data=config.mesh.data, fsdp=config.mesh.fsdp)
        check_batch(config, mesh)
        dataset = load_data(config)
        normalization = given_normalization(config.data.mean, config.data.std)
        if streams(config):
            train_examples = len(dataset.streamed["train"])
            image_shape = (config.data.image_size, config.data.image_size, 3)
        else:
            train = dataset.splits["train"]
            train_examples, image_shape = len(train), dataset.image_shape
            normalization = normalization or measure_normalization(
                train.images, config.data.normalize
            )
        parts = cls.parts(
            config,
            mesh=mesh,
            image_shape=image_shape,
            num_classes=dataset.num_classes,
            train_examples=train_examples,
        )
        return cls(**parts, dataset=dataset, normalization=normalization)

    @functools.cached_property
    def pretrained(self) -> Pretrained | None:
        """The weights that a new run begins with, if it doesn't draw all; read when asked for.

        Raises:
            ConfigError: they don't go with the config.
            DataError: they can't be read, or don't fit.
        """
        if not self.config.init_from:
            return None
        assert isinstance(self.model, ResNet)  # else it would have been refused
        return read_pretrained(
            self.config,
            self.model,
            image_shape=self.image_shape,
            class_names=self.dataset.class_names,
        )

    @functools.cached_property
    def teacher(self) -> Teacher | None:
        """The network that the run learns from; read when asked for.

        Raises:
            ConfigError: it doesn't go with the config.
            DataError: it can't be read, or doesn't fit.
        """
        if self.teacher_model is None:
            return None
        return read_teacher(
            self.config,
            self.teacher_model,
            image_shape=self.image_shape,
            class_names=self.dataset.class_names,
        )

    def teacher_variables(self) -> tuple[Any, ...]:
        """What `train_steps` takes last, on every device; nothing without a teacher."""
        if self.teacher is None:
            return ()
        return (place(self.teacher.variables, replicated(self.mesh)),)

    def initial_state(self) -> TrainState:
        """The state before the first step, laid out on the mesh; raises as `pretrained`."""
        normalization, weights = self.normalization, self.pretrained
        if weights and not self.config.data.mean:
            normalization = given_normalization(weights.mean, weights.std) or normalization
        state = self._initial_state(normalization, weights.variables if weights else None)
        return place(state, state_shardings(state, self.mesh))

    def stream(self) -> ExampleStream:
        """Which training examples come when."""
        return ExampleStream(
            self.config.seed,
            self.plan.train_examples,
            self.config.batch_size,
            repeats=self.config.data.repeats,
        )

    def batches(self) -> "Batches | StreamedBatches":
        """Where the training batches come from."""
        where: dict[str, Any] = {"shape": self.batch_shape(), "mesh": self.mesh}
        if streams(self.config):
            # It needs libraries for which others needn't wait.
            from resnet_jax.data.stream import StreamedBatches  # noqa: PLC0415

            return StreamedBatches(
                self.dataset.streamed["train"],
                self.stream(),
                **where,
                area=tuple(self.config.data.random_crop_area),
                sizes=self.image_sizes,
                total_steps=self.plan.total_steps,
                workers=self.config.data.workers,
            )
        train, resident = self.dataset.splits["train"], self.resident
        return Batches(train, self.stream(), **where, resident=resident)

    def evaluators(self) -> dict[str, Evaluator]:
        """An evaluator of each held-out split, its images on the devices."""
        return {
            split: Evaluator(
                self.model, data, batch_size=self.config.eval_batch_size, mesh=self.mesh
            )
            for split, data in self.dataset.splits.items()
            if split != "train"
        }
