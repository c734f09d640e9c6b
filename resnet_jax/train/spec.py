"""What a config stands for beside its data: model, optimiser, and the shapes of all arrays."""

import dataclasses
import functools
from typing import Any, Self

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from jax.sharding import Mesh

from resnet_jax.config.schema import model_overrides, streams
from resnet_jax.data.augment.config import AugmentConfig
from resnet_jax.data.dataset_info import KNOWN_SETS, KnownSet, find_known
from resnet_jax.data.images.normalization import normalization_shapes
from resnet_jax.data.images.preprocessing import ScaleAndCrop
from resnet_jax.data.loaders.crop_sizes import CropSizes
from resnet_jax.data.splits import parse_split
from resnet_jax.errors import ConfigError, did_you_mean
from resnet_jax.models.network import Network
from resnet_jax.models.presets import create_model, init_variables
from resnet_jax.models.resnet import ResNet
from resnet_jax.parallel.mesh import replicated
from resnet_jax.train.distillation import teacher_model
from resnet_jax.train.intervals import Plan, check_batch
from resnet_jax.train.multi_seed import Seeds, batch_layout, single_configs, state_layout
from resnet_jax.train.optimizer import make_optimizer
from resnet_jax.train.precise_bn import PreciseStatistics
from resnet_jax.train.schedule import make_schedule
from resnet_jax.train.state import TrainState, init_state
from resnet_jax.train.step import Recipe, make_train_steps


def evaluation_crop(config: ml_collections.ConfigDict) -> ScaleAndCrop | None:
    """How images that are scored get their size; None if all have it.

    Images that are trained on are prepared so, too, unless they are decoded as needed.

    Raises:
        ConfigError: `data.eval_resize` is smaller than `data.eval_size`.
    """
    data = config.data
    size = data.eval_size or data.image_size
    if not size:
        return None
    return ScaleAndCrop.square(
        size, resize=data.eval_resize or size, interpolation=data.interpolation
    )


def plan_schedule(config: ml_collections.ConfigDict, plan: Plan) -> optax.Schedule:
    """The learning rate of a run by the step; raises as `make_schedule`."""
    return make_schedule(
        config.schedule,
        batch_size=config.batch_size,
        unit=plan.train_examples if config.duration_unit == "epochs" else 1,
        total_steps=plan.total_steps,
    )


def _known_set(config: ml_collections.ConfigDict) -> KnownSet:
    known = find_known(config.data.name, image_size=config.data.image_size)
    if known is None:
        raise ConfigError(
            f"data.name is {config.data.name!r}, whose sizes aren't known without reading it; known"
            f" are {', '.join(KNOWN_SETS)}.{did_you_mean(config.data.name, KNOWN_SETS)}"
        )
    return known


def known_length(config: ml_collections.ConfigDict, spec: str) -> int:
    """Examples of a split of known data.

    Raises:
        ConfigError: there is no such split, or its size isn't known.
    """
    spans = parse_split(spec, _known_set(config).lengths, config.data.name)
    return sum(span.stop - span.start for span in spans)


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


def _check_precise_statistics(config: ml_collections.ConfigDict, model: Network) -> None:
    if not config.precise_bn:
        return
    normalization = model.normalization()
    if normalization.kind != "batch":
        reason = f"has no running statistics: its norm is {normalization.kind!r}"
    elif normalization.frozen:
        head = config.optimizer.trainable == "head"
        cause = "optimizer.trainable is 'head'" if head else "model.bn_frozen is True"
        reason = f"keeps its running statistics: {cause}"
    else:
        return
    raise ConfigError(
        f"precise_bn is {config.precise_bn}, and {config.model.name} {reason}; set precise_bn to 0"
        " (--config.precise_bn=0)."
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
        seeds: if there are several, all else is that of the first.
    """

    config: ml_collections.ConfigDict
    mesh: Mesh
    image_shape: tuple[int, int, int]
    model: Network
    plan: Plan
    schedule: optax.Schedule
    optimizer: optax.GradientTransformation
    teacher_model: ResNet | None
    seeds: Seeds | None

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
        schedule = plan_schedule(config, plan)
        overrides = model_overrides(config)
        model = create_model(config.model.name, **overrides, num_classes=num_classes)
        _check_fine_tuning(config, model)
        if config.optimizer.trainable == "head" and model.norm == "batch":
            model = model.copy(bn_frozen=True)  # else training would change all but the classifier
        _check_precise_statistics(config, model)
        return {
            "config": config,
            "mesh": mesh,
            "image_shape": image_shape,
            "model": model,
            "plan": plan,
            "schedule": schedule,
            "optimizer": make_optimizer(config.optimizer, schedule),
            "teacher_model": teacher_model(config, num_classes),
            "seeds": Seeds.of(config, mesh),
        }

    @classmethod
    def without_data(cls, config: ml_collections.ConfigDict, mesh: Mesh) -> Self:
        """That of a valid config of a data set whose sizes are known without reading it.

        Raises:
            ConfigError: they aren't, or an impossible config.
        """
        single_configs(config)
        seeds = Seeds.of(config, mesh)
        check_batch(config, None if seeds and seeds.spread else mesh)
        known = _known_set(config)
        parts = cls.parts(
            config,
            mesh=mesh,
            image_shape=known.image_shape,
            num_classes=known.num_classes,
            train_examples=known_length(config, config.data.train),
        )
        return cls(**parts)

    @functools.cached_property
    def singles(self) -> list[Self]:
        """What each seed would have in a run of its own; itself without several."""
        if not self.seeds:
            return [self]
        return [self._single(config) for config in single_configs(self.config)]

    def _single(self, config: ml_collections.ConfigDict) -> Self:
        parts = self.parts(
            config,
            mesh=self.mesh,
            image_shape=self.image_shape,
            num_classes=self.model.num_classes,
            train_examples=self.plan.train_examples,
        )
        return dataclasses.replace(self, **parts)

    @functools.cached_property
    def abstract_state(self) -> TrainState:
        """Shapes, types and shardings of the state, without computing it."""
        one = self._shapes_of_one
        lead = (len(self.seeds),) if self.seeds else ()
        return jax.tree.map(
            lambda leaf, layout: jax.ShapeDtypeStruct(
                (*lead, *leaf.shape), leaf.dtype, sharding=layout
            ),
            one,
            state_layout(one, self.mesh, self.seeds),
        )

    @functools.cached_property
    def _shapes_of_one(self) -> TrainState:
        return jax.eval_shape(self._initial_state)

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
            augment=AugmentConfig(
                crop_padding=self.config.data.crop_padding,
                flip=self.config.data.flip,
                policy=self.config.data.policy,
                magnitude=self.config.data.magnitude,
                magnitude_std=self.config.data.magnitude_std,
                random_erasing=self.config.data.random_erasing,
                mixup=self.config.mixup,
                cutmix=self.config.cutmix,
            ),
            label_smoothing=self.config.label_smoothing,
            ema_decay=self.config.ema_decay,
            loss=self.config.loss,
            bce_threshold=self.config.bce_threshold,
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
            seeds=self.seeds,
        )

    def _parts_of_step(
        self, varied: dict[str, jax.Array]
    ) -> tuple[optax.GradientTransformation, Recipe]:
        """The optimiser and the recipe of a seed, given the values that are its own."""
        if not varied:
            return self.optimizer, self.recipe
        config, schedule = self.config.copy_and_resolve_references(), self.schedule
        own = {name.rpartition(".")[2]: value for name, value in varied.items()}
        with config.ignore_type():
            config.optimizer.update({k: own[k] for k in ("weight_decay", "momentum") if k in own})
        if "base_lr" in own:
            config.schedule.base_lr = 1.0
            of_one = plan_schedule(config, self.plan)

            def schedule(step: jax.Array) -> jax.Array:
                return own["base_lr"] * of_one(step)

        own_of_recipe: dict[str, Any] = {k: own[k] for k in ("label_smoothing",) if k in own}
        recipe = dataclasses.replace(self.recipe, **own_of_recipe)
        return make_optimizer(config.optimizer, schedule), recipe

    def train_steps(self) -> jax.stages.Wrapped:
        """The jitted training steps; see `make_train_steps`."""
        return make_train_steps(
            self.model,
            self._parts_of_step,
            mesh=self.mesh,
            state=self._shapes_of_one,
            resident=self.resident,
            teacher=self.teacher_model,
            seeds=self.seeds,
        )

    def batch_shape(self) -> tuple[int, int, int]:
        """(steps per dispatch, micro-batches per step, examples of each)."""
        micro_batches = self.config.accumulate
        examples = self.config.batch_size // micro_batches
        return self.plan.steps_per_dispatch, micro_batches, examples

    def evaluation_shape(self) -> tuple[int, int, int]:
        """(h, w, c) of the images that are scored."""
        crop = evaluation_crop(self.config)
        return (*crop.size, self.image_shape[-1]) if crop else self.image_shape

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
        data, whole = batch_layout(self.mesh, self.seeds), replicated(self.mesh)
        shape: tuple[int, ...] = self.batch_shape()
        if self.seeds:
            shape = (len(self.seeds), *shape)
        ids = jax.ShapeDtypeStruct(shape, jnp.int32, sharding=data)
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
