"""Flags that say which network of a run is meant."""

# ruff: noqa: PLC0415 - JAX takes a while to import, which --help needn't wait for

import argparse
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from resnet_jax.inference.network import TrainedNetwork

RUN_FLAGS = ("checkpoint", "ema", "seed_index")


def add_run_flags(group: Any, *, default: str = "0, the first") -> None:
    """Define --checkpoint, --ema and --seed-index, whose default is to be said."""
    group.add_argument("--checkpoint", help="last, best (on validation), or a step (default: last)")
    group.add_argument("--ema", action="store_true", help="take the moving averages")
    group.add_argument(
        "--seed-index", type=int, help=f"which of several seeds, from 0 (default: {default})"
    )


def restore_network(
    args: argparse.Namespace, workdir: str, *, seed_index: int | None = None
) -> "TrainedNetwork":
    """The network that the flags say, or that of another seed.

    Raises:
        ResnetJaxError: as `restore_run`.
    """
    from resnet_jax.inference.restore import restore_run

    return restore_run(
        workdir,
        checkpoint=args.checkpoint or "last",
        ema=args.ema,
        seed_index=(args.seed_index or 0) if seed_index is None else seed_index,
    )
