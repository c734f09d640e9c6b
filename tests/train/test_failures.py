"""What errors of the system and of JAX become, and what a failed run still writes."""

import errno
import os

import jax
import pytest
from etils import epath

from resnet_jax.errors import ConfigError, DataError, PeerError, WriteError
from resnet_jax.train.failures import explained, unless_taken_over


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), WriteError, "^run can't be written: No"),
        (MemoryError("Unable to allocate 9 GiB"), ConfigError, r"\(Unable to allocate 9 GiB\)"),
        (
            jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory.\nof two lines"),
            ConfigError,
            r"too little memory for this run \(Out of memory\)",
        ),
    ],
)
def test_errors_of_the_system_say_what_to_do(error, kind, message):
    with pytest.raises(kind, match=message) as caught, explained(epath.Path("run")):
        raise error
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is error


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("class_weights.npy", DataError, "^class_weights.npy can't be read or written"),
        ("/elsewhere/w.npy", DataError, "^/elsewhere/w.npy can't be read or written"),
        ("run/metrics.jsonl", WriteError, "^run can't be written"),
        (os.path.abspath("run/checkpoints/4"), WriteError, "^run can't be written"),
    ],
)
def test_a_file_of_the_user_is_named(name, kind, message):
    with pytest.raises(kind, match=message), explained(epath.Path("run")):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)


@pytest.mark.parametrize("error", [jax.errors.JaxRuntimeError("INTERNAL: a bug"), KeyError("x")])
def test_bugs_stay_what_they_are(error):
    with pytest.raises(type(error)) as caught, explained(epath.Path("run")):
        raise error
    assert caught.value is error


def test_nothing_is_written_into_a_directory_that_was_taken_over():
    written = []

    def lost():
        raise PeerError("held by another")

    unless_taken_over(lost, lambda: written.append("lost"))(None)
    unless_taken_over(lambda: None, lambda: written.append("ours"))(ValueError())
    assert written == ["ours"]
