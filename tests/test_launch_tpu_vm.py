"""launch/tpu_vm.sh with a fake gcloud, whose worker is a folder here: what it runs, and again."""

import fcntl
import os
import shlex
import shutil
import signal
import subprocess

import pytest

from resnet_jax import errors
from tests.launch_fakes import LOG_CALL, called, executable, wait_for
from tests.test_launch import FINAL, LAUNCH, PEER_LOST, ROOT

GCLOUD = """
{log_call}
subcommand="$4"
for argument in "$@"; do
  case "$argument" in --command=*) command="${{argument#--command=}}" ;; esac
done
next() {{ head -n 1 "$1"; sed -i 1d "$1"; }}
case "$subcommand" in
  describe) next {folder}/states ;;
  scp) cp "${{@: -2:1}}" {home} ;;
  ssh)
    cd {home}
    code="$(head -n 1 {folder}/codes)"
    if [[ "$code" == lost && "$command" == *train.py* ]]; then next {folder}/codes; exit 255; fi
    exec bash -c "$command" ;;
esac
"""
TRAIN = """
printf '%q ' "$@" >> {log}; echo >> {log}
read -r code < {folder}/codes; sed -i 1d {folder}/codes
if [[ "$code" == wait ]]; then
  trap 'exit 75' TERM
  echo "$$" > {folder}/pid
  while true; do sleep 0.05; done
fi
exit "$code"
"""
# Like pkill, but can end nothing that isn't the test's own.
PKILL = """
[[ "$1 $2" == "-TERM -f" && ".venv/bin/python train.py --config=x" =~ $3 ]] || exit 2
[[ ! "bash -c cd resnet_jax && flock .venv/bin/python train.py" =~ $3 ]] || exit 2
kill -TERM "$(cat {folder}/pid)"
"""


class TpuVm:
    """A fake gcloud with one worker, on which commands run: in a folder that is its home."""

    def __init__(self, folder):
        self.folder, self.home, self.log = folder, folder / "home", folder / "calls"
        self.python = self.home / "resnet_jax" / ".venv" / "bin" / "python"
        self.trained = folder / "trained"
        names = {"folder": folder, "home": self.home}
        log_call = LOG_CALL.format(name='"${0##*/}"', log=self.log)
        executable(folder / "bin" / "gcloud", GCLOUD.format(log_call=log_call, **names))
        executable(folder / "bin" / "pkill", PKILL.format(**names))
        executable(self.python, TRAIN.format(log=self.trained, **names))
        self.environment = os.environ | {
            "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
            "HOME": str(self.home),
            "PAUSE_S": "0",
        }

    def start(self, *arguments, codes=(), states=(), cwd=ROOT):
        for name, values in {"codes": codes, "states": states}.items():
            (self.folder / name).write_text("".join(f"{value}\n" for value in values))
        return subprocess.Popen(
            [LAUNCH / "tpu_vm.sh", "--name=tpu", "--zone=zone-a", *arguments],
            cwd=cwd,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, *arguments, **options):
        process = self.start(*arguments, **options)
        out, err = process.communicate(timeout=300)
        return process.returncode, out, err

    @property
    def subcommands(self):
        return [call[4] for call in called(self.log)]


@pytest.fixture
def tpu(tmp_path):
    return TpuVm(tmp_path)


needs_flock = pytest.mark.skipif(not shutil.which("flock"), reason="util-linux isn't installed")
TRAIN_FLAGS = ("--config=configs/cifar10.py:resnet20", "--workdir=gs://bucket/it's a run")


@needs_flock
@pytest.mark.parametrize("code", [0, *FINAL])
def test_tpu_vm_ends_a_run_that_is_done_or_hopeless(tpu, code):
    returned, _, _ = tpu.run("run", *TRAIN_FLAGS, codes=[code])
    assert returned == code
    assert called(tpu.trained) == [["train.py", *TRAIN_FLAGS]]
    assert tpu.subcommands == ["ssh"]
    assert "--worker=all" in called(tpu.log)[0]


@needs_flock
def test_tpu_vm_goes_on_after_a_stop_a_lost_peer_and_a_lost_connection(tpu):
    codes = [75, 71, "lost", 75, 0]
    returned, _, err = tpu.run("run", *TRAIN_FLAGS, codes=codes, states=["READY"] * 4)
    assert returned == 0
    assert called(tpu.trained) == [["train.py", *TRAIN_FLAGS]] * 4  # the same command; one was lost
    assert tpu.subcommands == ["ssh", "describe"] * 4 + ["ssh"]
    assert err.count("going on from what is saved") == 4


@needs_flock
def test_tpu_vm_does_not_repeat_a_crash(tpu):
    returned, _, _ = tpu.run("run", *TRAIN_FLAGS, codes=[1], states=["READY"])
    assert returned == 1
    assert tpu.subcommands == ["ssh", "describe"]


@needs_flock
def test_tpu_vm_gives_up_after_many_losses_in_a_row(tpu):
    codes = [*[71] * 9, 75, *[71] * 20]  # nine, something saved, and too many
    returned, _, err = tpu.run("run", *TRAIN_FLAGS, codes=codes, states=["READY"] * 40)
    assert returned == PEER_LOST
    assert len(called(tpu.trained)) == 9 + 1 + 11
    assert "lost 11 times in a row" in err


@needs_flock
@pytest.mark.parametrize("code", [75, "lost", 1])
def test_tpu_vm_says_that_the_slice_was_taken_away(tpu, code):
    returned, _, err = tpu.run("run", *TRAIN_FLAGS, codes=[code], states=["PREEMPTED"])
    assert returned == (255 if code == "lost" else code)
    assert "the slice is PREEMPTED; after delete, create and install" in err
    assert tpu.subcommands == ["ssh", "describe"]  # nothing that costs money


def repository(folder):
    """A git repository that passes for this one; returns its commit."""
    folder.mkdir()
    for name in ("train.py", "constraints.txt"):
        (folder / name).touch()
    identity = ("-c", "user.name=test", "-c", "user.email=test@example.com")

    def git(*arguments):
        done = subprocess.run(["git", "-C", folder, *arguments], check=True, capture_output=True)
        return done.stdout.decode().strip()

    git("init", "--quiet")
    git("add", ".")
    git(*identity, "commit", "--quiet", "-m", "all")
    return git("rev-parse", "HEAD")


def fake_uv(tpu):
    """What curl brings onto a worker: uv, which makes the environment that trains."""
    uv = f"""
        printf '%q ' "$@" >> {tpu.folder}/uv; echo >> {tpu.folder}/uv
        if [[ "$1" == venv ]]; then mkdir -p .venv/bin; cp {tpu.folder}/python .venv/bin/; fi"""
    shutil.copy(tpu.python, tpu.folder / "python")
    executable(tpu.folder / "uv-of-curl", uv)
    install = f"mkdir -p ~/.local/bin; cp {tpu.folder}/uv-of-curl ~/.local/bin/uv"
    executable(tpu.folder / "bin" / "curl", f"echo '{install}'")


def test_tpu_vm_installs_the_commit_with_the_tested_versions(tpu):
    fake_uv(tpu)
    commit = repository(tpu.folder / "source")
    returned, _, err = tpu.run("install", cwd=tpu.folder / "source")
    assert returned == 0, err
    installed = tpu.home / "resnet_jax"
    head = subprocess.check_output(["git", "-C", installed, "rev-parse", "HEAD"], text=True)
    assert head.strip() == commit
    *_, pip = called(tpu.folder / "uv")
    assert pip[:2] == ["pip", "install"]
    assert pip[-4:] == ["-c", "constraints.txt", "-e", ".[tpu,gcs]"]


def test_tpu_vm_warns_of_changes_that_are_not_installed(tpu):
    fake_uv(tpu)
    repository(tpu.folder / "source")
    (tpu.folder / "source" / "train.py").write_text("changed")
    _, _, err = tpu.run("install", cwd=tpu.folder / "source")
    assert "warning: uncommitted changes are not installed" in err
    assert (tpu.home / "resnet_jax" / "train.py").read_text() == ""


@needs_flock
def test_tpu_vm_recreates_a_slice_and_goes_on(tpu):
    fake_uv(tpu)
    repository(tpu.folder / "source")
    returned, _, err = tpu.run(
        *("--recreate", "--spot", "run", *TRAIN_FLAGS),
        codes=["lost", 0],
        states=["PREEMPTED"],
        cwd=tpu.folder / "source",
    )
    assert returned == 0, err
    # train, look, delete, create, copy, install, train
    assert tpu.subcommands == ["ssh", "describe", "delete", "create", "scp", "ssh", "ssh"]
    assert "--spot" in called(tpu.log)[3]
    assert called(tpu.trained) == [["train.py", *TRAIN_FLAGS]]


@needs_flock
def test_ctrl_c_saves_on_the_workers_and_ends_the_loop(tpu):
    # A script can't trap what it inherits as ignored, as behind a shell's "&".
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = tpu.start("run", *TRAIN_FLAGS, codes=["wait", 0], states=["READY"])
    signal.signal(signal.SIGINT, previous)
    wait_for(tpu.folder / "pid")
    os.killpg(process.pid, signal.SIGINT)  # a terminal signals all that runs in front
    _, err = process.communicate(timeout=300)
    assert process.returncode == errors.STOPPED_EARLY, err
    assert len(called(tpu.trained)) == 1
    assert "stopping at the next safe point" in err
    assert set(tpu.subcommands) == {"ssh"}  # it ends at once


@needs_flock
def test_tpu_vm_keeps_a_second_run_off_the_chips(tpu):
    with (tpu.home / "resnet_jax" / ".run.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        returned, _, _ = tpu.run("run", *TRAIN_FLAGS, codes=[0], states=["READY"] * 20)
    assert returned == PEER_LOST
    assert not called(tpu.trained)


def test_tpu_vm_dry_run_prints_what_would_run(tpu):
    outputs = {
        command: tpu.run("--dry-run", "--spot", command, *arguments)[1]
        for command, arguments in {"create": (), "install": (), "run": TRAIN_FLAGS}.items()
    }
    assert not called(tpu.log)
    assert outputs["create"] == (
        "gcloud compute tpus tpu-vm create tpu --zone=zone-a --accelerator-type=v5litepod-16"
        " --version=v2-alpha-tpuv5-lite --scopes=cloud-platform --spot\n"
    )
    bundle, copy, install = map(shlex.split, outputs["install"].splitlines())
    assert bundle[:3] == ["git", "bundle", "create"]
    assert copy[4:7] == ["scp", "--zone=zone-a", "--worker=all"]
    assert "-c constraints.txt -e '.[tpu,gcs]'" in install[-1]
    *_, workers, command = shlex.split(outputs["run"])
    assert workers == "--worker=all"
    assert shlex.split(command)[-3:] == ["train.py", *TRAIN_FLAGS]
    assert "JAX_PLATFORMS=tpu,cpu" in command


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "--config=x", "--workdir=/tmp/run"], "write --workdir=gs://BUCKET/PATH"),
        (["run", "--config=x"], "write --workdir=gs://BUCKET/PATH"),
        (["run", "--workdir=s3://b/r"], "'s3://b/r', where checkpoints can't be written; write"),
        (["run", "--workdir=gs://b/r", "--stop_at_step=3"], "for ever"),
        (["--spto", "create"], "--spto is no option"),
        (["launch"], "'launch' is no command"),
        (["--zone=", "create"], "--name and --zone"),
    ],
)
def test_tpu_vm_refuses_what_cannot_work(tpu, arguments, message):
    returned, _, err = tpu.run(*arguments)
    assert returned == errors.UsageError.exit_code
    assert err.startswith("error: ")
    assert len(err.splitlines()) == 1
    assert message in err
    assert not called(tpu.log)
