"""resnet-jax doctor as a command; its checks have modules of their own."""

import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest

from resnet_jax.cli.main import main
from tests.doctor.helpers import run_doctor

ROOT = Path(__file__).parents[2]


def test_a_sound_machine_is_told_so(capsys, tmp_path):
    workdir = tmp_path / "runs" / "new"
    code, found = run_doctor(capsys, "--workdir", str(workdir))
    assert code == 0
    assert "× cpu (cpu); " in found["devices"][0]["message"]
    assert f"jax {importlib.metadata.version('jax')}, " in found["versions"][0]["message"]
    assert "train 1,437, test 360 images of 8×8×1" in found["digits"][0]["message"]
    assert "can be made in " in found["workdir"][0]["message"]
    assert found["convolutions"][0]["message"] == "XLA's; of oneDNN's, RESNET_JAX_NATIVE is 0"
    assert {"memory", "shared memory", "open files", "disk", "coordinator", "clock"} <= set(found)
    assert not workdir.parent.exists()
    assert list(tmp_path.iterdir()) == []


def test_a_workdir_in_the_home_folder_is_on_its_disk(capsys, quick, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    _, found = run_doctor(capsys, "--workdir=~/runs/new")
    assert f"workdir ({tmp_path / 'runs' / 'new'})" in found["disk"][0]["message"]


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
    code, found = run_doctor(
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
        (["--data-dir", "data"], "--data-dir is the folder of the data that --data or --config"),
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
