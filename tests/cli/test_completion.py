"""resnet-jax completion: what bash and fish complete with the script."""

import os
import shutil
import subprocess
import sys

import pytest

import resnet_jax
from tests.runs import ROOT

pytest.importorskip("argcomplete")

# What bash does when Tab is pressed at the end of a line.
_BASH = """
eval "$(resnet-jax completion bash)"
read -ra COMP_WORDS <<< "$LINE"
COMP_LINE=$LINE COMP_POINT=${#LINE} COMP_CWORD=$((${#COMP_WORDS[@]} - 1)) COMP_TYPE=9
[[ $(complete -p resnet-jax) =~ -F\\ ([^ ]+) ]]
"${BASH_REMATCH[1]}" resnet-jax "${COMP_WORDS[COMP_CWORD]}" ""
printf '%s\\n' "${COMPREPLY[@]}"
"""
_FISH = 'resnet-jax completion fish | source; complete -C "$LINE"'


@pytest.fixture(params=["bash", pytest.param("fish", marks=pytest.mark.thorough)])
def complete(request, tmp_path):
    """The words by which a shell completes a line, in a folder of the test."""
    if shutil.which(request.param) is None:
        pytest.skip(f"needs {request.param}")
    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin" / "resnet-jax"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m resnet_jax "$@"\n')
    command.chmod(0o755)
    script = {"bash": _BASH, "fish": _FISH}[request.param]

    def words(line: str) -> list[str]:
        path = f"{command.parent}{os.pathsep}{os.environ['PATH']}"
        env = os.environ | {"PATH": path, "PYTHONPATH": str(ROOT), "LINE": line}
        env["HOME"] = str(tmp_path)
        shell = [request.param, "-c", script]
        written = subprocess.check_output(shell, env=env, cwd=tmp_path, text=True)
        return [word.split("\t")[0].strip() for word in written.splitlines()]

    return words


def test_shells_complete_subcommands_models_weights_and_files(complete, tmp_path):
    assert complete("resnet-jax su") == ["summary"]
    assert set(complete("resnet-jax summary resnet10")) == set(resnet_jax.list_models("resnet10*"))
    (tmp_path / "mine.safetensors").touch()
    assert complete("resnet-jax eval --weights mi") == ["mine.safetensors"]
    assert complete("resnet-jax predict --weights resnet20.d") == ["resnet20.digits"]
    assert set(complete("resnet-jax list --")) >= {"--weights", "--data", "--recipes"}


def test_completion_does_not_load_jax():
    """A shell waits for each word."""
    code = "import sys\nfrom resnet_jax.cli import main\nmain._make_parser()\nprint(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True
    )
    assert not {"jax", "flax", "optax"} & set(done.stdout.split())
