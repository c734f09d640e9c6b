"""JAX's cache of compiled programs, damaged or shared: each run computes the same all the same."""

import contextlib
import os
import shutil
import subprocess

import pytest

from tests.runs import digest, small_disk, start


def _train(workdir, cache):
    return start(workdir, environment={"JAX_COMPILATION_CACHE_DIR": str(cache)})


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    """A cache with the programs of a run."""
    folder = tmp_path_factory.mktemp("filled")
    assert _train(folder / "run", folder / "cache").end().code == 0
    return folder / "cache"


@pytest.fixture
def cache(filled, tmp_path):
    """The same, to be damaged: where it lies is part of what its programs are found by."""
    kept = shutil.move(filled, tmp_path / "kept")
    shutil.copytree(kept, filled)
    yield filled
    shutil.rmtree(filled)
    shutil.move(kept, filled)


def _programs(cache):
    found = sorted(cache.glob("*-cache"))
    assert found
    return found


def _cut(cache):
    for number, program in enumerate(_programs(cache)):
        os.truncate(program, program.stat().st_size // 2 if number % 2 else 0)


def _flip(cache):
    for program in _programs(cache):
        content = bytearray(program.read_bytes())
        content[len(content) // 2] ^= 1
        program.write_bytes(content)


@pytest.mark.thorough
@pytest.mark.parametrize("damage", [_cut, _flip])
def test_damaged_programs_are_compiled_again(damage, cache, whole, tmp_path, record_property):
    damage(cache)
    ended = _train(tmp_path / "run", cache).end()
    assert ended.code == 0, ended.said
    warnings = [line for line in ended.said.splitlines() if "compilation cache" in line]
    record_property("saw", next(line for line in warnings if "'jit_run'" in line))
    assert digest(tmp_path / "run") == digest(whole)


@pytest.mark.thorough
def test_a_cache_that_cannot_be_written_is_read(cache, whole, tmp_path):
    _programs(cache)[0].unlink()  # which would be written
    shutil.copytree(cache, tmp_path / "copy")
    shutil.rmtree(cache)
    with contextlib.ExitStack() as mounted:
        try:
            mounted.enter_context(small_disk(cache, megabytes=64))
        except subprocess.CalledProcessError:
            pytest.skip("needs the right to mount a file system")
        shutil.copytree(tmp_path / "copy", cache, dirs_exist_ok=True)
        subprocess.run(["mount", "-o", "remount,ro", cache], check=True)
        ended = _train(tmp_path / "run", cache).end()
    assert ended.code == 0, ended.said
    assert digest(tmp_path / "run") == digest(whole)


@pytest.mark.thorough
def test_two_runs_may_fill_it_at_the_same_time(whole, tmp_path):
    cache = tmp_path / "cache"
    for run in [_train(tmp_path / name, cache) for name in ("one", "another")]:
        ended = run.end()
        assert ended.code == 0, ended.said
        assert digest(run.workdir) == digest(whole)
    assert _programs(cache)
