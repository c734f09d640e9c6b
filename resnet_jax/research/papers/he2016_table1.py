"""He et al. 2016, table 1: any operation on the shortcut makes the network worse."""

from resnet_jax.research.ablations import Variant, ablation_runs
from resnet_jax.research.reproduction import Reproduction, Within

# The paper's worst good variant is 2.1 points worse than the original, its best bad variant 5.6
# points; the bound lies between them.
_GOOD, _BAD = Within(high=4.0), Within(low=4.0)

VARIANTS = {
    "original": Variant("original", {}, 6.61),
    "scaled": Variant("shortcut × 0.5", {"model.shortcut_scale": 0.5}, "fail", _BAD),
    "both_scaled": Variant(
        "both × 0.5",
        {"model.shortcut_scale": 0.5, "model.branch_scale": 0.5},
        12.35,
        _BAD,
    ),
    "exclusive_0": Variant(
        "exclusive gating, bias 0",
        {"model.merge": "coupled_gates", "model.gate_bias": 0.0},
        "fail",
        _BAD,
    ),
    "exclusive_6": Variant(
        "exclusive gating, bias -6",
        {"model.merge": "coupled_gates", "model.gate_bias": -6.0},
        8.70,
        _GOOD,
    ),
    "shortcut_only_0": Variant(
        "shortcut-only gating, bias 0",
        {"model.merge": "shortcut_gate", "model.gate_bias": 0.0},
        12.86,
        _BAD,
    ),
    "shortcut_only_6": Variant(
        "shortcut-only gating, bias -6",
        {"model.merge": "shortcut_gate", "model.gate_bias": -6.0},
        6.91,
        _GOOD,
    ),
    "conv": Variant("1×1 convolution", {"model.shortcut": "C"}, 12.22, _BAD),
    "dropout": Variant("dropout 0.5", {"model.shortcut_dropout": 0.5}, "fail", _BAD),
}
"""The paper trains ResNet-110 and gives the median of 5; "fail" is an error above 20 %."""


REPRODUCTION = Reproduction(
    name="he2016-table1",
    title="shortcuts other than the identity",
    paper="He et al. 2016, 1603.05027",
    claim="Scaling, gating, convolving or dropping out the shortcut makes a deep network worse.",
    runs=ablation_runs(
        "he2016-table1",
        VARIANTS,
        source="He et al. 2016, table 1 (110 layers)",
        full_model="resnet56",
    ),
)
