"""launch/slurm.sh among fakes of SLURM: what a restart mends goes back to the queue."""

import os
import re
import shlex
import signal
import subprocess
import sys

import pytest

from resnet_jax import errors
from tests.launch_fakes import LOG_CALL, called, executable, wait_for
from tests.test_launch import FINAL, LAUNCH, PEER_LOST, ROOT


class Slurm:
    """A place where a script of launch/ runs among fakes of SLURM's commands."""

    def __init__(self, folder, script="slurm.sh"):
        self.script = LAUNCH / script
        self.log = folder / "calls"
        self.environment = {
            "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
            "SLURM_SUBMIT_DIR": str(folder),
            "SLURM_JOB_ID": "42",
            "SLURM_TASKS_PER_NODE": "8(x2)",
            "SLURM_GPUS_ON_NODE": "8",
            "SLURM_CPUS_PER_TASK": "6",
            "PYTHON": "python3",
        }
        self.srun = folder / "bin" / "srun"
        self.log_call = LOG_CALL.format(name='"${0##*/}"', log=self.log)
        (folder / "train.py").touch()
        (folder / "launch").symlink_to(LAUNCH)
        executable(folder / "bin" / "scontrol", self.log_call)

    def start(self, *arguments, srun="exit 0", **environment):
        executable(self.srun, f"{self.log_call}\n{srun}")
        return subprocess.Popen(
            ["bash", self.script, *arguments],
            env=self.environment | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments, **options):
        process = self.start(*arguments, **options)
        out, err = process.communicate(timeout=300)
        return process.returncode, out, err

    @property
    def requeued(self):
        return ["scontrol", "requeue", "Incomplete", "42"] in called(self.log)


@pytest.fixture
def slurm(tmp_path):
    return Slurm(tmp_path)


@pytest.mark.parametrize("code", [0, 1, 130, *FINAL])
def test_slurm_ends_a_job_that_is_done_or_hopeless(slurm, code):
    returned, _, _ = slurm.run(srun=f"exit {code}")
    assert returned == code
    assert [call[0] for call in called(slurm.log)] == ["srun"]


@pytest.mark.parametrize("code", [errors.STOPPED_EARLY, PEER_LOST])
def test_slurm_queues_a_job_again_that_can_go_on(slurm, code):
    returned, _, err = slurm.run(srun=f"exit {code}")
    assert returned == code
    assert slurm.requeued
    assert "back to the queue" in err


def test_slurm_queues_one_task_of_an_array_again(slurm):
    """The job ID of one of the tasks is the array's."""
    array = {"SLURM_ARRAY_JOB_ID": "42", "SLURM_ARRAY_TASK_ID": "5"}
    returned, _, err = slurm.run(srun="exit 75", **array)
    assert returned == errors.STOPPED_EARLY
    assert called(slurm.log)[-1] == ["scontrol", "requeue", "Incomplete", "42_5"]
    assert "job 42_5 goes back to the queue" in err


def test_slurm_gives_up_on_losses_but_never_on_a_run_that_saved(slurm):
    returned, _, err = slurm.run(srun=f"exit {PEER_LOST}", SLURM_RESTART_COUNT="20")
    assert (returned, slurm.requeued) == (PEER_LOST, False)
    assert "not trying again" in err
    slurm.run(srun=f"exit {errors.STOPPED_EARLY}", SLURM_RESTART_COUNT="1000")
    assert slurm.requeued


def test_slurm_says_what_to_do_if_the_job_cannot_be_queued_again(slurm):
    executable(slurm.srun.with_name("scontrol"), "exit 1")
    returned, _, err = slurm.run(srun="exit 75")
    assert returned == errors.STOPPED_EARLY
    assert "sbatch the same command to go on" in err


def test_slurm_starts_one_process_per_gpu_which_sees_them_all(slurm):
    arguments = ["--config=configs/cifar10.py:resnet20,cpu", "--workdir=/shared/a b's run"]
    slurm.run(*arguments)
    (call,) = called(slurm.log)
    assert call[-4:] == ["python3", "train.py", *arguments]
    assert "--gpu-bind=none" in call
    assert "--cpus-per-task=6" in call
    assert "--kill-on-bad-exit=0" in call  # the others are still saving


def test_slurms_dry_run_shows_that_command(slurm):
    returned, out, _ = slurm.run("--dry-run", "--workdir=/shared/a b")
    assert returned == 0
    assert not called(slurm.log)
    slurm.run("--workdir=/shared/a b")
    assert [shlex.split(out)] == called(slurm.log)


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        ([], {"SLURM_TASKS_PER_NODE": "1(x2)"}, "--ntasks-per-node=8"),
        (["--stop_at_step=5"], {}, "for ever"),
        ([], {"SLURM_SUBMIT_DIR": "/"}, "there is no train.py in /"),
    ],
)
def test_slurm_refuses_what_cannot_work(slurm, arguments, environment, message):
    returned, _, err = slurm.run(*arguments, **environment)
    assert returned == errors.UsageError.exit_code
    assert err.startswith("error: ")
    assert len(err.splitlines()) == 1
    assert message in err
    assert not called(slurm.log)


def test_slurms_script_outlives_a_sigterm_to_the_whole_job(slurm):
    ready = slurm.log.with_name("ready")
    process = slurm.start(srun=f"touch {ready}; sleep 0.5; exit 75")
    wait_for(ready)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=300) == errors.STOPPED_EARLY
    assert slurm.requeued


def test_slurm_signals_the_tasks_in_time():
    text = (LAUNCH / "slurm.sh").read_text()
    options = dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(\S+))?$", text, re.MULTILINE))
    name, seconds = options["signal"].split("@")
    assert name == "TERM"  # without "B:", which would leave out the tasks
    assert int(seconds) >= 120
    assert options["gpus-per-node"] == options["ntasks-per-node"]
    assert options["open-mode"] == "append"  # a restart doesn't overwrite the log
    assert "requeue" in options


def test_jax_still_gives_each_process_of_slurm_one_device(monkeypatch):
    """What slurm.sh relies on."""
    from jax._src import clusters

    for name, value in {
        "SLURM_JOB_ID": "42",
        "SLURM_STEP_NODELIST": "gpu[07-08]",
        "SLURM_NTASKS": "16",
        "SLURM_PROCID": "11",
        "SLURM_LOCALID": "3",
    }.items():
        monkeypatch.setenv(name, value)
    address, processes, process, devices = clusters.ClusterEnv.auto_detect_unset_distributed_params(
        None, None, None, None, "slurm", 1
    )
    assert (processes, process, devices) == (16, 11, [3])
    assert address.startswith("gpu07:")


def test_slurm_and_the_real_program_agree_on_a_wrong_config(slurm):
    """The code comes from train.py itself."""
    returned, _, err = slurm.run(
        "--config=configs/digits.py:resnet21",
        f"--workdir={slurm.log.parent / 'run'}",
        srun='while [[ "$1" == --* ]]; do shift; done; exec "$@"',
        PYTHON=sys.executable,
        SLURM_SUBMIT_DIR=str(ROOT),
        JAX_PLATFORMS="cpu",
    )
    assert returned == errors.ConfigError.exit_code, err
    assert not slurm.requeued
