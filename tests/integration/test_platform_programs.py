"""Programs for TPUs and CPUs are those of a package without GPU forms, operation by operation."""

import functools
import hashlib
from unittest import mock

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jaxlib.mlir import ir

from resnet_jax.config.schema import default_config
from resnet_jax.parallel.mesh import make_mesh, replicated
from resnet_jax.train.dispatch import make_train_steps
from resnet_jax.train.spec import TrainSpec


def _traced(name, groups, stage_sizes):
    """The training step of a network."""
    config = default_config()
    config.model.name, config.model.dtype = name, "bfloat16"
    config.model.stage_sizes = stage_sizes
    config.model.bn_group_size = groups
    config.batch_size = 64
    if name == "resnet20":
        config.data.name = "cifar10"
    else:
        config.data.name, config.data.image_size, config.data.test = "imagenet2012", 64, ""
        config.data.resident = False
    spec = TrainSpec.without_data(config, make_mesh(data=1))
    steps = jax.ShapeDtypeStruct((), jnp.int32, sharding=replicated(spec.mesh))
    return make_train_steps(spec).trace(spec.abstract_state, *spec.abstract_batches(), steps)


# With the choice of a form, which is made when the step is lowered for a platform.
_traced_once = functools.cache(_traced)


def _lowered(traced, platform):
    """As StableHLO for a platform; nothing is compiled."""
    return traced.lower(lowering_platforms=(platform,)).compiler_ir("stablehlo")


def _without_choices(platform):
    """Call the form for the platform, and trace no other: as if there had never been a choice."""

    def direct(*operands, default, **forms):
        return forms.get(platform, default)(*operands)

    return mock.patch.object(lax, "platform_dependent", direct)


class _Digests:
    """A digest of a module's results: of all operations they come from, without names.

    What no result depends on is left out, and branches of a constant number are taken.
    """

    def __init__(self, module):
        self._functions = {op.attributes["sym_name"].value: op for op in module.body.operations}
        self._called = {}  # digests of the results of each function of its arguments
        self._numbers = {}  # values of integer constants, by digest

    def of(self, name="main"):
        if name not in self._called:
            (block,) = self._functions[name].regions[0].blocks
            self._called[name] = self._results(block, self._arguments(block, "function"))
        return self._called[name]

    def _arguments(self, block, owner):
        return {a: _hash(owner, n, a.type) for n, a in enumerate(block.arguments)}

    def _results(self, block, known):
        known = dict(known)
        for operation in block.operations:
            op = operation.operation
            operands = [known[value] for value in op.operands]
            if op.name in ("func.return", "stablehlo.return"):
                return operands
            known |= zip(op.results, self._operation(op, operands, known), strict=True)
        raise AssertionError("a block without an end")

    def _operation(self, op, operands, known):
        if op.name == "stablehlo.case" and operands[0] in self._numbers:
            regions = list(op.regions)
            number = self._numbers[operands[0]]
            chosen = regions[number if 0 <= number < len(regions) else -1]
            return self._results(chosen.blocks[0], known)
        attributes = sorted((name, str(op.attributes[name])) for name in op.attributes)
        if op.name == "func.call":
            attributes = self.of(ir.FlatSymbolRefAttr(op.attributes["callee"]).value)
        bodies = []
        for region in op.regions:
            (block,) = region.blocks
            owner = _hash(op.name, operands, len(bodies))
            bodies.append(self._results(block, known | self._arguments(block, owner)))
        digest = _hash(op.name, attributes, operands, bodies)
        results = [_hash(digest, n, result.type) for n, result in enumerate(op.results)]
        if op.name == "stablehlo.constant" and str(op.results[0].type) == "tensor<i32>":
            value = ir.DenseIntElementsAttr(op.attributes["value"])
            self._numbers[results[0]] = int(value[0])
        return results


def _hash(*parts):
    return hashlib.sha256(" ".join(map(str, parts)).encode()).hexdigest()


NETWORKS = {
    "bottlenecks": ("resnet50", None, (1, 1)),
    "bottlenecks, groups": ("resnet50", 32, (1, 1)),
    "resnet20": ("resnet20", None, None),
    "resnet50": ("resnet50", None, None),
    "resnet50, groups": ("resnet50", 32, None),
}


def _cases(*everyday):
    """The networks, all but some of them thorough."""
    return [
        pytest.param(fields, id=name, marks=[] if name in everyday else pytest.mark.thorough)
        for name, fields in NETWORKS.items()
    ]


@pytest.mark.parametrize("platform", ["tpu", pytest.param("cpu", marks=pytest.mark.thorough)])
@pytest.mark.parametrize("network", _cases("bottlenecks"))
def test_forms_for_gpus_change_no_other_program(platform, network):
    own = _lowered(_traced_once(*network), platform)
    with _without_choices(platform):
        plain = _lowered(_traced(*network), platform)
    assert _Digests(own).of() == _Digests(plain).of()
    assert "optimization_barrier" not in str(own)


@pytest.mark.parametrize("network", _cases())
def test_programs_for_gpus_do_differ(network):
    """From the plain ones; so the comparison above can fail."""
    own = _lowered(_traced_once(*network), "cuda")
    with _without_choices("cuda"):
        direct = _lowered(_traced(*network), "cuda")
    with _without_choices("no platform"):
        plain = _lowered(_traced(*network), "cuda")
    assert _Digests(own).of() == _Digests(direct).of() != _Digests(plain).of()
