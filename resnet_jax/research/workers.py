"""Training runs in child processes, several at a time, which end with this process."""

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Literal

from etils import epath

from resnet_jax.checkpoint.stop import STOP_SIGNALS, StopRequest
from resnet_jax.config.io import to_json
from resnet_jax.doctor import probe
from resnet_jax.doctor.child import Child
from resnet_jax.errors import STOPPED_EARLY, PeerError
from resnet_jax.research.progress import Progress
from resnet_jax.research.sweep import PlannedRun
from resnet_jax.utils.files import temporary_error

_LOOK_S = 0.1
_LONGEST_LOOK = 1 << 20  # bytes
_PROBE_TIMEOUT_S = 120.0

State = Literal["finished", "stopped", "failed"]


@dataclasses.dataclass(frozen=True)
class Ended:
    """How the process of a run ended.

    Attributes:
        state: "finished"; "stopped" and saved; or "failed".
        exit_code: the exit code of the process, or 128 plus the number of the signal that ended it.
        said: all that the process printed.
        wall_s: the duration of the process.
    """

    state: State
    exit_code: int
    said: str
    wall_s: float

    @property
    def last_line(self) -> str:
        """The last line that the process printed; after a failure, the reason."""
        return (self.said.strip().splitlines() or [""])[-1]


class _Worker:
    """The process of one run; see `train_all` for the arguments."""

    def __init__(
        self,
        run: PlannedRun,
        workdir: epath.Path,
        command: Sequence[str],
        environment: Mapping[str, str],
    ) -> None:
        """Start the process with exactly this environment."""
        self.run = run
        self.progress = Progress()
        self._began = time.monotonic()
        self._read = 0  # bytes of the output
        self._asked = False
        try:
            self._output: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `close`
        except OSError as error:
            raise temporary_error(error) from None
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            env=environment,
        )
        job = {
            "config": to_json(run.config),
            "workdir": os.fspath(workdir / run.name),
            "argv": sys.argv,
            "parent": os.getpid(),
        }
        assert self._process.stdin
        # The pipe is broken if the process has ended.
        with contextlib.suppress(BrokenPipeError), self._process.stdin as pipe:
            pipe.write(json.dumps(job).encode())

    def ask_to_stop(self) -> None:
        """Ask the process to save and end."""
        if not self._asked:
            self._asked = True
            self._process.terminate()

    def has_progressed(self) -> bool:
        """Read the new output; return whether it changes `progress`."""
        before = self.progress
        # The process writes at the file's position, which must not move.
        new = os.pread(self._output.fileno(), _LONGEST_LOOK, self._read)
        lines, newline, _ = new.rpartition(b"\n")
        self._read += len(lines + newline)
        for line in lines.decode(errors="replace").splitlines():
            self.progress = self.progress.after(line)
        return self.progress != before

    def ended(self) -> Ended | None:
        """How the process ended; None if it runs."""
        code = self._process.poll()
        if code is None:
            return None
        self._output.seek(0)
        said = self._output.read().decode(errors="replace")
        state: State = "failed"
        if code == 0:
            state = "finished"
        # A signal ends the process before it has a signal handler, when there is nothing to save.
        # A terminal sends its signals to the process as well.
        elif code == STOPPED_EARLY or (self._asked and -code in STOP_SIGNALS):
            state = "stopped"
        exit_code = 128 - code if code < 0 else code
        return Ended(state, exit_code, said, time.monotonic() - self._began)

    def close(self) -> None:
        """Kill the process if it runs."""
        self._process.kill()
        self._process.wait()
        self._output.close()


def train_all(
    runs: Sequence[PlannedRun],
    workdir: epath.Path,
    *,
    command: Sequence[str],
    environments: Sequence[Mapping[str, str]],
    stop: StopRequest,
) -> Generator[tuple[PlannedRun, Progress | Ended]]:
    """Train or resume runs, one at a time per environment.

    The caller must close the generator, also after an error: closing ends the processes.

    Args:
        runs: the runs, in the order in which they begin.
        workdir: the folder of the runs' directories.
        command: a program that trains. It reads a JSON object from its standard input with
            "config" (JSON text), "workdir", "argv" (the command line to record) and "parent" (the
            id of this process). On SIGTERM it saves and exits with 75.
        environments: variables that a process gets in addition to the variables of this process.
        stop: once a stop is requested, no run begins, and the running processes are asked to stop.

    Yields:
        (run, `Progress()`) when a run begins, (run, its progress) when the progress changes, and
        (run, `Ended`) when its process has ended.
    """
    waiting = list(reversed(runs))
    workers: dict[int, _Worker] = {}  # by the index of their environment
    try:
        while workers or (waiting and not stop.requested):
            for number, environment in enumerate(environments):
                if number not in workers and waiting and not stop.requested:
                    run = waiting.pop()
                    variables = {**os.environ, **environment}
                    workers[number] = _Worker(run, workdir, command, variables)
                    yield run, Progress()
            for number, worker in list(workers.items()):
                if stop.requested:
                    worker.ask_to_stop()
                if worker.has_progressed():
                    yield worker.run, worker.progress
                if ended := worker.ended():
                    del workers[number]
                    worker.close()
                    yield worker.run, ended
            time.sleep(_LOOK_S)
    finally:
        for worker in workers.values():
            worker.close()


def environments_for(processes: int) -> list[dict[str, str]]:
    """Variables that give each of several processes a GPU or TPU chip of its own, in turn.

    A single process gets all devices. On a CPU, all processes share the cores.

    Raises:
        PeerError: JAX can't start its devices.
    """
    if processes == 1:
        return [{}]
    devices = _devices()
    if devices["platform"] == "gpu":
        given = os.environ.get("CUDA_VISIBLE_DEVICES")
        gpus = given.split(",") if given else [str(i) for i in range(devices["local"])]
        return [{"CUDA_VISIBLE_DEVICES": gpus[i % len(gpus)]} for i in range(processes)]
    if devices["platform"] == "tpu":
        # A chip may be two devices. The bounds tell libtpu that other processes use the others.
        files = [*Path("/dev").glob("accel[0-9]*"), *Path("/dev/vfio").glob("[0-9]*")]
        chips = len(files) or devices["local"]
        alone = {"TPU_CHIPS_PER_PROCESS_BOUNDS": "1,1,1", "TPU_PROCESS_BOUNDS": "1,1,1"}
        return [{"TPU_VISIBLE_CHIPS": str(i % chips), **alone} for i in range(processes)]
    return [{} for _ in range(processes)]


def _devices() -> dict[str, Any]:
    """The devices that JAX finds. A child process asks JAX: this process must not hold a device."""
    program = [sys.executable, "-P", str(probe.__file__)]
    with Child(program, environment={"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}) as child:
        done = child.wait(_PROBE_TIMEOUT_S)
    lines = done.output.strip().splitlines() if done else []
    answer: dict[str, Any] = json.loads(lines[-1]) if lines else {"error": "no answer"}
    if "error" in answer:
        reason = " ".join(answer["error"].split())
        raise PeerError(f"JAX can't start its devices ({reason}); `resnet-jax doctor` says more.")
    return answer
