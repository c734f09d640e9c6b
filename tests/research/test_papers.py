"""The mathematics of the papers, on tiny networks."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from resnet_jax.config.schema import model_overrides, validate
from resnet_jax.models.presets import create_model, init_variables
from resnet_jax.research.papers import srivastava2015, srivastava2015_gates
from resnet_jax.research.papers.balduzzi2017 import autocorrelation, derivative
from resnet_jax.research.papers.he2015_fig7 import response_stds
from resnet_jax.research.papers.huang2016 import survivals
from resnet_jax.research.papers.li2018 import flat_share, low_share, random_direction
from resnet_jax.research.papers.veit2016_lesion import _tau
from resnet_jax.research.papers.veit2016_paths import path_gradient
from resnet_jax.research.runner import Runner, TrainedRun
from resnet_jax.train.losses import cross_entropy
from tests.research.tiny import SHAPE, make_tiny_network


@pytest.fixture(scope="module")
def images():
    return jax.random.normal(jax.random.key(1), (3, *SHAPE))


@pytest.mark.thorough
def test_paths_have_gradients_of_their_own_and_bound_the_whole(images):
    model, variables = make_tiny_network((2, 1), order="preact")
    labels = jnp.arange(3)

    def loss(inputs):
        return cross_entropy(model.apply(variables, inputs), labels).mean()

    whole = jnp.linalg.norm(jax.grad(loss)(images))
    masks = [jnp.array(mask) for mask in itertools.product([False, True], repeat=3)]
    norms = [float(path_gradient(model, variables, images, labels, mask)) for mask in masks]
    assert len(set(norms)) == len(norms)
    assert whole <= sum(norms)  # the triangle's inequality
    # With the branches switched off there is one path, and its gradient is the whole of it.
    silent = jax.tree_util.tree_map_with_path(
        lambda path, leaf: jnp.zeros_like(leaf) if path[-2].key == "conv2" else leaf,
        variables["params"],
    )
    quiet = {**variables, "params": silent}

    def quiet_loss(inputs):
        return cross_entropy(model.apply(quiet, inputs), labels).mean()

    shortest = path_gradient(model, quiet, images, labels, jnp.zeros(3, bool))
    np.testing.assert_allclose(shortest, jnp.linalg.norm(jax.grad(quiet_loss)(images)), rtol=1e-5)


@pytest.mark.thorough
def test_gates_that_must_agree_do_and_others_do_not(monkeypatch):
    assert max(srivastava2015_gates.identities(0).values()) < 1e-5
    right = srivastava2015_gates.set_gates
    monkeypatch.setattr(
        srivastava2015_gates, "set_gates", lambda p, bias, **more: right(p, bias=-bias - 1, **more)
    )
    assert min(srivastava2015_gates.identities(0).values()) > 1e-3


def test_responses_are_of_the_normalised_layers(images):
    model, variables = make_tiny_network((1, 1))
    found = response_stds(model, variables, images)
    assert sorted(found) == [f"layer{s}_0/bn{i}" for s in (1, 2) for i in (1, 2)]
    _, taps = model.apply(variables, images, capture_intermediates=True)
    of_first = taps["intermediates"]["layer1_0"]["bn1"]["__call__"][0]
    np.testing.assert_allclose(found["layer1_0/bn1"], np.std(of_first), rtol=1e-5)


def test_units_survive_by_the_papers_rule():
    model, _ = make_tiny_network((2, 2), stochastic_depth=0.5)
    np.testing.assert_allclose(survivals(model, SHAPE), [0.875, 0.75, 0.625, 0.5])


def test_autocorrelation_of_a_wave_and_of_noise():
    wave = np.sin(2 * np.pi * np.arange(400) / 40)
    found = autocorrelation(wave, 21)
    assert found[0] == pytest.approx(1)
    assert found[20] == pytest.approx(-1, abs=0.06)  # half a period; 5 % of the points are lost
    noise = autocorrelation(np.random.default_rng(0).normal(size=4000), 5)
    assert np.abs(noise[1:]).max() < 0.06


@pytest.mark.thorough
@pytest.mark.parametrize("kind", ["plain", "residual", "residual, scaled"])
def test_the_derivative_is_that_of_the_network(kind):
    """Its integral over the pieces on which it is constant is the same however finely it's cut."""
    with jax.enable_x64(True):
        grids = [jnp.linspace(-1, 1, 2 * points + 1)[1::2] for points in (2_000, 8_000)]
        coarse, fine = (
            float(derivative(jax.random.key(0), grid, depth=2, kind=kind).mean()) for grid in grids
        )
        assert coarse == pytest.approx(fine, rel=1e-2)
        near = derivative(jax.random.key(0), jnp.array([0.3, 0.3 + 1e-9]), depth=2, kind=kind)
        assert near[0] == pytest.approx(float(near[1]))


def test_directions_have_the_norms_of_the_filters():
    _, variables = make_tiny_network((1, 1))
    params = variables["params"]
    direction = random_direction(params, jax.random.key(0))
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        found = direction
        for key in path:
            found = found[key.key]
        if path[-1].key != "kernel":
            assert not np.any(found)
            continue
        axes = tuple(range(leaf.ndim - 1))
        norms = [np.sqrt(np.square(np.asarray(a)).sum(axis=axes)) for a in (found, leaf)]
        np.testing.assert_allclose(*norms, rtol=1e-5)
        assert not np.allclose(found, leaf)
    kernels = [direction["layer1_0"][f"conv{i}"]["kernel"] for i in (1, 2)]
    assert abs(np.corrcoef(*(np.ravel(k) for k in kernels))[0, 1]) < 0.5


def test_the_flat_share_is_of_the_grid():
    steps = np.linspace(-1, 1, 5)
    bowl = 2 + steps[:, None] ** 2 + steps[None] ** 2
    assert flat_share(bowl, rise=0.6) == pytest.approx(9 / 25)
    assert low_share(bowl) == pytest.approx(21 / 25)  # all but the corners


def test_kendalls_tau_of_two_units_swapped():
    groups = [["layer1_1", "layer1_2"], ["layer2_1"]]
    assert _tau(groups, groups) == pytest.approx(1)
    assert _tau([["layer1_2", "layer1_1"], ["layer2_1"]], groups) == pytest.approx(1 / 3)


class _WithLosses(TrainedRun):
    """Two seeds whose losses, and errors, end with the given values."""

    def __init__(self, losses):
        super().__init__(dict.fromkeys(range(2), epath.Path()))
        self._losses = losses

    def curve(self, split, metric):
        return np.array([1.0, 2.0]), np.stack([np.ones(2), self._losses], axis=1)


class _TrainsNothing(Runner):
    """The losses of two seeds depend on the name of the run."""

    def __init__(self, folder, losses):
        super().__init__(folder, size="cpu", seeds=(0, 1))
        self.configs, self._losses = {}, losses

    def train(self, configs):
        self.configs |= configs
        return {name: _WithLosses(self._losses.get(name, (0.5, 0.5))) for name in configs}


def test_highway_networks_are_compared_at_the_best_setting_of_each(tmp_path):
    losses = {
        "plain-19_rate0.05": (2.0, 2.2),
        "plain-19_rate0.1": (1.0, 1.3),
        "plain-32_rate0.05": (2.3, 2.3),
        "plain-32_rate0.1": (math.nan, 0.01),
        "highway-19_bias-2": (0.1, 0.2),
        "highway-19_bias-4": (0.4, 0.01),  # the lower loss for one seed, the higher mean
        "highway-32_bias-2": (2.0, 1.0),
        "highway-32_bias-4": (0.4, 0.3),
    }
    report = srivastava2015.run_small(_TrainsNothing(tmp_path, losses))
    measured = {row.what: row.measured for row in report.rows}

    def difference(network, baseline):
        return measured[f"training loss of {network} less that of {baseline}, nats"]

    assert difference("plain-19", "highway-19") == pytest.approx((0.9, 1.1))
    assert difference("plain-32", "highway-32") == pytest.approx((1.9, 2.0))
    assert difference("highway-32", "highway-19") == pytest.approx((0.3, 0.1))
    assert len(report.figure.axes) == 2


def test_highway_networks_on_digits_have_half_the_width_and_twins_without_gates(tmp_path):
    runner = _TrainsNothing(tmp_path, {})
    srivastava2015.run_small(runner)
    kernels = {}
    for name, config in runner.configs.items():
        validate(config)
        if config.model.name.startswith("highway"):
            kernels[name] = _kernels(config.model.name, **model_overrides(config))
    for depth in (19, 32):
        half = {
            path: tuple(n // 2 if n not in (1, 3, 10) else n for n in shape)
            for path, shape in _kernels(f"highway{depth}").items()
        }
        without_gates = {path: shape for path, shape in half.items() if "gate" not in path}
        assert len(without_gates) == depth
        for bias in (-2, -4):
            assert kernels[f"highway-{depth}_bias{bias}"] == half
        for rate in (0.05, 0.1):
            assert kernels[f"plain-{depth}_rate{rate}"] == without_gates


def _kernels(name, **fields):
    """Shapes of kernels by path."""
    model = create_model(name, **fields)
    variables = jax.eval_shape(lambda key: init_variables(model, key, (8, 8, 3)), jax.random.key(0))
    leaves = jax.tree_util.tree_leaves_with_path(variables["params"])
    paths = {jax.tree_util.keystr(path): leaf.shape for path, leaf in leaves}
    return {path: shape for path, shape in paths.items() if "kernel" in path}
