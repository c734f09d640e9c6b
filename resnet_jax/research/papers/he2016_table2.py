"""He et al. 2016, table 2: the order of normalisation, activation and addition in a block."""

from resnet_jax.research.ablations import Variant, ablation_runs
from resnet_jax.research.reproduction import Reproduction, Within

# The paper's worst good order is 0.1 points worse than the original, its best bad order 1.2 points;
# the bound lies between them.
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
"""The paper trains ResNet-110 and gives the median of 5."""


REPRODUCTION = Reproduction(
    name="he2016-table2",
    title="orders of activation",
    paper="He et al. 2016, 1603.05027",
    claim="Pre-activation is as good as the original order or better; BN after addition is worse.",
    runs=ablation_runs(
        "he2016-table2",
        VARIANTS,
        source="He et al. 2016, table 2 (110 layers)",
        full_model="resnet110",
    ),
)
