"""The fields of a network in the metadata of its weight file.

Parameters don't determine what a network computes: those of v1 and v1.5 are the same. So
`save_weights` writes every field of the model into the file, `load_weights` compares the fields
that change inference, and `read_model` makes the model from the fields. What a change of a field
changes is declared with the field (`resnet_jax.models.fields`).
"""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from resnet_jax.errors import ConfigError, DataError
from resnet_jax.models.block_config import BlockConfig
from resnet_jax.models.branches import BRANCHES, Branch, Geometry, find_branch, with_branch
from resnet_jax.models.fields import changes
from resnet_jax.models.network import Network
from resnet_jax.models.presets import PRESETS, model_fields, model_values
from resnet_jax.models.resnet import ResNet
from resnet_jax.utils.json_objects import unique_keys
from resnet_jax.weights.arrays import printable, quoted

_KEY = "resnet_jax.model"
_OLDER_KEY = "resnet_jax.behaviour"
"""Key in files written before all fields were recorded: an object with the fields in `_OLDER`."""

_OLDER = (
    "stride_on", "order", "shortcut", "merge", "activation", "norm", "norm_epsilon", "groups",
    "stem_pool", "weight_standardized",
)  # fmt: skip

_MOST_STAGES = 16  # each doubles the width
_MISSING = object()


def architecture_note(model: ResNet) -> dict[str, str]:
    """The model's class and fields as metadata of a weight file, in JSON.

    Raises:
        ConfigError: the model has a branch without a name.
    """
    values, recorded = model_values(model), _recorded(type(model), model.branch)
    fields = {name: values[name] for name in recorded}
    return {_KEY: json.dumps({"class": type(model).__name__, "fields": fields})}


def is_ours(metadata: Mapping[str, str]) -> bool:
    """Whether this or an earlier version of `save_weights` wrote the file."""
    return _KEY in metadata or _OLDER_KEY in metadata


def check_architecture(
    model: ResNet,
    metadata: Mapping[str, str],
    arrays: Mapping[str, np.ndarray],
    file: str,
) -> None:
    """Compare a network with the fields in the metadata of a weight file, if it has any.

    Args:
        model: the network that gets the weights.
        metadata: of the file.
        arrays: of the file; they bound the size of the network that the fields describe.
        file: name of the file, for messages.

    Raises:
        DataError: a field that changes inference differs; or the metadata are damaged, or are
            from a version that has other fields.
    """
    of_file = model_in(metadata, arrays, file)
    if of_file is not None:
        if type(of_file) is not type(model):
            raise DataError(
                f"{file} is of a {type(of_file).__name__}, and the model is a"
                f" {type(model).__name__}, which may compute other results."
            )
        theirs, ours = inference_fields(of_file), inference_fields(model)
    elif _OLDER_KEY in metadata:
        theirs = _parse(metadata[_OLDER_KEY], file)
        if theirs.get("stem_pool", "") is None:
            theirs["stem_pool"] = model.copy(stem_pool=None).resolved_stem_pool()
        ours = inference_fields(model)
        theirs = {name: theirs[name] for name in _OLDER if name in theirs}
    else:
        return
    different = [name for name, value in theirs.items() if value != ours.get(name, _MISSING)]
    if different:
        name = different[0]
        mode = " (mode 'batch')" if name == "stochastic_depth" else ""
        raise DataError(
            f"{file} is of a network with {name} {_shown(theirs[name])}, and the model has"
            f" {_shown(ours.get(name))}{mode}, which gives other results. Set model.{name}; to"
            f" change it on purpose, load into the file's model and apply model.copy({name}=…)."
        )


def inference_fields(model: ResNet) -> dict[str, Any]:
    """The fields that change inference and don't change the shapes of parameters.

    Networks that compute the same have the same values (`ResNet.canonical`).
    """
    fields = model_fields(type(model), model.branch)
    values = model_values(model.canonical())
    return {name: value for name, value in values.items() if changes(fields[name]) == "inference"}


def model_in(
    metadata: Mapping[str, str], arrays: Mapping[str, np.ndarray], file: str
) -> ResNet | None:
    """The network whose fields a weight file holds; None if it doesn't hold all fields.

    Args:
        metadata: of the file.
        arrays: of the file; they bound the size of the network that the fields describe.
        file: name of the file, for messages.

    Raises:
        DataError: the metadata are damaged, or are from a version that has other fields, or name
            a branch that isn't registered.
    """
    if _KEY not in metadata:
        return None
    note = _parse(metadata[_KEY], file)
    fields = note.get("fields")
    if set(note) != {"class", "fields"} or not isinstance(fields, dict):
        raise _damaged(file)
    known = {p.build.__name__: p.build for p in PRESETS.values() if issubclass(p.build, ResNet)}
    if not isinstance(note["class"], str) or note["class"] not in known:
        raise DataError(
            f"{file} is of a model of the class {_shown(note['class'])}; weights of a"
            f" {ResNet.__name__} can be loaded."
        )
    fields = {"branch": BlockConfig.branch} | fields
    build, branch = known[note["class"]], fields["branch"]
    if not isinstance(branch, str) or branch not in BRANCHES:
        raise DataError(
            f"{file} is of a network with the branch {_shown(branch)}, which isn't known; import"
            " the module that registers it."
        )
    unknown = sorted(set(fields) - set(_recorded(build, branch)))
    if unknown:
        raise DataError(
            f"{file} is of a network with a field {quoted(unknown[0])}, which this version of"
            " resnet_jax doesn't know; use a newer one."
        )
    values = {name: _as_field(value) for name, value in fields.items()}
    blocks = values.get("stage_sizes")
    if not isinstance(blocks, tuple) or len(blocks) > _MOST_STAGES:
        raise _damaged(file)
    try:
        model = build(**with_branch(values))
    except ConfigError as error:
        raise DataError(f"{file}: {printable(str(error))}") from None
    _check_sizes(model, arrays, file)
    return model


def _recorded(build: type[Network], branch: str | Branch) -> list[str]:
    fields = model_fields(build, branch)
    return [name for name, field in fields.items() if changes(field) != "compilation"]


def _check_sizes(model: ResNet, arrays: Mapping[str, np.ndarray], file: str) -> None:
    """Refuse a network that is larger than the file, before it is traced."""
    largest = max((max(a.shape, default=0) for a in arrays.values() if a.size), default=0)
    scale = 2 ** (len(model.stage_sizes) - 1)
    inner = model.groups * (model.group_width or model.width)
    layers = find_branch(model.branch).layers(Geometry(model.width * scale, inner * scale))
    widest = max(
        model.width * scale,
        *(layer.features for layer in layers),
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
        note = json.loads(text, object_pairs_hook=unique_keys, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        note = None
    if not isinstance(note, dict):
        raise _damaged(file)
    return note


def _no_constant(_: str) -> None:
    """Refuse NaN and Infinity, which JSON doesn't have."""
    raise ValueError


def _as_field(value: Any) -> Any:
    """The value of a field: a tuple for JSON's list."""
    return tuple(value) if isinstance(value, list) else value


def _shown(value: Any) -> str:
    return printable(repr(value))


def _damaged(file: str) -> DataError:
    return DataError(f"{file}: its record of the network's fields is damaged.")
