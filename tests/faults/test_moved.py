"""Work directories that are renamed or copied, while a run is under way or after it was stopped."""

import shutil
import subprocess

import pytest

from tests.runs import digest, start, steps_on_record, train


@pytest.mark.thorough
def test_a_run_whose_directory_is_renamed_ends_and_goes_on_there(whole, tmp_path, record_property):
    """It doesn't begin another one at the old place, nor lose what it had saved."""
    workdir, moved = tmp_path / "run", tmp_path / "moved"
    running = start(workdir, fault="files:1:slow").logs(4)
    workdir.rename(moved)
    ended = running.end()
    record_property("saw", ended.last_line)
    assert ended.code == 73, ended.said
    assert f"Work directory {workdir} was renamed, moved or removed" in ended.last_line
    assert not [*workdir.glob("*.json*"), *workdir.glob("checkpoints/*[0-9]")]
    assert train(moved).code == 0
    assert digest(moved) == digest(whole)
    assert steps_on_record(moved) == steps_on_record(whole)


@pytest.mark.thorough
@pytest.mark.parametrize("when", ["stopped", "running"])
def test_a_copy_of_a_directory_goes_on_as_the_original_would(when, whole, tmp_path):
    """Whatever file of it was being written when it was copied."""
    workdir, copy = tmp_path / "run", tmp_path / "copy"
    if when == "stopped":
        assert train(workdir, "--stop_at_step=6").code == 75
        shutil.copytree(workdir, copy)
    else:
        running = start(workdir, fault="files:1:slow").logs(6)
        subprocess.run(["cp", "-r", workdir, copy], check=False, stderr=subprocess.DEVNULL)
        running.kill()
        running.end()
    assert train(copy).code == 0
    assert digest(copy) == digest(whole)
    assert steps_on_record(copy) == steps_on_record(whole)
