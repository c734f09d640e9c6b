"""Several seeds of a run in one compiled program, and settings that vary with them.

All that a run carries gets a leading axis, one entry for each seed; the program maps the steps of a
single run over it. Each seed has the initial values, the order of examples, the augmentation and
the scores that it would have in a run of its own, up to the rounding of another program.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Float, Int
from ml_collections import ConfigDict

from resnet_jax.config.schema import set_field, streams, validate
from resnet_jax.data.loaders.sampler import IndexSampler
from resnet_jax.errors import ConfigError, did_you_mean
from resnet_jax.parallel.mesh import AXES, batch_sharding
from resnet_jax.parallel.sharding import state_shardings

_IN_STEPS = (
    "schedule.base_lr",
    "optimizer.weight_decay",
    "optimizer.momentum",
    "label_smoothing",
)
_AT_FIRST = ("model.gate_bias", "model.carry_bias")  # they only matter before the first step
VARYING = (*_IN_STEPS, *_AT_FIRST)
"""Fields that `config.vary` can give each seed a value of its own of."""


def single_configs(config: ConfigDict) -> list[ConfigDict]:
    """The config that each seed of a valid one would have in a run of its own.

    Raises:
        ConfigError: seeds or what varies can't be.
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
    twice = [i for i, single in enumerate(singles) if single.to_dict() in map(_dict, singles[:i])]
    if twice:
        raise ConfigError(
            f"seeds is {tuple(config.seeds)}, of which seeds[{twice[0]}] is the run of an earlier"
            " one; seeds, or what varies with them, must differ."
        )
    return singles


def _dict(config: ConfigDict) -> dict[str, Any]:
    return config.to_dict()


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
    """Field → values, from the pairs of `config.vary`."""
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
            raise ConfigError(f"vary names {name!r}; what can vary with the seeds: {known}.{hint}")
        if not isinstance(values, tuple | list) or len(values) != len(config.seeds):
            raise ConfigError(
                f"vary gives {name} {values!r}; it needs {len(config.seeds)} values, one for each"
                " of the seeds."
            )
        found[name] = values
    return found


@dataclasses.dataclass(frozen=True, eq=False)
class Seeds:
    """The seeds of a run that has several.

    Attributes:
        numbers: of them.
        varied: field → its values, float32 [seeds], of what varies in the steps themselves.
        spread: they are shared out to the devices, each of which trains its own alone. Otherwise
            all devices train seed after seed, a part of each batch on every device.
    """

    numbers: tuple[int, ...]
    varied: dict[str, Float[np.ndarray, " s"]]
    spread: bool

    @classmethod
    def of(cls, config: ConfigDict, mesh: Mesh) -> "Seeds | None":
        """The seeds of a config whose `single_configs` are valid; None if it has a single one."""
        if not config.seeds:
            return None
        shared = mesh.size > 1 and mesh.shape["fsdp"] == 1 and jax.process_count() == 1
        values = {name: of for name, of in _variation(config).items() if name in _IN_STEPS}
        return cls(
            numbers=tuple(config.seeds),
            varied={
                name: np.asarray(values[name], np.float32) for name in _IN_STEPS if name in values
            },
            spread=shared and len(config.seeds) % mesh.size == 0,
        )

    def __len__(self) -> int:
        return len(self.numbers)


def batch_layout(mesh: Mesh, seeds: Seeds | None) -> NamedSharding:
    """How arrays of k steps lie on the mesh: [k, m, n, …] or, of several seeds, [s, k, m, n, …]."""
    if seeds and seeds.spread:
        return batch_sharding(mesh, axis=0)
    return batch_sharding(mesh, axis=3 if seeds else 2)


def state_layout(state: Any, mesh: Mesh, seeds: Seeds | None) -> Any:
    """How the state of all seeds lies on the mesh, given that of one."""
    if seeds and seeds.spread:
        return jax.tree.map(lambda _: batch_sharding(mesh, axis=0), state)
    layout = state_shardings(state, mesh)
    if not seeds:
        return layout
    return jax.tree.map(lambda one: NamedSharding(mesh, PartitionSpec(None, *one.spec)), layout)


def _one_by_one(mesh: Mesh) -> bool:
    """Whether seeds are trained one after the other, not together.

    On CPU a convolution by several kernels at once is a grouped one, and twice as slow or worse;
    an accelerator isn't filled by one small network.
    """
    return mesh.devices.flat[0].platform == "cpu"


def map_over_seeds(
    run: Callable[..., Any], mesh: Mesh, *, spread: bool, mapped: Sequence[bool]
) -> Callable[..., Any]:
    """Map `run` over the leading axis of those arguments that are `mapped`.

    Args:
        run: a function of arrays.
        mesh: of the devices.
        spread: share the seeds out to the devices; `run` must then not mention the mesh.
        mapped: for each argument, whether it has the axis.
    """

    def several(*arguments: Any) -> Any:
        if not _one_by_one(mesh):
            return jax.vmap(run, in_axes=tuple(0 if axis else None for axis in mapped))(*arguments)

        def one(entries: list[Any]) -> Any:
            rest = iter(entries)
            return run(*(next(rest) if m else a for m, a in zip(mapped, arguments, strict=True)))

        return jax.lax.map(one, [a for m, a in zip(mapped, arguments, strict=True) if m])

    if not spread:
        return several
    along = PartitionSpec(AXES)
    return jax.shard_map(
        several,
        mesh=mesh,
        in_specs=tuple(along if axis else PartitionSpec() for axis in mapped),
        out_specs=along,
        check_vma=False,
    )


@dataclasses.dataclass(frozen=True)
class SeedStreams:
    """The order of examples of several seeds."""

    streams: tuple[IndexSampler, ...]

    def take(
        self, step: int, steps: int
    ) -> tuple[Int[np.ndarray, "s steps b"], Int[np.ndarray, "s steps b"]]:
        """As `IndexSampler.take`, of each seed."""
        ids, epochs = zip(*(stream.take(step, steps) for stream in self.streams), strict=True)
        return np.stack(ids), np.stack(epochs)


def stack(trees: Sequence[Any]) -> Any:
    """Give trees of arrays a leading axis, on the host."""
    return jax.tree.map(lambda *leaves: np.stack([np.asarray(leaf) for leaf in leaves]), *trees)
