"""`Experiment`: a `TrainSpec` with its data and weights, and what a run makes of them."""

import dataclasses
import functools
from typing import TYPE_CHECKING, Any

import ml_collections
import numpy as np

from resnet_jax.config.schema import model_overrides, streams
from resnet_jax.data.dataset_info import FROM_PYTHON
from resnet_jax.data.datasets import Dataset, load_dataset
from resnet_jax.data.images.normalization import given_normalization, measure_normalization
from resnet_jax.data.loaders.in_memory import InMemoryLoader
from resnet_jax.data.loaders.loader import Loader
from resnet_jax.data.readers.from_python import PythonData, open_python_data
from resnet_jax.data.splits import parse_split
from resnet_jax.errors import ConfigError
from resnet_jax.models.presets import create_model
from resnet_jax.models.resnet import ResNet
from resnet_jax.parallel.mesh import make_mesh, put_global, replicated
from resnet_jax.train.checks import check_batch, check_names
from resnet_jax.train.data_sizes import evaluation_crop
from resnet_jax.train.distillation import Teacher, read_teacher
from resnet_jax.train.evaluate import Evaluator
from resnet_jax.train.multi_seed import SeedAxis, single_configs
from resnet_jax.train.pretrained import Pretrained, read_pretrained
from resnet_jax.train.spec import TrainSpec
from resnet_jax.train.state import TrainState

if TYPE_CHECKING:
    from resnet_jax.train.diagnostics.probe import Measured, Probe


ROLES = ("train", "validation", "test")


def name_data(config: ml_collections.ConfigDict, data: PythonData) -> ml_collections.ConfigDict:
    """Return the config of a run on data that are passed in Python.

    `data.name` says so. A role without a split takes the split of its own name; the test split of
    the default config needn't be there.
    """
    named = config.copy_and_resolve_references()
    named.data.name = FROM_PYTHON
    for role in ROLES:
        if not named.data[role] and role in data.splits:
            named.data[role] = role
    if named.data.test == "test" and "test" not in data.splits:
        named.data.test = ""
    return named


def load_data(config: ml_collections.ConfigDict, data: PythonData | None = None) -> Dataset:
    """Read the splits of `config.data`: "train", "validation", "test".

    Args:
        config: the run's configuration; with `data`, as `name_data` returns it.
        data: the data that were passed in Python; None for data on disk.

    Raises:
        ConfigError: no such data or splits, the splits share examples, or none has a split of
            `data`.
        DataError: the data are missing or damaged.
    """
    splits = {role: config.data[role] for role in ROLES if config.data[role]}
    crop, channels = evaluation_crop(config), 3 if streams(config) else None
    source = None
    if data:
        source = open_python_data(data, crop=crop, channels=channels)
        spans = [parse_split(spec, source.lengths, FROM_PYTHON) for spec in splits.values()]
        if unused := set(data.splits) - {span.split for parts in spans for span in parts}:
            named = ", ".join(f"data.{role}={spec!r}" for role, spec in splits.items())
            raise ConfigError(
                f"datasets has {min(unused)!r}, which the config doesn't use: {named}."
            )
    return load_dataset(
        config.data.name,
        splits=splits,
        data_dir=config.data.dir,
        crop=crop,
        channels=channels,
        corrupt=config.data.corrupt,
        streamed=("train",) if streams(config) else (),
        source=source,
    )


@dataclasses.dataclass(frozen=True, eq=False)
class Experiment:
    """A spec with its data. Making an experiment reads the data, but compiles nothing.

    Attributes:
        spec: the spec.
        dataset: the splits.
        normalization: {"mean", "std"} of the training images, in grey levels: given by the config
            or measured.
    """

    spec: TrainSpec
    dataset: Dataset
    normalization: dict[str, np.ndarray]

    @classmethod
    def make(
        cls, config: ml_collections.ConfigDict, data: PythonData | None = None
    ) -> "Experiment":
        """Make the experiment of a config that `validate` accepts; cheap checks come first.

        Args:
            config, data: as of `load_data`.

        Raises:
            ConfigError: an impossible config.
            DataError: the data are missing or damaged.
        """
        check_names(config)
        if config.new_head and not config.init_from:
            raise ConfigError(
                "new_head is True, and init_from is empty. Name the weights to begin with, or set"
                " new_head to False, to begin with random values."
            )
        for single in single_configs(config):
            create_model(single.model.name, **model_overrides(single))
        mesh = make_mesh(data=config.mesh.data, fsdp=config.mesh.fsdp)
        check_batch(config, SeedAxis.make(config, mesh).step_mesh)
        dataset = load_data(config, data)
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
        spec = TrainSpec.make(
            config,
            mesh=mesh,
            image_shape=image_shape,
            num_classes=dataset.num_classes,
            train_examples=train_examples,
        )
        experiment = cls(spec, dataset, normalization)
        if config.diagnostics.every:
            _ = experiment.probe  # refuses networks that can't be measured
        return experiment

    @functools.cached_property
    def pretrained(self) -> Pretrained | None:
        """The weights that a new run begins with, read when first used; None for random weights.

        Raises:
            ConfigError: the weights don't go with the config.
            DataError: the weights can't be read, or don't fit.
        """
        config, model = self.spec.config, self.spec.model
        if not config.init_from:
            return None
        assert isinstance(model, ResNet)  # `TrainSpec.make` refuses other networks
        return read_pretrained(
            config,
            model,
            image_shape=self.spec.image_shape,
            class_names=self.dataset.class_names,
        )

    @functools.cached_property
    def teacher(self) -> Teacher | None:
        """The teacher with its weights, read when first used; None without distillation.

        Raises:
            ConfigError: the teacher doesn't go with the config.
            DataError: the weights can't be read, or don't fit.
        """
        if self.spec.teacher_model is None:
            return None
        return read_teacher(
            self.spec.config,
            self.spec.teacher_model,
            image_shape=self.spec.image_shape,
            class_names=self.dataset.class_names,
        )

    def teacher_variables(self) -> tuple[Any, ...]:
        """Return (variables of the teacher,), on every device; () without a teacher."""
        if self.teacher is None:
            return ()
        return (put_global(self.teacher.variables, replicated(self.spec.mesh)),)

    def initial_state(self) -> TrainState:
        """Return the state before the first step, on the mesh.

        Raises:
            ConfigError, DataError: as `pretrained`.
        """
        normalization, weights = self.normalization, self.pretrained
        if weights and not self.spec.config.data.mean:
            normalization = given_normalization(weights.mean, weights.std) or normalization
        return self.spec.initial_state(
            normalization, pretrained=weights.variables if weights else None
        )

    @functools.cached_property
    def probe(self) -> "Probe":
        """The diagnostics of the network of one seed.

        Raises:
            ConfigError: the network is of a kind without diagnostics.
        """
        from resnet_jax.train.diagnostics.probe import Probe  # noqa: PLC0415 - few runs need it

        diagnostics = self.spec.config.diagnostics
        return Probe(
            self.spec.model,
            lambda varied: self.spec.step_config(varied).optimizer,
            self.dataset.splits["train"],
            what=diagnostics.what,
            examples=diagnostics.examples,
        )

    def diagnose(self, state: TrainState) -> "list[Measured]":
        """Measure the inside of the network of each seed."""
        seeds = self.spec.seeds
        return [
            self.probe(single, {name: values[number] for name, values in seeds.varied.items()})
            for number, single in enumerate(seeds.each(state))
        ]

    def loader(self) -> Loader:
        """Return the source of the training batches."""
        spec, config = self.spec, self.spec.config
        orders = spec.orders()
        if streams(config):
            # Its libraries take long to import.
            from resnet_jax.data.loaders.streaming import StreamingLoader  # noqa: PLC0415

            return StreamingLoader(
                self.dataset.streamed["train"],
                orders[0],
                shape=spec.batch_shape,
                mesh=spec.mesh,
                area=tuple(config.data.random_crop_area),
                sizes=spec.image_sizes,
                total_steps=spec.intervals.total_steps,
                workers=config.data.workers,
            )
        return InMemoryLoader(
            self.dataset.splits["train"],
            spec.seeds.order(orders),
            shape=spec.batch_shape,
            layout=spec.seeds.batch_sharding,
            mesh=spec.mesh,
            resident=spec.resident,
        )

    def evaluators(self) -> dict[str, Evaluator]:
        """Return the evaluator of each held-out split; its images are put on the devices."""
        batch_size, mesh = self.spec.config.eval_batch_size, self.spec.mesh
        metrics = self.spec.config.metrics
        return {
            split: Evaluator(
                self.spec.model.apply,
                data,
                batch_size=batch_size,
                mesh=mesh,
                metrics=metrics,
                shards=self.spec.shards,
            )
            for split, data in self.dataset.splits.items()
            if split != "train"
        }
