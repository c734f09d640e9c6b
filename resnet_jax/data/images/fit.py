"""Conversion of image files to arrays of one shape."""

import dataclasses

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from resnet_jax.data.images.image_files import decode_image, open_upright
from resnet_jax.data.images.preprocessing import ScaleAndCrop
from resnet_jax.errors import ConfigError, DataError


@dataclasses.dataclass(frozen=True)
class Fit:
    """Converts images to the shape of a network's input.

    Attributes:
        shape: (h, w, c) of the result.
        crop: how images are scaled and cropped to `shape`; None if images must have this shape.
        convert: convert colours to the channels of `shape`. Otherwise other colours are an error.
        stored: without `crop`, decode images as they are stored; see `decode_image`.
    """

    shape: tuple[int, int, int]
    crop: ScaleAndCrop | None = None
    convert: bool = True
    stored: bool = False

    @property
    def name(self) -> str:
        """Part of the cache folder's name; "" without `crop`."""
        return f"-{self.crop.name}-{self.shape[-1]}" if self.crop else ""

    def decode(self, data: bytes) -> UInt8[np.ndarray, "h w c"]:
        """Decode the content of a PNG or JPEG file.

        Raises:
            DataError: damaged, animated, too large, or too small for the crop. The message begins
                with "it", which stands for the image.
            ConfigError: another size without `crop`, or other colours without `convert`. The
                message begins with "it".
        """
        if self.stored and not self.crop:
            return decode_image(data, self.shape)
        image = open_upright(data, channels=self.shape[-1], convert=self.convert)
        if self.crop:
            return self.crop.apply(image)
        if (image.height, image.width) != self.shape[:2]:
            found, wanted = f"{image.height}×{image.width}", "{}×{}".format(*self.shape)
            raise ConfigError(f"it is {found} (height×width), not {wanted}")
        return np.asarray(image, np.uint8).reshape(self.shape)

    def apply(self, image: UInt8[np.ndarray, "h w c"]) -> UInt8[np.ndarray, "h w c"]:
        """Convert an upright image's pixels.

        Raises:
            DataError: not uint8 [h, w, c], or too small for the crop. The message begins with
                "it", which stands for the image.
            ConfigError: another size without `crop`. The message begins with "it".
        """
        image, channels = np.asarray(image), self.shape[-1]
        if image.dtype != np.uint8:
            raise DataError(f"it is of type {image.dtype}, not uint8 (0…255) as in files")
        if image.ndim != 3 or image.shape[-1] != channels or not image.size:
            found = "×".join(map(str, image.shape)) or "a single number"
            raise DataError(f"it is {found}, not height×width×{channels}")
        if self.crop:
            return self.crop.apply(Image.fromarray(image[..., 0] if channels == 1 else image))
        if image.shape != self.shape:
            found, wanted = ("{}×{}".format(*shape) for shape in (image.shape, self.shape))
            raise ConfigError(f"it is {found} (height×width), not {wanted}")
        return image
