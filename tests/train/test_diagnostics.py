"""What is measured inside a network, against independent computations."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import resnet_jax
from resnet_jax.errors import ConfigError
from resnet_jax.logging.metrics_log import read_metrics
from resnet_jax.train.diagnostics import measures
from resnet_jax.train.diagnostics.curvature import extreme_eigenvalues
from resnet_jax.train.diagnostics.figure import make_figure
from resnet_jax.train.dispatch import make_train_steps
from resnet_jax.train.experiment import Experiment
from resnet_jax.train.losses import cross_entropy
from tests.compilations import compilations
from tests.conftest import make_tiny_config

ALL = ("norms", "signal", "bn_drift", "updates", "gates", "cka", "sharpness")


def _network(**fields):
    fields = {"stage_sizes": (2, 1), "width": 4, "stem_width": 4, **fields}
    model = resnet_jax.create_model("resnet20", **fields)
    return model, resnet_jax.init_variables(model, jax.random.key(0), (8, 8, 1))


@pytest.fixture(scope="module")
def probe():
    images = jax.random.normal(jax.random.key(1), (6, 8, 8, 1))
    return images, jnp.arange(6) % 10


def _pass(model, variables, probe, optimizer=None):
    optimizer = optimizer or optax.sgd(0.1)
    state = optimizer.init(variables["params"])
    return measures.take_pass(model, variables, *probe, optimizer=optimizer, opt_state=state)


def _loss(model, variables, probe):
    def loss(params):
        images, labels = probe
        logits = model.apply(
            {**variables, "params": params}, images, train=True, update_stats=False
        )
        return cross_entropy(logits, labels).mean()

    return loss


@pytest.mark.thorough
def test_norms_and_updates_are_those_of_the_step(probe):
    model, variables = _network()
    optimizer = optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.1, momentum=0.9))
    passed = _pass(model, variables, probe, optimizer)
    params = variables["params"]
    gradients = jax.grad(_loss(model, variables, probe))(params)
    of_stage2 = [gradients["layer2_0"]]
    found = measures.norms(passed)
    assert found["grad_norm/stage2"] == pytest.approx(float(optax.tree.norm(of_stage2)), rel=1e-5)
    total = sum(float(v) ** 2 for k, v in found.items() if k.startswith("grad_norm/"))
    assert total == pytest.approx(float(optax.tree.norm(gradients)) ** 2, rel=1e-5)

    taps = model.apply(variables, probe[0], train=True, update_stats=False, method="features")
    rms = np.sqrt(np.mean(np.square(taps["stage1"])))
    assert found["activation_rms/stage1"] == pytest.approx(rms, rel=1e-5)

    updates, _ = optimizer.update(gradients, optimizer.init(params), params)
    moved = optax.apply_updates(params, updates)
    step = jax.tree.map(jnp.subtract, moved["fc"], params["fc"])
    ratio = optax.tree.norm(step) / optax.tree.norm(params["fc"])
    assert measures.updates(passed)["update_ratio/fc"] == pytest.approx(float(ratio), rel=1e-4)


@pytest.mark.parametrize(
    ("name", "fields", "parts"),
    [
        (
            "resnet20",
            {"order": "preact", "stage_sizes": (1, 1), "width": 4, "stem_width": 4},
            {"stage1": ["layer1_0"], "stage2": ["layer2_0", "bn_final"]},
        ),
        (
            "highway19",
            {"stage_sizes": (1, 1), "stage_widths": (4, 4), "last_width": 4},
            {
                "stem": ["conv1"],
                "stage1": ["layer1_0"],
                "stage2": ["conv2", "layer2_0", "conv_last"],
            },
        ),
    ],
)
def test_modules_between_the_blocks_count_for_their_stage(name, fields, parts):
    model = resnet_jax.create_model(name, **fields)
    params = resnet_jax.init_variables(model, jax.random.key(0), (8, 8, 1))["params"]
    found = measures.norms(measures.Pass(params, params, {}, {}, [], {}, params))
    for part, modules in parts.items():
        norm = float(optax.tree.norm([params[module] for module in modules]))
        assert found[f"grad_norm/{part}"] == pytest.approx(norm, rel=1e-5)


def test_signals_are_of_the_units(probe):
    model, variables = _network()
    found = measures.signal(_pass(model, variables, probe))
    apply = partial(model.apply, train=True, update_stats=False, method="features")
    last = np.asarray(jax.jit(apply)(variables, probe[0])["stage2"], np.float64)
    mean2 = np.square(last.mean(axis=(0, 1, 2))).mean()
    assert found["signal_mean2/layer2_0"] == pytest.approx(mean2, rel=1e-4)
    assert found["signal_var/layer2_0"] == pytest.approx(last.var(axis=(0, 1, 2)).mean(), rel=1e-4)


@pytest.mark.thorough
def test_statistics_that_are_the_probes_have_no_drift(probe):
    model, variables = _network()
    assert measures.bn_drift(_pass(model, variables, probe))["bn_drift/log_var"] > 0.1
    exact = model.copy(bn_momentum=0.0)
    _, own = exact.apply(variables, probe[0], train=True, mutable=["batch_stats"])
    found = measures.bn_drift(_pass(model, {**variables, **own}, probe))
    assert max(found.values()) < 1e-3
    shifted = jax.tree.map(lambda leaf: 2 * leaf + 1e-5, own["batch_stats"])
    doubled = {**variables, "batch_stats": {**own["batch_stats"]}}
    doubled["batch_stats"]["bn1"] = {**own["batch_stats"]["bn1"], "var": shifted["bn1"]["var"]}
    layers = 7
    found = measures.bn_drift(_pass(model, doubled, probe))["bn_drift/log_var"]
    assert found == pytest.approx(np.log(2) / layers, rel=0.02)


@pytest.mark.thorough
def test_the_drift_is_of_the_maps_that_are_normalised(probe):
    """Also where a convolution before, or a pooling after the normalisation is fused with it."""
    fields = {"branch": "bottleneck", "stem": "imagenet", "stage_sizes": (1,)}
    model, variables = _network(**fields)
    exact = model.copy(bn_momentum=0.0)
    _, own = exact.apply(variables, probe[0], train=True, mutable=["batch_stats"])
    found = measures.bn_drift(_pass(model, {**variables, **own}, probe))
    assert max(found.values()) < 1e-3


def test_gates_are_as_open_as_their_biases_say(probe):
    model, variables = _network(merge="independent_gates", gate_bias=-2.0, carry_bias=1.0)

    def still(path, leaf):
        return 0 * leaf if "gate" in path[-2].key and path[-1].key == "kernel" else leaf

    params = jax.tree_util.tree_map_with_path(still, variables["params"])
    found = measures.gates(_pass(model, {**variables, "params": params}, probe))
    assert found["gate_openness/transform"] == pytest.approx(1 / (1 + np.exp(2.0)), rel=1e-5)
    assert found["gate_openness/carry"] == pytest.approx(1 / (1 + np.exp(-1.0)), rel=1e-5)
    assert measures.gates(_pass(*_network(), probe)) == {}


def test_similarity_is_that_of_its_definition(probe):
    passed = _pass(*_network(), probe)
    found = np.asarray(measures.similarities(passed))
    centring = np.eye(6) - 1 / 6
    grams = []
    for y in passed.blocks.values():
        flat = np.asarray(y, np.float64).reshape(6, -1)
        grams.append(centring @ flat @ flat.T @ centring)

    def hsic(a, b):
        return np.trace(a @ b)

    wanted = [[hsic(a, b) / np.sqrt(hsic(a, a) * hsic(b, b)) for a in grams] for b in grams]
    np.testing.assert_allclose(found, wanted, rtol=1e-4)
    off = [wanted[i][j] for i in range(3) for j in range(3) if i != j]
    assert measures.cka(passed)["cka/mean"] == pytest.approx(np.mean(off), rel=1e-4)


@pytest.mark.thorough
@pytest.mark.parametrize("iterations", [8, 40])
def test_extreme_eigenvalues_are_those_of_the_dense_hessian(iterations):
    inputs = jax.random.normal(jax.random.key(0), (16, 4))
    labels = jnp.arange(16) % 3
    keys = jax.random.split(jax.random.key(1))
    params = {
        "first": jax.random.normal(keys[0], (4, 5)),
        "last": jax.random.normal(keys[1], (5, 3)),
    }

    def loss(params):
        logits = jnp.tanh(inputs @ params["first"]) @ params["last"]
        return cross_entropy(logits, labels).mean()

    flat, unravel = jax.flatten_util.ravel_pytree(params)
    dense = jax.hessian(lambda point: loss(unravel(point)))(flat)
    wanted = np.linalg.eigvalsh(np.asarray(dense, np.float64))
    lowest, highest = extreme_eigenvalues(
        loss, params, key=jax.random.key(2), iterations=iterations
    )
    assert highest == pytest.approx(wanted[-1], rel=1e-3)
    if iterations > len(flat):  # more than there are: all that Lanczos can find
        assert lowest == pytest.approx(wanted[0], rel=1e-3)
    else:
        assert wanted[0] - 1e-4 <= lowest


def test_a_looped_network_is_measured_as_its_unrolled_twin(probe):
    unrolled, _ = _network(stage_sizes=(3, 1))
    looped = unrolled.copy(scan=True, remat=True, stochastic_depth=0.3, head_dropout=0.5)
    results = []
    for model in (unrolled, looped):
        variables = resnet_jax.init_variables(model, jax.random.key(0), (8, 8, 1))
        passed = _pass(model, variables, probe)
        results.append(measures.norms(passed) | measures.signal(passed) | measures.updates(passed))
    assert results[0].keys() == results[1].keys()
    for name, value in results[0].items():
        assert results[1][name] == pytest.approx(float(value), rel=1e-4)


def _config(**fields):
    config = make_tiny_config()
    config.model.stage_sizes = (1,)
    config.diagnostics.every, config.diagnostics.examples = 12 * 32.0, 16
    config.diagnostics.what = ALL
    for name, value in fields.items():
        setattr(config, name, value)
    return config


def _records(workdir):
    records = read_metrics(workdir / "metrics.jsonl")
    return [
        {k: v for k, v in r.items() if k != "wall_s"}
        for r in records
        if r["split"] == "diagnostics"
    ]


@pytest.mark.thorough
def test_a_run_measures_as_it_goes_and_as_well_after_a_stop(tmp_path):
    config = _config(seeds=(0, 3))
    resnet_jax.fit(config, tmp_path / "whole")
    records = _records(tmp_path / "whole")
    assert [r["step"] for r in records] == [0, 12]
    assert all(np.isfinite(r["sharpness"]) for r in records)
    assert len(records[0]["seeds"]["grad_norm/fc"]) == 2
    assert (tmp_path / "whole" / "diagnostics.png").read_bytes().startswith(b"\x89PNG")
    json.dumps(records, allow_nan=False)

    resnet_jax.fit(config, tmp_path / "stopped", stop_at_step=7)
    resnet_jax.fit(config, tmp_path / "stopped")
    assert _records(tmp_path / "stopped") == records


@pytest.mark.parametrize("seeds", [(), (0, 3)])
def test_only_the_first_measurement_compiles(seeds):
    config = _config(seeds=seeds)
    config.diagnostics.what = ("norms",)
    config.ema_decay = 0.0
    experiment = Experiment.make(config)
    state = experiment.initial_state()

    def measure():
        return experiment.diagnose(state)

    with compilations() as first:
        measure()
    with compilations() as second:
        measure()
    assert first
    assert not second


def test_updates_are_those_of_each_seeds_own_optimiser():
    rates = (0.01, 1.0)
    config = _config(seeds=(0, 0), vary=(("schedule.base_lr", rates),))
    config.diagnostics.what = ("updates",)
    config.optimizer.weight_decay = 0.0
    experiment = Experiment.make(config)
    low, high = (one.scalars for one in experiment.diagnose(experiment.initial_state()))
    for name, value in low.items():
        assert high[name] == pytest.approx(value * rates[1] / rates[0], rel=1e-4)


def test_the_step_is_the_same_with_and_without(tiny_config):
    texts = []
    for every in (0.0, 64.0):
        tiny_config.diagnostics.every = every
        experiment = Experiment.make(tiny_config)
        shapes = (experiment.spec.abstract_state, *experiment.spec.abstract_batches(), 1)
        texts.append(make_train_steps(experiment.spec).lower(*shapes).as_text())
    assert texts[0] == texts[1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"diagnostics.what": ("norm",)}, "diagnostics.what names 'norm'; it can be norms, signal"),
        ({"diagnostics.every": -1.0}, "diagnostics.every is -1.0; it can't be negative"),
        ({"diagnostics.examples": 0}, "diagnostics.examples is 0; it must be greater than 0"),
        ({"model.name": "vgg11"}, "diagnostics are of ResNets and highway networks, not of a VGG"),
    ],
)
def test_what_cannot_be_measured_is_refused(changes, message, tmp_path):
    config = _config()
    if "model.name" in changes:
        config.model.stage_sizes = config.model.width = None
    for name, value in changes.items():
        resnet_jax.config.schema.set_field(config, name, value)
    with pytest.raises(ConfigError) as caught:
        resnet_jax.fit(config, tmp_path / "run")
    assert message in str(caught.value)


def _history(parts, blocks):
    """Two records, with the names in alphabetical order, as JAX returns them."""
    values = {f"{family}/{part}": 1.0 for family in ("grad_norm", "update_ratio") for part in parts}
    values |= {f"activation_rms/{part}": 2.0 for part in parts if part != "fc"}
    for number, block in enumerate(blocks):
        values |= {f"signal_mean2/{block}": 1.0 + number, f"signal_var/{block}": 101.0 + number}
    values |= {"bn_drift/log_var": 0.1, "bn_drift/mean": 0.2, "cka/mean": 0.5}
    record = {"split": "diagnostics"} | dict(sorted(values.items()))
    return [record | {"step": step, "epoch": float(step)} for step in (4, 8)]


def test_the_figure_says_the_same_in_all_panels():
    parts = ["stem", *(f"stage{number}" for number in range(1, 12)), "fc"]
    blocks = [f"layer{stage}_{block}" for stage in (1, 2) for block in range(11)]
    figure = make_figure(_history(parts, blocks), np.eye(len(blocks)), title="a network")
    panels = {axes.get_title(): axes for axes in figure.axes if axes.get_title()}
    of_parts = ["norm of the gradient", "activation, root mean square", "update / weight"]
    colors = {}
    for title in of_parts:
        shown = {line.get_label(): line.get_color() for line in panels[title].lines}
        assert list(shown) == [part for part in parts if part in shown]  # as in the network
        assert panels[title].get_legend() is None
        for part, color in shown.items():
            np.testing.assert_array_equal(colors.setdefault(part, color), color)
    assert len({str(color) for color in colors.values()}) == len(parts)
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.texts] == parts

    drift = panels["drift of running statistics"].get_legend()
    assert [text.get_text() for text in drift.texts] == ["mean", "log_var"]  # as the lines end
    signal = panels["signal of blocks, by channel"]
    for line in signal.lines:
        assert list(line.get_xdata()) == list(range(1, len(blocks) + 1))
        assert list(np.diff(line.get_ydata())) == [1.0] * (len(blocks) - 1)  # from block to block


@pytest.mark.parametrize("count", [1, 2, 9, 54])
def test_the_figure_counts_units_from_one(count):
    blocks = [f"layer1_{block}" for block in range(count)]
    figure = make_figure(_history(["stem", "stage1", "fc"], blocks), np.eye(count), title="a")
    panels = {axes.get_title(): axes for axes in figure.axes if axes.get_title()}
    similarity = panels["similarity (CKA)"]
    assert similarity.images[0].get_extent() == [0.5, count + 0.5, 0.5, count + 0.5]
    for axes in (similarity, panels["signal of blocks, by channel"]):
        low, high = axes.get_xlim()
        ticks = [tick for tick in axes.get_xticks() if low <= tick <= high]
        assert ticks
        assert all(tick == round(tick) and 1 <= tick <= count for tick in ticks)


def test_the_figures_legends_cover_no_line():
    blocks = [f"layer1_{block}" for block in range(5)]
    figure = make_figure(_history(["stem", "stage1", "fc"], blocks), np.eye(5), title="a")
    figure.canvas.draw()
    panels = [axes.get_window_extent() for axes in figure.axes if axes.get_visible()]
    legends = [axes.get_legend() for axes in figure.axes if axes.get_legend()] + figure.legends
    assert len(legends) == 3
    for legend in legends:
        assert not any(legend.get_window_extent().overlaps(panel) for panel in panels)
