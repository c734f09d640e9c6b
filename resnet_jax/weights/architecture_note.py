"""The fields of a network in the metadata of its weight file.

Parameters don't show all that a network computes: v1 and v1.5 have the same ones. So
`save_weights` writes every field of the model into the file, `load_weights` compares those that
change what inference computes, and `read_model` makes the model of them again.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from resnet_jax.errors import ConfigError, DataError
from resnet_jax.models.resnet import ResNet
from resnet_jax.weights.arrays import printable, quoted

_KEY = "resnet_jax.model"
_OLDER_KEY = "resnet_jax.behaviour"
"""Of files written before all fields were recorded: an object with the fields in `_OLDER`."""

_OLDER = (
    "stride_on", "order", "shortcut", "merge", "activation", "norm", "norm_epsilon", "groups",
    "stem_pool", "weight_standardized",
)  # fmt: skip

# A field that isn't listed here is recorded, and compared on reading: so is one that is added.
TRAINING = (
    "dropout", "shortcut_dropout", "head_dropout", "gate_bias", "carry_bias", "bn_group_size",
    "bn_frozen", "bn_momentum", "zero_init_scale",
)  # fmt: skip
"""Fields that change training or initial values alone: recorded, not compared."""

SHAPES = (
    "stage_sizes", "num_classes", "stem_width", "deep_stem_widths", "width", "group_width",
    "se_ratio", "gate_kernel_size",
)  # fmt: skip
"""Fields that the shapes of the arrays show: recorded, and compared by the shapes."""

COMPILATION = ("scan", "remat", "dtype", "param_dtype")
"""Fields that change how the same network is computed: neither recorded nor compared."""

_OF_LINEN = ("parent", "name")
_MOST_STAGES = 16  # each doubles the width


def behaviour_of(model: ResNet) -> dict[str, str]:
    """Metadata of a weight file that hold the model's class and fields as JSON."""
    fields = {name: getattr(model, name) for name in _recorded()}
    return {_KEY: json.dumps({"class": type(model).__name__, "fields": fields})}


def is_ours(metadata: Mapping[str, str]) -> bool:
    """Whether the metadata are of a file that `save_weights` wrote, in this version or before."""
    return _KEY in metadata or _OLDER_KEY in metadata


def check_behaviour(
    model: ResNet,
    metadata: Mapping[str, str],
    arrays: Mapping[str, np.ndarray],
    file: str,
) -> None:
    """Compare a network with the fields in the metadata of a weight file, if there are any.

    Args:
        model: the network that is to have the weights.
        metadata: of the file.
        arrays: of the file; no field may be larger than they allow.
        file: its name, for messages.

    Raises:
        DataError: a field that changes what inference computes differs; or the metadata are
            damaged, or of a version that has other fields.
    """
    of_file = model_in(metadata, arrays, file)
    if of_file is not None:
        theirs, ours = inference_fields(of_file), inference_fields(model)
    elif _OLDER_KEY in metadata:
        theirs = _parse(metadata[_OLDER_KEY], file)
        if theirs.get("stem_pool", "") is None:
            theirs["stem_pool"] = model.copy(stem_pool=None).resolved_stem_pool()
        ours = inference_fields(model)
        theirs = {name: theirs[name] for name in _OLDER if name in theirs}
    else:
        return
    different = [name for name, value in theirs.items() if value != ours[name]]
    if different:
        name = different[0]
        mode = " (mode 'batch')" if name == "stochastic_depth" else ""
        raise DataError(
            f"{file} is of a network with {name} {_shown(theirs[name])}, and the model has"
            f" {_shown(ours[name])}{mode}, which gives other results. Set model.{name}; to change"
            f" it on purpose, load into the file's model and apply model.copy({name}=…)."
        )


def inference_fields(model: ResNet) -> dict[str, Any]:
    """The fields that change what inference computes and that shapes of parameters don't show.

    Values that stand for the same computation are made the same: defaults that depend on other
    fields are resolved, and stochastic depth by the example, which leaves inference alone, is 0.
    """
    known = (*TRAINING, *SHAPES, *COMPILATION, *_OF_LINEN, "stochastic_depth_mode")
    names = (field.name for field in dataclasses.fields(model) if field.name not in known)
    fields = {name: getattr(model, name) for name in names}
    if model.stem == "space_to_depth":
        fields["stem"] = "imagenet"
    if model.stochastic_depth_mode == "example":
        fields["stochastic_depth"] = 0.0
    fields["stem_pool"] = model.resolved_stem_pool()
    fields["output_stride"] = model.feature_info()[f"stage{len(model.stage_sizes)}"].stride
    return fields


def model_in(
    metadata: Mapping[str, str], arrays: Mapping[str, np.ndarray], file: str
) -> ResNet | None:
    """The network whose fields a weight file holds; None if it holds none, or too few.

    Args:
        metadata: of the file.
        arrays: of the file; no field may be larger than they allow.
        file: its name, for messages.

    Raises:
        DataError: the metadata are damaged, or of a version that has other fields.
    """
    if _KEY not in metadata:
        return None
    note = _parse(metadata[_KEY], file)
    fields = note.get("fields")
    if set(note) != {"class", "fields"} or not isinstance(fields, dict):
        raise _damaged(file)
    if note["class"] != ResNet.__name__:
        raise DataError(
            f"{file} is of a model of the class {_shown(note['class'])}; weights of a"
            f" {ResNet.__name__} can be loaded."
        )
    unknown = sorted(set(fields) - set(_recorded()))
    if unknown:
        raise DataError(
            f"{file} is of a network with a field {quoted(unknown[0])}, which this version of"
            " resnet_jax doesn't know; use a newer one."
        )
    values = {name: _as_field(value) for name, value in fields.items()}
    units = values.get("stage_sizes")
    if not isinstance(units, tuple) or len(units) > _MOST_STAGES:
        raise _damaged(file)
    try:
        model = ResNet(**values)
    except ConfigError as error:
        raise DataError(f"{file}: {printable(str(error))}") from None
    _check_sizes(model, arrays, file)
    return model


def _recorded() -> list[str]:
    names = (field.name for field in dataclasses.fields(ResNet))
    return [name for name in names if name not in (*COMPILATION, *_OF_LINEN)]


def _check_sizes(model: ResNet, arrays: Mapping[str, np.ndarray], file: str) -> None:
    """Refuse fields of a network that is larger than the file, before it is traced.

    Raises:
        DataError: there are more units than arrays, or more channels than an array has.
    """
    largest = max((max(a.shape, default=0) for a in arrays.values() if a.size), default=0)
    stages, inner = len(model.stage_sizes), model.groups * (model.group_width or model.width)
    widest = max(
        max(model.width, inner if model.branch == "bottleneck" else 0) * 2 ** (stages - 1),
        model.stem_width or 0,
        *(model.deep_stem_widths or (0,)),
        model.num_classes,
        model.gate_kernel_size,
    )
    if sum(model.stage_sizes) > len(arrays) or widest > largest:
        raise DataError(
            f"{file} can't be of the network that its metadata describe, which is larger than the"
            " file. Download or copy it again."
        )


def _parse(text: str, file: str) -> dict[str, Any]:
    try:
        note = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        note = None
    if not isinstance(note, dict):
        raise _damaged(file)
    return note


def _unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, whose keys may each appear once."""
    if len(dict(pairs)) < len(pairs):
        raise ValueError
    return dict(pairs)


def _no_constant(_: str) -> None:
    """Refuse NaN and Infinity, which aren't JSON."""
    raise ValueError


def _as_field(value: Any) -> Any:
    """JSON has lists where fields have tuples."""
    return tuple(value) if isinstance(value, list) else value


def _shown(value: Any) -> str:
    return printable(repr(value))


def _damaged(file: str) -> DataError:
    return DataError(f"{file}: its note on the network's behaviour is damaged.")
