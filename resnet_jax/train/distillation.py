"""Knowledge distillation: training on the outputs of another network, `config.distill`."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np
import optax
from jaxtyping import Array, Float

from resnet_jax.errors import ConfigError
from resnet_jax.models.presets import create_model
from resnet_jax.models.resnet import ResNet
from resnet_jax.train.pretrained import check_shapes, file_sha256
from resnet_jax.weights.hub import local_file
from resnet_jax.weights.load import load_weights
from resnet_jax.weights.preprocessing import read_preprocessing


@dataclasses.dataclass(frozen=True)
class DistillConfig:
    """The distillation term of the loss.

    Attributes:
        weight: share of the loss that is `distillation_loss`, 0 to 1.
        temperature: of `distillation_loss`.
    """

    weight: float = 0.0
    temperature: float = 1.0

    def __call__(
        self,
        losses: Float[Array, " n"],
        logits: Float[Array, "n k"],
        teacher_logits: Float[Array, "n k"],
    ) -> Float[Array, " n"]:
        """Return the weighted mean of the losses on the labels and on the teacher's logits."""
        losses = (1 - self.weight) * losses
        return losses + self.weight * distillation_loss(
            logits, teacher_logits, temperature=self.temperature
        )


def distillation_loss(
    logits: Float[Array, "n k"], teacher_logits: Float[Array, "n k"], *, temperature: float
) -> Float[Array, " n"]:
    """T² × KL(softmax(teacher_logits / T) ‖ softmax(logits / T)), in nats.

    Hinton et al. 2015 (1503.02531), section 2: the factor T² keeps the size of the gradients at
    every temperature T. The paper's cross-entropy differs by a constant in the logits.
    """
    log_p, log_targets = (jax.nn.log_softmax(x / temperature) for x in (logits, teacher_logits))
    return temperature**2 * optax.losses.kl_divergence_with_log_targets(log_p, log_targets)


@dataclasses.dataclass(frozen=True)
class Teacher:
    """A trained network to distil from.

    Attributes:
        path, sha256: path and SHA-256 of its weight file.
        variables: {"params", "batch_stats"}.
    """

    path: str
    sha256: str
    variables: dict[str, Any]

    def record(self) -> dict[str, str]:
        """Return what checkpoints record of the teacher."""
        return {"file": os.path.basename(self.path), "sha256": self.sha256}

    def check(self, recorded: Mapping[str, str] | None) -> None:
        """Compare with the `record` in a checkpoint; checkpoints of older versions have None.

        Raises:
            ConfigError: the weight file has changed.
        """
        if recorded and recorded["sha256"] != self.sha256:
            raise ConfigError(
                f"{self.path} isn't the teacher that the run began with (its SHA-256 was"
                f" {recorded['sha256']}). Nothing was touched; put the old file back, or choose"
                " another --workdir to begin anew."
            )


def teacher_model(config: ml_collections.ConfigDict, num_classes: int) -> ResNet | None:
    """Create the network `config.distill.model`, which computes in the student's dtype.

    Returns:
        The network, or None without distillation.

    Raises:
        ConfigError: unknown model, or not a `ResNet`: only ResNets have weight files.
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
    """Read the weight file `config.distill.teacher`.

    Args:
        config: the run's configuration.
        model: the result of `teacher_model`.
        image_shape: (h, w, c) of the data's images.
        class_names: class names of the data.

    Raises:
        ConfigError: the file's classes or normalisation differ from the run's. The teacher gets
            the student's images.
        DataError: the file can't be read, or doesn't fit the model.
    """
    path = local_file(config.distill.teacher)
    variables = load_weights(model, path)
    check_shapes(path, variables, model, image_shape)
    notes = read_preprocessing(path)
    if notes and notes.class_names and tuple(notes.class_names) != tuple(class_names):
        raise ConfigError(f"the classes of {path} aren't the data's classes in the same order.")
    if notes and notes.mean_image:
        if config.data.normalize != "pixel_mean":
            raise ConfigError(
                f"data.normalize is {config.data.normalize!r}, and {path} was trained with a mean"
                " image; set it to 'pixel_mean'."
            )
    elif notes:
        for name in ("mean", "std"):
            theirs, ours = getattr(notes, name), config.data[name]
            if len(theirs) and (len(ours) != len(theirs) or not np.allclose(theirs, ours)):
                raise ConfigError(
                    f"data.{name} is {tuple(ours)}, and {path} was trained with {tuple(theirs)};"
                    " set it to that."
                )
    return Teacher(path, file_sha256(path), variables)
