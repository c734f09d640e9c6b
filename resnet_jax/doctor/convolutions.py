"""What computes convolutions on a CPU."""

import os
from collections.abc import Iterator

from resnet_jax.doctor.finding import Finding, ok, warn
from resnet_jax.ops.native.library import CHOICE, LIBRARY, find, log_of


def check_convolutions() -> Iterator[Finding]:
    """Whether oneDNN's convolutions were built, and are used by this installation."""
    state = find()
    if state.library:
        yield ok(
            "convolutions",
            f"by {state.name}, which was checked on this machine, where a CPU device computes"
            " whole arrays: one device, fixed shards, or seeds of its own",
        )
    elif state.built:
        yield warn(
            "convolutions",
            f"XLA's, not oneDNN's: {state.reason}",
            "RESNET_JAX_NATIVE=0 leaves oneDNN alone without this warning",
        )
    else:
        built = "" if CHOICE in os.environ else _background_build()
        yield ok("convolutions", f"XLA's; of oneDNN's, {state.reason}{built}")


def _background_build() -> str:
    """What a build in the background (`make train` starts one) said last."""
    try:
        said = log_of(LIBRARY).read_text(encoding="utf-8", errors="replace").strip().splitlines()
    except OSError:
        return ""
    last = said[-1] if said else "nothing so far"
    return f" (its build in the background said: {last})"
