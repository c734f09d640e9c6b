"""Runs the doctor and takes its findings apart."""

import json
from collections.abc import Iterable
from pathlib import Path

import pytest

from resnet_jax.cli.main import main
from resnet_jax.doctor.finding import Finding


def run_doctor(
    capsys: pytest.CaptureFixture[str], *arguments: str, broken: str = ""
) -> tuple[int, dict[str, list[dict]]]:
    """Exit code, and the findings of the JSON document by name.

    Args:
        capsys: of the test.
        arguments: of the command.
        broken: name of the only check that may fail itself.
    """
    code = main(["doctor", "--json", *arguments])
    document = json.loads(capsys.readouterr().out)
    assert document["exit_code"] == code
    by_name: dict[str, list[dict]] = {}
    for line in document["findings"]:
        by_name.setdefault(line["name"], []).append(line)
        assert (line["status"] == "ok") == (line["remedy"] == "")
        assert (line["status"] == "fail") == (line["exit_code"] != 0)
        assert "\n" not in line["message"] + line["remedy"]
        assert line["name"] == broken or "this couldn't be checked" not in line["message"]
    return code, by_name


def only(findings: Iterable[Finding]) -> Finding:
    """The finding of a check that must have one."""
    (one,) = findings
    return one


def touch(path: Path, text: str = "") -> None:
    """Write a file and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
