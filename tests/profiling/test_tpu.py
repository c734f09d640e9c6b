"""Names of slices, and what is said when the compiler isn't there."""

import importlib.util
import math
import subprocess
import sys

import pytest

from resnet_jax.errors import UsageError
from resnet_jax.profiling.tpu import CHIPS, out_of_memory, parse_slice, prepare_environment


def test_names_of_slices():
    chip, shape = parse_slice("v5p:4x4x8")
    assert (chip.kind, shape) == ("TPU v5", (4, 4, 8))
    for chip in CHIPS.values():
        assert all(parse_slice(f"{chip.name}:{shape}")[0] is chip for shape in chip.slices)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v5:2x2", "isn't of a known chip: v3, v4, v5e, .* Did you mean 'v5"),
        ("v5e", "usual are v5e:2x2, v5e:2x4, "),
        ("v5e:2x2x1", "isn't a shape of v5e"),
        ("v5p:4x4", "isn't a shape of v5p"),
        ("v5e:0x2", "isn't a shape of v5e"),
    ],
)
def test_other_names_are_refused(name, message):
    with pytest.raises(UsageError, match=message):
        parse_slice(name)


def test_without_the_compiler_one_line_says_how_to_get_it(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "libtpu" else find(name)
    )
    with pytest.raises(UsageError, match=r"pip install -e '\.\[tpu\]'"):
        prepare_environment()


def test_a_program_that_is_too_large():
    used = "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 18.20G of 15.75G hbm."
    assert out_of_memory(RuntimeError(used)) == pytest.approx(18.2 * 2**30)
    total = (
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
        "temporaries (600.00G) exceeds available HBM (15.75G)."
    )
    assert out_of_memory(RuntimeError(total)) == pytest.approx(600 * 2**30)
    assert math.isnan(out_of_memory(RuntimeError("RESOURCE_EXHAUSTED: something else")))
    assert out_of_memory(RuntimeError("INTERNAL: a bug")) is None


def test_the_environment_can_be_prepared_before_jax_is_imported():
    code = (
        "import sys, resnet_jax.cli.main, resnet_jax.profiling.tpu\n"
        "assert 'jax' not in sys.modules, 'jax is imported'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
