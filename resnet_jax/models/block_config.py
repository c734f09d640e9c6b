"""Everything that the papers vary in a residual block, as fields of `BlockConfig`."""

import dataclasses
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self

import jax.numpy as jnp

from resnet_jax.errors import ConfigError
from resnet_jax.models.branches import (
    Basic,
    Branch,
    Single,
    StrideOn,
    convolutions,
    find_branch,
    shortest,
)
from resnet_jax.models.fields import Need, check_fields, check_needs, fields_of, setting

Order = Literal["original", "bn_after_add", "relu_before_add", "relu_preact", "preact"]
Shortcut = Literal["none", "A", "A_middle", "A_pool", "B", "C", "D"]
Merge = Literal["add", "shortcut_gate", "coupled_gates", "independent_gates"]
NormKind = Literal["batch", "group", "layer", "none", "fixup", "skipinit"]
Activation = Literal["relu", "silu", "gelu"]
StochasticDepthMode = Literal["batch", "example"]


class Steps(NamedTuple):
    """Which of "norm" and "act", in this order, stand around the convolutions of a block."""

    before: tuple[str, ...]  # before each convolution
    between: tuple[str, ...]  # after each convolution but the last
    last: tuple[str, ...]  # after the last convolution
    merged: tuple[str, ...]  # after shortcut and branch have met


ORDERS: dict[str, Steps] = {
    "original": Steps((), ("norm", "act"), ("norm",), ("act",)),
    "bn_after_add": Steps((), ("norm", "act"), (), ("norm", "act")),
    "relu_before_add": Steps((), ("norm", "act"), ("norm", "act"), ()),
    "relu_preact": Steps(("act",), ("norm",), ("norm",), ()),
    "preact": Steps(("norm", "act"), (), (), ()),
}
"""Figure 4 (a) to (e) of He et al. 2016 (1603.05027)."""


_NEEDS: tuple[Need, ...] = (
    (
        ("stride_on", "groups", "group_width"),
        lambda c: not isinstance(find_branch(c.branch), Single | Basic),
        "branch='bottleneck'",
    ),
    (("dropout",), lambda c: convolutions(c.branch) > 1, "a branch of two convolutions or more"),
    (
        ("merge", "shortcut_dropout", "shortcut_scale", "branch_scale", "stochastic_depth"),
        lambda c: c.shortcut != "none",
        "a shortcut",
    ),
    (("gate_bias", "gate_kernel_size"), lambda c: c.merge != "add", "a merge with gates"),
    (("carry_bias",), lambda c: c.merge == "independent_gates", "merge='independent_gates'"),
    (("bn_group_size", "bn_frozen", "bn_momentum"), lambda c: c.norm == "batch", "norm='batch'"),
    (("norm_groups",), lambda c: c.norm == "group", "norm='group'"),
    (("norm_epsilon",), lambda c: c.normalises, "norm='batch', 'group' or 'layer'"),
    (("stochastic_depth_mode",), lambda c: c.stochastic_depth > 0, "stochastic_depth"),
    (
        ("zero_init_scale",),
        # After a last ReLU, or in a plain network, a zero scale never gets a gradient.
        lambda c: c.normalises and ORDERS[c.order].last == ("norm",) and c.shortcut != "none",
        "a shortcut, and a normalisation as the last step of the branch"
        " (order='original' or 'relu_preact')",
    ),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockConfig:
    """What the blocks of a network have in common.

    Attributes:
        branch: "single" (one 3×3), "basic" (two 3×3), "bottleneck" (1×1, 3×3, 1×1 to four times
            the width), the name of a registered branch, or a `Branch`.
        order: where normalisation and activation stand in a block: `ORDERS`, figure 4 of He et al.
            2016 (1603.05027).
        shortcut: "none" (a plain network); where the shape changes, "A" subsamples and appends
            zeros, "A_middle" puts half of them before (akamaster/pytorch_resnet_cifar10), "A_pool"
            averages and appends zeros (Huang et al. 2016, 1603.09382), "B" projects by a 1×1
            convolution, "D" averages, then projects (He et al. 2018, 1812.01187); "C" projects in
            every block.
        merge: how the shortcut s and the branch f meet, with gates T and C that see the block's
            input: "add" s + f, "shortcut_gate" (1-T)·s + f, "coupled_gates" (1-T)·s + T·f (a
            highway network, 1505.00387; "exclusive gating" of He et al. 2016),
            "independent_gates" C·s + T·f.
        stride_on: which convolution of a shrinking bottleneck has the stride; "1x1" is v1 (the
            paper), "3x3" is v1.5. Parameters are the same.
        groups: number of groups of a bottleneck's 3×3 convolution.
        group_width: channels of each group in the first stage; None is the width of the stage.
        se_ratio: hidden units of squeeze-and-excitation per channel; 0 for none.
        dropout: dropout rate before the second convolution of a branch (
            Zagoruyko & Komodakis 2016).
        shortcut_dropout: dropout rate on the shortcut (He et al. 2016, table 1).
        shortcut_scale, branch_scale: constant factors of the shortcut and of the branch.
        gate_kernel_size: kernel size of the gates' convolutions; odd.
        gate_bias: initial bias of T; negative values open the shortcut.
        carry_bias: initial bias of C; None is -gate_bias, so that C begins near 1-T.
        norm: "batch", "group", "layer", "none", or no normalisation with the initial values of
            "fixup" (Zhang et al. 2019, 1901.09321) or "skipinit" (De & Smith 2020, 2002.10444).
        norm_groups: number of groups of norm="group".
        norm_epsilon: ε, which is added to the variance.
        bn_group_size: examples that batch normalisation takes together; None is the whole batch,
            over all devices (synchronised batch normalisation).
        bn_frozen: use the running statistics in training too, and leave them alone.
        bn_momentum: share of the running statistics that a step keeps, as in Flax.
        weight_standardized: standardise each kernel before use.
        activation: the nonlinearity.
        stochastic_depth: probability with which the last block's branch is dropped in training;
            the branch of block l of L is dropped with l/L of this probability.
        stochastic_depth_mode: "batch" as in the paper: a branch is dropped for the whole batch,
            which skips its computation, and inference multiplies the branch by its probability to
            survive. "example": for each example by itself, and training divides instead.
        zero_init_scale: start the last scale of each branch at zero (Goyal et al. 2017).
        dtype: type of the computation; logits and statistics are always float32.
        param_dtype: type of the parameters; float32 in training.
    """

    branch: str | Branch = "basic"
    order: Order = "original"
    shortcut: Shortcut = "B"
    merge: Merge = "add"
    stride_on: StrideOn = "3x3"
    groups: int = 1
    group_width: int | None = setting(None, "shapes")
    se_ratio: float = setting(0.0, "shapes", most=1)
    dropout: float = setting(0.0, "training", below=1)
    shortcut_dropout: float = setting(0.0, "training", below=1)
    shortcut_scale: float = 1.0
    branch_scale: float = 1.0
    gate_kernel_size: int = setting(1, "shapes")
    gate_bias: float = setting(-2.0, "training")
    carry_bias: float | None = setting(None, "training")
    norm: NormKind = "batch"
    norm_groups: int = 32
    norm_epsilon: float = setting(1e-5, positive=True)
    bn_group_size: int | None = setting(None, "training")
    bn_frozen: bool = setting(False, "training")
    bn_momentum: float = setting(0.9, "training", below=1)
    weight_standardized: bool = False
    activation: Activation = "relu"
    stochastic_depth: float = setting(0.0, below=1)
    stochastic_depth_mode: StochasticDepthMode = "batch"
    zero_init_scale: bool = setting(False, "training")
    dtype: Any = setting(jnp.float32, "compilation")  # noqa: RUF009
    param_dtype: Any = setting(jnp.float32, "compilation")  # noqa: RUF009

    def __post_init__(self) -> None:
        """Check each field by itself, then the fields that need others.

        Raises:
            ConfigError: naming the field, its value, and what it can be or what it needs.
        """
        check_fields(self)
        object.__setattr__(self, "branch", shortest(self.branch))
        check_needs(self, _NEEDS)
        if self.gate_kernel_size % 2 == 0:
            raise ConfigError(f"model.gate_kernel_size is {self.gate_kernel_size}; it must be odd.")
        if self.norm in ("fixup", "skipinit") and self.shortcut == "none":
            raise ConfigError(
                f"model.norm is {self.norm!r}, whose branches begin at zero; it needs a shortcut."
            )
        if self.norm == "fixup" and (
            self.order != "original" or self.merge != "add" or convolutions(self.branch) < 2
        ):
            raise ConfigError(
                "model.norm is 'fixup', which is defined for order='original', merge='add' and"
                " branches of two convolutions or more."
            )

    @classmethod
    def of(cls, network: "BlockFields") -> Self:
        """The config of a network that has these fields among its own."""
        return cls(**{name: getattr(network, name) for name in fields_of(cls)})

    @property
    def normalises(self) -> bool:
        """Whether "norm" is a normalisation with a scale for each channel."""
        return self.norm in ("batch", "group", "layer")


if TYPE_CHECKING:
    BlockFields = BlockConfig
else:
    BlockFields = dataclasses.make_dataclass(
        "BlockFields",
        [
            (f.name, f.type, dataclasses.field(default=f.default, metadata=f.metadata))
            for f in dataclasses.fields(BlockConfig)
        ],
        kw_only=True,
    )
    """The fields of `BlockConfig` for linen modules, which can't derive from frozen dataclasses."""
