"""What a network does that its parameters don't show, as a text beside them."""

import json
from collections.abc import Mapping

from resnet_jax.errors import DataError
from resnet_jax.models.resnet import ResNet

_KEY = "resnet_jax.behaviour"
# Two networks with the same parameters that differ in one of these give different logits.
_FIELDS = (
    "stride_on", "order", "shortcut", "merge", "activation", "norm", "norm_epsilon", "groups",
    "stem_pool", "weight_standardized",
)  # fmt: skip


def behaviour_of(model: ResNet) -> dict[str, str]:
    """Metadata of a weight file that say how the network behaves."""
    return {_KEY: json.dumps({field: getattr(model, field) for field in _FIELDS})}


def check_behaviour(model: ResNet, metadata: Mapping[str, str], file: str) -> None:
    """Compare a network with the metadata of a weight file, if they have anything on it.

    Raises:
        DataError: they differ, or the metadata are damaged.
    """
    if _KEY not in metadata:
        return
    try:
        noted = dict(json.loads(metadata[_KEY]))
    except (ValueError, TypeError, RecursionError):
        raise DataError(f"{file}: its note on the network's behaviour is damaged.") from None
    different = [f for f in _FIELDS if f in noted and noted[f] != getattr(model, f)]
    if different:
        field = different[0]
        raise DataError(
            f"{file} is of a network with {field} {noted[field]!r}, and the model has"
            f" {getattr(model, field)!r}: parameters alike, results not. Set model.{field}."
        )
