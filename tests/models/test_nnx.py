"""A network as an NNX module: the same numbers as the linen module, and the ways of NNX."""

import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx

import resnet_jax

SHAPE = (8, 8, 3)
OPTIMIZER = optax.sgd(0.1, momentum=0.9)


def _linen(seed=0, **fields):
    small = {"stage_sizes": (3,), "width": 4, "num_classes": 5}
    model = resnet_jax.create_model("resnet20", **small | fields)
    return model, resnet_jax.init_variables(model, jax.random.key(seed), SHAPE)


def _batch():
    images = np.random.default_rng(0).normal(size=(10, *SHAPE)).astype(np.float32)
    return images, np.arange(10) % 5


def _cross_entropy(logits, labels):
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


@nnx.jit
def _nnx_step(network, optimizer, images, labels):
    def loss_of(network):
        logits = network(images, train=True, mutable=["batch_stats"])
        return _cross_entropy(logits, labels)

    loss, gradients = nnx.value_and_grad(loss_of)(network)
    optimizer.update(network, gradients)
    return loss


def _linen_step(model, variables, state, images, labels):
    def loss_of(params):
        given = variables | {"params": params}
        logits, updates = model.apply(given, images, train=True, mutable=["batch_stats"])
        return _cross_entropy(logits, labels), updates

    (loss, updates), gradients = jax.value_and_grad(loss_of, has_aux=True)(variables["params"])
    steps, state = OPTIMIZER.update(gradients, state)
    return {"params": optax.apply_updates(variables["params"], steps)} | updates, state, loss


def _variables(network):
    kinds = {"params": nnx.Param, "batch_stats": nnx.BatchStat}
    return {name: nnx.to_pure_dict(nnx.state(network, kind)) for name, kind in kinds.items()}


def test_the_module_computes_what_the_network_computes():
    model, variables = _linen()
    network, (images, _) = resnet_jax.to_nnx(model, variables), _batch()
    np.testing.assert_array_equal(network(images), model.apply(variables, images))
    taps = network(images, method="features")
    assert list(taps) == ["stem", "stage1", "pooled", "logits"]
    assert isinstance(network.layer1_0["bn1"]["mean"], nnx.BatchStat)
    jax.tree.map(np.testing.assert_array_equal, _variables(network), variables)


@pytest.mark.parametrize(
    "scan", [False, pytest.param(True, marks=pytest.mark.thorough)], ids=["unrolled", "scanned"]
)
def test_training_is_that_of_linen_and_goes_on_from_a_checkpoint(scan, tmp_path):
    model, variables = _linen(scan=scan)
    network, batch = resnet_jax.to_nnx(model, variables), _batch()
    optimizer = nnx.Optimizer(network, OPTIMIZER, wrt=nnx.Param)
    expected, state = variables, OPTIMIZER.init(variables["params"])
    step = jax.jit(_linen_step, static_argnums=0)
    for _ in range(2):
        expected, state, loss = step(model, expected, state, *batch)
        np.testing.assert_allclose(_nnx_step(network, optimizer, *batch), loss, rtol=1e-6)
    for before, after in zip(
        jax.tree.leaves(variables), jax.tree.leaves(_variables(network)), strict=True
    ):
        assert np.abs(after - before).max() > 0  # each parameter and each statistic
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
        _variables(network),
        expected,
    )

    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", nnx.state((network, optimizer)))
    restored = resnet_jax.to_nnx(*_linen(seed=1, scan=scan))
    restored_optimizer = nnx.Optimizer(restored, OPTIMIZER, wrt=nnx.Param)
    both = restored, restored_optimizer
    with ocp.StandardCheckpointer() as checkpointer:
        nnx.update(both, checkpointer.restore(tmp_path / "state", nnx.state(both)))
    losses = [_nnx_step(*pair, *batch) for pair in (both, (network, optimizer))]
    assert losses[0] == losses[1]
    jax.tree.map(np.testing.assert_array_equal, _variables(restored), _variables(network))


@pytest.mark.thorough
def test_dropout_takes_the_keys_of_the_module():
    model, variables = _linen(head_dropout=0.5)
    network = resnet_jax.to_nnx(model, variables, rngs=nnx.Rngs(dropout=0))
    images, _ = _batch()
    first, second = (network(images, train=True, update_stats=False) for _ in range(2))
    assert np.abs(first - second).max() > 1e-3
    np.testing.assert_array_equal(network(images), model.apply(variables, images))
