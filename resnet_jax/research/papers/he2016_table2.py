"""He et al. 2016, table 2: where normalisation and activation stand in a unit."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from resnet_jax.research.ablations import Variant, run_variants
from resnet_jax.research.configs import cifar10, digits
from resnet_jax.research.reproduction import Artefact, Report, Within
from resnet_jax.research.runner import Lab

# Between the paper's worst good order, 0.1 points worse than the original, and its best bad one,
# 1.2 points worse.
_GOOD, _BAD = Within(high=0.6), Within(low=0.6)

VARIANTS = {
    "original": Variant("original", {}, 6.61),
    "bn_after_add": Variant("BN after addition", {"model.order": "bn_after_add"}, 8.17, _BAD),
    "relu_before_add": Variant(
        "ReLU before addition", {"model.order": "relu_before_add"}, 7.84, _BAD
    ),
    "relu_preact": Variant("ReLU-only pre-activation", {"model.order": "relu_preact"}, 6.71, _GOOD),
    "preact": Variant("full pre-activation", {"model.order": "preact"}, 6.37, _GOOD),
}
"""The paper's are ResNet-110, the median of 5."""

_SOURCE = "He et al. 2016, table 2 (110 layers)"


def run_small(lab: Lab) -> Report:
    """56 layers on digits."""

    def make(fields: Mapping[str, Any]) -> ConfigDict:
        return digits("resnet56", {"model.scan": True, **fields})

    return run_variants(lab, VARIANTS, make, source=_SOURCE, data="digits", name="he2016-table2")


def run_paper(lab: Lab) -> Report:
    """110 layers on CIFAR-10, with a quarter of the paper's steps."""

    def make(fields: Mapping[str, Any]) -> ConfigDict:
        return cifar10("resnet110", fields, share=0.25)

    return run_variants(lab, VARIANTS, make, source=_SOURCE, data="CIFAR-10", name="he2016-table2")


ARTEFACT = Artefact(
    name="he2016-table2",
    title="orders of activation",
    paper="He et al. 2016, 1603.05027",
    claim="Normalising and activating before the convolutions is best; after the addition, worst.",
    runs={"cpu": run_small, "full": run_paper},
)
