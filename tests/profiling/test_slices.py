"""Names of TPU slices and GPU nodes, and what is said when a compiler isn't there."""

import importlib.util
import subprocess
import sys

import pytest

from resnet_jax.errors import UsageError
from resnet_jax.profiling import slices
from resnet_jax.profiling.gpu import GPUS
from resnet_jax.profiling.slices import parse_slice, prepare_environment
from resnet_jax.profiling.tpu import CHIPS
from resnet_jax.utils.distribution import is_same_release


def test_names():
    chip, shape = parse_slice("v5p:4x4x8")
    assert (chip.kind, shape) == ("TPU v5", (4, 4, 8))
    gpu, shape = parse_slice("h100:4x8")
    assert (gpu.name, shape) == ("h100", (4, 8))
    assert parse_slice("h200:1") == (GPUS["h200"], (1,))
    for one in (*CHIPS.values(), *GPUS.values()):
        assert all(parse_slice(f"{one.name}:{shape}")[0] is one for shape in one.slices)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v5:2x2", "isn't of a known TPU .v3, v4, v5e, .* Did you mean 'v5"),
        ("h20:8", "or GPU .a100, h100, h200, b200, b300.*Did you mean 'h200'"),
        ("v5e", "usual are v5e:2x2, v5e:2x4, "),
        ("v5e:2x2x1", "isn't a shape of v5e"),
        ("v5p:4x4", "isn't a shape of v5p"),
        ("v5e:0x2", "isn't a shape of v5e"),
        ("h200", "write the GPUs of one node, such as h200:8, or nodes"),
        ("h200:0", "isn't a shape of h200"),
        ("h200:2x4x8", "isn't a shape of h200"),
        ("h200:16", "NVLink joins at most 8; use h200:2x8"),
        ("a100:3x12", "has nodes of 12 GPUs, .* use a100:5x8"),
    ],
)
def test_other_names_are_refused(name, message):
    with pytest.raises(UsageError, match=message) as error:
        parse_slice(name)
    assert "\n" not in str(error.value)


def _hide(monkeypatch, *modules):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name in modules else find(name)
    )


PLUGINS = ("jax_cuda12_plugin", "jax_cuda13_plugin")


@pytest.mark.parametrize(
    ("name", "modules", "extra"),
    [("v5e:2x2", ("libtpu",), "tpu"), ("h200:8", PLUGINS, "gpu-compile")],
)
def test_without_the_compiler_one_line_says_how_to_get_it(name, modules, extra, monkeypatch):
    _hide(monkeypatch, *modules)
    with pytest.raises(UsageError, match=rf"pip install -e '\.\[{extra}\]'") as error:
        prepare_environment([name])
    assert "\n" not in str(error.value)


def test_a_plugin_of_another_release_is_refused(monkeypatch):
    monkeypatch.setattr("resnet_jax.profiling.gpu.installed_plugin", lambda: "numpy")
    with pytest.raises(UsageError, match=r"numpy is .*, but jaxlib is .*pip install 'numpy=="):
        prepare_environment(["h200:8"])


def test_a_later_build_of_the_same_release_is_accepted():
    assert is_same_release("0.9.0.post1", "0.9.0")
    assert not is_same_release("0.9.1", "0.9.0")


def test_what_can_be_compiled_here(monkeypatch):
    assert slices.smallest_slices() == [
        "v4:2x2x1", "v5e:2x2", "v5p:2x2x1", "v6e:2x2", "tpu7x:2x2x1",
        "a100:8", "h100:8", "h200:8", "b200:8", "b300:8",
    ]  # fmt: skip
    monkeypatch.setattr("resnet_jax.profiling.tpu.prepare", lambda: None)
    _hide(monkeypatch, *PLUGINS)
    names, (line,) = slices.compilable_slices()
    assert "v5e:2x2" in names
    assert "h200:8" not in names
    assert "[gpu-compile]" in line
    monkeypatch.undo()
    _hide(monkeypatch, "libtpu", *PLUGINS)
    with pytest.raises(UsageError, match=r"\[tpu\].*\[gpu-compile\]"):
        slices.compilable_slices()


def test_the_environment_can_be_prepared_before_jax_is_imported():
    code = (
        "import sys, resnet_jax.cli.main, resnet_jax.profiling.slices\n"
        "assert 'jax' not in sys.modules, 'jax is imported'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
