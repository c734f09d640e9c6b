"""What is known of well-known data sets, for what needs no image: summaries and compilation."""

import dataclasses
import re
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class KnownSet:
    """What is known of a data set without reading it.

    Attributes:
        image_shape: (h, w, c) of what a network is given.
        num_classes: how many there are.
        lengths: examples of each TFDS split.
        one_size: whether the images are stored in that shape. Others must be cropped and scaled
            as they are read.
    """

    image_shape: tuple[int, int, int]
    num_classes: int
    lengths: Mapping[str, int]
    one_size: bool = True


# cifar10, cifar100: Krizhevsky 2009. imagenet2012: Russakovsky et al. 2014 (1409.0575), table 2;
# 224×224 is what He et al. 2015 crop. digits: `resnet_jax.data.datasets.Digits`.
KNOWN_SETS: dict[str, KnownSet] = {
    "digits": KnownSet((8, 8, 1), 10, {"train": 1_437, "test": 360}),
    "cifar10": KnownSet((32, 32, 3), 10, {"train": 50_000, "test": 10_000}),
    "cifar100": KnownSet((32, 32, 3), 100, {"train": 50_000, "test": 10_000}),
    "imagenet2012": KnownSet(
        (224, 224, 3),
        1_000,
        {"train": 1_281_167, "validation": 50_000, "test": 100_000},
        one_size=False,
    ),
}

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
"""Of red, green and blue in 0…1: those with which most published networks were trained. They came
with fb.resnet.torch in 2016."""


def find_known(name: str, *, image_size: int | None = None) -> KnownSet | None:
    """The row of a TFDS name, such as "cifar10" or "imagenet2012:5.1.0"; None if there is none.

    `image_size` is the height and width to which images are scaled, if they are.
    """
    known = KNOWN_SETS.get(re.split("[:/]", name)[0])
    if known is None or image_size is None:
        return known
    return dataclasses.replace(known, image_shape=(image_size, image_size, known.image_shape[-1]))
