"""The distribution's name; no text tells users to install the unrelated package."""

import importlib.metadata
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import resnet_jax
from resnet_jax.cli.main import main
from resnet_jax.doctor import versions
from resnet_jax.logging.provenance import package_versions
from resnet_jax.utils.distribution import DISTRIBUTION, install_hint

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

# `resnet-jax` is this package's command, and an unrelated package on PyPI. As a requirement or as
# the name of a distribution it always means the latter.
STRANGER = r"resnet[-_.]?jax"
AS_A_REQUIREMENT = re.compile(
    rf"{STRANGER}\s*(\[[a-z]|[=<>!~]=)"
    rf"|\b(pip|uv|pipx|poetry)3? [^\n.;|&]*\b{STRANGER}\b(?!\.git|/| &&)"
    rf"|\b(version|metadata|requires|distribution)\(\s*[\"']{STRANGER}\b"
    rf"|^name\s*=\s*[\"']{STRANGER}\b",
    re.IGNORECASE | re.MULTILINE,
)


@pytest.mark.parametrize(
    "text",
    [
        "pip install resnet-jax",
        "pip install -q 'resnet_jax[hub]'",
        'raise ConfigError("install " "\'resnet-jax[hub]\'")',
        "resnet-jax==0.1.0",
        'metadata.version("resnet-jax")',
        'name = "resnet-jax"',
    ],
)
def test_the_search_finds_a_requirement(text):
    assert AS_A_REQUIREMENT.search(text)


@pytest.mark.parametrize(
    "text",
    [
        "pip install -e '.[hub]' && resnet-jax eval runs/one",
        "resnet-jax doctor --workdir=runs/one",
        "pip install -e .\nresnet-jax reproduce --list",
        "[resnet_jax/config/recipes.py](resnet_jax/config/recipes.py)",
    ],
)
def test_the_search_leaves_commands_and_paths_alone(text):
    assert not AS_A_REQUIREMENT.search(text)


def test_no_file_names_the_strangers_package_as_a_requirement():
    git = shutil.which("git")
    if not git or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    names = subprocess.run(
        [git, "ls-files", "-z"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    ).stdout
    found = []
    for name in map(bytes.decode, names.split(b"\0")[:-1]):
        path = ROOT / name
        if path == Path(__file__) or not path.exists():
            continue
        data = path.read_bytes()
        if b"\0" in data[:8192]:  # as git tells binary files
            continue
        for match in AS_A_REQUIREMENT.finditer(data.decode(errors="replace")):
            found.append(f"{name}: {match[0]!r}")
    assert not found


def test_the_names_agree():
    assert PROJECT["name"] == DISTRIBUTION
    assert PROJECT["version"] == resnet_jax.__version__ == package_versions()["resnet_jax"]
    assert list(PROJECT["scripts"]) == ["resnet-jax"]


@pytest.mark.parametrize("extra", ["hub", "gcs", "s3", "tpu"])
def test_the_extras_of_messages_exist(extra):
    assert extra in PROJECT["optional-dependencies"]
    assert f"[{extra}]" in install_hint(extra)


def test_an_install_under_the_old_name_is_a_warning_with_a_remedy(monkeypatch):
    real = importlib.metadata.metadata

    def metadata(name):
        if name == DISTRIBUTION:
            raise importlib.metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(importlib.metadata, "metadata", metadata)
    (line,) = versions.check_versions(present={})
    assert (line.status, line.remedy) == ("warn", "pip install -e .")


def test_the_version(capsys):
    with pytest.raises(SystemExit) as done:
        main(["--version"])
    assert done.value.code == 0
    assert capsys.readouterr().out == f"resnet_jax {resnet_jax.__version__}\n"


def test_the_package_runs_as_a_module():
    command = [sys.executable, "-m", "resnet_jax", "--version"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == f"resnet_jax {resnet_jax.__version__}\n"
