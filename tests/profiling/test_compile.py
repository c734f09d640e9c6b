"""The real training step, compiled by XLA's TPU compiler: run wherever libtpu is installed.

UPDATE_GOLDEN=1 pytest -m tpu   rewrites tests/golden/tpu_compile.txt
"""

import os
from pathlib import Path

import jax
import pytest

from resnet_jax.config.schema import default_config, set_field
from resnet_jax.errors import ConfigError, UsageError
from resnet_jax.profiling import compile as ahead
from resnet_jax.profiling.flops import count_flops
from resnet_jax.profiling.hlo import Module
from resnet_jax.profiling.slices import describe_slice

pytestmark = pytest.mark.tpu
pytest.importorskip("libtpu")

GOLDEN = Path(__file__).parents[1] / "golden" / "tpu_compile.txt"
BATCH = 64


def _config():
    """A ResNet-8 on CIFAR-10, its batches sent from the host."""
    config = default_config()
    config.model.stage_sizes = (1, 1, 1)
    config.model.dtype = "bfloat16"
    config.data.name = "cifar10"
    config.data.resident = False
    config.batch_size = 4 * BATCH
    config.steps_per_dispatch = 2
    return config


def _compiled(config):
    slice_ = describe_slice("v5e:2x2")
    spec = ahead.make_spec(config, slice_)
    program = ahead.compile_training(spec)
    return spec, ahead.describe(spec, program, slice_), program


@pytest.fixture(scope="module")
def whole_batch():
    """Normalised over the whole batch, in bfloat16."""
    return _compiled(_config())


@pytest.fixture(scope="module")
def groups():
    """Normalised over groups within a chip, in float32."""
    config = _config()
    config.model.dtype = "float32"
    config.model.bn_group_size = 32
    return _compiled(config)


@pytest.fixture(scope="module")
def bottlenecks():
    """Whose last convolutions are one with their normalisation."""
    config = _config()
    config.model.name = "resnet50"
    config.model.stage_sizes = (1, 1)
    return _compiled(config)


def _kernels(spec):
    leaves = jax.tree.leaves(spec.abstract_state.params)
    return sum(leaf.size for leaf in leaves if len(leaf.shape) > 1)


def _collectives(document):
    return {row["kind"]: row["count"] for row in document["collectives"]}


def test_it_fits_and_its_memory_is_accounted_for(whole_batch):
    _, document, _ = whole_batch
    memory = document["memory"]
    assert memory["fits"]
    assert memory["parameter_bytes"] == 4 * document["parameters"]
    assert memory["example_bytes"] == 2 * BATCH * (32 * 32 * 3 + 3 * 4)
    held = memory["parameter_bytes"] + memory["optimizer_bytes"] + memory["activation_bytes"]
    assert held < memory["peak_bytes"] < memory["limit_bytes"] == 15.75 * 2**30
    assert document["largest_batch_per_chip"] > BATCH


def test_gradients_are_reduced_once_in_the_type_they_are_computed_in(whole_batch, groups):
    for (spec, document, _), dtype, size in ((whole_batch, "bf16", 2), (groups, "f32", 4)):
        reduction = document["gradient_reduction"]
        assert reduction["dtypes"] == {dtype: _kernels(spec)}
        assert reduction["bytes_per_parameter"] == size


def test_nothing_is_communicated_but_sums(whole_batch, groups):
    """No batch is gathered. Per layer's statistics there is a sum forth and one back."""
    layers = 7  # of normalisation: the stem's, and two of each of the three blocks
    assert set(_collectives(whole_batch[1])) == {"all-reduce"}
    few = _collectives(groups[1])["all-reduce"]
    assert _collectives(whole_batch[1])["all-reduce"] <= 2 * layers + few
    assert _collectives(whole_batch[1])["all-reduce"] >= 2 * layers - 1
    assert few <= 4  # gradients, and what the meter counts
    assert all(row["group_size"] == 4 for row in whole_batch[1]["collectives"])


def test_the_work_per_image_is_that_of_the_network(whole_batch):
    """Forward and backward are three times the forward pass, less the first layer's gradient."""
    _, document, _ = whole_batch
    macs = 12_239_488  # `resnet-jax summary resnet20 --config.model.stage_sizes=(1,1,1)`
    assert document["gflop_per_image"] == pytest.approx(6e-9 * macs, rel=0.15)


def test_our_count_of_operations_is_the_compilers(whole_batch, groups, bottlenecks):
    """But for elementwise operations, which it leaves out: a few percent, more in small layers."""
    for _, document, program in (whole_batch, groups, bottlenecks):
        ours = count_flops(Module.parse(program.text)) / BATCH / 1e9
        assert 0.9 < ours / document["gflop_per_image"] <= 1


def test_bytes_per_image_have_not_grown(whole_batch, groups, bottlenecks):
    """Of all memory: so small a network stays on the chip."""
    cases = {"whole batch": whole_batch, "groups": groups, "bottlenecks": bottlenecks}
    measured = {name: doc["accessed_mb_per_image"] for name, (_, doc, _) in cases.items()}
    if os.environ.get("UPDATE_GOLDEN"):
        lines = (f"{name}: {value:.3f} MB accessed per image\n" for name, value in measured.items())
        GOLDEN.write_text("".join(lines))
    for line in GOLDEN.read_text().splitlines():
        name, _, value = line.partition(": ")
        assert measured.pop(name) <= 1.02 * float(value.split()[0]), line
    assert not measured


@pytest.mark.parametrize(
    ("field", "value", "batch_per_chip", "error", "message"),
    [
        (
            "batch_size",
            100,
            None,
            ConfigError,
            "batch_size is 100, which isn't divisible by 16 devices",
        ),
        ("seed", 0, 0, UsageError, "--batch-per-chip is 0"),
        ("mesh.data", 3, 8, ConfigError, "mesh.data 3 × mesh.fsdp 1 is 3 devices, but v5e:4x4 has"),
        ("mesh.fsdp", 3, 8, ConfigError, "mesh.fsdp is 3, but the number of devices is 16"),
        (
            "mesh.shards",
            32,
            8,
            ConfigError,
            "mesh.shards is 32, and v5e:4x4 has 16 devices.*use mesh.shards=16",
        ),
        ("data.name", "cifar11", 8, ConfigError, "'cifar11', whose sizes aren't known .* 'cifar1"),
        ("data.train", "tran", 8, ConfigError, "Did you mean 'train'"),
    ],
)
def test_what_can_not_be_a_run_there_is_refused_at_once(
    field, value, batch_per_chip, error, message
):
    config = _config()
    set_field(config, field, value)
    with pytest.raises(error, match=message):
        ahead.make_spec(config, describe_slice("v5e:4x4"), batch_per_chip=batch_per_chip)


def test_a_slice_that_libtpu_can_not_make_is_refused():
    with pytest.raises(UsageError, match="libtpu refuses"):
        describe_slice("v5e:3x3")
