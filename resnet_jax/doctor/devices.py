"""Which devices JAX has here, and which it should have."""

import json
import logging
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from resnet_jax.doctor.child import Child, Done
from resnet_jax.doctor.finding import Finding, fail, ok, warn
from resnet_jax.errors import ConfigError, PeerError

_log = logging.getLogger(__name__)

# -P: the program's own folder isn't searched for modules.
_PROBE = (sys.executable, "-P", str(Path(__file__).with_name("probe.py")))
# JAX would otherwise take most of a GPU's memory while it looks, from a run that may be using it.
_PROBE_ENVIRONMENT = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
_PATIENCE_S = 10.0
_LONGEST_REASON = 300  # characters

# The vendor of PCI devices, and those of Google's that are TPU chips (v2 and v3, v4, v5p, v5e, v6e
# and TPU7x); the numbers are in jax/_src/hardware_utils.py.
_GOOGLE, _NVIDIA = "0x1ae0", "0x10de"
_DISPLAY_CLASS = "0x03"
_TPU_CHIPS = {"0x0027", "0x0056", "0x005e", "0x0062", "0x0063", "0x006f", "0x0076"}
# Set on TPU VMs and by schedulers of TPU pods; JAX sets other TPU_… variables by itself.
_TPU_VARIABLES = ("TPU_ACCELERATOR_TYPE", "TPU_WORKER_ID", "TPU_WORKER_HOSTNAMES", "TPU_NAME")


def accelerators_present(
    environment: Mapping[str, str], *, root: Path = Path("/"), nvidia_smi: str = "nvidia-smi"
) -> dict[str, str]:
    """Accelerators that seem to be in this machine, whether or not JAX can use them.

    Args:
        environment: variables, of which some say that this is a TPU VM.
        root: where /dev and /sys are.
        nvidia_smi: the driver's own program.

    Returns:
        "gpu" and "tpu", if there is a sign of one, with that sign.
    """
    signs: dict[str, list[str]] = {"gpu": [], "tpu": []}
    device_folder = root / "dev"
    for pattern, kind in (
        ("nvidia[0-9]*", "gpu"),
        ("nvidiactl", "gpu"),
        ("dxg", "gpu"),  # of WSL
        ("accel[0-9]*", "tpu"),
        ("vfio/[0-9]*", "tpu"),
    ):
        signs[kind] += [f"/dev/{p.relative_to(device_folder)}" for p in device_folder.glob(pattern)]
    for folder in (root / "sys/bus/pci/devices").glob("*"):
        vendor, device, kind_of_device = (_read(folder / f) for f in ("vendor", "device", "class"))
        if vendor == _GOOGLE and device in _TPU_CHIPS:
            signs["tpu"].append(f"PCI device {folder.name}")
        if vendor == _NVIDIA and kind_of_device.startswith(_DISPLAY_CLASS):
            signs["gpu"].append(f"PCI device {folder.name}")
    if listed := _list_gpus(nvidia_smi):
        signs["gpu"].insert(0, f"{listed} in nvidia-smi")
    signs["tpu"] += [name for name in _TPU_VARIABLES if environment.get(name)]
    return {kind: ", ".join(sorted(found)[:3]) for kind, found in signs.items() if found}


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:  # a device that has just gone
        return ""


def _list_gpus(nvidia_smi: str) -> str:
    """`2 GPUs` as the driver lists them; "" without a driver, or if it doesn't answer."""
    program = shutil.which(nvidia_smi)
    if not program:
        return ""
    try:
        with Child([program, "-L"]) as child:
            done = child.wait(5.0)
    except OSError:  # it is there but can't be run, which says nothing about GPUs
        return ""
    count = sum(line.startswith("GPU ") for line in done.output.splitlines()) if done else 0
    return f"{count} GPU{'s' * (count > 1)}" if count else ""


def check_devices(
    *, timeout_s: float, present: Mapping[str, str], environment: Mapping[str, str]
) -> Iterator[Finding]:
    """Let JAX start its devices in a process of its own; one that fails or hangs is a failure.

    Args:
        timeout_s: how long to wait for that.
        present: as of `accelerators_present`.
        environment: this process's variables, which the other one inherits.
    """
    with Child(_PROBE, environment=_PROBE_ENVIRONMENT) as probe:
        done = probe.wait(min(_PATIENCE_S, timeout_s))
        if done is None and timeout_s > _PATIENCE_S:
            _log.info("JAX is still starting its devices; waiting for %g s at most", timeout_s)
            done = probe.wait(timeout_s - _PATIENCE_S)
    if done is None:
        yield fail(
            "devices",
            f"JAX hasn't started its devices within {timeout_s:g} s",
            "end the process that holds them, and start all hosts of a TPU slice together;"
            " --timeout gives them longer",
            error=PeerError,
        )
        return
    answer = _answer(done)
    if "platform" in answer:
        yield from _judge(answer, present, environment)
    elif "XLA_FLAGS" in answer["error"]:
        remedy = f"correct or unset XLA_FLAGS, which is {environment.get('XLA_FLAGS')!r}"
        yield fail("devices", answer["error"], remedy, error=ConfigError)
    elif platforms := environment.get("JAX_PLATFORMS"):
        yield fail(
            "devices",
            f"JAX_PLATFORMS is {platforms!r}, and JAX can't start that: {answer['error']}",
            "unset it, or install what it names",
            error=ConfigError,
        )
    else:
        yield fail(
            "devices",
            f"JAX can't start: {answer['error']}",
            'see all it says with: python -c "import jax; jax.devices()"',
            error=ConfigError,
        )


def _answer(done: Done) -> dict[str, Any]:
    """The probe's JSON, or the line in which the aborted process says why."""
    lines = done.output.strip().splitlines()
    if done.code == 0 and lines:
        answer: dict[str, Any] = json.loads(lines[-1])
        if "error" in answer:
            answer["error"] = " ".join(answer["error"].split())[:_LONGEST_REASON]
        return answer
    said = [line for line in done.errors.strip().splitlines() if line.strip()]
    # XLA logs `F0000 … file.cc:234] the reason` and then a stack.
    fatal = [line.partition("] ")[2] for line in said if line.startswith("F") and "] " in line]
    reason = (fatal or said[-1:] or ["it says nothing"])[0].strip()
    return {"error": f"the process ended with code {done.code}: {reason[:_LONGEST_REASON]}"}


def _judge(
    answer: Mapping[str, Any], present: Mapping[str, str], environment: Mapping[str, str]
) -> Iterator[Finding]:
    memory = f", {answer['memory_bytes'] / 2**30:.1f} GiB each" if answer["memory_bytes"] else ""
    found = (
        f"{answer['local']} × {' and '.join(answer['kinds'])} ({answer['platform']}){memory};"
        f" {answer['total']} in all, processes: {answer['processes']}"
    )
    if answer["platform"] != "cpu" or not present:
        yield ok("devices", found)
        return
    seen = " and ".join(f"a {kind.upper()} ({sign})" for kind, sign in present.items())
    if platforms := environment.get("JAX_PLATFORMS"):
        remedy = f"unset JAX_PLATFORMS, which is {platforms!r}, to use it"
    elif "gpu" in present and environment.get("CUDA_VISIBLE_DEVICES", "0") in ("", "-1"):
        remedy = "unset CUDA_VISIBLE_DEVICES, which hides all GPUs"
    else:
        extra = "tpu" if "tpu" in present else "cuda"
        remedy = f"install the accelerator's JAX: pip install -e '.[{extra}]'"
    yield warn("devices", f"{found}, although there seems to be {seen}", remedy)
