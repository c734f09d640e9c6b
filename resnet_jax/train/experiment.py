"""A blueprint and its data, and what a run needs of both."""

import dataclasses
import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import jax
import ml_collections
import numpy as np

from resnet_jax.config.schema import model_overrides, streams
from resnet_jax.data.datasets import Dataset, ImageSet, load_dataset
from resnet_jax.data.images.normalization import given_normalization, measure_normalization
from resnet_jax.data.loaders.in_memory import InMemoryLoader
from resnet_jax.data.loaders.loader import Loader
from resnet_jax.data.loaders.sampler import IndexSampler
from resnet_jax.models.presets import create_model
from resnet_jax.models.resnet import ResNet
from resnet_jax.parallel.mesh import make_mesh, put_global, replicated
from resnet_jax.train.distillation import Teacher, read_teacher
from resnet_jax.train.evaluate import Evaluator, SeedEvaluator
from resnet_jax.train.intervals import check_batch
from resnet_jax.train.metrics import TrainMetrics
from resnet_jax.train.multi_seed import (
    Seeds,
    SeedStreams,
    batch_layout,
    single_configs,
    stack,
    state_layout,
)
from resnet_jax.train.pretrained import Pretrained, read_pretrained
from resnet_jax.train.spec import Blueprint, evaluation_crop
from resnet_jax.train.state import TrainState

if TYPE_CHECKING:
    from resnet_jax.train.diagnostics.probe import Probe


def load_data(config: ml_collections.ConfigDict) -> Dataset:
    """Read the splits that `config.data` names: "train", "validation", "test".

    Raises:
        ConfigError: no such data or splits, or the splits share examples.
        DataError: data that are missing or damaged.
    """
    splits = {role: config.data[role] for role in ("train", "validation", "test")}
    return load_dataset(
        config.data.name,
        splits={role: spec for role, spec in splits.items() if spec},
        data_dir=config.data.dir,
        crop=evaluation_crop(config),
        channels=3 if streams(config) else None,
        corrupt=config.data.corrupt,
        streamed=("train",) if streams(config) else (),
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
        for single in single_configs(config):
            create_model(single.model.name, **model_overrides(single))
        mesh = make_mesh(data=config.mesh.data, fsdp=config.mesh.fsdp)
        seeds = Seeds.of(config, mesh)
        check_batch(config, None if seeds and seeds.spread else mesh)
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
        experiment = cls(**parts, dataset=dataset, normalization=normalization)
        if config.diagnostics.every:
            experiment.probe()  # refuses what can't be measured
        return experiment

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
        return (put_global(self.teacher.variables, replicated(self.mesh)),)

    def initial_state(self) -> TrainState:
        """The state before the first step, laid out on the mesh; raises as `pretrained`."""
        normalization, weights = self.normalization, self.pretrained
        if weights and not self.config.data.mean:
            normalization = given_normalization(weights.mean, weights.std) or normalization
        drawn = weights.variables if weights else None
        states = [single._initial_state(normalization, drawn) for single in self.singles]
        layout = state_layout(states[0], self.mesh, self.seeds)
        return put_global(stack(states) if self.seeds else states[0], layout)

    def empty_meter(self) -> TrainMetrics:
        """What the meter of a state is replaced with after a log point."""
        zero = jax.device_get(TrainMetrics.zero())
        layout = state_layout(zero, self.mesh, self.seeds)
        return put_global(stack([zero] * len(self.seeds)) if self.seeds else zero, layout)

    def single_states(self, state: TrainState) -> Iterator[TrainState]:
        """The state of each seed, whole on every device; the state itself without several."""
        if not self.seeds:
            yield state
            return
        for number in range(len(self.seeds)):
            yield self._entry(state, number)

    @functools.cached_property
    def _entry(self) -> jax.stages.Wrapped:
        """The state of one of several seeds; jitted once, for all calls of `single_states`."""

        def entry(tree: TrainState, number: jax.Array) -> TrainState:
            return jax.tree.map(lambda leaf: leaf[number], tree)

        return jax.jit(entry, out_shardings=replicated(self.mesh))

    def meters(self, state: TrainState) -> list[TrainMetrics]:
        """The meter of each seed, on the host; one without several."""
        meter = jax.device_get(state.meter)
        if not self.seeds:
            return [meter]
        entries = range(len(self.seeds))
        return [jax.tree.map(lambda leaf, i=i: leaf[i], meter) for i in entries]

    def probe(self) -> "Probe":
        """What measures the inside of the network of a seed.

        Raises:
            ConfigError: it is of a kind whose inside isn't known.
        """
        from resnet_jax.train.diagnostics.probe import Probe  # noqa: PLC0415 - few runs need it

        return Probe(
            self.model,
            self.optimizer,
            self.dataset.splits["train"],
            what=self.config.diagnostics.what,
            examples=self.config.diagnostics.examples,
        )

    def orders(self) -> list[IndexSampler]:
        """Which training examples come when, of each seed; one without several."""
        return [
            IndexSampler(
                single.config.seed,
                single.plan.train_examples,
                single.config.batch_size,
                repeats=single.config.data.repeats,
            )
            for single in self.singles
        ]

    def batches(self) -> Loader:
        """Where the training batches come from."""
        orders, shape = self.orders(), self.batch_shape()
        if streams(self.config):
            # It needs libraries for which others needn't wait.
            from resnet_jax.data.loaders.streaming import StreamingLoader  # noqa: PLC0415

            return StreamingLoader(
                self.dataset.streamed["train"],
                orders[0],
                shape=shape,
                mesh=self.mesh,
                area=tuple(self.config.data.random_crop_area),
                sizes=self.image_sizes,
                total_steps=self.plan.total_steps,
                workers=self.config.data.workers,
            )
        return InMemoryLoader(
            self.dataset.splits["train"],
            SeedStreams(tuple(orders)) if self.seeds else orders[0],
            shape=shape,
            layout=batch_layout(self.mesh, self.seeds),
            mesh=self.mesh,
            resident=self.resident,
        )

    def evaluators(self) -> dict[str, Evaluator | SeedEvaluator]:
        """What scores each held-out split, its images on the devices."""
        return {
            split: self._evaluator(data)
            for split, data in self.dataset.splits.items()
            if split != "train"
        }

    def _evaluator(self, data: ImageSet) -> Evaluator | SeedEvaluator:
        evaluator = Evaluator(
            self.model.apply, data, batch_size=self.config.eval_batch_size, mesh=self.mesh
        )
        if not self.seeds:
            return evaluator
        return SeedEvaluator(evaluator, seeds=len(self.seeds), mesh=self.mesh)
