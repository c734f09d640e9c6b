"""Several seeds of a run in one compiled program, and settings that vary with them.

The state and all per-step arrays get a leading seed axis, and the program maps the steps of a
single run over it. Each seed has the initial values, the order of examples, the augmentation and
the scores of a run of its own, up to the rounding of another program. All other modules work with
one seed or with a `SeedAxis`, which hides the difference.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Float, Int
from ml_collections import ConfigDict

from resnet_jax.config.schema import set_field, streams, validate
from resnet_jax.data.loaders.sampler import IndexSampler
from resnet_jax.errors import ConfigError, did_you_mean
from resnet_jax.parallel.mesh import AXES, batch_sharding, put_global, replicated
from resnet_jax.parallel.sharding import state_shardings
from resnet_jax.train.evaluate import Evaluation, Evaluator, mean_over_seeds
from resnet_jax.train.metrics import with_spread

Tree = TypeVar("Tree")

_IN_STEPS = (
    "schedule.base_lr",
    "optimizer.weight_decay",
    "optimizer.momentum",
    "label_smoothing",
)
_INITIAL = ("model.gate_bias", "model.carry_bias")  # used only for the initial values
VARYING = (*_IN_STEPS, *_INITIAL)
"""Fields of which `config.vary` can give each seed its own value."""


def single_configs(config: ConfigDict) -> list[ConfigDict]:
    """Return the config of each seed's run alone; [config] without several seeds.

    Raises:
        ConfigError: impossible `seeds` or `vary`.
    """
    if not config.seeds:
        if config.vary:
            raise ConfigError("vary gives values to the seeds of `seeds`, which is empty.")
        return [config]
    _check_combination(config)
    singles = []
    for number, seed in enumerate(config.seeds):
        single = config.copy_and_resolve_references()
        single.seeds, single.vary = (), ()
        set_field(single, "seed", seed)
        for name, values in _variation(config).items():
            set_field(single, name, values[number])
        try:
            validate(single)
        except ConfigError as error:
            raise ConfigError(f"Of seeds[{number}]: {error}") from None
        singles.append(single)
    contents = [single.to_dict() for single in singles]
    twice = [i for i, content in enumerate(contents) if content in contents[:i]]
    if twice:
        raise ConfigError(
            f"seeds is {tuple(config.seeds)}, of which seeds[{twice[0]}] is the run of an earlier"
            " seed; seeds, or the values that vary, must differ."
        )
    return singles


def _check_combination(config: ConfigDict) -> None:
    refused = {
        "data.random_crop_area": streams(config),
        "nonfinite.policy='rollback'": config.nonfinite.policy == "rollback",
    }
    for name, is_set in refused.items():
        if is_set:
            raise ConfigError(
                f"seeds is {tuple(config.seeds)}, and several seeds in one program have no {name};"
                " train each in a run of its own."
            )
    wrong = [seed for seed in config.seeds if not isinstance(seed, int) or seed < 0]
    if wrong:
        raise ConfigError(f"seeds has {wrong[0]!r}; seeds are numbers from 0.")


def _variation(config: ConfigDict) -> dict[str, Sequence[float]]:
    """Return field → values, one per seed, from the pairs of `config.vary`."""
    found: dict[str, Sequence[float]] = {}
    for pair in config.vary:
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise ConfigError(
                f"vary has {pair!r}; it holds pairs of a field and values, such as"
                " (('schedule.base_lr', (0.1, 0.05)),)."
            )
        name, values = pair
        if name not in VARYING:
            known = ", ".join(VARYING)
            hint = did_you_mean(str(name), VARYING)
            raise ConfigError(f"vary names {name!r}; fields that can vary: {known}.{hint}")
        if not isinstance(values, tuple | list) or len(values) != len(config.seeds):
            raise ConfigError(
                f"vary gives {name} {values!r}; it needs {len(config.seeds)} values, one for each"
                " of the seeds."
            )
        found[name] = values
    return found


@dataclasses.dataclass(frozen=True, eq=False)
class SeedAxis:
    """The seeds of a run, and the leading axis that its arrays have because of them.

    A run of `config.seed` alone has no seed axis: the methods then return their arguments as they
    are, or lists of one.

    Attributes:
        numbers: the seeds in order.
        stacked: whether arrays have a seed axis: whether `config.seeds` is set.
        varied: field → values, float32 [seeds], for fields that vary within the steps.
        mesh: mesh of the devices.
        spread: distribute the seeds over the devices, each of which trains its own seeds alone.
            Otherwise all devices train seed after seed, with a part of each batch on every device.
    """

    numbers: tuple[int, ...]
    stacked: bool
    varied: Mapping[str, Float[np.ndarray, " s"]]
    mesh: Mesh
    spread: bool

    @classmethod
    def make(cls, config: ConfigDict, mesh: Mesh) -> "SeedAxis":
        """Make the seed axis of a config whose `single_configs` are valid."""
        if not config.seeds:
            return cls((config.seed,), stacked=False, varied={}, mesh=mesh, spread=False)
        shared = mesh.size > 1 and mesh.shape["fsdp"] == 1 and jax.process_count() == 1
        variation = _variation(config)
        return cls(
            numbers=tuple(config.seeds),
            stacked=True,
            varied={
                name: np.asarray(variation[name], np.float32)
                for name in _IN_STEPS
                if name in variation
            },
            mesh=mesh,
            spread=shared and len(config.seeds) % mesh.size == 0,
        )

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def turns(self) -> int:
        """How many networks a device trains one after another in a step."""
        if not self.stacked or not _one_by_one(self.mesh):
            return 1
        return len(self) // self.mesh.size if self.spread else len(self)

    @property
    def step_mesh(self) -> Mesh | None:
        """The mesh for the steps of one seed; None if each device trains seeds of its own."""
        return None if self.spread else self.mesh

    @property
    def batch_sharding(self) -> NamedSharding:
        """Sharding of arrays of k steps: [k, m, n, …], or [seeds, k, m, n, …]."""
        if self.spread:
            return batch_sharding(self.mesh, axis=0)
        return batch_sharding(self.mesh, axis=3 if self.stacked else 2)

    def state_sharding(self, single: Tree) -> Tree:
        """Sharding of the state of all seeds, given the state (or shapes) of one."""
        if self.spread:
            return jax.tree.map(lambda _: batch_sharding(self.mesh, axis=0), single)
        shardings = state_shardings(single, self.mesh)
        if not self.stacked:
            return shardings
        return jax.tree.map(
            lambda sharding: NamedSharding(self.mesh, PartitionSpec(None, *sharding.spec)),
            shardings,
        )

    def shape(self, single: Sequence[int]) -> tuple[int, ...]:
        """Shape of an array of all seeds, given the shape for one."""
        return (len(self), *single) if self.stacked else tuple(single)

    def stack(self, trees: Sequence[Tree]) -> Tree:
        """Put trees of host arrays, one per seed, on the devices as one tree."""
        whole = trees[0]
        if self.stacked:
            whole = jax.tree.map(lambda *leaves: np.stack([np.asarray(x) for x in leaves]), *trees)
        return put_global(whole, self.state_sharding(trees[0]))

    def unstack(self, tree: Tree) -> list[Tree]:
        """Fetch a tree from the devices as a list of host trees, one per seed."""
        tree = jax.device_get(tree)
        if not self.stacked:
            return [tree]
        return [jax.tree.map(lambda leaf, i=i: leaf[i], tree) for i in range(len(self))]

    def each(self, tree: Tree) -> Iterator[Tree]:
        """Yield the tree of each seed, replicated over the devices."""
        if not self.stacked:
            yield tree
            return
        for number in range(len(self)):
            yield self._entry(tree, number)

    @functools.cached_property
    def _entry(self) -> jax.stages.Wrapped:
        """The tree of one seed; jitted once, for all calls of `each`."""

        def entry(tree: Any, number: jax.Array) -> Any:
            return jax.tree.map(lambda leaf: leaf[number], tree)

        return jax.jit(entry, out_shardings=replicated(self.mesh))

    def map(self, run: Callable[..., Any], per_seed: Sequence[bool]) -> Callable[..., Any]:
        """Map a function of one seed's arrays over the seeds.

        Args:
            run: function of arrays. It must not mention the mesh if the seeds are `spread`.
            per_seed: for each argument, whether it has a seed axis.
        """
        if not self.stacked:
            return run
        mapped = _map_over_seeds(run, per_seed, one_by_one=_one_by_one(self.mesh))
        if not self.spread:
            return mapped
        along = PartitionSpec(AXES)
        return jax.shard_map(
            mapped,
            mesh=self.mesh,
            in_specs=tuple(along if has_axis else PartitionSpec() for has_axis in per_seed),
            out_specs=along,
            check_vma=False,
        )

    def order(self, samplers: Sequence[IndexSampler]) -> "IndexSampler | SeedSamplers":
        """Return the order of examples of all seeds, given the sampler of each."""
        return SeedSamplers(tuple(samplers)) if self.stacked else samplers[0]

    def evaluate(self, evaluator: Evaluator, variables: Any, normalization: Any) -> Evaluation:
        """Evaluate the variables of each seed; with several seeds see `mean_over_seeds`."""
        scores = [evaluator(*arrays) for arrays in self.each((variables, normalization))]
        return mean_over_seeds(scores) if self.stacked else scores[0]

    def summarize(self, values: Sequence[Mapping[str, float]]) -> dict[str, Any]:
        """Merge the values of each seed: means, with "std" and "seeds" beside them."""
        return with_spread(values) if self.stacked else dict(values[0])

    def phrase(self, affected: Sequence[bool]) -> str:
        """Return " of seed 3, 4" for the affected seeds; "" for a run of one seed."""
        found = [str(n) for n, is_so in zip(self.numbers, affected, strict=True) if is_so]
        return f" of seed {', '.join(found)}" if found and self.stacked else ""


def _one_by_one(mesh: Mesh) -> bool:
    """Whether seeds are trained one after another, not together.

    On CPU a convolution with several kernels at once is a grouped convolution, which is half as
    fast or slower. One small network doesn't fill an accelerator.
    """
    return mesh.devices.flat[0].platform == "cpu"


def _map_over_seeds(
    run: Callable[..., Any], per_seed: Sequence[bool], *, one_by_one: bool
) -> Callable[..., Any]:
    """Map `run` over the leading axis of its `per_seed` arguments, on one device or all."""

    def together(*arguments: Any) -> Any:
        return jax.vmap(run, in_axes=tuple(0 if axis else None for axis in per_seed))(*arguments)

    def in_turn(*arguments: Any) -> Any:
        def run_seed(entries: list[Any]) -> Any:
            rest = iter(entries)
            return run(*(next(rest) if m else a for m, a in zip(per_seed, arguments, strict=True)))

        return jax.lax.map(run_seed, [a for m, a in zip(per_seed, arguments, strict=True) if m])

    return in_turn if one_by_one else together


@dataclasses.dataclass(frozen=True)
class SeedSamplers:
    """The order of examples of several seeds."""

    samplers: tuple[IndexSampler, ...]

    def take(
        self, step: int, steps: int
    ) -> tuple[Int[np.ndarray, "s steps b"], Int[np.ndarray, "s steps b"]]:
        """Return (example ids, epochs) as `IndexSampler.take`, with a leading seed axis."""
        ids, epochs = zip(*(sampler.take(step, steps) for sampler in self.samplers), strict=True)
        return np.stack(ids), np.stack(epochs)
