"""What one run needs: a config, data, a directory that can be written, a cache."""

import contextlib
import os
import re
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from etils import epath
from PIL import Image

from resnet_jax.checkpoint.lock import locked
from resnet_jax.cli.main import main
from resnet_jax.doctor import run
from resnet_jax.errors import WriteError
from tests.data.tiny_dataset import write_tfds
from tests.doctor.helpers import only, run_doctor, touch

# ml_collections' own, at each config file.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")


def test_data_that_are_missing_end_with_65(capsys, quick, tmp_path):
    code, found = run_doctor(capsys, "--data", "mnist", "--data-dir", str(tmp_path))
    assert code == 65
    assert f"'mnist' isn't prepared in {tmp_path}" in found["data"][0]["message"]


def test_a_prepared_set_is_found_until_a_file_is_missing(capsys, quick, tmp_path):
    folder = write_tfds(tmp_path)
    capsys.readouterr()  # TFDS prints as it writes
    arguments = ("--data", "tiny", "--data-dir", str(tmp_path))
    code, found = run_doctor(capsys, *arguments)
    assert code == 0
    assert re.search(r"tiny: .*train \d+.* images of 4×5×3, 3 classes", found["data"][0]["message"])
    record = next(folder.glob("*array_record*"))
    record.unlink()
    code, found = run_doctor(capsys, *arguments)
    assert code == 65
    assert f"{record} of 'tiny' is missing or damaged" in found["data"][0]["message"]


def test_nothing_is_downloaded_to_find_out(tmp_path, monkeypatch):
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: pytest.fail("a download"))
    one = only(run.check_data("cifar10", data_dir=str(tmp_path)))
    assert (one.status, list(tmp_path.iterdir())) == ("warn", [])
    archive = tmp_path / "downloads" / "manual" / "cifar-10-binary.tar.gz"
    assert str(archive) in one.remedy
    touch(archive)
    assert only(run.check_data("cifar10", data_dir=str(tmp_path))).status == "ok"


def test_a_folder_that_is_not_there_ends_with_65(capsys, quick, tmp_path):
    code, found = run_doctor(capsys, "--data", "cifar10", "--data-dir", str(tmp_path / "none"))
    assert code == 65
    assert "none doesn't exist" in found["data"][0]["message"]


def test_photographs_need_no_config(capsys, quick, tmp_path):
    for label, height in (("cat", 9), ("dog", 12)):
        folder = tmp_path / "photos" / "train" / label
        folder.mkdir(parents=True)
        Image.fromarray(np.zeros((height, 10, 3), np.uint8)).save(folder / "1.png")
    assert main(["prepare", str(tmp_path / "photos"), f"--out={tmp_path}", "--name=pets"]) == 0
    capsys.readouterr()
    code, found = run_doctor(capsys, "--data", "pets", "--data-dir", str(tmp_path))
    assert code == 0
    assert "images of different sizes, cropped to 224×224×3" in found["data"][0]["message"]


def test_the_network_may_be_that_of_a_file(capsys, quick, tmp_path):
    config = tmp_path / "config.py"
    config.write_text(CONFIG)
    arguments = [f"--config={config}", "--config.model.name=", "--config.init_from=none.npz"]
    code, found = run_doctor(capsys, *arguments, f"--workdir={tmp_path / 'run'}")
    assert code == 65
    assert "none.npz can't be read" in found["config"][0]["message"]
    code, found = run_doctor(capsys, *arguments[:2], "--config.init_from=resnet20.digits")
    assert found["config"][0]["message"].startswith("resnet20 on digits")


CONFIG = """
from resnet_jax.config.schema import default_config

def get_config(argument="train[:100]"):
    config = default_config()
    config.data.train = argument
    return config
"""


def test_the_splits_of_a_config_are_counted(capsys, quick, tmp_path):
    touch(tmp_path / "c.py", CONFIG)
    code, found = run_doctor(capsys, f"--config={tmp_path / 'c.py'}:train[:300]")
    assert code == 0
    assert "resnet20 on digits" in found["config"][0]["message"]
    assert "train (train[:300]) 300, test (test) 360 images" in found["data"][0]["message"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none.py", "there is no file"),
        ("c.py:trian", "there is no split 'trian'"),
        ("typo.py", "typo.py, line 6: AttributeError: "),
        ("c.py --config.modle=x", "There is no config field 'modle'"),
        ("c.py --config.batch_size=0", "batch_size is 0; it must be greater than 0"),
    ],
)
def test_a_config_that_is_wrong_ends_with_78(name, message, capsys, quick, tmp_path):
    touch(tmp_path / "c.py", CONFIG)
    touch(tmp_path / "typo.py", CONFIG.replace("data.train", "data.trian"))
    file, *overrides = name.split()
    code, found = run_doctor(capsys, f"--config={tmp_path / file}", *overrides)
    assert code == 78
    failed = [line for lines in found.values() for line in lines if line["status"] == "fail"]
    assert len(failed) == 1
    assert message in failed[0]["message"]


def test_a_directory_of_another_config_ends_with_78(capsys, quick, tmp_path):
    from resnet_jax.config.io import to_json
    from resnet_jax.config.schema import default_config

    other = default_config()
    other.seed = 7
    touch(tmp_path / "c.py", CONFIG)
    touch(tmp_path / "run" / "config.json", to_json(other))
    touch(tmp_path / "run" / "checkpoints" / "20" / "state")
    code, found = run_doctor(
        capsys, f"--config={tmp_path / 'c.py'}", "--workdir", str(tmp_path / "run")
    )
    assert code == 78
    assert "seed: 7 → 0" in found["config"][-1]["message"]


@contextlib.contextmanager
def _as_nobody():
    """Without root's right to write anywhere."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


@pytest.fixture
def closed():
    """A directory that can be looked into, but not written."""
    folder = Path(tempfile.mkdtemp(prefix="resnet_jax-closed-"))
    folder.chmod(0o555)
    yield folder
    folder.chmod(0o755)
    shutil.rmtree(folder)


@pytest.mark.parametrize("name", [".", "new/run"])
def test_a_directory_that_is_closed_ends_with_73(name, closed):
    with _as_nobody():
        one = only(run.check_workdir(closed / name, several=""))
    assert (one.status, one.exit_code) == ("fail", 73)
    assert "Permission denied" in one.message


def test_checkpoints_of_another_user_are_noticed(tmp_path):
    folder = Path(tempfile.mkdtemp(prefix="resnet_jax-open-"))
    try:
        folder.chmod(0o777)
        (folder / "checkpoints").mkdir(mode=0o555)
        with _as_nobody():
            one = only(run.check_workdir(folder, several=""))
        assert one.status == "fail"
        assert f"Permission denied: {folder / 'checkpoints'}" in one.message
    finally:
        shutil.rmtree(folder)


def test_a_dangling_link_is_no_directory(tmp_path):
    (tmp_path / "run").symlink_to(tmp_path / "gone")
    assert only(run.check_workdir(tmp_path / "run", several="")).status == "fail"


def test_checkpoints_are_listed(tmp_path):
    assert "has no checkpoints" in only(run.check_workdir(tmp_path, several="")).message
    for name in (*range(20, 200, 20), "200.orbax-checkpoint-tmp-1"):
        (tmp_path / "checkpoints" / str(name)).mkdir(parents=True)
    one = only(run.check_workdir(tmp_path, several=""))
    assert "checkpoints of steps the newest of 9: 80, 100, 120, 140, 160, 180;" in one.message
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoints"]


def test_a_directory_that_another_run_holds_ends_with_73(capsys, quick, tmp_path):
    with locked(epath.Path(tmp_path)):
        code, found = run_doctor(capsys, "--workdir", str(tmp_path))
    assert code == 73
    assert f"is in use by process {os.getpid()} on" in found["workdir"][0]["message"]
    assert run_doctor(capsys, "--workdir", str(tmp_path))[0] == 0


def test_several_processes_need_a_shared_directory(tmp_path):
    def look(kind, several):
        line = f"1 0 8:1 / {tmp_path} rw - {kind} /dev/x rw"
        touch(
            tmp_path / "proc/self/mountinfo", f"0 0 8:0 / / rw shared:1 - xfs /dev/y rw\n{line}\n"
        )
        return only(run.check_workdir(tmp_path, several=several, proc=tmp_path / "proc"))

    assert "on ext4: only this host sees it" in look("ext4", "").message
    assert look("ext4", "").status == "ok"
    assert (look("ext4", "a pod").status, "a pod" in look("ext4", "a pod").message) == (
        "warn",
        True,
    )
    assert "on nfs4: other hosts may see it too" in look("nfs4", "a pod").message
    assert look("nfs4", "a pod").status == "ok"


def test_a_cache_that_cannot_be_written_is_a_warning(capsys, quick, tmp_path, monkeypatch):
    touch(tmp_path / "file")
    for folder, status in (
        (tmp_path / "file", "warn"),
        (tmp_path / "new", "ok"),
        ("gs://bucket/cache", "warn"),
    ):
        monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(folder))
        code, found = run_doctor(capsys)
        assert (code, found["compilation cache"][0]["status"]) == (0, status)
        assert str(folder) in found["compilation cache"][0]["message"]


def test_a_bucket_is_probed_and_its_data_are_found(bucket, monkeypatch):
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    (bucket / "doctor" / "mnist").mkdir(parents=True)
    (found,) = run.check_workdir(epath.Path("gs://bucket/doctor/run"), several="")
    assert (found.status, "all hosts see" in found.message) == ("ok", True)
    (found,) = run.check_data("mnist", data_dir="gs://bucket/doctor")
    assert found.status == "ok"
    (found,) = run.check_data("cifar10", data_dir="gs://bucket/doctor")
    assert (found.status, found.exit_code) == ("fail", 65)
    with pytest.raises(WriteError, match="to which Orbax writes no checkpoints"):
        list(run.check_workdir(epath.Path("s3://bucket/run"), several=""))
