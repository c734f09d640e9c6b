"""The distributions hold all that the package needs, and work outside the checkout."""

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.runs import ROOT

pytest.importorskip("build")


@pytest.fixture(scope="module")
def distributions(tmp_path_factory):
    """The source distribution of a copy of the tracked files, and the wheel that is built of it."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    tracked = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True
    ).stdout
    archive = ["tar", "-cf-", "--null", "--files-from=-"]
    copied = subprocess.run(archive, cwd=ROOT, input=tracked, check=True, capture_output=True)
    subprocess.run(["tar", "-xf-"], cwd=source, input=copied.stdout, check=True)
    # Without isolation nothing is downloaded: setuptools is that of this environment.
    build = [sys.executable, "-m", "build", "--no-isolation", f"--outdir={out}", str(source)]
    subprocess.run(build, check=True, capture_output=True)
    (archive,), (wheel,) = out.glob("*.tar.gz"), out.glob("*.whl")
    return archive, wheel


@pytest.mark.thorough
def test_the_distributions_hold_every_file_of_the_package(distributions):
    archive, wheel = distributions
    listed = subprocess.check_output(["git", "ls-files", "resnet_jax"], cwd=ROOT, text=True)
    tracked = set(listed.split())
    assert {"resnet_jax/py.typed", "resnet_jax/ops/native/convolution.cc"} < tracked
    packed = zipfile.ZipFile(wheel).namelist()
    assert {name for name in packed if ".dist-info/" not in name} == tracked
    with tarfile.open(archive) as opened:
        names = {name.partition("/")[2] for name in opened.getnames()}
    assert tracked < names
    assert {"LICENSE", "README.md", "configs/digits.py", "train.py", "CITATION.cff"} < names
    assert not any(name.startswith(("tests/", "benchmarks/")) for name in names)


@pytest.mark.thorough
def test_a_network_is_trained_with_the_installed_wheel(distributions, tmp_path):
    """In an environment of its own, which has this one's dependencies, from another folder."""
    subprocess.run(
        [sys.executable, "-m", "venv", "--without-pip", "venv"], cwd=tmp_path, check=True
    )
    python = tmp_path / "venv" / "bin" / "python"
    purelib = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = subprocess.check_output([python, "-c", purelib], text=True).strip()
    pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--no-compile"]
    subprocess.run([*pip, f"--target={site}", distributions[1]], check=True, capture_output=True)
    dependencies = [path for path in sys.path if path.endswith("site-packages")]
    Path(site, "dependencies.pth").write_text("\n".join(dependencies))
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    # Modules are those beside the script: it is copied out of the checkout.
    script = tmp_path / "installed.py"
    script.write_text((ROOT / "tests" / "installed.py").read_text())
    done = subprocess.run(
        [python, script, tmp_path],
        cwd=tmp_path,
        env=env,
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert f"installed and trained: {site}" in done.stdout
    listed = [python, "-m", "resnet_jax", "list", "--weights"]
    assert "resnet20.digits" in subprocess.check_output(listed, cwd=tmp_path, env=env, text=True)
