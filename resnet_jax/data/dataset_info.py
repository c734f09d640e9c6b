"""Shapes and sizes of well-known data sets, for commands that read no images."""

import dataclasses
import re
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class KnownSet:
    """Shape and size of a data set.

    Attributes:
        image_shape: (h, w, c) of the network's inputs.
        num_classes: number of classes.
        lengths: number of examples of each TFDS split.
        one_size: whether the stored images have `image_shape`. Otherwise they differ in size, and
            must be scaled and cropped.
        origin: where the images come from, one line.
    """

    image_shape: tuple[int, int, int]
    num_classes: int
    lengths: Mapping[str, int]
    one_size: bool = True
    origin: str = ""


_MNIST = {"train": 60_000, "test": 10_000}
_CIFAR = {"train": 50_000, "test": 10_000}
_IDX = "IDX files in `data.dir`"
_DOWNLOADED = "downloaded and verified when it is first used"

# cifar10, cifar100: Krizhevsky 2009. imagenet2012: Russakovsky et al. 2014 (1409.0575), table 2;
# 224×224 is the crop of He et al. 2015. digits: `resnet_jax.data.readers.digits.Digits`.
# mnist: LeCun et al. 1998. fashion_mnist: Xiao et al. 2017 (1708.07747).
KNOWN_SETS: dict[str, KnownSet] = {
    "digits": KnownSet(
        (8, 8, 1), 10, {"train": 1_437, "test": 360}, origin="installed with scikit-learn"
    ),
    "mnist": KnownSet((28, 28, 1), 10, _MNIST, origin=f"{_IDX}, or prepared by TFDS"),
    "fashion_mnist": KnownSet(
        (28, 28, 1), 10, _MNIST, origin=f"apt install dataset-fashion-mnist, or {_IDX}"
    ),
    "cifar10": KnownSet((32, 32, 3), 10, _CIFAR, origin=_DOWNLOADED),
    "cifar100": KnownSet((32, 32, 3), 100, _CIFAR, origin=_DOWNLOADED),
    "imagenet2012": KnownSet(
        (224, 224, 3),
        1_000,
        {"train": 1_281_167, "validation": 50_000, "test": 100_000},
        one_size=False,
        origin="ImageNet's archives, by `resnet-jax prepare`",
    ),
}

FROM_PYTHON = "arrays"
"""`data.name` of a run whose data were passed in Python, as `datasets` of `resnet_jax.fit`."""

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
"""Mean and standard deviation of red, green and blue in 0…1, as in fb.resnet.torch (2016) and most
networks published since."""


def find_known(name: str, *, image_size: int | None = None) -> KnownSet | None:
    """Return the entry of a TFDS name, such as "cifar10" or "imagenet2012:5.1.0", or None.

    Args:
        name: the data set's name.
        image_size: height and width to which images are scaled and cropped; None if they aren't.
    """
    known = KNOWN_SETS.get(re.split("[:/]", name)[0])
    if known is None or image_size is None:
        return known
    return dataclasses.replace(known, image_shape=(image_size, image_size, known.image_shape[-1]))
