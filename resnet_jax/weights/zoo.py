"""Weights that this package publishes, each with its model card.

`zoo_files/` has NAME.safetensors and NAME.json for each network. NAME is MODEL.DATA or
MODEL.DATA_TAG, such as "resnet20.digits". The JSON file is the model card, which
`benchmarks/publish.py` writes; it pins the SHA-256 of the weights.
"""

import dataclasses
import fnmatch
import functools
import hashlib
import json
import logging
from pathlib import Path
from typing import Any

from resnet_jax.errors import DataError

FILES = Path(__file__).with_name("zoo_files")
"""The folder of the published weights and their cards."""

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class PublishedWeights:
    """Weights of this package.

    Attributes:
        name: the name that `load_weights` and `pretrained` take.
        model: the preset of the network.
        data: the data set of the training.
        top1: top-1 accuracy in 0…1 on the test images.
        examples: the number of test images.
        params: the number of parameters.
        preprocessing: how images are prepared, in a sentence.
        licence: the licence of the weights.
        recipe: how the network was trained, in a sentence.
        sha256: SHA-256 of the file.
        card: the whole model card, as JSON values.
    """

    name: str
    model: str
    data: str
    top1: float
    examples: int
    params: int
    preprocessing: str
    licence: str
    recipe: str
    sha256: str
    card: dict[str, Any] = dataclasses.field(repr=False, compare=False)

    @property
    def family(self) -> str:
        """The name without the tag: MODEL.DATA."""
        return f"{self.model}.{self.data}"

    @property
    def path(self) -> Path:
        """Path of the weight file."""
        return FILES / f"{self.name}.safetensors"

    @classmethod
    def from_card(cls, card: dict[str, Any]) -> "PublishedWeights":
        """Make an entry of the list from a model card."""
        return cls(
            name=card["name"],
            model=card["model"],
            data=card["data"]["name"],
            top1=card["scores"]["top1"],
            examples=card["scores"]["examples"],
            params=card["params"],
            preprocessing=card["preprocessing"],
            licence=card["licence"],
            recipe=card["recipe"],
            sha256=card["file"]["sha256"],
            card=card,
        )


def list_weights(pattern: str = "*") -> list[PublishedWeights]:
    """The weights of this package that match a shell-style pattern, sorted by name.

    The pattern matches the name, or the name without the tag.

    `PublishedWeights.card` is the model card: data, recipe, seed, log, scores with the number of
    test images, calibration error, intended use, command and commit.
    """
    return [
        own
        for own in _all()
        if any(fnmatch.fnmatchcase(name, pattern) for name in (own.name, own.family))
    ]


def find_weights(name: str) -> PublishedWeights | None:
    """The weights of this name; None if there are none.

    "MODEL.DATA" without a tag names the weights of the model and data set with the highest top-1
    accuracy on the test images. Only a full name always gives the same weights.
    """
    exact = [own for own in _all() if own.name == name]
    family = [own for own in _all() if own.family == name]
    best = max(exact or family, key=lambda own: own.top1, default=None)
    if best and best.name != name:
        _log.info(
            "%s is %s: top-1 %.2f %% of %s test images",
            *(name, best.name, 100 * best.top1, f"{best.examples:,}"),
        )
    return best


def zoo_file(name: str) -> str | None:
    """Path of the weights of this name, whose digest is compared; None if there are none.

    Raises:
        DataError: the file isn't the published file.
    """
    own = find_weights(name)
    if own is None:
        return None
    try:
        found = hashlib.sha256(own.path.read_bytes()).hexdigest()
    except OSError as error:
        raise DataError(f"{own.path} can't be read: {error.strerror}.") from None
    if found != own.sha256:
        raise DataError(
            f"{own.path} isn't the published {own.name} (SHA-256 {found[:16]}…, not"
            f" {own.sha256[:16]}…). Install the package again."
        )
    return str(own.path)


@functools.cache
def _all() -> tuple[PublishedWeights, ...]:
    cards = (json.loads(path.read_bytes()) for path in sorted(FILES.glob("*.json")))
    return tuple(PublishedWeights.from_card(card) for card in cards)
