"""launch/slurm_sweep.sh among fakes of SLURM, and launch/k8s_sweep.yaml: a scheduler for sweeps."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from resnet_jax import errors
from resnet_jax.cli.main import main
from tests.launch_fakes import called
from tests.test_launch import FINAL, LAUNCH, PEER_LOST, ROOT
from tests.test_launch_slurm import Slurm

SCRIPT = "slurm_sweep.sh"
ARGUMENTS = ["--config=configs/digits_sweep.py", "--workdir=/shared/a b's sweep"]
MANIFEST = (LAUNCH / "k8s_sweep.yaml").read_text()

# ---------------------------------------------------------------- SLURM


@pytest.fixture
def slurm(tmp_path):
    slurm = Slurm(tmp_path, SCRIPT)
    slurm.environment |= {"SLURM_ARRAY_TASK_ID": "5"}
    return slurm


def test_a_task_of_an_array_trains_the_run_of_its_number(slurm):
    assert slurm.run(*ARGUMENTS)[0] == 0
    (call,) = called(slurm.log)
    assert call == [
        *("srun", "--cpus-per-task=6", "python3", "-m", "resnet_jax", "sweep"),
        *(*ARGUMENTS, "--task=5"),
    ]


@pytest.mark.parametrize("code", [0, 1, 130, 137, *FINAL])
def test_a_task_that_is_done_or_hopeless_ends(slurm, code):
    assert slurm.run(*ARGUMENTS, srun=f"exit {code}")[0] == code
    assert not slurm.requeued


@pytest.mark.parametrize("code", [errors.STOPPED_EARLY, PEER_LOST])
def test_a_task_that_can_go_on_is_queued_again(slurm, code):
    assert slurm.run(*ARGUMENTS, srun=f"exit {code}")[0] == code
    assert slurm.requeued
    slurm.log.unlink()
    restarts = {"SLURM_RESTART_COUNT": "20"}
    slurm.run(*ARGUMENTS, srun=f"exit {code}", **restarts)
    assert slurm.requeued == (code == errors.STOPPED_EARLY)


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        ([], {"SLURM_ARRAY_TASK_ID": ""}, "sbatch --array=0-LAST%AT_A_TIME"),
        (["--task=3"], {}, "--task=3 isn't for the tasks of an array"),
        (["--processes=2"], {}, "--processes=2 isn't for"),
        (["--collect"], {}, "--collect isn't for"),
        ([], {"SLURM_SUBMIT_DIR": "/"}, "there is no train.py in /"),
    ],
)
def test_what_cannot_work_is_refused(slurm, arguments, environment, message):
    returned, _, err = slurm.run(*arguments, **environment)
    assert returned == errors.UsageError.exit_code
    assert err.startswith("error: ")
    assert len(err.splitlines()) == 1
    assert message in err
    assert not called(slurm.log)


def test_the_dry_run_shows_the_command_without_an_array(slurm):
    del slurm.environment["SLURM_ARRAY_TASK_ID"]
    returned, out, _ = slurm.run("--dry-run", *ARGUMENTS)
    assert returned == 0
    assert not called(slurm.log)
    assert shlex.split(out)[-3:] == [*ARGUMENTS, "--task=0"]


def test_the_tasks_are_signalled_in_time():
    text = (LAUNCH / SCRIPT).read_text()
    options = dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(\S+))?$", text, re.MULTILINE))
    assert options["signal"] == "TERM@300"  # without "B:", which would leave out the run
    assert (options["nodes"], options["ntasks"], options["gpus-per-task"]) == ("1", "1", "1")
    assert options["open-mode"] == "append"
    assert "requeue" in options
    assert "array" not in options  # its length is that of the sweep


@pytest.mark.thorough
def test_the_script_and_the_command_agree_on_a_number_out_of_range(slurm):
    returned, _, err = slurm.run(
        "--config=configs/digits_sweep.py",
        f"--workdir={slurm.log.parent / 'runs'}",
        srun='while [[ "$1" == --* ]]; do shift; done; exec "$@"',
        PYTHON=sys.executable,
        SLURM_SUBMIT_DIR=str(ROOT),
        SLURM_ARRAY_TASK_ID="9",
        JAX_PLATFORMS="cpu",
    )
    assert returned == errors.UsageError.exit_code
    assert "--task is 9; the sweep has 9 runs, --task=0 to 8." in err
    assert not slurm.requeued


# ---------------------------------------------------------------- Kubernetes


@pytest.fixture(scope="module")
def job():
    document = yaml.safe_load(MANIFEST)
    assert (document["apiVersion"], document["kind"]) == ("batch/v1", "Job")
    return document["spec"]


@pytest.fixture(scope="module")
def container(job):
    (container,) = job["template"]["spec"]["containers"]
    return container


def test_the_manifest_has_the_schema_of_kubernetes():
    beside_python = Path(sys.executable).with_name("kubernetes-validate")
    found = beside_python if beside_python.exists() else shutil.which("kubernetes-validate")
    if not found:
        pytest.skip("kubernetes-validate isn't installed")
    subprocess.run([found, "--strict", LAUNCH / "k8s_sweep.yaml"], check=True)


def test_there_is_an_index_for_each_run(job, container, capsys, tmp_path):
    (config,) = [one for one in container["command"] if one.startswith("--config=")]
    assert job["completionMode"] == "Indexed"
    arguments = ["sweep", config, f"--workdir={tmp_path}", f"--task={job['completions']}"]
    assert main(arguments) == errors.UsageError.exit_code
    assert f"the sweep has {job['completions']} runs" in capsys.readouterr().err
    assert 0 < job["parallelism"] <= job["completions"]
    assert job["maxFailedIndexes"] == job["completions"]  # Kubernetes allows no more


def test_exit_codes_decide_whether_a_run_is_started_again(job, container):
    pod = job["template"]["spec"]
    assert pod["restartPolicy"] == "Never"  # podFailurePolicy requires it
    assert job["podReplacementPolicy"] == "Failed"  # and two pods never share a run

    def action(code):
        for rule in job["podFailurePolicy"]["rules"]:
            on_codes = rule.get("onExitCodes")
            if on_codes and code in on_codes["values"]:
                assert on_codes["operator"] == "In"
                assert on_codes["containerName"] == container["name"]
                assert on_codes["values"] == sorted(on_codes["values"])  # as Kubernetes wants
                return rule["action"]
        return "Count"  # a restart that counts

    assert {action(code) for code in FINAL} == {"FailIndex"}
    assert action(errors.STOPPED_EARLY) == "Ignore"
    assert {action(code) for code in (PEER_LOST, 1, 137)} == {"Count"}
    assert job["backoffLimitPerIndex"] > 0  # FailIndex requires it
    disruption = job["podFailurePolicy"]["rules"][0]
    assert disruption["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
    assert pod["terminationGracePeriodSeconds"] >= 120


def test_the_pods_run_the_command_without_a_shell(job, container):
    python, flag, module, subcommand, *arguments = container["command"]
    assert (python, flag, module, subcommand) == ("python", "-m", "resnet_jax", "sweep")
    values = dict(one.removeprefix("--").split("=", 1) for one in arguments)
    assert values["task"] == "$(JOB_COMPLETION_INDEX)"
    assert values["workdir"].startswith("gs://")
    environment = {entry["name"]: entry["value"] for entry in container["env"]}
    assert environment["JAX_PLATFORMS"] == "cuda,cpu"
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert environment["XDG_CACHE_HOME"] in mounts.values()
    assert {volume["name"] for volume in job["template"]["spec"]["volumes"]} == set(mounts)
