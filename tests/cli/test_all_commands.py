"""What every subcommand has in common: output that can't be written, interruptions, devices."""

import argparse
import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from absl import flags

from resnet_jax.cli.common.config_flag import parse_flags
from resnet_jax.cli.main import _SUBCOMMANDS, main
from resnet_jax.errors import StoppedEarly
from resnet_jax.utils.files import local_path
from tests.fake_bucket import BucketFileSystem
from tests.runs import ROOT

# The least that each takes; none of it is looked at.
_ARGUMENTS = {
    "completion": ["bash"],
    "eval": ["x"],
    "export": ["x", "y"],
    "mlperf": ["x"],
    "plan": ["--topology=v5e:2x2", "--mtbf-hours=1"],
    "predict": ["x"],
    "bench": ["step"],
    "convert": ["x.pth", "x.safetensors"],
    "prepare": ["x", "--out=y", "--name=z"],
    "push": ["x", "y/z"],
    "sweep": ["--workdir=x"],
    "compare": ["x"],
    "report": ["x"],
    "status": ["x"],
    "verify": ["x"],
}
_TEXT = "2 × résumé [/b] [link=http://x]y[/link] :100:"


@pytest.fixture(params=_SUBCOMMANDS)
def command(request, monkeypatch):
    """Runs a subcommand that does `action` instead of what it does; returns the exit code."""

    def run(action, *arguments):
        module = _SUBCOMMANDS[request.param]

        def instead(args):
            found = action()
            return found if isinstance(found, dict) else {"text": _TEXT, "exit_code": 3}

        monkeypatch.setattr(module, "run", instead)
        monkeypatch.setattr(module, "show", lambda found, console: console.print(found["text"]))
        return main([request.param, *_ARGUMENTS.get(request.param, []), *arguments])

    return run


def _nothing():
    return None


def _broken_pipe():
    reader, writer = os.pipe()
    os.close(reader)
    return os.fdopen(writer, "w")


@pytest.mark.parametrize("arguments", [[], ["--json"]])
def test_output_that_cannot_be_written_is_an_error_unless_nobody_reads_it(
    arguments, command, capsys, monkeypatch
):
    monkeypatch.setattr(sys, "stdout", open("/dev/full", "w"))  # noqa: SIM115
    assert command(lambda: {"text": _TEXT}, *arguments) == 73
    said = capsys.readouterr().err
    assert said == "error: Standard output can't be written (No space left on device).\n"

    monkeypatch.setattr(sys, "stdout", _broken_pipe())
    assert command(_nothing, *arguments) == 3
    monkeypatch.setattr(sys, "stdout", None)  # as Python has it for one that was closed
    assert command(_nothing, *arguments) == 3
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["list", "--help"]])
def test_a_text_of_help_that_cannot_be_written_is_an_error(arguments, capsys, monkeypatch):
    for stream, code in ((open("/dev/full", "w"), 73), (None, 0), (_broken_pipe(), 0)):  # noqa: SIM115
        monkeypatch.setattr(sys, "stdout", stream)
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == code
    assert capsys.readouterr().err.count("error: Standard output can't be written") == 1


def test_the_help_of_train_py_that_cannot_be_written_is_an_error(monkeypatch, capsys):

    def print_help(*_):
        sys.stdout.write("help")
        sys.exit(1)

    values = flags.FlagValues()
    flags.DEFINE_string("config", None, "", flag_values=values)
    monkeypatch.setattr(flags.FlagValues, "__call__", print_help)
    for stream, code in ((open("/dev/full", "w"), 73), (None, 0), (_broken_pipe(), 0)):  # noqa: SIM115
        monkeypatch.setattr(sys, "stdout", stream)
        with pytest.raises(SystemExit) as ended:
            parse_flags(["train.py", "--help"], values)
        assert ended.value.code == code
    assert capsys.readouterr().err.count("error: Standard output can't be written") == 1


def test_a_stream_of_ascii_gets_escapes(command, monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setenv("COLUMNS", "20")
    assert command(_nothing) == 3
    assert written.getvalue() == (b"2 \\xd7 r\\xe9sum\\xe9 [/b] [link=http://x]y[/link] :100:\n")


def test_messages_that_cannot_be_written_change_no_exit_code(command, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stderr", _broken_pipe())
    assert command(lambda: sys.stderr.write("a message\n" * 9999), "--json") == 3
    assert json.loads(capsys.readouterr().out)["text"] == _TEXT


def _raise(error):
    raise error


@pytest.mark.parametrize(
    ("action", "code", "said"),
    [
        (lambda: os.kill(os.getpid(), signal.SIGINT), 130, "interrupted; what was saved"),
        (lambda: _raise(StoppedEarly("stopped; go on")), 75, "stopped; go on\n"),
        (lambda: sys.exit(0), 78, f"error: {__file__}, line "),  # in code of the user's
        (lambda: jax.devices("nonsense"), 78, "error: JAX can't start its devices (no such"),
    ],
)
def test_what_ends_a_command_is_one_line_and_an_exit_code(
    action, code, said, command, capsys, monkeypatch
):
    def no_devices(*_):
        raise RuntimeError("no such\nbackend")

    monkeypatch.setattr(jax, "devices", no_devices)
    assert command(action) == code
    captured = capsys.readouterr()
    assert captured.err.startswith(said)
    assert (captured.err.count("\n"), captured.out) == (1, "")


@pytest.mark.parametrize(
    "command",
    [
        ["-m", "resnet_jax", "summary", "resnet18"],
        ["train.py", "--config=configs/digits.py", "--workdir=none"],
    ],
    ids=["resnet-jax", "train.py"],
)
@pytest.mark.parametrize("variable", ["JAX_NUM_CPU_DEVICES", "JAX_ENABLE_X64"])
def test_a_variable_that_jax_cannot_read_is_named(variable, command):
    done = subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env=os.environ | {variable: "abc"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (78, "")
    assert done.stderr.startswith(f"error: The environment variable {variable} is 'abc', which")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        *(["bench", "step", f"--seconds={value}"] for value in ("nan", "inf", "-1")),
        *(["doctor", f"--timeout={value}"] for value in ("nan", "inf", "-1", "1e400")),
        *(["mlperf", "x", f"--target={value}"] for value in ("nan", "inf", "-1")),
        *(["reproduce", "he2015-fig6", f"--budget={value}"] for value in ("nan", "-inf")),
        ["reproduce", "he2015-fig6", "--seeds=-1"],
        ["sweep", "--workdir=x", "--processes=-1"],
        ["predict", "x", "y", "--top=-1"],
        ["summary", "resnet20", "--image-size=-1"],
        ["summary", "resnet20", "--channels=-1"],
        ["summary", "resnet20", "--num-classes=-1"],
        ["export", "--weights=x", "y", "--model=resnet20", "--image-size=-1"],
        ["export", "--weights=x", "y", "--model=resnet20", "--batch=-1"],
        ["prepare", "x", "--out=y", "--name=z", "--size=-1"],
        ["prepare", "x", "--out=y", "--name=z", "--size=8", "--quality=-1"],
        ["prepare", "x", "--out=y", "--name=z", "--shards=-1"],
    ],
    ids=" ".join,
)
def test_a_number_that_is_none_is_refused(arguments, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    field = arguments[-1].partition("=")[0].removeprefix("--")
    try:
        code = main(arguments)
    except SystemExit as error:  # the parser's own
        code = error.code
    said = capsys.readouterr().err
    assert code in (64, 78), said
    assert said.count("\n") == 1
    assert field in said


_PROGRAM = """
import sys
from resnet_jax.cli import build
from resnet_jax.cli.common.config_flag import parse_flags
from resnet_jax.cli.main import main
if sys.argv[1] == "build":
    build.run = lambda args: {"text": "x" * 200_000}
sys.exit(main())
"""


def _resnet_jax(*arguments, end="", **environment):
    """Exit code, output and messages of `resnet-jax …` as a shell runs it, with `end` after it."""
    command = ["bash", "-o", "pipefail", "-c", f'"$0" "$@" {end}', sys.executable, "-c", _PROGRAM]
    inherited = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    done = subprocess.run(
        [*command, *arguments],
        cwd=ROOT,
        env={**inherited, "JAX_PLATFORMS": "cpu", **environment},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["prepare", "LONG", "--out=o", "--name=z"], 64, "LONG: File name too long"),
        (["summary", "--config=LONG"], 78, "there is no file LONG"),
        (["predict", "--weights=LONG", "x.png"], 65, "LONG can't be read: File name too long"),
        (["convert", "LOOP", "o.safetensors"], 65, "Too many levels of symbolic links"),
        (["export", "--weights=LOOP", "LOOP", "--model=resnet20"], 64, "LOOP is what is to be"),
    ],
)
def test_names_that_no_file_can_have_are_one_line(
    arguments, code, message, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loop").symlink_to("loop")

    def filled(text):
        return text.replace("LONG", "x" * 300).replace("LOOP", "loop")

    assert main([*map(filled, arguments)]) == code
    said = capsys.readouterr().err
    assert filled(message) in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "more"),
    [
        *((name, []) for name in ("status", "report", "compare", "verify", "mlperf", "eval")),
        *(("push", ["me/mine"]), ("predict", ["x.png"]), ("export", ["x.stablehlo"])),
    ],
)
def test_a_bucket_without_a_client_is_one_line(name, more, bucket, monkeypatch, capsys):
    def fault(*_, **__):
        raise ImportError("Please install gcsfs")

    for call in ("fault", "exists"):
        monkeypatch.setattr(BucketFileSystem, call, staticmethod(fault))
    assert main([name, "gs://bucket/run", *more]) == 78
    said = capsys.readouterr().err
    assert "gs://bucket/run needs a client of that kind of bucket" in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("name", _SUBCOMMANDS)
def test_files_on_the_command_line_may_begin_with_a_tilde(name, tmp_path, monkeypatch):
    """A shell expands the tilde of `--out ~/x`, but not that of `--out=~/x`."""
    monkeypatch.setenv("HOME", str(tmp_path))
    parser = argparse.ArgumentParser()
    _SUBCOMMANDS[name].add_arguments(parser)
    for action in parser._actions:
        if action.type in (Path, local_path):
            assert action.type("~/x") == tmp_path / "x", action.dest


def test_a_command_in_a_poor_environment():
    """A narrow, dumb terminal without an encoding, and a home that can't be written."""
    poor = {"TERM": "dumb", "COLUMNS": "20", "LC_ALL": "C", "PYTHONIOENCODING": "ascii"}
    code, out, err = _resnet_jax("summary", "resnet20", HOME="/proc/1", XDG_CACHE_HOME="", **poor)
    assert (code, err) == (0, "")
    assert out.isascii()


@pytest.mark.parametrize(
    ("end", "code"), [("| head -c 9", 0), ("> /dev/full", 73), (">&-", 0), (">&- 2>&-", 0)]
)
def test_the_end_of_the_process_changes_nothing_either(end, code):
    """Python flushes its streams once more."""
    done = _resnet_jax("build", "--json", end=end)
    assert done[0] == code, done
    assert done[2].count("\n") == (code == 73)


def test_a_platform_that_jax_does_not_know_is_one_line():
    arguments = ["bench", "step", "--config=configs/digits.py"]
    code, out, err = _resnet_jax(*arguments, JAX_PLATFORMS="x")
    assert (code, out) == (78, "")
    assert err.startswith("error: JAX can't start its devices (Unable to initialize backend 'x'")
    assert "with JAX_PLATFORMS='x'; unset it" in err
    assert err.count("\n") == 1
