"""The network that another one learns from: `config.distill`."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections
import numpy as np

from resnet_jax.errors import ConfigError
from resnet_jax.models.presets import create_model
from resnet_jax.models.resnet import ResNet
from resnet_jax.train.pretrained import check_shapes, file_sha256
from resnet_jax.weights.hub import local_file
from resnet_jax.weights.load import load_weights
from resnet_jax.weights.preprocessing import read_preprocessing


@dataclasses.dataclass(frozen=True)
class Teacher:
    """A trained network.

    Attributes:
        path, sha256: of its file.
        variables: {"params", "batch_stats"}.
    """

    path: str
    sha256: str
    variables: dict[str, Any]

    def record(self) -> dict[str, str]:
        """What a checkpoint says of it."""
        return {"file": os.path.basename(self.path), "sha256": self.sha256}

    def check(self, recorded: Mapping[str, str] | None) -> None:
        """Compare with the `record` that a checkpoint has, if it has one.

        Raises:
            ConfigError: the file is another one.
        """
        if recorded and recorded["sha256"] != self.sha256:
            raise ConfigError(
                f"{self.path} isn't the teacher that the run began with (its SHA-256 was"
                f" {recorded['sha256']}). Nothing was touched; put the old one back, or choose"
                " another --workdir to begin anew."
            )


def teacher_model(config: ml_collections.ConfigDict, num_classes: int) -> ResNet | None:
    """The network of `config.distill.model`, computing in the type of the student's.

    Raises:
        ConfigError: it is unknown, or no `ResNet`, for which alone there are weight files.
    """
    if not config.distill.model:
        return None
    dtype = {"dtype": config.model.dtype} if config.model.dtype else {}
    model = create_model(config.distill.model, num_classes=num_classes, **dtype)
    if not isinstance(model, ResNet):
        raise ConfigError(
            f"distill.model is {config.distill.model!r}, a {type(model).__name__}; a teacher is a"
            " ResNet."
        )
    return model


def read_teacher(
    config: ml_collections.ConfigDict,
    model: ResNet,
    *,
    image_shape: tuple[int, int, int],
    class_names: Sequence[str],
) -> Teacher:
    """Read the weights that `config.distill.teacher` names.

    Args:
        config: of the run.
        model: of `teacher_model`.
        image_shape: (h, w, c) of the data's images.
        class_names: the data's.

    Raises:
        ConfigError: classes or normalisation of the file aren't those of the run: the teacher sees
            the student's images.
        DataError: the file can't be read, or doesn't fit the model.
    """
    path = local_file(config.distill.teacher)
    variables = load_weights(model, path)
    check_shapes(path, variables, model, image_shape)
    notes = read_preprocessing(path)
    if notes and notes.class_names and tuple(notes.class_names) != tuple(class_names):
        raise ConfigError(f"the classes of {path} aren't the data's, in their order.")
    if notes:
        for name in ("mean", "std"):
            theirs, ours = getattr(notes, name), config.data[name]
            if len(theirs) and (len(ours) != len(theirs) or not np.allclose(theirs, ours)):
                raise ConfigError(
                    f"data.{name} is {tuple(ours)}, and {path} was trained with {tuple(theirs)};"
                    " set it to that."
                )
    return Teacher(path, file_sha256(path), variables)
