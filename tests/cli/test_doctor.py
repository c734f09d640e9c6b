"""resnet-jax doctor: each check is made to fail by what it is there to find."""

import contextlib
import importlib.metadata
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections import namedtuple
from pathlib import Path

import pytest
from etils import epath

from resnet_jax.checkpoint.lock import locked
from resnet_jax.cli.main import main
from resnet_jax.errors import DataError, WriteError
from resnet_jax.train.doctor import devices, finding, host, network, run, versions
from resnet_jax.train.doctor.child import Child
from tests.data.test_sources import write_tfds

ROOT = Path(__file__).parents[2]
GIB = 2**30

# ml_collections' own, at each config file.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch):
    """The variables that doctor looks at, as on a machine where nobody has set any."""
    for name in ("XLA_FLAGS", "JAX_COORDINATOR_ADDRESS", "JAX_COMPILATION_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")


def _doctor(capsys, *arguments: str) -> tuple[int, dict[str, list[dict]]]:
    """Exit code, and the findings of the JSON document by name."""
    code = main(["doctor", "--json", *arguments])
    document = json.loads(capsys.readouterr().out)
    assert document["exit_code"] == code
    by_name: dict[str, list[dict]] = {}
    for line in document["findings"]:
        by_name.setdefault(line["name"], []).append(line)
        assert (line["status"] == "ok") == (line["remedy"] == "")
        assert (line["status"] == "fail") == (line["exit_code"] != 0)
        assert "\n" not in line["message"] + line["remedy"]
    return code, by_name


@pytest.fixture
def quick(monkeypatch):
    """Without the second that JAX takes to start, for tests of something else."""
    monkeypatch.setattr(devices, "check_devices", lambda **_: iter(()))


def _only(findings) -> finding.Finding:
    (one,) = findings
    return one


# The whole command


def test_a_sound_machine_is_told_so(capsys, tmp_path):
    workdir = tmp_path / "runs" / "new"
    code, found = _doctor(capsys, "--workdir", str(workdir))
    assert code == 0
    assert "× cpu (cpu); " in found["devices"][0]["message"]
    assert f"jax {importlib.metadata.version('jax')}, " in found["versions"][0]["message"]
    assert "train 1,437, test 360 images of 8×8×1" in found["digits"][0]["message"]
    assert "can be made in " in found["workdir"][0]["message"]
    assert {"memory", "shared memory", "open files", "disk", "coordinator", "clock"} <= set(found)
    assert not workdir.parent.exists()
    assert list(tmp_path.iterdir()) == []


def test_lines_for_people_name_the_remedy(capsys, quick, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    assert main(["doctor", "--workdir", str(blocked)]) == 73
    lines = capsys.readouterr().out.splitlines()
    line = next(line for line in lines if line.startswith("fail"))
    assert line.startswith(f"fail  workdir            {blocked} can't be written (Not a directory")
    assert line.endswith(" → choose another --workdir, or have its owner open it")
    assert lines[-1].endswith(" 1 fail")


def test_the_first_failure_gives_the_exit_code(capsys, quick, tmp_path):
    """Data come before the directory, and both are told."""
    code, found = _doctor(
        capsys, "--data", "cfar10", "--data-dir", str(tmp_path), "--workdir", "/dev/null/run"
    )
    assert code == 78
    assert "Did you mean 'cifar10" in found["data"][0]["message"]
    assert (found["data"][0]["exit_code"], found["workdir"][0]["exit_code"]) == (78, 73)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--coordinator", "node0"], "the coordinator is 'node0'; it must be HOST:PORT"),
        (["--coordinator", "node0:99999"], "it must be HOST:PORT"),
        (["--timeout", "0"], "--timeout is 0.0"),
        (["--data", "digits", "--config", "x.py"], "--config names the data already"),
    ],
)
def test_a_wrong_command_line_is_one_line(arguments, message, capsys):
    try:
        code = main(["doctor", *arguments])
    except SystemExit as error:  # the parser's own
        code = error.code
    captured = capsys.readouterr()
    assert code == 64
    assert message in captured.err
    assert captured.out == ""


def test_help_shows_an_example(capsys):
    with pytest.raises(SystemExit) as done:
        main(["doctor", "--help"])
    assert done.value.code == 0
    assert "example: resnet-jax doctor" in capsys.readouterr().out


def test_the_example_of_the_docs_is_true(capsys, quick):
    section = (ROOT / "docs" / "runs.md").read_text().partition("## Doctor\n")[2]
    prompt, line = section.split("```\n", 2)[1].splitlines()
    program, *arguments = prompt.removeprefix("$ ").split()
    assert program == "resnet-jax"
    assert main(arguments) == 73
    assert line in capsys.readouterr().out.splitlines()


def test_jax_is_only_imported_by_the_probe():
    code = (
        "import sys\nfrom resnet_jax.cli.main import main\nmain(['doctor', '--json'])\n"
        "print(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"jax", "flax", "orbax", "tensorflow"} & set(done.stderr.split())


# A check that goes wrong itself


def test_a_check_that_fails_itself_is_a_line_and_the_others_go_on(capsys, quick, monkeypatch):
    def broken():
        yield finding.ok("memory", "this is still known")
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(host, "check_memory", broken)
    code, found = _doctor(capsys)
    assert [line["status"] for line in found["memory"]] == ["ok", "warn"]
    assert "couldn't be checked (ZeroDivisionError: a bug)" in found["memory"][1]["message"]
    assert code == 0
    assert "clock" in found


def test_an_error_of_the_package_keeps_its_sentence_and_exit_code():
    def missing():
        raise DataError("x and y are missing:\n  x\n  y")
        yield

    one = _only(finding.diagnose({"data": missing}))
    assert one.message == "x and y are missing: x; y"
    assert (one.status, one.exit_code) == ("fail", 65)
    assert finding.exit_code([finding.warn("a", "b", "c"), one]) == 65


# Devices


def test_a_backend_that_hangs_is_given_up(capsys, tmp_path, monkeypatch):
    (tmp_path / "jax.py").write_text("import time\ntime.sleep(60)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    start = time.monotonic()
    code, found = _doctor(capsys, "--timeout", "1.5")
    assert time.monotonic() - start < 20
    assert code == 71
    assert "hasn't started its devices within 1.5 s" in found["devices"][0]["message"]
    assert "clock" in found  # the other checks were made


def test_the_program_that_hangs_is_killed():
    with Child([sys.executable, "-c", "import time; time.sleep(60)"]) as child:
        assert child.wait(0.1) is None
        pid = child._process.pid
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("JAX_PLATFORMS", "quantum", "JAX_PLATFORMS is 'quantum', and JAX can't start that"),
        ("XLA_FLAGS", "--xla_no_such_flag=1", "--xla_no_such_flag=1"),
    ],
)
def test_variables_that_keep_jax_from_starting_are_named(name, value, message, capsys, monkeypatch):
    monkeypatch.setenv(name, value)
    code, found = _doctor(capsys)
    assert code == 78
    line = found["devices"][0]
    assert message in line["message"]
    assert "unset" in line["remedy"]


@pytest.fixture
def stub_jax(tmp_path, monkeypatch):
    """Let the probe, whose own process it is, import this text as JAX; returns what is found."""

    def look(text, *, present=(), environment=()):
        (tmp_path / "jax.py").write_text(text)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        return _only(
            devices.check_devices(
                timeout_s=60, present=dict(present), environment=dict(environment)
            )
        )

    return look


DEVICES = """
class Device:
    platform, device_kind = {platform!r}, {kind!r}
    def memory_stats(self):
        return {memory!r}

def devices():
    return [Device()] * 32

def local_devices():
    return [Device()] * 8

def device_count():
    return 32

def local_device_count():
    return 8

def process_count():
    return 4
"""


def test_an_installation_that_is_broken_is_told(stub_jax):
    one = stub_jax("raise RuntimeError('jaxlib is\\nthe wrong one')")
    assert (one.status, one.exit_code) == ("fail", 78)
    assert "jaxlib is the wrong one" in one.message


def test_a_process_that_aborts_is_told(stub_jax):
    one = stub_jax(
        "import os, sys\nprint('F1124 10:00 1 a.cc:7] no such chip', file=sys.stderr)\nos.abort()"
    )
    assert (one.status, one.exit_code) == ("fail", 78)
    assert "ended with code -6: no such chip" in one.message


def test_devices_are_counted_per_process_and_in_all(stub_jax):
    stats = {"bytes_limit": 95 * GIB // 6}
    one = stub_jax(DEVICES.format(platform="tpu", kind="TPU v5 lite", memory=stats))
    assert one.status == "ok"
    assert one.message == "8 × TPU v5 lite (tpu), 15.8 GiB each; 32 in all, processes: 4"


def test_only_a_cpu_beside_an_accelerator_is_a_warning(stub_jax):
    def look(**environment):
        cpu = DEVICES.format(platform="cpu", kind="cpu", memory=None)
        return stub_jax(cpu, present={"gpu": "/dev/nvidia0"}, environment=environment)

    one = look(JAX_PLATFORMS="cpu")
    assert (one.status, "/dev/nvidia0" in one.message) == ("warn", True)
    assert one.remedy.startswith("unset JAX_PLATFORMS")
    assert "CUDA_VISIBLE_DEVICES" in look(CUDA_VISIBLE_DEVICES="").remedy
    assert look().remedy.endswith("pip install -e '.[cuda]'")


def _touch(path: Path, text: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_accelerators_are_recognised(tmp_path):
    def look(environment=(), smi="no-such-program"):
        return devices.accelerators_present(dict(environment), root=tmp_path, nvidia_smi=smi)

    assert look() == {}
    # A modem of Google's vendor, the control node of VFIO and a laptop's NPU aren't TPUs.
    pci = tmp_path / "sys/bus/pci/devices"
    _touch(pci / "0000:00:01.0/vendor", "0x1ae0\n")
    _touch(pci / "0000:00:01.0/device", "0x0042\n")
    _touch(tmp_path / "dev/vfio/vfio")
    _touch(tmp_path / "dev/accel/accel0")
    assert look() == {}
    assert look({"TPU_WORKER_ID": "0"}) == {"tpu": "TPU_WORKER_ID"}
    _touch(pci / "0000:00:05.0/vendor", "0x1ae0\n")
    _touch(pci / "0000:00:05.0/device", "0x0063\n")
    assert look() == {"tpu": "PCI device 0000:00:05.0"}
    _touch(tmp_path / "dev/vfio/0")
    assert look() == {"tpu": "/dev/vfio/0, PCI device 0000:00:05.0"}
    _touch(tmp_path / "dev/nvidia0")
    assert look()["gpu"] == "/dev/nvidia0"
    smi = tmp_path / "smi"
    smi.write_bytes(b"\x7fELF of another machine")
    smi.chmod(0o755)
    assert look(smi=str(smi))["gpu"] == "/dev/nvidia0"
    smi.write_text(
        "#!/bin/sh\necho 'GPU 0: NVIDIA A (UUID: x)'\necho 'GPU 1: NVIDIA A (UUID: y)'\n"
    )
    smi.chmod(0o755)
    assert look(smi=str(smi))["gpu"] == "/dev/nvidia0, 2 GPUs in nvidia-smi"


# Versions


@pytest.fixture
def installed(monkeypatch):
    """Pretend other versions; None for a package that isn't installed."""
    real = importlib.metadata.version

    def pretend(others):
        def version(name):
            found = others.get(name, "real")
            if found is None:
                raise importlib.metadata.PackageNotFoundError(name)
            return real(name) if found == "real" else found

        monkeypatch.setattr(importlib.metadata, "version", version)
        return [(f.status, f.message, f.remedy) for f in versions.check_versions(present={})]

    return pretend


def test_the_installed_versions_fit(installed):
    ((status, message, _),) = installed({})
    assert status == "ok"
    assert message.startswith("python 3.")


@pytest.mark.parametrize(
    ("others", "message", "remedy"),
    [
        ({"jax": "0.9.1"}, "jax is 0.9.1, but resnet-jax", "pip install 'jax<0.12,>=0.10'"),
        ({"optax": None}, "optax isn't installed, but resnet-jax", "pip install 'optax>=0.2.8'"),
        ({"jaxlib": "0.9.0"}, "jaxlib is 0.9.0, but jax ", "pip install 'jaxlib"),
        ({"libtpu": "0.0.1"}, "libtpu is 0.0.1, but jax ", "pip install 'libtpu=="),
    ],
)
def test_a_version_out_of_range_is_a_failure(others, message, remedy, installed):
    failures = [line for line in installed(others) if line[1].startswith(message)]
    assert [(status, advice.startswith(remedy)) for status, _, advice in failures] == [
        ("fail", True)
    ]


def test_a_plugin_that_jax_would_ignore_is_a_failure(monkeypatch, installed):
    real = importlib.metadata.requires
    monkeypatch.setattr(
        importlib.metadata,
        "requires",
        lambda name: ["jax-cuda13-pjrt==0.10.0"] if "plugin" in name else real(name),
    )
    lines = installed({"jax-cuda13-plugin": "0.10.0", "jax-cuda13-pjrt": "0.10.1"})
    assert {status for status, *_ in lines} == {"fail"}
    messages = [message for _, message, _ in lines]
    jaxlib = importlib.metadata.version("jaxlib")
    assert f"jax-cuda13-plugin is 0.10.0, but jaxlib is {jaxlib}: JAX won't use the GPU" in messages
    assert any(
        message.startswith("jax-cuda13-pjrt is 0.10.1, but jax-cuda13") for message in messages
    )


def test_a_tpu_without_its_library_is_a_warning():
    lines = list(versions.check_versions(present={"tpu": "/dev/accel0"}))
    assert [line.status for line in lines] == ["warn", "ok"]
    assert "libtpu isn't installed" in lines[0].message


def test_a_version_mismatch_ends_with_78(capsys, quick, installed):
    installed({"flax": "0.1"})
    code, found = _doctor(capsys)
    assert code == 78
    assert found["versions"][0]["message"].startswith("flax is 0.1, but resnet-jax 0.1.0 needs >=")


# Data and config


def test_data_that_are_missing_end_with_65(capsys, quick, tmp_path):
    code, found = _doctor(capsys, "--data", "mnist", "--data-dir", str(tmp_path))
    assert code == 65
    assert f"'mnist' isn't prepared in {tmp_path}" in found["data"][0]["message"]


def test_a_prepared_set_is_found_until_a_file_is_missing(capsys, quick, tmp_path):
    folder = write_tfds(tmp_path)
    capsys.readouterr()  # TFDS prints as it writes
    arguments = ("--data", "tiny", "--data-dir", str(tmp_path))
    code, found = _doctor(capsys, *arguments)
    assert code == 0
    assert re.search(r"tiny: .*train \d+.* images of 4×5×3, 3 classes", found["data"][0]["message"])
    record = next(folder.glob("*array_record*"))
    record.unlink()
    code, found = _doctor(capsys, *arguments)
    assert code == 65
    assert f"{record} of 'tiny' is missing or damaged" in found["data"][0]["message"]


def test_nothing_is_downloaded_to_find_out(tmp_path, monkeypatch):
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: pytest.fail("a download"))
    one = _only(run.check_data("cifar10", data_dir=str(tmp_path)))
    assert (one.status, list(tmp_path.iterdir())) == ("warn", [])
    archive = tmp_path / "downloads" / "manual" / "cifar-10-binary.tar.gz"
    assert str(archive) in one.remedy
    _touch(archive)
    assert _only(run.check_data("cifar10", data_dir=str(tmp_path))).status == "ok"


CONFIG = """
from resnet_jax.train.config import default_config

def get_config(argument="train[:100]"):
    config = default_config()
    config.data.train = argument
    return config
"""


def test_the_splits_of_a_config_are_counted(capsys, quick, tmp_path):
    _touch(tmp_path / "c.py", CONFIG)
    code, found = _doctor(capsys, f"--config={tmp_path / 'c.py'}:train[:300]")
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
    _touch(tmp_path / "c.py", CONFIG)
    _touch(tmp_path / "typo.py", CONFIG.replace("data.train", "data.trian"))
    file, *overrides = name.split()
    code, found = _doctor(capsys, f"--config={tmp_path / file}", *overrides)
    assert code == 78
    failed = [line for lines in found.values() for line in lines if line["status"] == "fail"]
    assert len(failed) == 1
    assert message in failed[0]["message"]


def test_a_directory_of_another_config_ends_with_78(capsys, quick, tmp_path):
    from resnet_jax.train.config import default_config, to_json

    other = default_config()
    other.seed = 7
    _touch(tmp_path / "c.py", CONFIG)
    _touch(tmp_path / "run" / "config.json", to_json(other))
    _touch(tmp_path / "run" / "checkpoints" / "20" / "state")
    code, found = _doctor(
        capsys, f"--config={tmp_path / 'c.py'}", "--workdir", str(tmp_path / "run")
    )
    assert code == 78
    assert "seed: 7 → 0" in found["config"][-1]["message"]


# The directory of a run


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
        one = _only(run.check_workdir(closed / name, several=""))
    assert (one.status, one.exit_code) == ("fail", 73)
    assert "Permission denied" in one.message


def test_checkpoints_of_another_user_are_noticed(tmp_path):
    folder = Path(tempfile.mkdtemp(prefix="resnet_jax-open-"))
    try:
        folder.chmod(0o777)
        (folder / "checkpoints").mkdir(mode=0o555)
        with _as_nobody():
            one = _only(run.check_workdir(folder, several=""))
        assert one.status == "fail"
        assert f"Permission denied: {folder / 'checkpoints'}" in one.message
    finally:
        shutil.rmtree(folder)


def test_a_dangling_link_is_no_directory(tmp_path):
    (tmp_path / "run").symlink_to(tmp_path / "gone")
    assert _only(run.check_workdir(tmp_path / "run", several="")).status == "fail"


def test_checkpoints_are_listed(tmp_path):
    assert "has no checkpoints" in _only(run.check_workdir(tmp_path, several="")).message
    for name in (*range(20, 200, 20), "200.orbax-checkpoint-tmp-1"):
        (tmp_path / "checkpoints" / str(name)).mkdir(parents=True)
    one = _only(run.check_workdir(tmp_path, several=""))
    assert "checkpoints of steps the newest of 9: 80, 100, 120, 140, 160, 180;" in one.message
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoints"]


def test_a_directory_that_another_run_holds_ends_with_73(capsys, quick, tmp_path):
    with locked(epath.Path(tmp_path)):
        code, found = _doctor(capsys, "--workdir", str(tmp_path))
    assert code == 73
    assert f"is in use by process {os.getpid()} on" in found["workdir"][0]["message"]
    assert _doctor(capsys, "--workdir", str(tmp_path))[0] == 0


def test_several_processes_need_a_shared_directory(tmp_path):
    def look(kind, several):
        line = f"1 0 8:1 / {tmp_path} rw - {kind} /dev/x rw"
        _touch(
            tmp_path / "proc/self/mountinfo", f"0 0 8:0 / / rw shared:1 - xfs /dev/y rw\n{line}\n"
        )
        return _only(run.check_workdir(tmp_path, several=several, proc=tmp_path / "proc"))

    assert "on ext4: only this host sees it" in look("ext4", "").message
    assert look("ext4", "").status == "ok"
    assert (look("ext4", "a pod").status, "a pod" in look("ext4", "a pod").message) == (
        "warn",
        True,
    )
    assert "on nfs4: other hosts may see it too" in look("nfs4", "a pod").message
    assert look("nfs4", "a pod").status == "ok"


def test_a_cache_that_cannot_be_written_is_a_warning(capsys, quick, tmp_path, monkeypatch):
    _touch(tmp_path / "file")
    for folder, status in (
        (tmp_path / "file", "warn"),
        (tmp_path / "new", "ok"),
        ("gs://bucket/cache", "warn"),
    ):
        monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(folder))
        code, found = _doctor(capsys)
        assert (code, found["compilation cache"][0]["status"]) == (0, status)
        assert str(folder) in found["compilation cache"][0]["message"]


# Coordinator and environment


@pytest.fixture
def occupied():
    """A port of the loopback address at which something listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_a_port_in_use_ends_with_78(capsys, quick, occupied, monkeypatch):
    code, found = _doctor(capsys, "--coordinator", f"127.0.0.1:{occupied}")
    assert code == 78
    assert (
        f"port {occupied} can't be had (Address already in use)"
        in (found["coordinator"][0]["message"])
    )
    monkeypatch.setattr(network, "PORT", occupied)
    assert _only(network.check_coordinator(None)).status == "warn"  # one process needs none


def test_a_free_port_of_this_host_is_fine(occupied):
    with socket.create_server(("127.0.0.1", 0)) as other:
        free = other.getsockname()[1]
    for name in ("127.0.0.1", "localhost"):
        one = _only(network.check_coordinator(f"{name}:{free}"))
        assert (one.status, "this host" in one.message) == ("ok", True)


def test_a_name_that_nobody_knows_ends_with_78(capsys, quick, monkeypatch):
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "node0.invalid:8476")
    code, found = _doctor(capsys)
    assert code == 78
    assert "node0.invalid can't be resolved" in found["coordinator"][0]["message"]


def test_another_host_is_asked(occupied, monkeypatch):
    """Loopback stands for a host elsewhere."""
    monkeypatch.setattr(network, "_is_ours", lambda *_: False)
    assert "answers" in _only(network.check_coordinator(f"127.0.0.1:{occupied}")).message
    with socket.create_server(("127.0.0.1", 0)) as other:
        free = other.getsockname()[1]
    refused = _only(network.check_coordinator(f"127.0.0.1:{free}"))
    assert (refused.status, "nothing listens" in refused.message) == ("warn", True)
    # A full queue of connections that nobody accepts drops further ones, like a firewall.
    monkeypatch.setattr(network, "_TIMEOUT_S", 0.3)
    with socket.socket() as silent, contextlib.ExitStack() as stack:
        silent.bind(("127.0.0.1", 0))
        silent.listen(0)
        for _ in range(3):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(silent.getsockname())
        unanswered = _only(network.check_coordinator(f"127.0.0.1:{silent.getsockname()[1]}"))
    assert (unanswered.status, unanswered.exit_code) == ("fail", 71)
    assert "no answer in 0.3 s" in unanswered.message


@pytest.mark.parametrize("address", ["[::1]:8476", "::1:8476"])
def test_an_address_of_ipv6_is_understood(address):
    assert network.parse_address(address) == ("::1", 8476)


def test_proxies_matter_to_several_processes_only(capsys, quick, monkeypatch):
    monkeypatch.setenv("https_proxy", "http://proxy:3128")
    _, found = _doctor(capsys)
    assert found["environment"][0]["status"] == "ok"
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "a,b,c,d")
    _, found = _doctor(capsys)
    line = found["environment"][0]
    assert (line["status"], line["remedy"]) == ("warn", "unset https_proxy")
    assert "TPU_WORKER_HOSTNAMES names 4 hosts" in line["message"]


@pytest.mark.parametrize("name", ["JAX_DISABLE_JIT", "JAX_ENABLE_X64"])
def test_variables_that_break_runs_end_with_78(name, capsys, quick, monkeypatch):
    monkeypatch.setenv(name, "True")
    code, found = _doctor(capsys)
    line = found["environment"][0]
    assert (code, line["remedy"]) == (78, f"unset {name}")
    monkeypatch.setenv(name, "0")
    assert _doctor(capsys)[0] == 0


# Memory, disks, limits, clock


@pytest.fixture
def machine(tmp_path):
    """A host with 64 GiB, of which 32 are free; control groups are to be added."""
    _touch(
        tmp_path / "proc/meminfo",
        f"MemTotal: {64 * 2**20} kB\nMemFree: 9 kB\nMemAvailable: {32 * 2**20} kB\nHugePages: 0\n",
    )
    return tmp_path


def _group(folder: Path, version: int, *, limit: str, used: int, cached: int) -> None:
    names = {1: ("limit_in_bytes", "usage_in_bytes"), 2: ("max", "current")}[version]
    _touch(folder / f"memory.{names[0]}", f"{limit}\n")
    _touch(folder / f"memory.{names[1]}", f"{used}\n")
    field = {1: "total_inactive_file", 2: "inactive_file"}[version]
    _touch(folder / "memory.stat", f"anon 1\n{field} {cached}\n")


def test_memory_of_a_host_without_limits(machine):
    one = _only(host.check_memory(root=machine))
    assert one.message == "32.0 GiB of 64.0 GiB are free (this host)"
    _touch(machine / "proc/self/cgroup", "0::/user/session\n")
    _group(machine / "sys/fs/cgroup/user/session", 2, limit="max", used=30 * GIB, cached=0)
    assert _only(host.check_memory(root=machine)) == one


@pytest.mark.parametrize(
    ("version", "line", "folder"),
    [
        (2, "0::/kubepods/pod", "sys/fs/cgroup/kubepods/pod"),
        (2, "0::/kubepods/pod", "sys/fs/cgroup/kubepods"),  # the parent's limit binds too
        (2, "0::/", "sys/fs/cgroup"),  # in a container
        (1, "4:cpu,memory:/docker/1", "sys/fs/cgroup/memory/docker/1"),
        (1, "4:memory:/docker/1", "sys/fs/cgroup/memory"),  # the path is the host's
    ],
)
def test_memory_that_a_control_group_allows(version, line, folder, machine):
    _touch(machine / "proc/self/cgroup", f"9:pids:/x\n{line}\n")
    _group(machine / folder, version, limit=str(8 * GIB), used=7 * GIB, cached=2 * GIB)
    one = _only(host.check_memory(root=machine))
    assert one.status == "ok"
    assert one.message.startswith("3.0 GiB of 8.0 GiB are free (control group limit, ")
    _group(machine / folder, version, limit=str(8 * GIB), used=7 * GIB, cached=GIB // 2)
    assert _only(host.check_memory(root=machine)).status == "warn"


def test_little_shared_memory_is_a_warning(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(2**26, 0, 2**26))
    one = _only(host.check_shared_memory(folder=tmp_path))
    assert (one.status, "only 0.06 GiB of 0.06 GiB" in one.message) == ("warn", True)
    assert "--shm-size" in one.remedy


def test_few_open_files_are_a_warning(capsys, quick):
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        one = _only(host.check_open_files())
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert (one.status, "only 256 at once" in one.message) == ("warn", True)
    assert one.remedy == f"ulimit -n {min(hard, 65_536)}"
    assert _only(host.check_open_files()).status == "ok"


@pytest.mark.parametrize(
    ("free", "status", "code"), [(6 * GIB, "ok", 0), (4 * GIB, "warn", 0), (2**28, "fail", 73)]
)
def test_little_disk_space(free, status, code, tmp_path):
    folders = {"workdir": tmp_path / "a" / "b", "cache": tmp_path}
    one = _only(host.check_disk(folders, free_bytes=lambda _: free))  # one file system, one line
    assert (one.status, one.exit_code) == (status, code)
    assert f"workdir ({tmp_path / 'a' / 'b'}) and cache ({tmp_path})" in one.message


def test_the_clock(tmp_path):
    _touch(tmp_path / "a.py")
    wall = time.time()

    def look(*, later=5.0, ran=5.0, start=wall, state=0):
        now = host.Clocks(start + later, 100 + ran)
        return _only(
            host.check_clock(
                host.Clocks(start, 100.0),
                package=tmp_path,
                now=lambda: now,
                kernel_state=lambda: state,
            )
        )

    assert look().message.endswith("UTC, synchronised")
    assert look(state=None).message.endswith("doesn't say if it is synchronised")
    assert (look(state=5).status, "not synchronised" in look(state=5).message) == ("warn", True)
    assert "just changed by -3.0 s" in look(later=2.0).message
    assert (
        f"1970-01-01 00:00:05 UTC, which is before {tmp_path} was made" in look(start=0.0).message
    )
    assert {look(later=2.0).status, look(start=0.0).status} == {"warn"}


@pytest.mark.skipif(sys.platform != "linux", reason="adjtimex is Linux's")
def test_the_kernel_is_asked_about_its_clock():
    assert host.kernel_clock_state() in {None, *range(6)}


def test_a_bucket_is_probed_and_its_data_are_found(bucket, monkeypatch):
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    (bucket / "doctor" / "mnist").mkdir(parents=True)
    (found,) = run.check_workdir(epath.Path("gs://bucket/doctor/run"), several="")
    assert (found.status, "all hosts see" in found.message) == ("ok", True)
    (found,) = run.check_data("mnist", data_dir="gs://bucket/doctor")
    assert found.status == "ok"
    (found,) = run.check_data("cifar10", data_dir="gs://bucket/doctor")
    assert (found.status, found.exit_code) == ("fail", 65)
    with pytest.raises(WriteError, match="needs a client of that kind of bucket"):
        list(run.check_workdir(epath.Path("s3://bucket/run"), several=""))
