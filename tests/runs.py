"""Runs of train.py in processes of their own, which may be killed, stopped and starved."""

import contextlib
import dataclasses
import functools
import hashlib
import multiprocessing
import os
import runpy
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tests.faults.inject import Fault

ROOT = Path(__file__).parents[1]
TIMEOUT_S = 600.0
"""For what takes seconds, on a host that is busy with something else."""

# What takes seconds to import is imported once, by the server that forks the processes.
_PRELOADED = (
    "matplotlib.backends.backend_agg",
    "matplotlib.figure",
    "resnet_jax.train.fit",
    "sklearn.datasets",
    "sklearn.model_selection",
    "tensorboardX.event_file_writer",
    "tensorboardX.summary",
    "tensorflow_datasets.core.splits",
    "tensorstore",
    "tests.program_cache",
)
TINY = (
    "--config=configs/digits.py",
    "--config.model.stage_sizes=(1,1)",
    "--config.model.width=4",
    "--config.batch_size=32",
    "--config.data.train=train[:256]",
    "--config.data.validation=train[256:320]",
    "--config.data.test=test[:100]",
    "--config.duration_unit=examples",
    "--config.duration=384",
    "--config.eval_every=128",
    "--config.checkpoint_every=64",
    "--config.schedule.warmup=0",
    "--config.log_every=2",
    "--config.steps_per_dispatch=2",
    "--config.ema_decay=0.9",
    "--config.precise_bn=0",
)
"""Twelve steps, with a checkpoint after every second and scores after every fourth."""


def streamed(images: Path, **fields: Any) -> tuple[str, ...]:
    """Arguments that let `TINY` train on crops of a folder of images, decoded as they're needed."""
    fields = {
        "data.name": "folder",
        "data.dir": images,
        "data.random_crop_area": "(0.5,1.0)",
        "data.image_size": 8,
        "data.mean": "(0.5,0.5,0.5)",
        "data.std": "(0.2,0.2,0.2)",
        "data.workers": 0,
        "data.train": "train[:64]",
        "data.validation": "",
        "data.test": "train[64:]",
    } | fields
    return tuple(f"--config.{name}={value}" for name, value in fields.items())


@dataclasses.dataclass(frozen=True)
class Ended:
    """How a process ended: its code (negative for a signal), all it said, after how long."""

    code: int
    said: str
    seconds: float

    @property
    def last_line(self) -> str:
        """The last thing it said."""
        return (self.said.strip().splitlines() or [""])[-1]


class Running:
    """A process under way that does what `python train.py` with those arguments does.

    Args:
        arguments: of train.py.
        workdir: of the run.
        fault: see tests/faults/inject.py.
        devices: of the process.
        environment: variables that it has beside, or instead of, those of this process.
    """

    def __init__(
        self,
        *arguments: str,
        workdir: Path,
        fault: str | None = None,
        devices: int = 1,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.workdir = workdir
        # Not beside the run, whose disk may be full.
        self._folder = tempfile.TemporaryDirectory()
        self._output = Path(self._folder.name) / "output"
        self._process = _server().Process(
            target=_main,
            args=(arguments, workdir, self._output, fault, devices, dict(environment or {})),
        )
        self._began = time.monotonic()
        self._process.start()

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def alive(self) -> bool:
        """Whether it hasn't ended yet."""
        return self._process.is_alive()

    def said(self) -> str:
        """What it printed so far, to whatever stream."""
        return self._output.read_text(errors="replace") if self._output.exists() else ""

    def says(self, text: str, *, timeout_s: float = TIMEOUT_S) -> "Running":
        """Wait until it has printed that."""
        self._until(lambda: text in self.said(), f"it says {text!r}", timeout_s)
        return self

    def logs(self, steps: int, *, timeout_s: float = TIMEOUT_S) -> "Running":
        """Wait until that many steps are on record."""
        path = self.workdir / "metrics.jsonl"
        self._until(
            lambda: path.exists() and f'{{"step": {steps},' in path.read_text(),
            f"step {steps} is on record",
            timeout_s,
        )
        return self

    def _until(self, condition: Any, what: str, timeout_s: float) -> None:
        end = time.monotonic() + timeout_s
        while not condition():
            assert self.alive(), f"ended before {what}:\n{self.said()}"
            assert time.monotonic() < end, f"in {timeout_s} s not {what}:\n{self.said()}"
            time.sleep(0.005)

    def kill(self) -> None:
        """End it, if it hasn't ended."""
        self._process.kill()

    def signal(self, number: int) -> "Running":
        """Send it a signal."""
        os.kill(self.pid, number)
        return self

    def end(self, *, timeout_s: float = TIMEOUT_S) -> Ended:
        """Wait until it has ended; kills what doesn't."""
        self._process.join(timeout_s)
        if self.alive():
            self.kill()
            raise AssertionError(f"still running after {timeout_s} s:\n{self.said()}")
        return Ended(self._process.exitcode, self.said(), time.monotonic() - self._began)


def start(workdir: Path, *arguments: str, **kwargs: Any) -> Running:
    """Begin to train, or go on, in `workdir`: `TINY` with those arguments; see `Running`."""
    return Running(*TINY, f"--workdir={workdir}", *arguments, workdir=workdir, **kwargs)


def train(workdir: Path, *arguments: str, **kwargs: Any) -> Ended:
    """Train until the process ends; as `start`."""
    return start(workdir, *arguments, **kwargs).end()


def quick_pictures() -> None:
    """Let runs in this process show trackers a dot for a confusion matrix: a second less a run."""
    import numpy as np

    from resnet_jax.logging.plots import contact_sheet_png
    from resnet_jax.train import records

    dot = contact_sheet_png(np.zeros((1, 1, 1, 1), np.uint8))
    records.confusion_png = lambda *_: dot  # type: ignore[assignment]


@functools.cache
def _server() -> Any:
    os.environ["JAX_PLATFORMS"] = "cpu"
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(_PRELOADED))
    return context


def _main(
    arguments: tuple[str, ...],
    workdir: Path,
    output: Path,
    fault: str | None,
    devices: int,
    environment: dict[str, str],
) -> None:
    """In the new process."""
    import jax

    descriptor = os.open(output, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    os.chdir(ROOT)
    sys.argv = ["train.py", *arguments]
    sys.path.insert(0, str(ROOT))
    os.environ.update(environment)
    # JAX has read its variables already, when the server imported it.
    jax.config.update("jax_compilation_cache_dir", os.environ.get("JAX_COMPILATION_CACHE_DIR"))
    jax.config.update("jax_num_cpu_devices", devices)
    if fault:
        Fault.parse(fault).install(str(workdir))
    quick_pictures()
    runpy.run_path("train.py", run_name="__main__")


def digest(workdir: Path) -> str:
    """SHA-256 of everything in the last checkpoint of a run."""
    import jax
    import numpy as np

    from resnet_jax.checkpoint.reader import CheckpointReader

    checkpoints = CheckpointReader(workdir / "checkpoints")
    step = checkpoints.steps()[-1]
    state, _ = checkpoints.restore_on_one_device(step)
    found = hashlib.sha256(str(step).encode())
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        found.update(jax.tree_util.keystr(path).encode() + np.asarray(leaf).tobytes())
    return found.hexdigest()


def steps_on_record(workdir: Path) -> list[int]:
    """Numbers of the training steps in metrics.jsonl, in order."""
    from resnet_jax.logging.metrics_log import read_metrics

    return [r["step"] for r in read_metrics(workdir / "metrics.jsonl") if r["split"] == "train"]


@contextlib.contextmanager
def small_disk(folder: Path, *, megabytes: float) -> Iterator[Path]:
    """A disk of that size at `folder`; needs the right to mount one."""
    import subprocess

    folder.mkdir()
    size = int(megabytes * 2**20)
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder],
        check=True,
        capture_output=True,
    )
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)
