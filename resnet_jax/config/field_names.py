"""Hints for names of config fields that don't exist."""

from collections.abc import Collection

from resnet_jax.errors import ConfigError, did_you_mean

# Field → its names in the trainers of torchvision, timm, Lightning and Hugging Face, and in the
# code of papers.
_OTHER_NAMES = {
    "schedule.base_lr": "lr learning_rate base_learning_rate init_lr initial_lr max_lr peak_lr",
    "schedule.name": "sched scheduler lr_schedule lr_scheduler lr_scheduler_type lr_policy",
    "schedule.warmup": "warmup_epochs warmup_steps lr_warmup_epochs num_warmup_steps",
    "schedule.boundaries": "milestones lr_steps decay_epochs",
    "schedule.scales": "gamma lr_gamma decay_rate",
    "duration": "epoch epochs num_epochs n_epochs nb_epochs max_epochs train_epochs"
    " num_train_epochs steps num_steps max_steps train_steps num_train_steps iterations",
    "batch_size": "batch bs batchsize train_batch_size per_device_train_batch_size",
    "accumulate": "accum_iter accum_steps grad_accum grad_accum_steps accumulation_steps"
    " gradient_accumulation_steps accumulate_grad_batches",
    "optimizer.name": "opt optim optimiser",
    "optimizer.momentum": "mom beta beta1",
    "optimizer.weight_decay": "wd l2 decay_weight",
    "optimizer.clip_norm": "clip clip_grad clip_grad_norm grad_clip gradient_clip_val"
    " max_grad_norm",
    "optimizer.epsilon": "eps opt_eps adam_epsilon",
    "model.name": "arch architecture backbone depth net network",
    "model.width": "width_multiplier widen_factor",
    "model.dtype": "precision amp fp16 bf16 half_precision mixed_precision",
    "model.stochastic_depth": "drop_path drop_path_rate stochastic_depth_prob survival_prob",
    "model.head_dropout": "drop drop_rate dropout_rate",
    "data.name": "dataset data_set data_name dataset_name",
    "data.dir": "data_dir data_path dataset_dir data_root root",
    "data.image_size": "img_size input_size resolution size train_crop_size",
    "data.workers": "num_workers n_workers dataloader_num_workers",
    "data.policy": "aa auto_augment autoaugment randaugment augment augmentation",
    "data.random_erasing": "reprob random_erase erasing cutout",
    "label_smoothing": "smoothing label_smoothing_factor",
    "mixup": "mixup_alpha",
    "cutmix": "cutmix_alpha",
    "ema_decay": "ema ema_momentum model_ema model_ema_decay",
    "init_from": "pretrained checkpoint ckpt initial_checkpoint finetune_from weights",
    "seed": "random_seed rng_seed",
    "log_every": "log_interval print_freq logging_steps log_every_n_steps",
    "eval_every": "eval_interval val_every eval_freq eval_steps check_val_every_n_epoch",
    "checkpoint_every": "save_every save_steps save_freq checkpoint_interval",
    "mesh.data": "devices num_devices gpus num_gpus",
}
_FIELD_OF = {name: field for field, names in _OTHER_NAMES.items() for name in names.split()}


def unknown_field(name: str, known: Collection[str]) -> ConfigError:
    """Return the error for a dotted name that isn't one of the `known` fields, with a hint.

    The hint is the field that has this name in other trainers; else, for a name without a section,
    the fields of this name in all sections; else the field with the most similar spelling, if any.
    """
    last = name.rpartition(".")[2].lower().replace("-", "_")
    meant = [_FIELD_OF[last]] if last in _FIELD_OF else []
    if not meant and "." not in name:
        meant = [field for field in known if field.rpartition(".")[2] == last]
    hint = f" Did you mean {' or '.join(map(repr, meant))}?" if meant else did_you_mean(name, known)
    return ConfigError(f"There is no config field {name!r}.{hint}")
