"""Residual blocks: orders and shortcuts against plain algebra, and highway identities."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from resnet_jax.errors import ConfigError
from resnet_jax.models.block import ResidualBlock
from resnet_jax.models.block_config import ORDERS, BlockConfig
from resnet_jax.models.fields import fields_of
from resnet_jax.models.resnet import ResNet

X = jax.random.normal(jax.random.key(7), (2, 4, 4, 6))


def make_block(**fields):
    """A block of which some fields are those of its config."""
    config = {name: fields.pop(name) for name in fields_of(BlockConfig) if name in fields}
    return ResidualBlock(BlockConfig(**config), **fields)


def randomised(block, x=X, seed=0):
    """Variables in which nothing is 0 or 1, so that nothing is hidden by its initial value."""
    variables = block.init(jax.random.key(seed), x)
    leaves, tree = jax.tree.flatten(variables)
    keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
    noisy = [v + 0.2 * jnp.abs(jax.random.normal(k, v.shape)) for v, k in zip(leaves, keys)]  # noqa: B905
    return jax.tree.unflatten(tree, noisy)


def conv(x, module, stride=1):
    """A convolution in float64 from shifted slices: no code in common with the package."""
    x, kernel = np.asarray(x, np.float64), np.asarray(module["kernel"], np.float64)
    k = kernel.shape[0]
    pad = (k - 1) // 2
    padded = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    y = 0.0
    for i, j in np.ndindex(k, k):
        window = padded[:, i : i + x.shape[1] : stride, j : j + x.shape[2] : stride]
        y = y + window @ kernel[i, j]
    return y + np.asarray(module.get("bias", 0.0), np.float64)


def norm(x, variables, name):
    p, s = variables["params"][name], variables["batch_stats"][name]
    y = (x - np.asarray(s["mean"])) / np.sqrt(np.asarray(s["var"], np.float64) + 1e-5)
    return y * np.asarray(p["scale"]) + np.asarray(p["bias"])


def relu(x):
    return np.maximum(x, 0)


def expected(order, v, x):
    """Figure 4 of He et al. 2016, written out."""
    p, x = v["params"], np.asarray(x, np.float64)
    if order == "original":
        f = norm(conv(relu(norm(conv(x, p["conv1"]), v, "bn1")), p["conv2"]), v, "bn2")
        return relu(x + f)
    if order == "bn_after_add":
        f = conv(relu(norm(conv(x, p["conv1"]), v, "bn1")), p["conv2"])
        return relu(norm(x + f, v, "bn2"))
    if order == "relu_before_add":
        f = norm(conv(relu(norm(conv(x, p["conv1"]), v, "bn1")), p["conv2"]), v, "bn2")
        return x + relu(f)
    if order == "relu_preact":
        f = norm(conv(relu(x), p["conv1"]), v, "bn1")
        return x + norm(conv(relu(f), p["conv2"]), v, "bn2")
    f = conv(relu(norm(x, v, "bn1")), p["conv1"])
    return x + conv(relu(norm(f, v, "bn2")), p["conv2"])


@pytest.mark.parametrize("order", ORDERS)
def test_each_order_of_activation_is_that_of_figure_4(order):
    block = make_block(order=order, width=6)
    v = randomised(block)
    np.testing.assert_allclose(block.apply(v, X), expected(order, v, X), rtol=1e-4, atol=1e-5)


SHORTCUTS = {
    "B": lambda x, p, v: norm(conv(x, p["downsample_conv"], 2), v, "downsample_bn"),
    "C": lambda x, p, v: norm(conv(x, p["downsample_conv"], 2), v, "downsample_bn"),
    "D": lambda x, p, v: norm(conv(blocks_mean(x), p["downsample_conv"]), v, "downsample_bn"),
    "A": lambda x, p, v: np.concatenate([x[:, ::2, ::2], np.zeros((2, 2, 2, 4))], axis=-1),
    "A_middle": lambda x, p, v: np.pad(x[:, ::2, ::2], ((0, 0), (0, 0), (0, 0), (2, 2))),
    "A_pool": lambda x, p, v: np.concatenate([blocks_mean(x), np.zeros((2, 2, 2, 4))], axis=-1),
    "none": lambda x, p, v: 0.0,
}


def blocks_mean(x):
    return np.asarray(x).reshape(2, 2, 2, 2, 2, 6).mean(axis=(2, 4))


@pytest.mark.parametrize("shortcut", SHORTCUTS)
def test_each_shortcut_where_the_shape_changes(shortcut):
    block = make_block(shortcut=shortcut, width=10, stride=2)
    v = randomised(block)
    p = v["params"]
    f = norm(conv(relu(norm(conv(X, p["conv1"], 2), v, "bn1")), p["conv2"]), v, "bn2")
    y = relu(f + SHORTCUTS[shortcut](X, p, v))
    np.testing.assert_allclose(block.apply(v, X), y, rtol=1e-4, atol=1e-5)


def test_basic_blocks_project_only_where_the_shape_changes():
    """Scenic's ResNet-18/34 had a projection in every block."""
    for shortcut, blocks in (("B", {"layer2_0"}), ("C", {"layer1_0", "layer1_1", "layer2_0"})):
        model = ResNet(stage_sizes=(2, 1), stem="cifar", width=4, shortcut=shortcut)
        params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))["params"]
        assert {block for block in params if "downsample_conv" in params[block]} == blocks


def test_pre_activation_projects_the_activated_input_and_ends_with_a_normalisation():
    """init2winit's pre-activation net lacked the final one."""
    block = make_block(order="preact", width=10, stride=2)
    v = randomised(block)
    p = v["params"]
    start = relu(norm(np.asarray(X), v, "bn1"))
    f = conv(relu(norm(conv(start, p["conv1"], 2), v, "bn2")), p["conv2"])
    y = f + conv(start, p["downsample_conv"], 2)
    np.testing.assert_allclose(block.apply(v, X), y, rtol=1e-4, atol=1e-5)
    assert "downsample_bn" not in p

    model = ResNet(stage_sizes=(2,), stem="cifar", width=4, order="preact")
    params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))["params"]
    assert "bn_final" in params
    assert "bn1" not in params["layer1_0"]  # the stem has normalised and activated already
    assert "bn1" in params["layer1_1"]


def gated(merge, **fields):
    """A gated block, its residual twin, and variables whose gates see nothing but their bias."""
    block = make_block(width=6, merge=merge, **fields)
    v = randomised(block)
    gates = {k: g for k, g in v["params"].items() if k.endswith("gate")}
    fresh = block.init(jax.random.key(0), X)["params"]
    for name, gate in gates.items():
        v["params"][name] = {"kernel": 0 * gate["kernel"], "bias": fresh[name]["bias"]}
    plain = {k: p for k, p in v["params"].items() if k not in gates}
    return block.apply(v, X), v | {"params": plain}


def test_independent_gates_wide_open_are_a_residual_unit():
    y, v = gated("independent_gates", gate_bias=20.0, carry_bias=20.0)
    np.testing.assert_allclose(y, make_block(width=6).apply(v, X), rtol=1e-6, atol=1e-6)


def test_coupled_gates_wide_open_are_a_plain_unit():
    """So the saying that a ResNet is a highway network with open gates is false for these."""
    y, v = gated("coupled_gates", gate_bias=20.0)
    plain = make_block(width=6, shortcut="none").apply(v, X)
    np.testing.assert_allclose(y, plain, rtol=1e-6, atol=1e-6)
    assert jnp.abs(y - make_block(width=6).apply(v, X)).max() > 0.1


def test_coupled_gates_closed_are_the_identity():
    y, _ = gated("coupled_gates", gate_bias=-20.0)
    np.testing.assert_allclose(y, jax.nn.relu(X), rtol=1e-6, atol=1e-6)
    y, _ = gated("coupled_gates", gate_bias=-20.0, order="preact")
    np.testing.assert_allclose(y, X, rtol=1e-6, atol=1e-6)


def test_coupled_gates_half_open_are_constant_scaling():
    y, v = gated("coupled_gates", gate_bias=0.0)
    half = make_block(width=6, shortcut_scale=0.5, branch_scale=0.5)
    np.testing.assert_allclose(y, half.apply(v, X), rtol=1e-6, atol=1e-6)


def test_shortcut_only_gating_nearly_closed_is_nearly_a_residual_unit():
    y, v = gated("shortcut_gate", gate_bias=-6.0)
    residual = make_block(width=6).apply(v, X)
    closed = jax.nn.sigmoid(-6.0)
    assert 0 < jnp.abs(y - residual).max() <= closed * jnp.abs(X).max() * 1.001


def test_a_gate_sees_the_input_of_the_unit():
    block = make_block(width=6, merge="coupled_gates", gate_kernel_size=3)
    v = randomised(block)
    p = v["params"]
    f = norm(conv(relu(norm(conv(X, p["conv1"]), v, "bn1")), p["conv2"]), v, "bn2")
    t = 1 / (1 + np.exp(-conv(X, p["gate"])))
    np.testing.assert_allclose(block.apply(v, X), relu((1 - t) * X + t * f), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("norm_kind", ["fixup", "skipinit"])
def test_branches_without_normalisation_begin_as_the_identity(norm_kind):
    block = make_block(width=6, norm=norm_kind)
    np.testing.assert_array_equal(block.apply(block.init(jax.random.key(0), X), X), jax.nn.relu(X))


def test_fixup_is_its_authors_block():
    block = make_block(width=6, norm="fixup", depth=16)
    v = randomised(block)
    p = {k: {n: np.asarray(a, np.float64) for n, a in m.items()} for k, m in v["params"].items()}
    f = relu(conv(X + p["shift1"]["bias"], p["conv1"]) + p["bn1"]["bias"])
    f = conv(f + p["shift2"]["bias"], p["conv2"]) * p["bn2"]["scale"] + p["bn2"]["bias"]
    np.testing.assert_allclose(block.apply(v, X), relu(X + f), rtol=1e-4, atol=1e-5)
    wide = make_block(width=128, norm="fixup", depth=16)
    kernel = wide.init(jax.random.key(0), jnp.zeros((1, 4, 4, 128)))["params"]["conv1"]["kernel"]
    assert kernel.std() == pytest.approx(np.sqrt(2 / (9 * 128)) * 16**-0.5, rel=0.02)


def test_group_norm_weight_standardisation_and_excitation():
    block = make_block(width=6, norm="group", norm_groups=3, weight_standardized=True, se_ratio=0.5)
    v = randomised(block)
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), v["params"])

    def standard(module):
        k = module["kernel"]
        return {"kernel": (k - k.mean((0, 1, 2))) / np.sqrt(k.var((0, 1, 2)) + 1e-10)}

    def group_norm(x, module):
        g = x.reshape(2, 4, 4, 3, 2)
        mean, var = g.mean((1, 2, 4), keepdims=True), g.var((1, 2, 4), keepdims=True)
        y = ((g - mean) / np.sqrt(var + 1e-5)).reshape(x.shape)
        return y * module["scale"] + module["bias"]

    f = relu(group_norm(conv(X, standard(p["conv1"])), p["bn1"]))
    f = group_norm(conv(f, standard(p["conv2"])), p["bn2"])
    z = relu(f.mean((1, 2)) @ p["se"]["fc1"]["kernel"] + p["se"]["fc1"]["bias"])
    z = z @ p["se"]["fc2"]["kernel"] + p["se"]["fc2"]["bias"]
    f = f / (1 + np.exp(-z))[:, None, None]
    np.testing.assert_allclose(block.apply(v, X), relu(X + f), rtol=1e-4, atol=1e-5)


def test_stochastic_depth_drops_whole_branches_and_scales_inference():
    block = make_block(width=6, stochastic_depth=0.5)
    v = randomised(block)
    full, none = block.apply(v, X), jax.nn.relu(X)
    training = block.clone(train=True)

    def changes(seed):
        y = training.apply(v, X, jnp.float32(0.7), rngs={"dropout": jax.random.key(seed)})
        return jnp.abs(y - none).max() > 1e-4

    kept = jax.lax.map(changes, jnp.arange(200))
    assert 0.6 < kept.mean() < 0.8
    # Inference: relu(x + p · f).
    np.testing.assert_allclose(block.apply(v, X, jnp.float32(1.0)), full, rtol=1e-6)
    np.testing.assert_allclose(block.apply(v, X, jnp.float32(0.0)), none, rtol=1e-6)


def test_a_dropped_branch_leaves_its_statistics_alone():
    block = make_block(width=6, stochastic_depth=0.5, train=True, update_stats=True)
    v = randomised(block)
    for survival, moves in ((0.0, False), (1.0, True)):
        _, updated = block.apply(
            v,
            X,
            jnp.float32(survival),
            rngs={"dropout": jax.random.key(0)},
            mutable=["batch_stats"],
        )
        change = jnp.abs(updated["batch_stats"]["bn1"]["mean"] - v["batch_stats"]["bn1"]["mean"])
        assert bool(change.max() > 0) == moves


def test_the_linear_rule_of_survival():
    """p_l = 1 - l/L (1 - p_L), l = 1 … L: three blocks survive with 5/6, 4/6 and 3/6."""
    seen = []

    def record(call, args, kwargs, context):
        if isinstance(context.module, ResidualBlock) and context.method_name == "__call__":
            seen.append(float(args[1]))
        return call(*args, **kwargs)

    model = ResNet(stage_sizes=(2, 1), stem="cifar", width=4, stochastic_depth=0.5)
    with nn.intercept_methods(record):
        model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    np.testing.assert_allclose(seen, [5 / 6, 4 / 6, 3 / 6], rtol=1e-6)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"groups": 2}, "model.groups is 2, which needs branch='bottleneck'"),
        ({"gate_bias": -6.0}, "gate_bias is -6.0, which needs a merge with gates"),
        (
            {"merge": "coupled_gates", "gate_kernel_size": 2},
            "gate_kernel_size is 2; it must be odd",
        ),
        ({"shortcut": "none", "merge": "coupled_gates"}, "which needs a shortcut"),
        ({"shortcut": "none", "norm": "fixup"}, "branches begin at zero; it needs a shortcut"),
        ({"norm": "fixup", "order": "preact"}, "defined for order='original'"),
        ({"norm": "group", "bn_group_size": 4}, "which needs norm='batch'"),
        ({"zero_init_scale": True, "order": "preact"}, "a normalisation as the last step"),
        ({"zero_init_scale": True, "shortcut": "none"}, "needs a shortcut"),
        ({"stem_norm": False}, "which needs order='preact'"),
        ({"stem": "deep", "width": 5}, "halves its width; it is 5, odd"),
        ({"output_stride": 3}, "model.output_stride is 3; it can be 4, 8"),
        ({"stochastic_depth": 1.0}, r"must be in \[0, 1\)"),
        ({"order": "postact"}, "model.order is 'postact'; it can be original"),
        ({"branch": "single", "dropout": 0.1}, "a branch of two convolutions or more"),
        ({"stage_sizes": ()}, "must be a tuple"),
        ({"scan": 1}, "can be True or False"),
    ],
)
def test_what_has_no_meaning_is_refused_with_a_sentence(fields, message):
    with pytest.raises(ConfigError, match=message):
        ResNet(**{"stage_sizes": (1, 1), **fields})
