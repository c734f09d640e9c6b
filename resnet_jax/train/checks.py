"""Checks of a config against the data, the model and the mesh."""

import ml_collections
from jax.sharding import Mesh

from resnet_jax.config.schema import check_fields
from resnet_jax.data.augment.config import AUGMENTATIONS
from resnet_jax.errors import ConfigError
from resnet_jax.models.network import Network
from resnet_jax.models.resnet import ResNet
from resnet_jax.parallel.mesh import check_divisible
from resnet_jax.parallel.shards import fix_thread_pool, make_shards
from resnet_jax.train.losses import LOSSES
from resnet_jax.train.metrics import REGISTERED
from resnet_jax.train.optimizer import OPTIMIZERS


def check_names(config: ml_collections.ConfigDict) -> None:
    """Check that the config names functions that exist, built in or registered.

    Raises:
        ConfigError: naming the field.
    """
    LOSSES.find("loss is", config.loss)
    OPTIMIZERS.find("optimizer.name is", config.optimizer.name)
    for name in config.data.augmentations:
        AUGMENTATIONS.find("data.augmentations names", name)
    for name in config.metrics:
        REGISTERED.find("metrics names", name)


def check_batch(config: ml_collections.ConfigDict, mesh: Mesh | None) -> None:
    """Check that batches split evenly into micro-batches, over the mesh and into groups.

    Args:
        config: the run's configuration.
        mesh: the mesh over which a micro-batch is split; None if each device has whole batches.

    Raises:
        ConfigError: naming the size that doesn't split.
    """
    micro_batches = config.accumulate
    if config.batch_size % micro_batches:
        raise ConfigError(
            f"batch_size is {config.batch_size}, which doesn't split into accumulate ="
            f" {micro_batches} micro-batches."
        )
    what = "batch_size / accumulate" if micro_batches > 1 else "batch_size"
    if mesh:
        check_divisible(what, config.batch_size // micro_batches, mesh)
        make_shards(config.mesh.shards, mesh)
    group = config.model.bn_group_size
    if group and config.batch_size // micro_batches % group:
        raise ConfigError(
            f"{what} is {config.batch_size // micro_batches}, which doesn't split into groups of"
            f" model.bn_group_size = {group}."
        )


def check_shards(config: ml_collections.ConfigDict, model: Network) -> None:
    """Check that the batch splits into `mesh.shards`, and normalisation is within a shard.

    Raises:
        ConfigError: naming the size that doesn't split.
    """
    shards, group = config.mesh.shards, config.model.bn_group_size
    if not shards:
        return
    _check_split(config)
    size = config.batch_size // shards
    if size % 2 and (config.mixup or config.cutmix):
        raise ConfigError(
            f"mesh.shards is {shards}, which gives shards of {size} example{'s' * (size != 1)};"
            " mixup and cutmix mix pairs, and the pairs must be within a shard."
        )
    normalization = model.normalization()
    if normalization.kind != "batch" or normalization.frozen or shards == 1:
        return
    if not group:
        raise ConfigError(
            f"mesh.shards is {shards}, and batch normalisation is over the whole batch; set"
            f" model.bn_group_size to {size} or a divisor of {size}, or mesh.shards to 0."
        )
    if size % group:
        raise ConfigError(
            f"mesh.shards is {shards}, and its shards of {size} examples don't split into groups"
            f" of model.bn_group_size = {group}."
        )


def fix_threads(config: ml_collections.ConfigDict) -> None:
    """Fix the size of XLA's thread pool for `mesh.shards`; call this before JAX starts.

    A config that `validate` and `check_shards` refuse changes nothing here: the processes of a job
    refuse it together.
    """
    try:
        check_fields(config)
        if config.mesh.shards:
            _check_split(config)
    except ConfigError:
        return
    fix_thread_pool(config.mesh.shards)


def _check_split(config: ml_collections.ConfigDict) -> None:
    shards = config.mesh.shards
    if config.batch_size % shards:
        below = config.batch_size - config.batch_size % shards
        choices = f"{below} or {below + shards}" if below else str(shards)
        raise ConfigError(
            f"batch_size is {config.batch_size}, which doesn't split into mesh.shards = {shards}"
            f" shards; use {choices}."
        )


def check_images(config: ml_collections.ConfigDict, image_shape: tuple[int, int, int]) -> None:
    """Check that normalisation and augmentation fit images of `image_shape`, (h, w, c).

    Raises:
        ConfigError: naming the field that doesn't fit.
    """
    height, width, channels = image_shape
    given = len(config.data.mean)
    if given not in (0, channels):
        raise ConfigError(
            f"data.mean and data.std have {given} values, but the images {channels} channels."
        )
    if config.data.policy and channels != 3:
        raise ConfigError(
            f"data.policy is {config.data.policy!r}, whose operations are on RGB images; these"
            f" have {channels} channel{'s' * (channels != 1)}."
        )
    pad = config.data.crop_padding
    if pad >= min(height, width):
        raise ConfigError(
            f"data.crop_padding is {pad}, as much as the {height}×{width} images themselves."
        )


def check_fine_tuning(config: ml_collections.ConfigDict, model: Network) -> None:
    """Check that fields for fine-tuning are set only for a `ResNet`.

    Raises:
        ConfigError: naming the field that is set.
    """
    fields = {
        "init_from": config.init_from,
        "optimizer.trainable": config.optimizer.trainable != "all",
        "optimizer.layer_decay": config.optimizer.layer_decay < 1,
    }
    used = [name for name, is_set in fields.items() if is_set]
    if used and not isinstance(model, ResNet):
        raise ConfigError(
            f"{used[0]} is for ResNets, and model.name is {config.model.name!r}, a"
            f" {type(model).__name__}."
        )


def check_precise_statistics(config: ml_collections.ConfigDict, model: Network) -> None:
    """Check that `precise_bn` is set only for a model with running statistics that change.

    Raises:
        ConfigError: saying why the model's statistics can't be measured anew.
    """
    if not config.precise_bn:
        return
    normalization = model.normalization()
    if normalization.kind != "batch":
        reason = f"has no running statistics: its norm is {normalization.kind!r}"
    elif normalization.frozen:
        head = config.optimizer.trainable == "head"
        cause = "optimizer.trainable is 'head'" if head else "model.bn_frozen is True"
        reason = f"keeps its running statistics: {cause}"
    else:
        return
    raise ConfigError(
        f"precise_bn is {config.precise_bn}, and {config.model.name} {reason}; set precise_bn to 0"
        " (--config.precise_bn=0)."
    )
