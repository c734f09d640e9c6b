"""States and checkpoints of these tests."""

from pathlib import Path

import jax
import jax.numpy as jnp

from resnet_jax.checkpoint.checkpointer import Checkpointer
from resnet_jax.parallel.mesh import make_mesh, replicated


def make_state(value: float, devices: int = 1):
    """A state with an array of so many values, replicated over devices."""
    state = {"w": jnp.full((300, 300), value), "step": jnp.int32(7), "empty": None}
    return jax.device_put(state, replicated(make_mesh(data=devices)))


def save_three(directory: Path) -> None:
    """Checkpoints of steps 1, 2, 3 with arrays that don't compress well."""
    checkpoints = Checkpointer(directory, keep=3)
    for step in (1, 2, 3):
        w = jax.random.normal(jax.random.key(step), (50, 50))
        checkpoints.save(step, {"w": w, "n": jnp.int32(step)}, progress={"at": step}, metrics=None)
    checkpoints.close()
