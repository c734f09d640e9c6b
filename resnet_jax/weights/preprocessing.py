"""Reading the preprocessing of images from a weight file, or from a config file beside it."""

import json
import logging
import math
import os
import re
import reprlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from resnet_jax.data.images.preprocessing import Preprocessing
from resnet_jax.errors import ConfigError, DataError
from resnet_jax.utils.files import NotRegularFileError, open_regular_file
from resnet_jax.weights.files import read_metadata
from resnet_jax.weights.hub import CONFIG, PROCESSOR, local_file

_log = logging.getLogger(__name__)

_MAX_BYTES = 2**24  # the names of 21,841 classes take 2 MB
_MAX_PIXELS = 2**16  # per side; larger Python integers can overflow a float division
_MIN_CROP = 0.1
_FILTERS = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers
_SQUEEZE_SIZE = 384  # from this size on, ConvNeXT's image processor resizes without a crop


def read_preprocessing(path: str | os.PathLike[str]) -> Preprocessing | None:
    """The preprocessing of images for the network of a weight file.

    The sources are, in this order: the file's metadata (`Preprocessing.metadata`); timm's
    config.json in the same folder; and there the preprocessor_config.json of Hugging Face's
    transformers, whose config.json names the classes. Missing values aren't guessed.

    Args:
        path: a file as for `read_weights`, or a model on the Hub (`local_file`).

    Returns:
        The preprocessing; None if there is no source.

    Raises:
        DataError: the file can't be read; or the source is damaged, incomplete, or describes
            something that `Preprocessing` can't do.
    """
    path = local_file(path)
    metadata, folder = read_metadata(path), Path(path).parent
    if found := _told_by(path, lambda: Preprocessing.from_metadata(metadata)):
        return found
    config, processor = _read_json(folder / CONFIG), _read_json(folder / PROCESSOR)
    if "pretrained_cfg" in config:
        return _told_by(folder / CONFIG, lambda: _of_timm(config))
    if processor:
        return _told_by(folder / PROCESSOR, lambda: _of_transformers(processor, config))
    return None


def _told_by(
    source: str | os.PathLike[str], read: Callable[[], Preprocessing | None]
) -> Preprocessing | None:
    """The result of `read`; the log or the error message names the source."""
    try:
        found = read()
    except (ConfigError, DataError) as error:
        raise DataError(f"{os.fspath(source)} can't be used: {error}.") from None
    if found:
        _log.info("images are prepared as %s says", os.fspath(source))
    return found


def _of_timm(config: Mapping[str, Any]) -> Preprocessing:
    """The preprocessing of timm's `transforms_imagenet_eval`, at the resolution of training."""
    fields = _get(config, "pretrained_cfg", dict)
    if fields.get("crop_mode", "center") != "center":
        raise DataError(f"crop_mode is {reprlib.repr(fields['crop_mode'])}, not 'center'")
    shape = _get(fields, "input_size", list)
    if len(shape) != 3 or shape[0] != 3 or shape[1] != shape[2]:
        raise DataError(f"input_size is {reprlib.repr(shape)}, not 3 × size × size")
    return Preprocessing(
        mean=tuple(_get(fields, "mean", list)),
        std=tuple(_get(fields, "std", list)),
        size=shape[1],
        resize=_before_crop(shape[1], fields),
        interpolation=_get(fields, "interpolation", str),
        class_names=_names(config.get("label_names") or fields.get("label_names")),
    )


def _of_transformers(processor: Mapping[str, Any], config: Mapping[str, Any]) -> Preprocessing:
    """The preprocessing of transformers' image processors of ResNets (ConvNeXT's) and of BiT.

    Where the centre lies on half a pixel, their crop is shifted by one pixel.
    """
    for switch in ("do_resize", "do_rescale", "do_normalize"):
        if processor.get(switch, True) is not True:
            raise DataError(f"{switch} is {reprlib.repr(processor[switch])}, not true")
    factor = processor.get("rescale_factor", 1 / 255)
    if not isinstance(factor, float) or not math.isclose(factor, 1 / 255, rel_tol=1e-6):
        raise DataError(f"rescale_factor is {reprlib.repr(factor)}, not 1/255")
    number = _get(processor, "resample", int)
    if number not in _FILTERS:
        raise DataError(f"resample is {reprlib.repr(number)}, neither 2 (bilinear) nor 3 (bicubic)")
    keys = ("image_processor_type", "feature_extractor_type")  # the second in older files
    key = next((key for key in keys if key in processor), keys[0])
    kind = _get(processor, key, str)
    size = _side(processor, "size")
    if re.fullmatch("ConvNext(FeatureExtractor|ImageProcessor)(Fast|Pil)?", kind):
        if size >= _SQUEEZE_SIZE:
            raise DataError(f"size is {reprlib.repr(size)}: images are squeezed, not cropped")
        resize = _before_crop(size, processor)
    elif re.fullmatch("Bit(FeatureExtractor|ImageProcessor)(Fast|Pil)?", kind):
        if _get(processor, "do_center_crop", bool) is not True:
            raise DataError("do_center_crop isn't true")
        size, resize = _side(processor, "crop_size"), size
    else:
        raise DataError(f"{key} is {reprlib.repr(kind)}, neither ConvNeXT's nor BiT's")
    return Preprocessing(
        mean=tuple(_get(processor, "image_mean", list)),
        std=tuple(_get(processor, "image_std", list)),
        size=size,
        resize=resize,
        interpolation=_FILTERS[number],  # type: ignore[arg-type]
        class_names=_names(config.get("id2label")),
    )


def _before_crop(size: Any, fields: Mapping[str, Any]) -> int:
    """Length in pixels of the shorter side before a crop of `size` pixels: size / "crop_pct"."""
    share = _get(fields, "crop_pct", (int, float))
    if not isinstance(size, int) or size > _MAX_PIXELS or not _MIN_CROP <= share <= 1:
        raise DataError(f"crop_pct is {reprlib.repr(share)} of {reprlib.repr(size)} pixels")
    return math.floor(size / share)


def _side(fields: Mapping[str, Any], key: str) -> int:
    """A length in pixels, given as n, {"shortest_edge": n} or {"height": n, "width": n}."""
    value = _get(fields, key, (int, dict))
    if isinstance(value, dict):
        known = ["shortest_edge"] if key == "size" else ["height", "width"]
        alike = sorted(value) == known and value[known[0]] == value[known[-1]]
        value = value[known[0]] if alike else None
    if not isinstance(value, int):
        raise DataError(f"{key} is {reprlib.repr(fields[key])}")
    return value


def _names(value: Any) -> tuple[str, ...] | None:
    """Class names from a list or a dictionary by number; None if there are none."""
    if isinstance(value, dict):
        numbers = [str(number) for number in range(len(value))]
        if set(value) != set(numbers):
            raise DataError(f"the classes aren't numbered from 0 to {len(value) - 1}")
        value = [value[number] for number in numbers]
    return tuple(value) if isinstance(value, list) else value


def _get(fields: Mapping[str, Any], key: str, kind: type | tuple[type, ...]) -> Any:
    """A required field of the given type."""
    if key not in fields:
        raise DataError(f"it doesn't say {key}")
    value = fields[key]
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise DataError(f"{key} is {reprlib.repr(value)}")
    return value


def _read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; {} if the file doesn't exist."""
    try:
        with open_regular_file(path) as file:
            text = file.read(_MAX_BYTES + 1)
    except FileNotFoundError:
        return {}
    except (IsADirectoryError, NotRegularFileError):
        raise DataError(f"{path} isn't a regular file.") from None
    except OSError as error:
        raise DataError(f"{path} can't be read: {error.strerror}.") from None
    try:
        found = json.loads(text) if len(text) <= _MAX_BYTES else None
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise DataError(f"{path} can't be used: it isn't an object in JSON.")
    return found
