"""Flags that select a network of a run."""

# ruff: noqa: PLC0415 - JAX takes a while to import, which --help needn't wait for

import argparse
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from resnet_jax.inference.network import TrainedNetwork

RUN_FLAGS = ("checkpoint", "ema", "seed_index")


def add_run_flags(group: Any, *, default: str = "0, the first") -> None:
    """Define --checkpoint, --ema and --seed-index; `default` describes the default seed."""
    group.add_argument("--checkpoint", help="last, best (on validation), or a step (default: last)")
    group.add_argument("--ema", action="store_true", help="use the moving averages")
    group.add_argument(
        "--seed-index", type=int, help=f"index of the seed, from 0 (default: {default})"
    )


def restore_network(
    args: argparse.Namespace, workdir: str, *, seed_index: int | None = None
) -> "TrainedNetwork":
    """Restore the network that the flags select, or the network of `seed_index`.

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
