"""He et al. 2016, table 1: whatever stands on the shortcut makes the network worse."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from resnet_jax.research.ablations import Variant, run_variants
from resnet_jax.research.configs import cifar10, digits
from resnet_jax.research.reproduction import Artefact, Report, Within
from resnet_jax.research.runner import Lab

# The worst of the paper's good variants is 2.1 points worse than the original, the best of its bad
# ones 5.6; what lies between decides.
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
"""The paper's are ResNet-110, the median of 5; "fail" is more than 20 %."""

_SOURCE = "He et al. 2016, table 1 (110 layers)"


def run_small(lab: Lab) -> Report:
    """56 layers on digits."""

    def make(fields: Mapping[str, Any]) -> ConfigDict:
        return digits("resnet56", {"model.scan": True, **fields})

    return run_variants(lab, VARIANTS, make, source=_SOURCE, data="digits", name="he2016-table1")


def run_paper(lab: Lab) -> Report:
    """56 layers on CIFAR-10, with a quarter of the paper's steps."""

    def make(fields: Mapping[str, Any]) -> ConfigDict:
        return cifar10("resnet56", fields, share=0.25)

    return run_variants(lab, VARIANTS, make, source=_SOURCE, data="CIFAR-10", name="he2016-table1")


ARTEFACT = Artefact(
    name="he2016-table1",
    title="shortcuts other than the identity",
    paper="He et al. 2016, 1603.05027",
    claim="Scaling, gating, convolving or dropping out the shortcut makes a deep network worse.",
    runs={"cpu": run_small, "full": run_paper},
)
