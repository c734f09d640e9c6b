"""JAX's persistent compilation cache; its failures cost only time."""

import os
import pwd
import subprocess
import sys
import types
from pathlib import Path

import pytest

from resnet_jax.utils import compilation_cache, files
from resnet_jax.utils.compilation_cache import enable_compilation_cache

_PROGRAM = """
import sys
from resnet_jax.utils.compilation_cache import enable_compilation_cache
if sys.argv[1] == "late":
    import jax
enable_compilation_cache()
import jax, jax.numpy as jnp
def f(x):
    for _ in range(9):
        x = jnp.sin(x) @ x + 0.1
    return x.sum()
print(float(jax.jit(jax.grad(f))(jnp.full((3, 3), 0.1))[0, 0]))
"""


def _run(home: Path, when: str = "early", **environment):
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_"))}
    variables = {**kept, "XDG_CACHE_HOME": str(home), "JAX_PLATFORMS": "cpu", **environment}
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, when],
        env=variables,
        capture_output=True,
        text=True,
        check=True,
    )
    return float(done.stdout)


def test_programs_are_kept_and_a_damaged_one_is_compiled_anew(tmp_path):
    fast = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    result = _run(tmp_path, "late", **fast)
    kept = list(tmp_path.glob("resnet_jax/programs-*/*-cache"))
    assert any(path.name.startswith("jit_f-") for path in kept)
    for number, path in enumerate(kept):
        path.write_bytes(b"no program" if number % 2 else b"")
    assert _run(tmp_path, **fast) == result


def test_a_program_whose_writer_was_killed_does_not_spoil_the_cache(tmp_path):
    fast = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    _run(tmp_path, **fast)
    written = {path.name for path in tmp_path.glob("resnet_jax/programs-*/*")}
    (folder,) = tmp_path.glob("resnet_jax/programs-*")
    for path in folder.glob("jit_*"):
        path.unlink()
    (folder / "jit_g-0123-cache").write_bytes(b"the first half")
    _run(tmp_path, **fast)
    assert {path.name for path in tmp_path.glob("resnet_jax/programs-*/*")} == written


def test_a_cache_that_cannot_be_made_costs_nothing_but_time(tmp_path):
    (tmp_path / "resnet_jax").write_text("a file where the folder would be")
    assert _run(tmp_path, JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0") != 0


def test_the_users_own_choice_is_left_alone(monkeypatch):
    for choice in ("", "/elsewhere"):
        monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", choice)
        enable_compilation_cache()
        assert os.environ["JAX_COMPILATION_CACHE_DIR"] == choice


def _nobody(_):
    raise KeyError("uid not found")


@pytest.mark.parametrize(
    ("module", "name", "instead"),
    [(os, "geteuid", lambda: 12345), (pwd, "getpwuid", _nobody)],
    ids=["another user's folder", "a user without a name"],
)
def test_programs_of_another_user_are_not_run(module, name, instead, tmp_path, monkeypatch):
    """For a user without a name, JAX couldn't write any, and would warn of each."""
    monkeypatch.setattr(pwd, "getpwuid", lambda _: None)
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    without_jax = types.SimpleNamespace(modules={})  # keeps the settings of JAX in this process
    monkeypatch.setattr(compilation_cache, "sys", without_jax)
    enable_compilation_cache()
    assert os.environ.pop("JAX_COMPILATION_CACHE_DIR").startswith(str(tmp_path))
    monkeypatch.setattr(module, name, instead)
    enable_compilation_cache()
    assert os.environ["JAX_COMPILATION_CACHE_DIR"] == ""


def test_a_user_without_a_home_has_caches_that_end_with_the_process(monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as for an unknown user
    root = files.cache_root()
    assert root.parent.stat().st_mode & 0o777 == 0o700
    assert files.cache_root() == root
    files._temporary_folder().cleanup()
    files._temporary_folder.cache_clear()
    assert not root.parent.exists()
