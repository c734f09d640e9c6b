"""The state of the library: what is built, checked, used, and what is said where it isn't used."""

import json
import logging
import shutil
import subprocess

import pytest

from resnet_jax.doctor.convolutions import check_convolutions
from resnet_jax.errors import ConfigError, WriteError
from resnet_jax.ops.native import check, library
from resnet_jax.ops.native.build import build, build_in_background, certify
from tests.cli.mistakes import assert_one_line
from tests.doctor.helpers import only


@pytest.fixture
def found(monkeypatch):
    """A function of a path and of what the environment names, that gives the state afresh."""

    def find(path):
        monkeypatch.setenv(library.CHOICE, str(path))
        library.state.cache_clear()
        return library.state()

    yield find
    library.state.cache_clear()


@pytest.mark.thorough
def test_a_library_that_was_checked_is_used(onednn_library, found):
    state = found(onednn_library)
    assert state.library
    assert state.name.startswith("oneDNN ")
    assert library.describe("cpu", 1) == state.name
    assert library.describe("cpu", 2) == library.describe("tpu", 1) == "XLA"
    finding = only(check_convolutions())
    assert finding.status == "ok"
    assert state.name in finding.message


@pytest.mark.parametrize("changed", ["library", "source", "oneDNN", "processor", "jaxlib", None])
def test_a_library_is_not_used_where_it_was_not_checked(
    changed, onednn_library, found, tmp_path, caplog
):
    copy = tmp_path / "convolution.so"
    shutil.copy(onednn_library, copy)
    recorded = json.loads(library.record_of(onednn_library).read_text())
    if changed:
        library.record_of(copy).write_text(json.dumps(recorded | {changed: "another"}))
    with caplog.at_level(logging.WARNING):
        state = found(copy)
        library.state()  # says it once
    assert state.library is None
    (record,) = caplog.records
    assert "\n" not in record.getMessage()
    assert f"wasn't checked with this {changed or 'library, source, oneDNN'}" in record.getMessage()
    assert "run `resnet-jax build` again" in record.getMessage()
    assert library.describe("cpu", 1) == "XLA"
    finding = only(check_convolutions())
    assert finding.status == "warn"
    assert "wasn't checked" in finding.message


@pytest.mark.parametrize("record", ["", "[]", "{", "null"])
def test_a_damaged_record_is_none(record, onednn_library, found, tmp_path):
    copy = tmp_path / "convolution.so"
    shutil.copy(onednn_library, copy)
    library.record_of(copy).write_text(record)
    assert found(copy).library is None


@pytest.mark.parametrize("content", [None, b"no library"])
def test_what_cannot_be_loaded_is_said_once(content, found, tmp_path, caplog):
    path = tmp_path / "convolution.so"
    if content:
        path.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert found(path).library is None
        library.state()
    assert len(caplog.records) == 1
    assert "Convolutions are XLA's, not oneDNN's" in caplog.text
    assert str(path) in caplog.text


def test_nothing_is_said_where_nothing_was_built(monkeypatch, tmp_path, caplog):
    monkeypatch.delenv(library.CHOICE)
    monkeypatch.setattr(library, "LIBRARY", tmp_path / "convolution.so")
    library.state.cache_clear()
    assert library.state().library is None
    assert not caplog.records
    finding = only(check_convolutions())
    assert (finding.status, "`resnet-jax build` makes it" in finding.message) == ("ok", True)
    library.state.cache_clear()


def test_the_background_build_is_started_once(monkeypatch, tmp_path):
    started, path = [], tmp_path / "convolution.so"
    monkeypatch.setattr(
        "resnet_jax.ops.native.build.subprocess.Popen",
        lambda command, **options: started.append((command, options)),
    )
    monkeypatch.setattr("resnet_jax.doctor.convolutions.LIBRARY", path)
    monkeypatch.setattr(library, "LIBRARY", path)
    assert not build_in_background(path)  # RESNET_JAX_NATIVE is 0
    monkeypatch.delenv(library.CHOICE)
    assert build_in_background(path)
    assert not build_in_background(path)
    ((command, options),) = started
    assert command[-3:] == ["-m", "resnet_jax", "build"]
    assert options["start_new_session"]  # the terminal's Ctrl-C doesn't reach it
    assert "said: nothing so far" in only(check_convolutions()).message
    library.log_of(path).write_text("a line\nerror: There is no C++ compiler.\n")
    finding = only(check_convolutions())
    assert finding.status == "ok"
    assert "its build in the background said: error: There is no C++ compiler." in finding.message


def test_the_background_build_replaces_nothing(monkeypatch, tmp_path):
    monkeypatch.delenv(library.CHOICE)
    path = tmp_path / "convolution.so"
    path.touch()
    assert not build_in_background(path)
    with pytest.raises(WriteError, match="can't be written"):
        build_in_background(tmp_path / "missing" / "convolution.so")


@pytest.mark.thorough
def test_wrong_results_are_found(onednn_library, monkeypatch):
    right = library.Library.attempt

    def wrong(self, problem, x, kernel, y, bias, *, threads=0):
        done = right(self, problem, x, kernel, y, bias, threads=threads)
        if problem.kind == "kernel_gradient":
            kernel.flat[0] += 1
        return done

    monkeypatch.setattr(library.Library, "attempt", wrong)
    result = check.check(onednn_library, seconds=3.0)
    assert result["wrong"]
    assert all("kind='kernel_gradient'" in description for description in result["wrong"])


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("abort();", "its check was ended by SIGABRT"),
        ('return (char*)"0.1.0 N/A AVX";', "no kernel for any convolution"),
    ],
)
def test_a_library_that_fails_its_check_is_not_recorded(body, message, tmp_path):
    compiler = shutil.which("g++") or shutil.which("clang++")
    if not compiler:
        pytest.skip("There is no C++ compiler.")
    source, path = tmp_path / "convolution.cc", tmp_path / "convolution.so"
    source.write_text(
        "#include <cstdlib>\n"
        'extern "C" int resnet_jax_supports(const long*) { return 0; }\n'
        f'extern "C" char* resnet_jax_describe_onednn() {{ {body} }}\n'
    )
    subprocess.run([compiler, "-shared", "-fPIC", source, "-o", path], check=True)
    with pytest.raises(ConfigError, match=message) as error:
        certify(path, check_s=0.2)
    assert "\n" not in str(error.value)
    assert not library.record_of(path).exists()


@pytest.mark.thorough
def test_a_library_that_fails_its_check_takes_an_earlier_one_with_it(
    onednn_library, monkeypatch, tmp_path
):
    path = tmp_path / "convolution.so"
    for file in (path, library.record_of(path)):
        file.write_text("an earlier one")

    def fail(library, check_s):
        raise ConfigError("wrong")

    monkeypatch.setattr("resnet_jax.ops.native.build.certify", fail)
    with pytest.raises(ConfigError, match="wrong"):
        build(path)
    assert not path.exists()
    assert not library.record_of(path).exists()


def test_what_is_missing_is_named(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    assert_one_line(["build"], 78, "There is no C++ compiler: install g++", capsys)
    compiler = tmp_path / "g++"
    compiler.write_text(
        "#!/bin/sh\necho 'fatal error: oneapi/dnnl/dnnl.hpp: No such file' >&2\nexit 1\n"
    )
    compiler.chmod(0o755)
    assert_one_line(["build"], 78, "oneDNN isn't there: `pip install onednn-devel-cpu", capsys)


def test_a_library_that_cannot_be_loaded_is_one_line(monkeypatch, capsys, tmp_path):
    """As the one that oneDNN's SYCL packages give, which need libtbb."""
    compiler = tmp_path / "c++"
    compiler.write_text('#!/bin/sh\nwhile [ "$1" != -o ]; do shift; done\necho nothing > "$2"\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setattr("resnet_jax.ops.native.build.build.__defaults__", (tmp_path / "built.so",))
    assert_one_line(["build"], 78, "can't be used here: ", capsys)
    assert not (tmp_path / "built.so").exists()
