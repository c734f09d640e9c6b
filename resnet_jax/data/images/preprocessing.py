"""Preprocessing of images for a trained network, which is stored with the weights."""

import base64
import dataclasses
import json
import math
import reprlib
from collections.abc import Mapping
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Array, Float, UInt8
from PIL import Image

from resnet_jax.data.images.normalization import given_normalization, normalize
from resnet_jax.errors import ConfigError, DataError
from resnet_jax.utils.json_objects import unique_keys

Interpolation = Literal["bilinear", "bicubic"]

_KEY = "resnet_jax.preprocessing"
_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
_LONGEST_SIDE = 2048  # pixels; three times what residual networks were published for
_MOST_PIXELS = 25_000_000


@dataclasses.dataclass(frozen=True)
class ScaleAndCrop:
    """Scales an image and crops it at its centre.

    With squares, the result equals that of torchvision's `Resize` and `CenterCrop` on a Pillow
    image, to the bit.

    Attributes:
        size: height and width of the result, in pixels.
        cover: height and width of the rectangle that the scaled image covers, at least `size`. The
            aspect ratio is kept: one side of the scaled image is equal to that of the rectangle,
            the other is at least as long. None doesn't scale.
        interpolation: filter of the scaling, with antialiasing.

    Raises:
        ConfigError: `cover` is smaller than `size`, or the interpolation is unknown.
    """

    size: tuple[int, int]
    cover: tuple[int, int] | None
    interpolation: Interpolation = "bilinear"

    def __post_init__(self) -> None:
        """Check the fields."""
        if self.cover and (self.cover[0] < self.size[0] or self.cover[1] < self.size[1]):
            found, wanted = ("{}×{}".format(*sides) for sides in (self.cover, self.size))
            raise ConfigError(
                f"images are scaled to {found} pixels (height×width), of which {wanted} can't be"
                " cut out; scale them to a larger size."
            )
        _check_interpolation(self.interpolation)

    @classmethod
    def square(
        cls, size: int, *, resize: int | None, interpolation: Interpolation = "bilinear"
    ) -> "ScaleAndCrop":
        """Scale the shorter side to `resize` pixels (None: don't), and crop a square of `size`."""
        return cls((size, size), None if resize is None else (resize, resize), interpolation)

    @property
    def name(self) -> str:
        """A text for file names that contains all fields."""
        sides = ["x".join(map(str, dict.fromkeys(s))) for s in (self.size, self.cover or (0, 0))]
        return f"{sides[0]}-of-{sides[1]}-{self.interpolation}"

    def apply(self, image: Image.Image) -> UInt8[np.ndarray, "h w c"]:
        """Scale and crop an image of 8 bits per channel.

        As in torchvision, the longer side is rounded down, and the corner of the crop to even.
        Unlike in torchvision, an image that is smaller than the crop isn't padded.

        Raises:
            DataError: the image is too small, or too long and narrow. The message begins with
                "it", which stands for the image.
        """
        if self.cover is not None:
            image = image.resize(self._scaled(image), _FILTERS[self.interpolation])
        (height, width), (rows, columns) = (image.height, image.width), self.size
        if height < rows or width < columns:
            raise DataError(
                f"it is {height}×{width} (height×width), of which {rows}×{columns} can't be cut out"
            )
        top, left = round((height - rows) / 2), round((width - columns) / 2)
        part = image.crop((left, top, left + columns, top + rows))
        # A copy: Pillow's array is read-only.
        return np.asarray(part, np.uint8).reshape(rows, columns, -1).copy()

    def _scaled(self, image: Image.Image) -> tuple[int, int]:
        """Return width and height of the scaled image."""
        assert self.cover is not None
        rows, columns = self.cover
        if image.height * columns < image.width * rows:
            height, width = rows, int(rows * image.width / image.height)
        else:
            height, width = int(columns * image.height / image.width), columns
        if height * width > _MOST_PIXELS:
            raise DataError(
                f"it is {image.height}×{image.width} (height×width), too long and narrow"
            )
        return width, height


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """The preprocessing of RGB or grey images for a network, and the meaning of its logits.

    The shorter side is scaled to `resize` pixels, a square is cropped at the centre, and each
    channel becomes (values / 255 − mean) / std. With a mean image, the result is
    ((values − mean image) / 255) / std.

    Attributes:
        mean, std: of red, green and blue, or of grey, in 0…1.
        size: side of the square, in pixels.
        resize: the shorter side before the crop, in pixels; None doesn't scale.
        interpolation: filter of the scaling, with antialiasing.
        class_names: one name per logit; None if unknown.
        mean_image: the mean image that is subtracted instead of `mean`, as `encode_mean_image`
            writes it; None if there is none. `mean` then has the means of its channels.

    Raises:
        ConfigError: a field has an impossible value.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: int
    resize: int | None = None
    interpolation: Interpolation = "bilinear"
    class_names: tuple[str, ...] | None = None
    mean_image: str | None = None

    def __post_init__(self) -> None:
        """Check the fields, whose values may come from an untrusted file."""
        fractions = _are_fractions(self.mean) and _are_fractions(self.std)
        if not (fractions and len(self.mean) == len(self.std) and all(self.std)):
            shown = f"mean is {reprlib.repr(self.mean)} and std {reprlib.repr(self.std)}"
            raise ConfigError(
                f"{shown}; each is three numbers in 0…1, not grey levels (of grey images, one"
                " number), and no std is 0"
            )
        if not _is_side(self.size):
            shown = reprlib.repr(self.size)
            raise ConfigError(f"size is {shown}; it must be 1 to {_LONGEST_SIDE} pixels")
        if self.resize is not None and not (_is_side(self.resize) and self.resize >= self.size):
            raise ConfigError(
                f"resize is {reprlib.repr(self.resize)}; it must be size, {self.size}, to"
                f" {_LONGEST_SIDE} pixels"
            )
        _check_interpolation(self.interpolation)
        if self.class_names is not None:
            _check_names(self.class_names)
        if self.mean_image is not None:
            _decode_mean_image(self.mean_image, self.shape)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(h, w, c) of the images that the network takes."""
        return self.size, self.size, len(self.mean)

    @property
    def crop(self) -> ScaleAndCrop:
        """The scaling and cropping of `apply`."""
        return ScaleAndCrop.square(self.size, resize=self.resize, interpolation=self.interpolation)

    def apply(self, image: UInt8[np.ndarray, "h w c"]) -> UInt8[np.ndarray, "size size c"]:
        """Scale and crop one image; see `ScaleAndCrop.apply`."""
        return self.crop.apply(Image.fromarray(image[..., 0] if len(self.mean) == 1 else image))

    @property
    def normalization(self) -> dict[str, Any]:
        """{"mean", "std"} in grey levels; see `measure_normalization`."""
        given = given_normalization(self.mean, self.std)
        if self.mean_image is None:
            return given
        return given | {"mean": _decode_mean_image(self.mean_image, self.shape)}

    def normalize(self, images: UInt8[Array, "n h w c"]) -> Float[Array, "n h w c"]:
        """Normalise as the class describes, to float32; accepts NumPy and JAX arrays."""
        return normalize(images, self.normalization)

    def metadata(self) -> dict[str, str]:
        """Return all fields as a metadata entry of a weight file (`save_weights(metadata=…)`)."""
        fields = dataclasses.asdict(self)
        if self.mean_image is None:  # earlier versions don't know the field
            del fields["mean_image"]
        return {_KEY: json.dumps(fields, ensure_ascii=False)}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> "Preprocessing | None":
        """Read the entry that `metadata` wrote; None if there is none.

        Raises:
            DataError: the entry is damaged. The message begins with "its", which stands for the
                weight file.
        """
        if _KEY not in metadata:
            return None
        try:
            fields: Any = json.loads(metadata[_KEY], object_pairs_hook=unique_keys)
        except (ValueError, RecursionError):
            fields = None
        known = {field.name for field in dataclasses.fields(cls)}
        if not isinstance(fields, dict) or set(fields) | {"mean_image"} != known:
            raise DataError("its note on preprocessing is damaged or of another version")
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in fields.items()
        }
        try:
            return cls(**values)
        except ConfigError as error:
            raise DataError(f"its note on preprocessing is wrong: {error}") from None


def encode_mean_image(image: Float[np.ndarray, "h w c"]) -> str:
    """A mean image in grey levels as text: the base64 of its float32 values, little-endian."""
    return base64.b64encode(np.ascontiguousarray(image, "<f4").tobytes()).decode()


def _decode_mean_image(text: Any, shape: tuple[int, int, int]) -> Float[np.ndarray, "h w c"]:
    """The mean image in grey levels, float32.

    Raises:
        ConfigError: the text isn't an image of this shape with values in 0…255.
    """
    try:
        values = np.frombuffer(base64.b64decode(text, validate=True), "<f4")
    except (TypeError, ValueError):
        values = np.empty(0, np.float32)
    if values.size != math.prod(shape) or not ((values >= 0) & (values <= 255)).all():
        wanted = "×".join(map(str, shape))
        raise ConfigError(
            f"mean_image is {reprlib.repr(text)}; it must be the base64 of {wanted} float32 values"
            " in 0…255"
        )
    return values.astype(np.float32).reshape(shape)


def _are_fractions(values: Any) -> bool:
    return (
        isinstance(values, tuple)
        and len(values) in (1, 3)
        and all(type(value) in (int, float) and 0 <= value <= 1 for value in values)
    )


def _check_interpolation(value: Any) -> None:
    if value not in get_args(Interpolation):
        shown, known = reprlib.repr(value), " or ".join(get_args(Interpolation))
        raise ConfigError(f"interpolation is {shown}; it can be {known}")


def _is_side(value: Any) -> bool:
    return type(value) is int and 1 <= value <= _LONGEST_SIDE


def _check_names(names: Any) -> None:
    if not isinstance(names, tuple) or not names:
        raise ConfigError(f"class_names is {reprlib.repr(names)}; it is one name per class")
    for name in names:
        if not isinstance(name, str) or not name.isprintable() or not name.strip():
            raise ConfigError(f"class_names has {reprlib.repr(name)}, which isn't a line of text")
