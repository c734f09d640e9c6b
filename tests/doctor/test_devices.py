"""Devices: those that JAX finds, those that it should have found, and a start that hangs."""

import os
import sys
import time

import pytest

from resnet_jax.doctor import devices
from resnet_jax.doctor.child import Child
from tests.doctor.helpers import only, run_doctor, touch

GIB = 2**30


def test_a_backend_that_hangs_is_given_up(capsys, tmp_path, monkeypatch):
    (tmp_path / "jax.py").write_text("import time\ntime.sleep(600)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    start = time.monotonic()
    code, found = run_doctor(capsys, "--timeout", "1.5")
    assert time.monotonic() - start < 500
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
    code, found = run_doctor(capsys)
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
        return only(
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


def test_accelerators_are_recognised(tmp_path):
    def look(environment=(), smi="no-such-program"):
        return devices.accelerators_present(dict(environment), root=tmp_path, nvidia_smi=smi)

    assert look() == {}
    # A modem of Google's vendor, the control node of VFIO and a laptop's NPU aren't TPUs.
    pci = tmp_path / "sys/bus/pci/devices"
    touch(pci / "0000:00:01.0/vendor", "0x1ae0\n")
    touch(pci / "0000:00:01.0/device", "0x0042\n")
    touch(tmp_path / "dev/vfio/vfio")
    touch(tmp_path / "dev/accel/accel0")
    assert look() == {}
    assert look({"TPU_WORKER_ID": "0"}) == {"tpu": "TPU_WORKER_ID"}
    touch(pci / "0000:00:05.0/vendor", "0x1ae0\n")
    touch(pci / "0000:00:05.0/device", "0x0063\n")
    assert look() == {"tpu": "PCI device 0000:00:05.0"}
    touch(tmp_path / "dev/vfio/0")
    assert look() == {"tpu": "/dev/vfio/0, PCI device 0000:00:05.0"}
    touch(tmp_path / "dev/nvidia0")
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
