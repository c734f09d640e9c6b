"""Networks of runs whose checkpoints are gone, from the weights that this package publishes."""

import functools
import hashlib

from etils import epath

from resnet_jax.checkpoint.workdir import CHECKPOINTS, METRICS, read_config
from resnet_jax.config.io import from_json
from resnet_jax.errors import DataError, WriteError
from resnet_jax.inference.network import TrainedNetwork
from resnet_jax.inference.pretrained import pretrained
from resnet_jax.utils.paths import bucket_errors
from resnet_jax.weights.zoo import list_weights


def has_checkpoints(folder: epath.Path) -> bool:
    """Whether a run has a checkpoint: a folder named by a step.

    Raises:
        WriteError: the folder can't be read.
    """
    try:
        with bucket_errors(folder):
            checkpoints = folder / CHECKPOINTS
            return checkpoints.is_dir() and any(
                path.name.isdecimal() and path.is_dir() for path in checkpoints.iterdir()
            )
    except OSError as error:
        raise WriteError(f"{folder} can't be read ({error.strerror or error}).") from None


@functools.cache
def find_by_log(folder: epath.Path) -> TrainedNetwork | None:
    """The network of a run from the published weights whose card pins the run's metrics.jsonl.

    None if the weights of this run aren't published.

    Raises:
        DataError: the log can't be read.
    """
    try:
        with bucket_errors(folder):
            digest = hashlib.sha256((folder / METRICS).read_bytes()).hexdigest()
    except OSError as error:
        reason = error.strerror or error
        raise DataError(f"{folder / METRICS} can't be read ({reason}).") from None
    weights = next((w for w in list_weights() if w.card["log_sha256"] == digest), None)
    if weights is None:
        return None
    network = pretrained(weights.name)
    names = network.preprocessing.class_names
    assert names  # of a run
    return TrainedNetwork(
        config=from_json(read_config(folder)),
        step=weights.card["steps"],
        model=network.model,
        variables=network.variables,
        normalization=network.preprocessing.normalization,
        class_names=names,
        image_shape=network.preprocessing.shape,
        source=weights.name,
    )
