"""The residual unit, y = merge(shortcut(x), branch(x)), with an order of activation around it.

Everything that the papers vary is a field of `Grammar`; `ResidualUnit` reads them in the order of
the computation. A plain network has no shortcut, a highway network gates both paths.
"""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from resnet_jax.models.layers import Conv, SqueezeExcite, average_pool
from resnet_jax.models.norms import BatchNorm, GroupNorm, Scalars

Branch = Literal["single", "basic", "bottleneck"]
Order = Literal["original", "bn_after_add", "relu_before_add", "relu_preact", "preact"]
Shortcut = Literal["none", "A", "A_middle", "A_pool", "B", "C", "D"]
Merge = Literal["add", "shortcut_gate", "coupled_gates", "independent_gates"]
StrideOn = Literal["1x1", "3x3"]
NormKind = Literal["batch", "group", "layer", "none", "fixup", "skipinit"]
Activation = Literal["relu", "silu", "gelu"]
StochasticDepthMode = Literal["batch", "example"]

EXPANSION: dict[str, int] = {"single": 1, "basic": 1, "bottleneck": 4}
"""Output channels of a unit, as a multiple of its width."""


class Steps(NamedTuple):
    """What stands around the convolutions of a unit: "norm" and "act", in this order."""

    before: tuple[str, ...]  # each convolution
    between: tuple[str, ...]  # after each convolution but the last
    last: tuple[str, ...]  # after the last convolution
    merged: tuple[str, ...]  # after the two paths have met


ORDERS: dict[str, Steps] = {
    "original": Steps((), ("norm", "act"), ("norm",), ("act",)),
    "bn_after_add": Steps((), ("norm", "act"), (), ("norm", "act")),
    "relu_before_add": Steps((), ("norm", "act"), ("norm", "act"), ()),
    "relu_preact": Steps(("act",), ("norm",), ("norm",), ()),
    "preact": Steps(("norm", "act"), (), (), ()),
}
"""Figure 4 (a) to (e) of He et al. 2016 (1603.05027)."""


class Layer(NamedTuple):
    """One convolution of a branch."""

    kernel_size: int
    features: int
    stride: int = 1
    groups: int = 1


def branch_layers(
    branch: Branch, *, width: int, inner: int, groups: int, stride: int, stride_on: StrideOn
) -> list[Layer]:
    """The convolutions of a branch: figure 5 of He et al. 2015, figure 3c of Xie et al. 2016.

    A bottleneck that shrinks the map has its stride on the first 1×1 convolution in the paper
    ("v1") and on the 3×3 one in Torch's and most later code ("v1.5").

    Args:
        branch: its kind.
        width: the output has width × `EXPANSION[branch]` channels.
        inner: channels of a bottleneck's 3×3 convolution.
        groups: into which that convolution is split (the cardinality of ResNeXt).
        stride: of the whole branch.
        stride_on: which convolution of a bottleneck has it.
    """
    if branch == "single":
        return [Layer(3, width, stride)]
    if branch == "basic":
        return [Layer(3, width, stride), Layer(3, width)]
    on_1x1, on_3x3 = (stride, 1) if stride_on == "1x1" else (1, stride)
    return [
        Layer(1, inner, on_1x1),
        Layer(3, inner, on_3x3, groups),
        Layer(1, EXPANSION["bottleneck"] * width),
    ]


def pad_channels(
    x: Float[Array, "n h w c"], features: int, *, before: int = 0
) -> Float[Array, "n h w f"]:
    """Put `before` channels of zeros before those of `x`, and append the rest."""
    return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (before, features - x.shape[-1] - before)))


class Grammar(nn.Module):
    """What the units of a network have in common, and what can be varied.

    Attributes:
        branch: "single" (one 3×3), "basic" (two 3×3) or "bottleneck" (1×1, 3×3, 1×1 to four times
            the width).
        order: where normalisation and activation stand: `ORDERS`.
        shortcut: "none" (a plain network); where the shape changes, "A" subsamples and appends
            zeros, "A_middle" puts half of them before (akamaster/pytorch_resnet_cifar10), "A_pool"
            averages and appends zeros (Huang et al. 2016, 1603.09382), "B" projects by a 1×1
            convolution, "D" averages, then projects (He et al. 2018, 1812.01187); "C" projects in
            every unit.
        merge: how the shortcut s and the branch f meet, with gates T and C that see the unit's
            input: "add" s + f, "shortcut_gate" (1-T)·s + f, "coupled_gates" (1-T)·s + T·f (a
            highway network, 1505.00387; "exclusive gating" of He et al. 2016),
            "independent_gates" C·s + T·f.
        stride_on: which convolution of a shrinking bottleneck has the stride; "1x1" is v1 (the
            paper), "3x3" is v1.5. Parameters are the same.
        groups: of a bottleneck's 3×3 convolution.
        group_width: channels of each group in the first stage; None is the width of the stage.
        se_ratio: hidden units of squeeze-and-excitation per channel; 0 for none.
        dropout: before the second convolution of a branch (Zagoruyko & Komodakis 2016).
        shortcut_dropout: on the shortcut (He et al. 2016, table 1).
        shortcut_scale, branch_scale: constants that multiply the two paths.
        gate_kernel_size: of the gates' convolutions.
        gate_bias: initial bias of T; negative values open the shortcut.
        carry_bias: initial bias of C; None is -gate_bias, so that C begins near 1-T.
        norm: "batch", "group", "layer", "none", or no normalisation with the initial values of
            "fixup" (Zhang et al. 2019, 1901.09321) or "skipinit" (De & Smith 2020, 2002.10444).
        norm_groups: of "group".
        norm_epsilon: added to variances.
        bn_group_size: normalise over groups of so many examples; None is the whole batch.
        bn_frozen: use the running statistics in training too, and leave them alone.
        bn_momentum: of the running statistics, as Flax counts it.
        weight_standardized: standardise each kernel before use.
        activation: the nonlinearity.
        stochastic_depth: probability with which the last unit's branch is dropped in training;
            that of unit l of L is l/L of it.
        stochastic_depth_mode: "batch" as in the paper: a unit is dropped for the whole batch,
            which skips its computation, and inference multiplies the branch by its probability to
            survive. "example": for each example by itself, and training divides instead.
        zero_init_scale: start the last scale of each branch at zero (Goyal et al. 2017).
        dtype: type of the computation; logits and statistics are float32 always.
        param_dtype: type of the parameters.
    """

    branch: Branch = "basic"
    order: Order = "original"
    shortcut: Shortcut = "B"
    merge: Merge = "add"
    stride_on: StrideOn = "3x3"
    groups: int = 1
    group_width: int | None = None
    se_ratio: float = 0.0
    dropout: float = 0.0
    shortcut_dropout: float = 0.0
    shortcut_scale: float = 1.0
    branch_scale: float = 1.0
    gate_kernel_size: int = 1
    gate_bias: float = -2.0
    carry_bias: float | None = None
    norm: NormKind = "batch"
    norm_groups: int = 32
    norm_epsilon: float = 1e-5
    bn_group_size: int | None = None
    bn_frozen: bool = False
    bn_momentum: float = 0.9
    weight_standardized: bool = False
    activation: Activation = "relu"
    stochastic_depth: float = 0.0
    stochastic_depth_mode: StochasticDepthMode = "batch"
    zero_init_scale: bool = False
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    def _kinds(self) -> dict[str, Any]:
        return {"dtype": self.dtype, "param_dtype": self.param_dtype}

    def _conv(self, features: int, kernel_size: int, stride: int = 1, **options: Any) -> Conv:
        """A convolution of this network; it has a bias where no normalisation brings one."""
        options = {"use_bias": self.norm in ("none", "skipinit")} | options
        options |= self._kinds() | {"weight_standardized": self.weight_standardized}
        return Conv(features, kernel_size, stride, **options)

    def _by_batch(self, *, train: bool) -> bool:
        """Whether normalisation is by the statistics of the batch."""
        return self.norm == "batch" and train and not (self.bn_frozen or self.is_initializing())

    def _batch_norm(self, name: str, *, train: bool, **options: Any) -> BatchNorm:
        return BatchNorm(
            train=train and not self.bn_frozen,
            group_size=self.bn_group_size,
            momentum=self.bn_momentum,
            epsilon=self.norm_epsilon,
            name=name,
            **self._kinds(),
            **options,
        )

    def _steps(
        self,
        steps: tuple[str, ...],
        x: Array,
        name: str,
        *,
        train: bool,
        update_stats: bool,
        zero_init_scale: bool = False,
    ) -> Array:
        """Apply "norm" (whose module has the given name) and "act" in their order."""
        for step in steps:
            if step == "act":
                x = getattr(nn, self.activation)(x)
            elif self.norm == "batch":
                norm = self._batch_norm(
                    name, train=train, update_stats=update_stats, zero_init_scale=zero_init_scale
                )
                x = norm(x)
            elif self.norm in ("group", "layer"):
                x = GroupNorm(
                    groups=self.norm_groups if self.norm == "group" else 1,
                    epsilon=self.norm_epsilon,
                    zero_init_scale=zero_init_scale,
                    name=name,
                    **self._kinds(),
                )(x)
            elif self.norm == "fixup":
                x = Scalars(name=name, **self._kinds())(x)
        return x


class ResidualUnit(Grammar):
    """One unit; children are named as in torchvision: conv1, bn1, …, downsample_conv.

    Attributes:
        width: output channels / `EXPANSION[branch]`.
        inner: channels of a bottleneck's 3×3 convolution.
        stride, dilation: of the branch's 3×3 convolutions, except that the first one of a unit
            may have `first_dilation`.
        activated: the input has been normalised and activated, so that a pre-activation unit
            doesn't begin with it again.
        depth: units in the whole network, which Fixup's initial values depend on.
        train, update_stats: as in `ResNet.features`.
    """

    width: int = 64
    inner: int = 64
    stride: int = 1
    dilation: int = 1
    first_dilation: int = 1
    activated: bool = False
    depth: int = 1
    train: bool = False
    update_stats: bool = False

    @nn.compact
    def __call__(
        self, x: Float[Array, "n h w c"], survival: Float[Array, ""] | float | None = None
    ) -> Float[Array, "n h2 w2 f"]:
        """Return the unit's output, of type `dtype`.

        Args:
            x: input.
            survival: probability with which the branch is kept; None is 1.
        """
        order = ORDERS[self.order]
        features = self.width * EXPANSION[self.branch]
        changes = self.stride != 1 or x.shape[-1] != features

        # The first steps of the branch stand before the split where the shortcut is projected (He
        # et al. 2016, section 4.1), as does Fixup's first scalar where the shape changes.
        start = x if self.activated else self._around(order.before, x, "bn1")
        if self.norm == "fixup":
            start = Scalars(name="shift1", **self._kinds())(x)

        f = self._dropped(start, survival)
        if self.shortcut == "none":
            return self._around(order.merged, f, f"bn{self._convolutions()}")

        projects = self.shortcut == "C" or (changes and self.shortcut in ("B", "D"))
        shares = projects or (changes and self.norm == "fixup")
        s = self._shortcut(start if shares else x, features, changes=changes).astype(f.dtype)
        s = nn.Dropout(self.shortcut_dropout, deterministic=not self.train)(s)
        s, f = self.shortcut_scale * s, self.branch_scale * f
        return self._around(order.merged, self._merge(x, s, f), f"bn{self._convolutions()}")

    def _convolutions(self) -> int:
        return {"single": 1, "basic": 2, "bottleneck": 3}[self.branch]

    def _around(self, steps: tuple[str, ...], x: Array, name: str, **options: Any) -> Array:
        stats = {"train": self.train, "update_stats": self.update_stats}
        return self._steps(steps, x, name, **stats, **options)

    def _convolved(
        self, conv: Conv, x: Array, steps: tuple[str, ...], name: str, **options: Any
    ) -> Array:
        """A convolution and the steps after it."""
        if steps[:1] == ("norm",) and self._by_batch(train=self.train) and conv.widens(x):
            norm = self._batch_norm(name, train=True, update_stats=self.update_stats, **options)
            x, kernel = conv.factors(x)
            return self._around(steps[1:], norm(x, kernel=kernel), name)
        return self._around(steps, conv(x), name, **options)

    def _branch(self, y: Array) -> Array:
        """The convolutions and what stands between them; `y` is ready for the first of them."""
        order = ORDERS[self.order]
        layers = branch_layers(
            self.branch,
            width=self.width,
            inner=self.inner,
            groups=self.groups,
            stride=self.stride,
            stride_on=self.stride_on,
        )
        # Fixup: with m convolutions in each of L branches, all but the last are scaled so that
        # one step of SGD changes the network's output by Θ(learning rate).
        fixup_gain = self.depth ** (-1 / (2 * len(layers) - 2)) if len(layers) > 1 else 1.0
        dilation = self.first_dilation
        for i, layer in enumerate(layers, start=1):
            last = i == len(layers)
            if i > 1:
                y = self._around(order.before, y, f"bn{i}")
                if self.norm == "fixup":
                    y = Scalars(name=f"shift{i}", **self._kinds())(y)
            if i == 2:
                y = nn.Dropout(self.dropout, deterministic=not self.train)(y)
            options = {"groups": layer.groups, "name": f"conv{i}"}
            if layer.kernel_size > 1:
                options["dilation"], dilation = dilation, self.dilation
            if self.norm == "fixup":
                options["gain"] = 0.0 if last else fixup_gain
            conv = self._conv(layer.features, layer.kernel_size, layer.stride, **options)
            if last and self.norm == "fixup":
                y = Scalars(initial_scale=1.0, name=f"bn{i}", **self._kinds())(conv(y))
            else:
                zero = last and self.zero_init_scale
                steps = order.last if last else order.between
                y = self._convolved(conv, y, steps, f"bn{i}", zero_init_scale=zero)
        if self.se_ratio:
            y = SqueezeExcite(self.se_ratio, name="se", **self._kinds())(y)
        if self.norm == "skipinit":
            gain = Scalars(initial_scale=0.0, use_bias=False, name="skip_gain", **self._kinds())
            y = gain(y)
        return y

    def _dropped(self, start: Array, survival: Float[Array, ""] | float | None) -> Array:
        """The branch with stochastic depth."""
        if survival is None or self.is_initializing():
            return self._branch(start)
        if not self.train:
            f = self._branch(start)
            if self.stochastic_depth_mode == "batch":
                f = f * jnp.asarray(survival, f.dtype)
            return f
        key = self.make_rng("dropout")
        if self.stochastic_depth_mode == "example":
            f = self._branch(start)
            kept = jax.random.bernoulli(key, survival, (len(f), 1, 1, 1))
            return f * (kept / survival).astype(f.dtype)
        shape = jax.eval_shape(self._output_of, start)
        return nn.cond(
            jax.random.bernoulli(key, survival),
            lambda unit, y: unit._branch(y),
            lambda unit, y: jnp.zeros(shape.shape, shape.dtype),
            self,
            start,
        )

    def _output_of(self, y: Array) -> Array:
        strided = y[:, :: self.stride, :: self.stride, :1].astype(self.dtype)
        return jnp.broadcast_to(strided, (*strided.shape[:3], self.width * EXPANSION[self.branch]))

    def _shortcut(self, x: Array, features: int, *, changes: bool) -> Array:
        if self.shortcut == "C" or (changes and self.shortcut in ("B", "D")):
            stride = self.stride
            if self.shortcut == "D":
                x, stride = average_pool(x, stride), 1
            conv = self._conv(features, 1, stride, name="downsample_conv")
            # Normalised where the last convolution of the branch is; Fixup has no scalar here.
            normalised = "norm" in ORDERS[self.order].last and self.norm != "fixup"
            return self._convolved(conv, x, ("norm",) if normalised else (), "downsample_bn")
        if not changes:
            return x
        if self.shortcut == "A_pool":
            return pad_channels(average_pool(x, self.stride), features)
        before = (features - x.shape[-1]) // 2 if self.shortcut == "A_middle" else 0
        return pad_channels(x[:, :: self.stride, :: self.stride, :], features, before=before)

    def _merge(self, x: Array, s: Array, f: Array) -> Array:
        if self.merge == "add":
            return s + f

        def gate(name: str, bias: float) -> Array:
            options = {"use_bias": True, "initial_bias": bias, "name": name}
            z = self._conv(f.shape[-1], self.gate_kernel_size, self.stride, **options)(x)
            return nn.sigmoid(z)

        transform = gate("gate", self.gate_bias)
        if self.merge == "shortcut_gate":
            return (1 - transform) * s + f
        if self.merge == "coupled_gates":
            return (1 - transform) * s + transform * f
        bias = -self.gate_bias if self.carry_bias is None else self.carry_bias
        return gate("carry_gate", bias) * s + transform * f
