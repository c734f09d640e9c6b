"""The config of a run on disk."""

from etils import epath
from ml_collections import ConfigDict

from resnet_jax.checkpoint.workdir import CONFIG, read_config
from resnet_jax.config.io import from_json
from resnet_jax.errors import ConfigError
from resnet_jax.utils.paths import as_path


def config_of(workdir: epath.PathLike) -> ConfigDict:
    """The config of a run.

    Raises:
        UsageError: `workdir` isn't the name of a folder.
        ConfigError: `workdir` isn't a run, or its config can't be used.
    """
    workdir = as_path(workdir)
    try:
        return from_json(read_config(workdir))
    except ConfigError as error:
        raise ConfigError(f"{workdir / CONFIG} can't be used: {error}") from None
