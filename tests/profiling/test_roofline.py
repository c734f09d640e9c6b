"""The model of a step's time, against sums done by hand."""

import pytest

from resnet_jax.profiling.collectives import Collective
from resnet_jax.profiling.gpu import GPUS
from resnet_jax.profiling.hlo import Array
from resnet_jax.profiling.roofline import collective_time, step_time
from resnet_jax.profiling.tpu import CHIPS, HOP_S, rings

V5E, V5P = CHIPS["v5e"], CHIPS["v5p"]


def _all_reduce(elements: int, *, group: int, overlapped: int = 0, times: int = 1):
    arrays = (Array("f32", (elements,)),)
    return Collective("all-reduce", arrays, group, overlapped > 0, times, overlapped, "")


def test_which_axes_close_to_rings():
    assert rings(V5E, (16, 16)) == (True, True)
    assert rings(V5E, (8, 16)) == (False, True)
    assert rings(V5P, (4, 4, 8)) == (True, True, True)
    assert rings(V5P, (2, 4, 4)) == (False, False, False)


def test_an_all_reduce_over_a_torus():
    """Of 16×16 chips: 8 hops along each axis there and back, and both axes carry half."""
    latency, transfer = collective_time(
        V5E, (16, 16), "all-reduce", 90e6, group_size=256, devices=256
    )
    assert latency == pytest.approx(2 * (8 + 8) * HOP_S)
    assert transfer == pytest.approx(2 * 90e6 * 255 / 256 / 180e9)


def test_an_all_reduce_over_a_line_is_half_as_fast():
    ring = collective_time(V5E, (16, 16), "all-gather", 1e6, group_size=16, devices=256)
    latency, transfer = collective_time(V5E, (2, 2), "all-gather", 1e6, group_size=4, devices=4)
    assert latency == pytest.approx(2 * HOP_S)
    assert transfer == pytest.approx(1e6 * 3 / 4 / 90e9)
    assert ring == pytest.approx((8 * HOP_S, 1e6 * 15 / 16 / 90e9))


def test_nothing_is_sent_within_a_chip():
    v3 = CHIPS["v3"]
    assert collective_time(v3, (2, 2), "all-reduce", 1e6, group_size=2, devices=8) == (0, 0)


def test_a_step_waits_for_memory_then_for_synchronous_collectives():
    sums = [
        _all_reduce(25_000_000, group=256),
        _all_reduce(64, group=256, times=100),
        _all_reduce(64, group=256, overlapped=10**9),
    ]
    time = step_time(
        V5E, (16, 16), flops=197e12 * 0.01, memory_bytes=819e9 * 0.1, collectives=sums,
        devices=256,
    )  # fmt: skip
    assert time.compute_s == pytest.approx(0.01)
    assert time.memory_s == pytest.approx(0.1)
    assert time.latency_s == pytest.approx(102 * 32e-6)
    big = 2 * 100e6 * 255 / 256 / 180e9
    assert time.exposed_s == pytest.approx(101 * 32e-6 + big, rel=1e-3)
    assert time.exposed_total_s == pytest.approx(0.1 + time.exposed_s)
    assert time.hidden_total_s == pytest.approx(0.1)


def test_several_devices_of_a_chip_share_it():
    chip = CHIPS["tpu7x"]
    half = chip.bf16_tflop_per_s * 1e12 / 2
    time = step_time(chip, (2, 2, 1), flops=half, memory_bytes=0, collectives=[], devices=8)
    assert time.compute_s == pytest.approx(1)


def test_a_collective_is_hidden_by_as_much_as_is_moved_meanwhile():
    half = round(16e-6 * 819e9)  # of the 32 hops
    one = _all_reduce(64, group=256, overlapped=half)
    time = step_time(V5E, (16, 16), flops=0, memory_bytes=0, collectives=[one], devices=256)
    assert time.latency_s == pytest.approx(32e-6)
    assert time.exposed_s == pytest.approx(16e-6, rel=1e-3)


def test_an_all_reduce_of_gpus():
    """In a node by NVLink; over nodes by the network, which eight adapters of a node share."""
    h200, h100, a100 = (GPUS[name] for name in ("h200", "h100", "a100"))
    latency, transfer = collective_time(h200, (8,), "all-reduce", 1e9, group_size=8, devices=8)
    assert latency == pytest.approx(4.4e-6 + 2 * 7 * 0.52e-6)
    assert transfer == pytest.approx(2 * 1e9 * 7 / 8 / 450e9)
    latency, transfer = collective_time(h100, (4, 8), "all-reduce", 1e9, group_size=32, devices=32)
    assert latency == pytest.approx(4.4e-6 + 2 * (7 * 0.52e-6 + 2 * 5e-6))
    assert transfer == pytest.approx(2 * 1e9 * 31 / 32 / 400e9)
    _, transfer = collective_time(a100, (2, 8), "all-gather", 1e9, group_size=16, devices=16)
    assert transfer == pytest.approx(1e9 * 15 / 16 / 200e9)
    one = collective_time(a100, (2, 8), "collective-permute", 1e9, group_size=2, devices=16)
    assert one[1] == pytest.approx(1e9 / 300e9)
    assert collective_time(h200, (1,), "all-reduce", 1e9, group_size=1, devices=1) == (0, 0)
