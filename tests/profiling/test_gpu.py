"""The description of a GPU that XLA's compiler reads, and who may compile."""

import re

import pytest

from resnet_jax.profiling.gpu import GPUS


@pytest.mark.parametrize("gpu", GPUS.values(), ids=GPUS)
def test_the_description(gpu):
    text = gpu.target_config()
    assert text.count("{") == text.count("}")
    assert f"cuda_compute_capability {{ major: {gpu.capability[0]} " in text
    numbers = dict(re.findall(r"(\w+): ([\d.]+)$", text, re.M))
    assert int(numbers["core_count"]) == gpu.multiprocessors
    assert int(numbers["memory_bandwidth"]) == gpu.hbm_gb_per_s * 1e9
    assert int(numbers["device_memory_size"]) == gpu.memory_bytes


def test_data_sheets():
    """The units multiply to the float32 peak: 19.5, 66.9 and 66.9 TFLOP/s without tensor cores."""
    peaks = {"a100": 19.5, "h100": 66.9, "h200": 66.9}
    for name, peak in peaks.items():
        gpu = GPUS[name]
        found = 2e-3 * gpu.multiprocessors * gpu.fpus * gpu.clock_ghz
        assert found == pytest.approx(peak, rel=0.01)
    for gpu in GPUS.values():
        assert 0.7 < gpu.limit_gib * 2**30 / gpu.memory_bytes < 0.8
