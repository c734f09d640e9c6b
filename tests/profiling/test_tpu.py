"""What libtpu says of a program that is too large."""

import math

import pytest

from resnet_jax.profiling.tpu import out_of_memory


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
