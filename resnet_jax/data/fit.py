"""How the encoded images of a data set become arrays of one shape."""

import dataclasses
from collections.abc import Callable

import numpy as np
from jaxtyping import UInt8

from resnet_jax.data.image_files import decode_upright, fit_image
from resnet_jax.data.preprocessing import Preprocessing

Decode = Callable[[bytes, tuple[int, int, int]], UInt8[np.ndarray, "h w c"]]


@dataclasses.dataclass(frozen=True)
class Fit:
    """Decodes an image to a given shape.

    Attributes:
        decode: the bytes of a PNG or JPEG, and (h, w, c).
        name: tells decoded arrays apart in the cache; "" if images are as they are.
    """

    decode: Decode
    name: str

    @classmethod
    def make(cls, as_they_are: Decode, *, size: int | None, prepare: Preprocessing | None) -> "Fit":
        """Scale and crop as `prepare` says, or to a square of `size`, or else not at all."""
        if prepare:
            crop = f"-{prepare.size}-of-{prepare.resize}-{prepare.interpolation}"
            return cls(lambda data, _: prepare.apply(decode_upright(data)), crop)
        return cls(fit_image, f"-{size}") if size else cls(as_they_are, "")
