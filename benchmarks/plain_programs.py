"""Programs that keep a state as the guides of Orbax, Flax and PyTorch show it.

benchmarks/plain_checkpoints.py damages, stops and starves them. Orbax is CheckpointManager with its
defaults, StandardSave and StandardRestore; Flax is flax.serialization.to_bytes into a file; PyTorch
is torch.save and torch.load(weights_only=True). The state is 200 kB of random numbers.

    python benchmarks/plain_programs.py PROGRAM FOLDER [ARGUMENT]
"""

import importlib
import importlib.util
import json
import resource
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from flax import serialization

SYSTEMS = ("Orbax", "Flax", "PyTorch") if importlib.util.find_spec("torch") else ("Orbax", "Flax")
RACE_STEPS = 15

Tree = dict[str, Any]


def state(seed: int = 0) -> Tree:
    """Return three layers of float32 arrays."""
    rng = np.random.default_rng(seed)
    shapes = {"kernel": (128, 128), "bias": (128,)}
    return {
        f"layer{i}": {k: jnp.asarray(rng.standard_normal(s, np.float32)) for k, s in shapes.items()}
        for i in range(3)
    }


def save(system: str, folder: Path, tree: Tree) -> None:
    """Save one checkpoint to a folder, and wait for it."""
    folder.mkdir(parents=True, exist_ok=True)
    if system == "PyTorch":
        torch = importlib.import_module("torch")
        torch.save(jax.tree.map(lambda x: torch.from_numpy(np.array(x)), tree), folder / "state.pt")
    elif system == "Flax":
        (folder / "state.msgpack").write_bytes(serialization.to_bytes(tree))
    else:
        with ocp.CheckpointManager(folder) as manager:
            manager.save(0, args=ocp.args.StandardSave(tree))


def restore(system: str, folder: Path, like: Tree, step: int | None = None) -> Tree:
    """Restore a checkpoint, from Orbax the latest by default.

    Args:
        system: one of SYSTEMS, or a way to ask Orbax.
        folder: where it was saved.
        like: what it should be like; PyTorch can't be told.
        step: of Orbax.
    """
    if system == "PyTorch":
        torch = importlib.import_module("torch")
        return jax.tree.map(lambda x: x.numpy(), torch.load(folder / "state.pt", weights_only=True))
    if system == "Flax":
        return serialization.from_bytes(like, (folder / "state.msgpack").read_bytes())
    abstract = jax.tree.map(ocp.tree.to_shape_dtype_struct, like)
    restore_args = ocp.checkpoint_utils.construct_restore_args(abstract)
    args = {
        "Orbax": ocp.args.StandardRestore(abstract),
        "Orbax, PyTreeRestore": ocp.args.PyTreeRestore(abstract),
        "Orbax, PyTreeRestore with restore_args": ocp.args.PyTreeRestore(abstract, restore_args),
    }
    with ocp.CheckpointManager(folder) as manager:
        return manager.restore(manager.latest_step() if step is None else step, args=args[system])


def latest_step(folder: Path) -> int | None:
    """The latest step that a new CheckpointManager finds."""
    with ocp.CheckpointManager(folder) as manager:
        return manager.latest_step()


def train(folder: Path, processes: str) -> None:
    """The loop of the guide to preemption; steps take 0.1 s, and only the first is due.

    Args:
        folder: where to save.
        processes: if given, jax.distributed is initialised for that many.
    """
    if processes:
        with socket.socket() as free:
            free.bind(("localhost", 0))
            address = f"localhost:{free.getsockname()[1]}"
        jax.distributed.initialize(address, int(processes), process_id=0)
    options = ocp.CheckpointManagerOptions(save_interval_steps=1000)
    manager = ocp.CheckpointManager(folder, options=options)
    for step in range(1000):
        time.sleep(0.1)
        manager.save(step, args=ocp.args.StandardSave(state(step)))
        print(step, flush=True)
        if manager.reached_preemption(step):
            manager.wait_until_finished()
            sys.exit()


def save_on(folder: Path, _: str) -> None:
    """Save one step right after the other, in the background."""
    manager = ocp.CheckpointManager(folder)
    for step in range(10**6):
        manager.save(step, args=ocp.args.StandardSave(state(step)))
        print(step, flush=True)


def fail(folder: Path, _: str) -> None:
    """Save step 1, then step 2 although no file may be longer than 100 kB; print what is said."""

    def said_by(call: Callable[[], None]) -> str:
        try:
            call()
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        return ""

    manager = ocp.CheckpointManager(folder)
    manager.save(1, args=ocp.args.StandardSave(state(1)))
    manager.wait_until_finished()
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
    said: dict[str, Any] = {"save(2)": manager.save(2, args=ocp.args.StandardSave(state(2)))}
    time.sleep(3)  # it fails at once
    said["latest_step()"] = manager.latest_step()
    said["should_save(2)"] = manager.should_save(2)
    said["check_for_errors()"] = said_by(manager.check_for_errors)
    said["wait_until_finished()"] = said_by(manager.wait_until_finished)
    said["latest_step() after that"] = manager.latest_step()
    print(json.dumps(said))


def race(folder: Path, seed: str) -> None:
    """Wait for a line, then save a state of its own every 0.1 s."""
    manager = ocp.CheckpointManager(folder)
    print("ready", flush=True)
    sys.stdin.readline()
    for step in range(RACE_STEPS):
        time.sleep(0.1)
        manager.save(step, args=ocp.args.StandardSave(state(int(seed))))
    manager.close()


def save_nan(folder: Path, system: str) -> None:
    """Save a state that has a NaN, and print whether it has one when it is restored."""
    tree = state()
    tree["layer0"]["bias"] = tree["layer0"]["bias"].at[0].set(jnp.nan)
    save(system, folder, tree)
    print(np.isnan(restore(system, folder, tree)["layer0"]["bias"]).any())


if __name__ == "__main__":
    programs = {f.__name__: f for f in (train, save_on, fail, race, save_nan)}
    programs[sys.argv[1]](Path(sys.argv[2]), "".join(sys.argv[3:]))
