"""launch/: the manifest and the image are consistent with the code and with themselves."""

import fnmatch
import math
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from absl import flags
from ml_collections import config_flags

from resnet_jax import errors
from resnet_jax.config.schema import default_config, flatten
from tests import test_docs

ROOT = Path(__file__).parents[1]
LAUNCH = ROOT / "launch"
MANIFEST = (LAUNCH / "gke_tpu_jobset.yaml").read_text()
PEER_LOST = errors.PeerError.exit_code  # a restart mends it, unlike the other failures
FAILURES = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, errors.ResnetJaxError)
]
FINAL = sorted({failure.exit_code for failure in FAILURES} - {PEER_LOST})


def test_final_codes_are_the_known_ones():
    assert FINAL == [64, 65, 70, 73, 78]
    assert (errors.STOPPED_EARLY, PEER_LOST) == (75, 71)


# ---------------------------------------------------------------- GKE


@pytest.fixture(scope="module")
def jobset():
    return yaml.safe_load(MANIFEST)


@pytest.fixture(scope="module")
def job(jobset):
    (replicated,) = jobset["spec"]["replicatedJobs"]
    assert replicated["replicas"] == 1  # slices
    return replicated["template"]["spec"]


@pytest.fixture(scope="module")
def pod(job):
    return job["template"]["spec"]


@pytest.fixture(scope="module")
def container(pod):
    (container,) = pod["containers"]  # one per host, which owns all its chips
    return container


def test_there_is_one_pod_for_each_host_of_the_slice(job, pod, container):
    selector = pod["nodeSelector"]
    sides = [int(side) for side in selector["cloud.google.com/gke-tpu-topology"].split("x")]
    accelerator = selector["cloud.google.com/gke-tpu-accelerator"]
    dimensions = {"tpu-v5-lite-podslice": 2, "tpu-v6e-slice": 2, "tpu-v5p-slice": 3}
    assert len(sides) == dimensions[accelerator]
    hosts = math.prod(sides) // container["resources"]["limits"]["google.com/tpu"]
    assert job["parallelism"] == job["completions"] == hosts
    assert hosts * container["resources"]["limits"]["google.com/tpu"] == math.prod(sides)
    assert job["completionMode"] == "Indexed"


def test_the_slices_in_the_comment_have_so_many_hosts():
    rows = re.findall(r"^#   (v\w+) +(tpu-[\w-]+) +(\d) +(.+)$", MANIFEST, re.MULTILINE)
    assert [row[0] for row in rows] == ["v5e", "v6e", "v5p", "v4"]
    for chip, _, chips, slices in rows:
        for topology, hosts in re.findall(r"([\dx]+) → (\d+)", slices):
            sides = [int(side) for side in topology.split("x")]
            assert math.prod(sides) == int(chips) * int(hosts), (chip, topology)
            assert len(sides) == (2 if chip in ("v5e", "v6e") else 3), (chip, topology)


def test_exit_codes_decide_whether_the_jobset_restarts(jobset, job, pod, container):
    """A pod's code → the Job's failure reason → what the JobSet does with it."""
    assert pod["restartPolicy"] == "Never"  # podFailurePolicy requires it
    assert job["backoffLimit"] == 0
    (rule,) = job["podFailurePolicy"]["rules"]
    on_codes = rule["onExitCodes"]
    assert (rule["action"], on_codes["operator"]) == ("FailJob", "In")
    assert on_codes["containerName"] == container["name"]
    assert on_codes["values"] == FINAL  # Kubernetes wants them in order
    policy = jobset["spec"]["failurePolicy"]

    def action(exit_code):
        matched = exit_code in on_codes["values"]
        reason = "PodFailurePolicy" if matched else "BackoffLimitExceeded"
        for rule in policy["rules"]:
            if reason in rule["onJobFailureReasons"]:
                return rule["action"]
        return "RestartJobSet"  # up to maxRestarts

    assert {action(code) for code in FINAL} == {"FailJobSet"}
    restarted = (errors.STOPPED_EARLY, PEER_LOST, 137, 143)  # and killed, from the node
    assert {action(code) for code in restarted} == {"RestartJobSet"}
    assert policy["maxRestarts"] > 0
    assert policy["restartStrategy"] == "BlockingRecreate"  # two runs never share a workdir


def test_the_hosts_run_train_py_with_one_workdir_in_a_bucket(container, monkeypatch):
    python, script, *arguments = container["command"]
    assert (python, script) == ("python", "train.py")  # no shell that would keep SIGTERM
    assert (ROOT / script).is_file()
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("sys.argv", ["train.py", *arguments])  # where overrides are looked for
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values)
    flags.DEFINE_string("workdir", None, "", flag_values=values)
    assert values(sys.argv) == ["train.py"]  # the file, and each field, exist
    assert values.workdir.startswith("gs://")
    assert values.config.data.dir.startswith("gs://")
    assert "stop_at_step" not in " ".join(arguments)  # it would restart for ever


def test_the_pods_have_what_they_mention(pod, container):
    volumes = {volume["name"] for volume in pod["volumes"]}
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert volumes == set(mounts)
    environment = {entry["name"]: entry["value"] for entry in container["env"]}
    assert environment["XDG_CACHE_HOME"] in mounts.values()
    assert environment["JAX_PLATFORMS"] == "tpu,cpu"
    assert pod["terminationGracePeriodSeconds"] >= 120


def test_the_coordinators_port_is_the_one_that_jax_uses(container):
    from jax._src.clusters import cloud_tpu_cluster

    ports = {port["containerPort"] for port in container["ports"]}
    assert int(cloud_tpu_cluster.coordinator_port) in ports


# ---------------------------------------------------------------- scripts


@pytest.mark.parametrize("name", ["slurm.sh", "slurm_sweep.sh", "slurm_requeue.sh", "tpu_vm.sh"])
def test_scripts_are_clean(name):
    script = LAUNCH / name
    assert os.access(script, os.X_OK) == (name != "slurm_requeue.sh")  # which is sourced
    subprocess.run(["bash", "-n", script], check=True)
    beside_python = Path(sys.executable).with_name("shellcheck")
    if found := (beside_python if beside_python.exists() else shutil.which("shellcheck")):
        command = [found, "--external-sources", "--severity=style", script]
        subprocess.run(command, check=True, cwd=ROOT)


@pytest.mark.parametrize("name", ["slurm_requeue.sh", "tpu_vm.sh"])
def test_scripts_know_the_exit_codes(name):
    text = (LAUNCH / name).read_text()
    assert f"STOPPED_EARLY={errors.STOPPED_EARLY} PEER_LOST={PEER_LOST}" in text


# ---------------------------------------------------------------- image

DOCKERFILE = (LAUNCH / "Dockerfile").read_text()


def instructions():
    """[instruction, arguments] of the Dockerfile, with continued lines joined."""
    joined = re.sub(r"\\\n\s*", "", re.sub(r"^#.*\n", "", DOCKERFILE, flags=re.MULTILINE))
    return [line.split(maxsplit=1) for line in joined.splitlines() if line.strip()]


def ignored(path):
    """Whether .dockerignore keeps `path` out: the last pattern that matches it decides."""
    verdict = False
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if line.strip() and not line.startswith("#"):
            pattern = line.removeprefix("!").removeprefix("**/")
            parts = [path, *map(str, Path(path).parents)][:-1]
            if line.startswith("**/"):
                parts = Path(path).parts
            if any(fnmatch.fnmatch(part, pattern) for part in parts):
                verdict = not line.startswith("!")
    return verdict


def copied():
    for instruction, arguments in instructions():
        if instruction == "COPY":
            yield from arguments.split()[:-1]


def test_the_image_gets_files_that_exist_and_nothing_else():
    sources = list(copied())
    assert {"train.py", "resnet_jax", "configs", "pyproject.toml", "constraints.txt"} <= set(
        sources
    )
    for source in sources:
        assert (ROOT / source).exists(), source
        assert not ignored(source), source
    tracked_elsewhere = (".git", ".venv", "runs", "tests", "benchmarks", ".env", "key.json")
    for path in (*tracked_elsewhere, "resnet_jax/cli/__pycache__"):
        assert ignored(path), path


def test_the_image_installs_the_tested_versions_before_the_sources_come():
    steps = [" ".join(instruction) for instruction in instructions()]
    dependencies = next(i for i, step in enumerate(steps) if "-c constraints.txt" in step)
    sources = next(i for i, step in enumerate(steps) if "COPY resnet_jax" in step)
    assert dependencies < sources  # so that a change of the code keeps the cached layer
    assert "[gcs${EXTRA:+,$EXTRA}]" in steps[dependencies]


def test_the_image_has_the_extras_that_exist_and_no_others():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (check,) = (a for i, a in instructions() if i == "RUN" and "$EXTRA" in a and "pip" not in a)

    def accepts(extra):
        return not subprocess.call(
            ["sh", "-c", check], env={"EXTRA": extra}, stdout=subprocess.DEVNULL
        )

    known = project["optional-dependencies"]
    assert {extra for extra in (*known, "gpu") if accepts(extra)} == {"tpu", "cuda"}
    assert accepts("")
    python = re.search(r"^ARG PYTHON=(\S+)", DOCKERFILE, re.MULTILINE)[1]
    assert f"Programming Language :: Python :: {python}" in project["classifiers"]


def test_the_image_does_not_run_as_root():
    *_, (user, number), (command, words) = instructions()
    assert (user, command) == ("USER", "CMD")
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", number)  # Kubernetes can't look a name up
    assert yaml.safe_load(words)[:2] == ["python", "train.py"]


def test_hadolint_has_nothing_to_say():
    found = shutil.which("hadolint", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if not found:
        pytest.skip("hadolint isn't installed")
    subprocess.run([found, LAUNCH / "Dockerfile"], check=True)


# ---------------------------------------------------------------- docs

PODS = ROOT / "docs" / "pods.md"


def test_the_page_names_what_exists():
    test_docs.test_links_and_named_tests_exist("docs/pods.md")
    text = PODS.read_text()
    for name in re.findall(r"launch/[\w.]+", text):
        assert (ROOT / name).exists(), name
    for config in re.findall(r"configs/\w+\.py", text):
        assert (ROOT / config).exists(), config


def test_the_page_names_commands_flags_and_fields_that_exist():
    text = PODS.read_text()
    trains = (ROOT / "train.py").read_text()
    for flag in re.findall(r"--([a-z]+_[a-z_]+)", text):  # dashes are other programs'
        assert f'"{flag}"' in trains, flag
    fields = set(re.findall(r"config\.([a-z_.]+[a-z])", text))
    assert "mesh.fsdp" in fields
    assert fields <= set(flatten(default_config()))


def test_the_page_and_the_manifest_speak_of_the_same_slice(pod):
    topology = pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"]
    assert f"--topology=v5e:{topology}" in PODS.read_text()
