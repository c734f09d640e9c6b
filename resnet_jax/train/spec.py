"""`TrainSpec`: model, optimiser, step and array shapes of a config, known without reading data."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, Self

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from jax.sharding import Mesh

from resnet_jax.config.schema import model_overrides, streams
from resnet_jax.data.augment.config import AugmentConfig
from resnet_jax.data.images.normalization import normalization_shapes
from resnet_jax.data.loaders.crop_sizes import CropSizes
from resnet_jax.data.loaders.sampler import IndexSampler
from resnet_jax.models.network import Network
from resnet_jax.models.presets import create_model, init_variables
from resnet_jax.models.resnet import ResNet
from resnet_jax.parallel.mesh import replicated
from resnet_jax.parallel.shards import FixedShards, make_shards
from resnet_jax.train.checks import (
    check_batch,
    check_fine_tuning,
    check_images,
    check_names,
    check_precise_statistics,
    check_shards,
)
from resnet_jax.train.data_sizes import duration_unit, evaluation_crop, known_length, known_set
from resnet_jax.train.distillation import DistillConfig, teacher_model
from resnet_jax.train.ema import EmaConfig
from resnet_jax.train.intervals import Intervals
from resnet_jax.train.losses import LossConfig
from resnet_jax.train.metrics import TrainMetrics
from resnet_jax.train.multi_seed import SeedAxis, single_configs
from resnet_jax.train.optimizer import OptimizerConfig, make_optimizer
from resnet_jax.train.sam import SamConfig
from resnet_jax.train.schedule import ScheduleConfig, make_schedule
from resnet_jax.train.state import TrainState, init_state
from resnet_jax.train.step import StepConfig


@dataclasses.dataclass(frozen=True, eq=False)
class TrainSpec:
    """What a config stands for, given the sizes of its data. Nothing is read or computed.

    With several seeds, all attributes but `seeds` are those of `config`, without what `config.vary`
    changes; `singles` has the spec of each seed.

    Attributes:
        config: the run's configuration.
        mesh: mesh of the devices.
        image_shape: (h, w, c) of the training images.
        intervals: when the run logs, evaluates, saves and ends.
        schedule: learning rate by step.
        step: what a training step does.
        teacher_model: the network to distil from, or None.
        seeds: the seeds of the run.
        shards: the fixed shards of a batch, or None.
    """

    config: ml_collections.ConfigDict
    mesh: Mesh
    image_shape: tuple[int, int, int]
    intervals: Intervals
    schedule: optax.Schedule
    step: StepConfig
    teacher_model: ResNet | None
    seeds: SeedAxis
    shards: FixedShards | None

    @classmethod
    def make(
        cls,
        config: ml_collections.ConfigDict,
        *,
        mesh: Mesh,
        image_shape: tuple[int, int, int],
        num_classes: int,
        train_examples: int,
    ) -> Self:
        """Build the spec of a config that `validate` accepts.

        Raises:
            ConfigError: an impossible config.
        """
        check_images(config, image_shape)
        intervals = Intervals.make(config, train_examples=train_examples)
        schedule = _schedule(config, intervals)
        model = create_model(config.model.name, **model_overrides(config), num_classes=num_classes)
        check_fine_tuning(config, model)
        head_only = config.optimizer.trainable == "head"
        if head_only and model.normalization().kind == "batch":
            model = model.copy(bn_frozen=True)  # else running statistics would change
        check_precise_statistics(config, model)
        check_shards(config, model)
        return cls(
            config=config,
            mesh=mesh,
            image_shape=image_shape,
            intervals=intervals,
            schedule=schedule,
            step=StepConfig(
                model=model,
                optimizer=make_optimizer(_section(OptimizerConfig, config.optimizer), schedule),
                augment=_section(AugmentConfig, {**config, **config.data}),
                loss=LossConfig(config.loss, config.label_smoothing, config.bce_threshold),
                distill=DistillConfig(config.distill.weight, config.distill.temperature),
                ema=EmaConfig(config.ema_decay, config.ema_every, config.ema_warmup),
                sam=SamConfig(config.sam_radius, config.sam_every),
                head_only=head_only,
                skip_nonfinite=config.nonfinite.policy == "skip",
            ),
            teacher_model=teacher_model(config, num_classes),
            seeds=SeedAxis.make(config, mesh),
            shards=make_shards(config.mesh.shards, mesh),
        )

    @classmethod
    def without_data(cls, config: ml_collections.ConfigDict, mesh: Mesh) -> Self:
        """Build the spec of a config whose data set has sizes known without reading it.

        Raises:
            ConfigError: the sizes aren't known, or an impossible config.
        """
        check_names(config)
        single_configs(config)
        check_batch(config, SeedAxis.make(config, mesh).step_mesh)
        known = known_set(config)
        return cls.make(
            config,
            mesh=mesh,
            image_shape=known.image_shape,
            num_classes=known.num_classes,
            train_examples=known_length(config, config.data.train),
        )

    @property
    def model(self) -> Network:
        """The network."""
        return self.step.model

    @functools.cached_property
    def singles(self) -> list[Self]:
        """The spec of each seed's run alone; the spec itself without several seeds."""
        if not self.seeds.stacked:
            return [self]
        return [
            self.make(
                config,
                mesh=self.mesh,
                image_shape=self.image_shape,
                num_classes=self.model.num_classes,
                train_examples=self.intervals.train_examples,
            )
            for config in single_configs(self.config)
        ]

    def step_config(self, varied: Mapping[str, jax.Array]) -> StepConfig:
        """Return `step` with other values of some fields, which may be traced.

        Args:
            varied: values by the dotted names of `SeedAxis.varied`.
        """
        if not varied:
            return self.step
        schedule, base_lr = self.schedule, varied.get("schedule.base_lr")
        if base_lr is not None:
            unit = _schedule(self.config, self.intervals, base_lr=1.0)

            def schedule(step: jax.Array) -> jax.Array:
                return base_lr * unit(step)

        names = ("momentum", "weight_decay")
        fields = {n: varied[f"optimizer.{n}"] for n in names if f"optimizer.{n}" in varied}
        optimizer = _section(OptimizerConfig, self.config.optimizer)
        smoothing = varied.get("label_smoothing", self.step.loss.label_smoothing)
        return dataclasses.replace(
            self.step,
            optimizer=make_optimizer(dataclasses.replace(optimizer, **fields), schedule),
            loss=dataclasses.replace(self.step.loss, label_smoothing=smoothing),
        )

    def orders(self) -> list[IndexSampler]:
        """Return the order of the training examples of each seed."""
        return [
            IndexSampler(
                single.config.seed,
                single.intervals.train_examples,
                single.config.batch_size,
                repeats=single.config.data.repeats,
            )
            for single in self.singles
        ]

    def initial_state(
        self,
        normalization: Mapping[str, Any],
        *,
        pretrained: dict[str, Any] | None = None,
    ) -> TrainState:
        """Return the state of all seeds before the first step, on the mesh.

        Args:
            normalization: {"mean", "std"} of the training images.
            pretrained: variables that replace some or all of the initial values.
        """
        return self.seeds.stack(
            [single.single_state(normalization, pretrained) for single in self.singles]
        )

    def single_state(
        self, normalization: Mapping[str, Any], pretrained: dict[str, Any] | None = None
    ) -> TrainState:
        """Return the state of one seed before the first step, on the default device."""
        return init_state(
            self.model,
            self.step.optimizer,
            seed=self.config.seed,
            image_shape=self.image_shape,
            normalization=dict(normalization),
            with_ema=self.step.ema.decay > 0,
            metrics=self.config.metrics,
            pretrained=pretrained,
        )

    def empty_metrics(self) -> TrainMetrics:
        """Return the metrics of all seeds before the first step, on the mesh."""
        return self.seeds.stack(
            [jax.device_get(TrainMetrics.zero(self.config.metrics))] * len(self.seeds)
        )

    def fetch_metrics(self, state: TrainState) -> list[TrainMetrics]:
        """Return the metrics of each seed, on the host."""
        return self.seeds.unstack(state.meter)

    @functools.cached_property
    def abstract_single_state(self) -> TrainState:
        """Shapes and dtypes of the state of one seed."""
        shapes = normalization_shapes(self.image_shape, self.config.data.normalize)
        normalization = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
        return jax.eval_shape(functools.partial(self.single_state, normalization))

    @functools.cached_property
    def abstract_state(self) -> TrainState:
        """Shapes, dtypes and shardings of the state of all seeds."""
        return jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(
                self.seeds.shape(leaf.shape), leaf.dtype, sharding=sharding
            ),
            self.abstract_single_state,
            self.seeds.state_sharding(self.abstract_single_state),
        )

    def abstract_batches(self, *, image_size: int | None = None) -> tuple[Any, ...]:
        """Return the shapes of (images, labels, ids, epochs) of `make_train_steps`.

        Images have `image_shape`; images that are decoded as needed are squares of `image_size`
        where it is given.
        """
        height, width, channels = self.image_shape
        if image_size and streams(self.config):
            height = width = image_size
        sharding, shape = self.seeds.batch_sharding, self.seeds.shape(self.batch_shape)
        ids = jax.ShapeDtypeStruct(shape, jnp.int32, sharding=sharding)
        if self.resident:
            shape, sharding = (self.intervals.train_examples,), replicated(self.mesh)
        images_shape = (*shape, height, width, channels)
        images = jax.ShapeDtypeStruct(images_shape, jnp.uint8, sharding=sharding)
        labels = jax.ShapeDtypeStruct(shape, jnp.int32, sharding=sharding)
        return images, labels, ids, ids

    def abstract_teacher(self) -> tuple[Any, ...]:
        """Return (shapes of the teacher's variables,); () without a teacher."""
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

    @property
    def batch_shape(self) -> tuple[int, int, int]:
        """(steps per dispatch, micro-batches per step, examples per micro-batch)."""
        micro_batches = self.config.accumulate
        examples = self.config.batch_size // micro_batches
        return self.intervals.steps_per_dispatch, micro_batches, examples

    @property
    def evaluation_shape(self) -> tuple[int, int, int]:
        """(h, w, c) of the images of validation and test splits."""
        crop = evaluation_crop(self.config)
        return (*crop.size, self.image_shape[-1]) if crop else self.image_shape

    @property
    def resident(self) -> bool:
        """Whether every device holds the training split."""
        return self.config.data.resident and not streams(self.config)

    @functools.cached_property
    def image_sizes(self) -> CropSizes:
        """Pixels per side of the training images, by step."""
        unit = duration_unit(self.config, self.intervals.train_examples)
        edges = [e * unit / self.intervals.batch_size for e in self.config.data.size_boundaries]
        return CropSizes((*self.config.data.early_sizes, self.image_shape[0]), tuple(edges))


def _section(cls: type[Any], section: Mapping[str, Any]) -> Any:
    """Build a frozen dataclass from the fields of the same names in a section of the config."""
    return cls(**{field.name: section[field.name] for field in dataclasses.fields(cls)})


def _schedule(
    config: ml_collections.ConfigDict, intervals: Intervals, **overrides: float
) -> optax.Schedule:
    schedule = dataclasses.replace(_section(ScheduleConfig, config.schedule), **overrides)
    return make_schedule(
        schedule,
        batch_size=config.batch_size,
        unit=duration_unit(config, intervals.train_examples),
        total_steps=intervals.total_steps,
    )
