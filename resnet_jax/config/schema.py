"""The fields of a run's config, their defaults, and the checks made before anything else."""

import itertools
import json
import math
from collections.abc import Mapping
from typing import Any, Literal, get_args

from ml_collections import ConfigDict, config_dict

from resnet_jax.config.field_names import unknown_field
from resnet_jax.data.augment.policies import LARGEST_MAGNITUDE, PolicyName
from resnet_jax.data.images.preprocessing import Interpolation
from resnet_jax.data.readers.skipped import CorruptPolicy
from resnet_jax.errors import ConfigError, did_you_mean
from resnet_jax.models.presets import config_types

DurationUnit = Literal["epochs", "examples"]
NonfinitePolicy = Literal["abort", "skip", "rollback"]
Trainable = Literal["all", "head"]
Loss = Literal["softmax", "bce", "bce_sum"]
Diagnostic = Literal["norms", "signal", "bn_drift", "updates", "gates", "cka", "sharpness"]

MAY_CHANGE = (
    "data.dir",
    "data.corrupt",  # what is left out is part of the data's fingerprint
    "data.resident",
    "data.workers",
    "mesh.data",
    "mesh.fsdp",
    "log_every",
    "steps_per_dispatch",
    "checkpoint_every",
    "keep_checkpoints",
    "save_attempts",
    "hang_timeout_s",
    "nonfinite.policy",
    "nonfinite.limit",
    "diagnostics.every",
    "diagnostics.what",
    "diagnostics.examples",
)
"""Fields that don't change what is computed, and so may differ when a run is resumed."""


_LONGEST_VALUE = 200  # characters, in a message


def default_config() -> ConfigDict:
    """Every field there is, as a locked ConfigDict; a config file changes some of them.

    `duration`, `eval_every`, `checkpoint_every`, `schedule.warmup` and `schedule.boundaries` are
    counted in `duration_unit`, so that another batch size keeps their meaning.
    """
    config = ConfigDict()
    config.seed = 0
    # Several seeds, trained in one program; () for `seed` alone. `vary` gives each of them a value
    # of its own of some fields: pairs such as ("schedule.base_lr", (0.1, 0.05)), one value a seed.
    config.seeds = ()
    config.vary = ()
    config.model = _model_fields("resnet20")

    # Weights to begin with: a file as `load_weights` takes it; "" for random ones. With `new_head`
    # its classifier is left out and a new one begun; otherwise it must have the data's classes.
    config.init_from = ""
    config.new_head = False

    config.data = ConfigDict()
    config.data.name = "digits"  # "digits", the name of a TFDS set, or "folder" for data.dir itself
    config.data.dir = config_dict.placeholder(str)  # default: $TFDS_DATA_DIR, ~/tensorflow_datasets
    # Height and width to which images are scaled (the shorter side) and cropped (at the centre);
    # None takes them as they are, and they must have one size.
    config.data.image_size = config_dict.placeholder(int)
    config.data.train = "train"  # TFDS split expressions
    config.data.validation = ""  # selects the best checkpoint; "" for no selection
    config.data.test = "test"  # only ever scored, never selected on
    config.data.normalize = "channel"  # or "pixel_mean"
    # Per channel, 0…1, for "channel"; () for those that `init_from` names, or else those of the
    # training images.
    config.data.mean = ()
    config.data.std = ()
    # Smallest and largest share of an image's area that a random-resized crop takes, scaled to
    # image_size. Training images are then decoded each time they are needed, and all are RGB.
    config.data.random_crop_area = ()
    # Smaller crops at first ("progressive resizing"): sizes, and where one follows on another; the
    # last is image_size. Each is a compilation of its own.
    config.data.early_sizes = ()
    config.data.size_boundaries = ()  # as many as early_sizes, in duration_unit
    # How the others are prepared then: the shorter side scaled to eval_resize, and the square of
    # eval_size at the centre cut out. None is image_size.
    config.data.eval_size = config_dict.placeholder(int)
    config.data.eval_resize = config_dict.placeholder(int)
    # Of every scaling but that of random-resized crops; or "bicubic".
    config.data.interpolation = "bilinear"
    # Processes that decode, in as many threads as there are cores; 0: this one, -1: one for every
    # eight cores.
    config.data.workers = -1
    config.data.repeats = 1  # times that an image is in a batch, each time augmented otherwise
    config.data.crop_padding = 4  # pixels; 0 for no random crop
    config.data.flip = True
    # Random operations on images, RGB: "trivial" (TrivialAugment) or "randaugment", of a magnitude
    # in 0…10 that varies by magnitude_std; "" for none.
    config.data.policy = ""
    config.data.magnitude = 9.0
    config.data.magnitude_std = 0.0
    config.data.random_erasing = 0.0  # probability
    # What a damaged image or record does: "stop" ends the run; "skip" leaves the example out, up to
    # 0.1 % of a split. Split expressions count it all the same.
    config.data.corrupt = "stop"

    # The training split lies on every device; otherwise images are sent from the host, each
    # process those of its own devices.
    config.data.resident = True

    config.batch_size = 128  # global
    config.accumulate = 1  # micro-batches, done one after the other, that make up a batch
    config.eval_batch_size = 500  # global
    config.duration_unit = "epochs"  # or "examples"
    config.duration = 20.0
    config.eval_every = 1.0
    config.checkpoint_every = 1.0
    config.keep_checkpoints = 2  # the newest ones; the best is kept beside them
    config.save_attempts = 10  # that may fail in a row, before the run ends
    config.log_every = 20  # steps
    config.steps_per_dispatch = 10
    # Seconds without news, after which a run is stuck: longer than it takes to compile, to score a
    # split, or to save; 0 for never.
    config.hang_timeout_s = 1800.0

    # What happens when a loss, gradient or parameter stops being finite: "abort" ends the run;
    # "skip" leaves out the step; "rollback" goes back to the last checkpoint, and leaves out the
    # batches since. Both do so up to `limit` times in a run.
    config.nonfinite = ConfigDict()
    config.nonfinite.policy = "abort"
    config.nonfinite.limit = 10

    config.optimizer = ConfigDict()
    config.optimizer.name = "sgd"  # or "lars", "lamb", "adamw", "muon"
    config.optimizer.momentum = 0.9  # β₁ of "lamb" and "adamw"
    config.optimizer.nesterov = False
    config.optimizer.beta2 = 0.999  # of "lamb", "adamw", and what isn't a convolution in "muon"
    config.optimizer.epsilon = 1e-8  # of the same, added to the root of the second moment
    config.optimizer.trust_coefficient = 0.001  # of "lars"
    config.optimizer.weight_decay = 1e-4
    config.optimizer.decay = "l2"  # or "decoupled": that of "lamb", "adamw" and "muon"
    # Parameter groups: "norm", "bias". "lars" and "lamb" leave them at the schedule's rate, too.
    config.optimizer.decay_exempt = ()
    config.optimizer.clip_norm = 0.0  # of the global gradient; 0 for no clipping
    # Or "head": the classifier alone. All else is as in inference: normalised by the running
    # statistics, which stay as they are.
    config.optimizer.trainable = "all"
    # The learning rate of what lies d stages before the classifier is multiplied by its d-th power.
    config.optimizer.layer_decay = 1.0
    # Factor of the learning rate of biases and scales: of every parameter that isn't a kernel.
    config.optimizer.scalar_rate = 1.0

    config.schedule = ConfigDict()
    config.schedule.name = "cosine"  # or "step", "constant", "linear", "poly"
    config.schedule.base_lr = 0.1
    config.schedule.reference_batch = 128  # peak = base_lr × batch_size / reference_batch
    config.schedule.warmup = 0.0
    config.schedule.warmup_from = 0.0  # share of the peak
    config.schedule.final = 0.0  # share of the peak, to which "cosine", "linear" and "poly" fall
    config.schedule.power = 2.0  # of "poly"
    config.schedule.boundaries = ()  # of "step"
    config.schedule.scales = (1.0,)  # of "step": one more than boundaries

    # Cross-entropy of the "softmax", or of each class for itself: their mean over classes, "bce",
    # or their sum, "bce_sum". With a threshold, smoothed and mixed targets above it become 1 for
    # these two, the others 0; 0 keeps them as they are.
    config.loss = "softmax"
    config.bce_threshold = 0.0
    config.label_smoothing = 0.0
    # Of the distribution of shares: mixup and CutMix of neighbours in a batch; 0 for none. With
    # both, an example has one of them. "top1" of training then counts the label of its own share.
    config.mixup = 0.0
    config.cutmix = 0.0
    # The share `weight` of the loss is the divergence from a teacher's softmax, at a temperature:
    # that of a weight file as `load_weights` takes it, for the network `model`; "" for none.
    config.distill = ConfigDict()
    config.distill.teacher = ""
    config.distill.model = ""
    config.distill.weight = 0.5
    config.distill.temperature = 1.0

    # Of moving averages of the parameters, which begin at the initial values; 0 for none. They are
    # scored beside the raw parameters, but don't choose the best checkpoint.
    config.ema_decay = 0.0
    config.ema_every = 1  # steps
    config.ema_warmup = False  # decay after t updates: at most (1 + t) / (10 + t)

    # Gradients are taken where the loss is highest within this distance (SAM); 0 for where one is.
    config.sam_radius = 0.0
    config.sam_every = 1  # steps; those between have plain gradients

    # Before scoring, running statistics are measured anew on the batches of the last so many steps,
    # those of moving averages too; 0 for never.
    config.precise_bn = 0

    # What is measured inside the network, on the first `examples` training images: before the
    # first step and then as often as this; 0 for never. `what` are "norms", "signal", "bn_drift",
    # "updates", "gates", "cka" and "sharpness"; docs/runs.md explains them.
    config.diagnostics = ConfigDict()
    config.diagnostics.every = 0.0  # in duration_unit
    config.diagnostics.what = ("norms", "signal", "bn_drift", "updates", "gates", "cka")
    config.diagnostics.examples = 128

    config.mesh = ConfigDict()
    # Devices: a batch is split over data × fsdp of them, parameters and optimiser state over fsdp.
    config.mesh.data = -1  # -1 for all that there are
    config.mesh.fsdp = 1
    return config.lock()


def _model_fields(name: str) -> ConfigDict:
    """The model's name, and each of its fields as an override that is unset."""
    types = config_types()
    del types["num_classes"]  # the number of classes comes with the data
    unset = {field: config_dict.placeholder(kind) for field, kind in types.items()}
    return ConfigDict({"name": name} | unset)


def model_overrides(config: ConfigDict) -> dict[str, Any]:
    """The fields of `config.model` that are set, without the name: arguments of `create_model`."""
    return {k: v for k, v in config.model.items() if k != "name" and v is not None}


def validate(config: ConfigDict) -> None:
    """Check what can be checked without data or devices.

    Raises:
        ConfigError: naming the field, its value and what it can be.
    """
    flat, defaults = flatten(config), flatten(default_config())
    for name, value in flat.items():
        if value is None and defaults.get(name) is not None:
            raise ConfigError(f"{name} is None; it needs a value, such as {defaults[name]!r}.")
    choices = (
        ("duration_unit", DurationUnit),
        ("nonfinite.policy", NonfinitePolicy),
        ("data.corrupt", CorruptPolicy),
        ("optimizer.trainable", Trainable),
        ("loss", Loss),
        ("data.policy", PolicyName),
        ("data.interpolation", Interpolation),
    )
    for name, kind in choices:
        known = get_args(kind)
        if flat[name] not in known:
            hint = did_you_mean(str(flat[name]), known)
            raise ConfigError(f"{name} is {flat[name]!r}; it can be {', '.join(known)}.{hint}")
    numbers = ("schedule.boundaries", "schedule.scales", "data.mean", "data.std")
    for name in (*numbers, "data.size_boundaries"):
        if not all(isinstance(v, int | float) for v in flat[name]):
            raise ConfigError(f"{name} is {flat[name]}; it must be a tuple of numbers.")
    for name, value in flat.items():
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, float) and not math.isfinite(number):
                raise ConfigError(f"{name} is {value}; it must be finite.")
    if not config.data.train:
        raise ConfigError("data.train is empty; it names the split to train on.")
    if config.data.image_size is not None and config.data.image_size < 1:
        raise ConfigError(f"data.image_size is {config.data.image_size}; it must be at least 1.")
    _check_normalization(config)
    if config.seed >= 2**32:
        raise ConfigError(f"seed is {config.seed}; it must be less than 2**32.")
    positive = (
        "batch_size",
        "accumulate",
        "eval_batch_size",
        "duration",
        "eval_every",
        "checkpoint_every",
        "keep_checkpoints",
        "save_attempts",
        "log_every",
        "steps_per_dispatch",
        "optimizer.epsilon",
        "optimizer.trust_coefficient",
        "optimizer.scalar_rate",
        "schedule.reference_batch",
        "schedule.power",
        "distill.temperature",
        "ema_every",
        "sam_every",
        "data.repeats",
        "diagnostics.examples",
    )
    for name in positive:
        if flat[name] <= 0:
            raise ConfigError(f"{name} is {flat[name]}; it must be greater than 0.")
    not_negative = (
        "seed",
        "hang_timeout_s",
        "nonfinite.limit",
        "data.crop_padding",
        "optimizer.weight_decay",
        "data.magnitude_std",
        "mixup",
        "cutmix",
        "optimizer.clip_norm",
        "schedule.base_lr",
        "schedule.warmup",
        "sam_radius",
        "precise_bn",
        "diagnostics.every",
    )
    for name in not_negative:
        if flat[name] < 0:
            raise ConfigError(f"{name} is {flat[name]}; it can't be negative.")
    _check_streaming(config)
    for measure in config.diagnostics.what:
        if measure not in get_args(Diagnostic):
            listed = ", ".join(get_args(Diagnostic))
            hint = did_you_mean(str(measure), get_args(Diagnostic))
            raise ConfigError(f"diagnostics.what names {measure!r}; it can be {listed}.{hint}")
    if config.diagnostics.every and streams(config):
        raise ConfigError(
            "diagnostics.every is set, and the training images are decoded as needed; diagnostics"
            " are of data sets that are held in memory. Set it to 0."
        )
    if not 0 <= config.data.magnitude <= LARGEST_MAGNITUDE:
        raise ConfigError(
            f"data.magnitude is {config.data.magnitude}; it can be 0 to {LARGEST_MAGNITUDE:g}."
        )
    if not 0 <= config.data.random_erasing <= 1:
        raise ConfigError(
            f"data.random_erasing is {config.data.random_erasing}; it is a probability, 0 to 1."
        )
    if not 0 < config.optimizer.layer_decay <= 1:
        raise ConfigError(
            f"optimizer.layer_decay is {config.optimizer.layer_decay}; it must be greater than 0"
            " and at most 1."
        )
    if config.optimizer.trainable == "head" and config.optimizer.layer_decay < 1:
        raise ConfigError(
            "optimizer.trainable is 'head', and optimizer.layer_decay lowers the rates of all else;"
            " set one of them."
        )
    distill = config.distill
    if bool(distill.teacher) != bool(distill.model):
        raise ConfigError(
            f"distill.teacher is {distill.teacher!r} and distill.model {distill.model!r}; a weight"
            " file and the name of its network go together."
        )
    if not 0 <= distill.weight <= 1:
        raise ConfigError(f"distill.weight is {distill.weight}; it must be at least 0, at most 1.")
    shares = ("optimizer.momentum", "optimizer.beta2", "schedule.warmup_from", "schedule.final")
    for name in (*shares, "label_smoothing", "bce_threshold", "ema_decay"):
        if not 0 <= flat[name] < 1:
            raise ConfigError(f"{name} is {flat[name]}; it must be at least 0 and less than 1.")
    if config.bce_threshold and config.loss == "softmax":
        raise ConfigError(
            f"bce_threshold is {config.bce_threshold}, and loss is 'softmax'; the threshold is for"
            " 'bce' and 'bce_sum'."
        )


def _check_normalization(config: ConfigDict) -> None:
    mean, std = config.data.mean, config.data.std
    if len(mean) != len(std):
        raise ConfigError(f"data.mean is {mean} and data.std {std}; both have a value per channel.")
    if mean and config.data.normalize != "channel":
        raise ConfigError(
            f"data.normalize is {config.data.normalize!r}, which is measured; data.mean and"
            " data.std are for 'channel'."
        )
    if not all(0 <= value <= 1 for value in mean) or not all(0 < value <= 1 for value in std):
        raise ConfigError(
            f"data.mean is {mean} and data.std {std}; they are of values in 0…1, and no deviation"
            " is 0."
        )


def streams(config: ConfigDict) -> bool:
    """Whether training images are decoded each time they are needed."""
    return bool(config.data.random_crop_area)


def _check_streaming(config: ConfigDict) -> None:
    data, area = config.data, config.data.random_crop_area
    if not streams(config):
        for name in ("eval_size", "eval_resize", "early_sizes"):
            if data[name]:
                raise ConfigError(
                    f"data.{name} is {data[name]}; it goes with data.random_crop_area."
                )
        if data.interpolation != "bilinear" and data.image_size is None:
            raise ConfigError(
                f"data.interpolation is {data.interpolation!r}, and nothing is scaled; it goes with"
                " data.image_size."
            )
        return
    numbers = all(isinstance(share, int | float) for share in area)
    if len(area) != 2 or not numbers or not 0 < area[0] <= area[1] <= 1:
        raise ConfigError(
            f"data.random_crop_area is {area}; it is a smallest and a largest share, such as"
            " (0.08, 1.0), or () for none."
        )
    if data.image_size is None or not data.mean:
        raise ConfigError(
            "data.random_crop_area needs data.image_size, and data.mean and data.std: images that"
            " are decoded as they are needed aren't measured."
        )
    size = data.eval_size or data.image_size
    if data.eval_resize is not None and data.eval_resize < size:
        raise ConfigError(
            f"data.eval_resize is {data.eval_resize}, of which the {size} pixels of data.eval_size"
            " can't be cut out."
        )
    sizes, edges = data.early_sizes, data.size_boundaries
    rising = all(a < b for a, b in itertools.pairwise((0, *edges)))
    pixels = all(isinstance(size, int) and size > 0 for size in sizes)
    if len(sizes) != len(edges) or not rising or not pixels:
        raise ConfigError(
            f"data.early_sizes is {sizes} and data.size_boundaries {edges}; they are as many sizes"
            " in pixels and points where they end, which rises."
        )
    if data.workers < -1:
        raise ConfigError(f"data.workers is {data.workers}; it can be -1, 0 or more.")
    if data.corrupt != "stop":
        raise ConfigError(
            "data.corrupt is 'skip', which would change what a batch holds;"
            " `resnet-jax prepare` leaves out what is damaged."
        )


def flatten(config: ConfigDict | Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted name → value, with tuples for sequences."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, ConfigDict | Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = tuple(value) if isinstance(value, list | tuple) else value
    return flat


def to_json(config: ConfigDict) -> str:
    """The config as a JSON document, fields in their order."""
    return json.dumps(config.to_dict(), indent=2) + "\n"


def from_json(text: str) -> ConfigDict:
    """Rebuild a config that `to_json` wrote.

    Raises:
        ConfigError: it isn't one, or has a field that this version doesn't know.
    """
    try:
        stored = flatten(json.loads(text))
    except (ValueError, AttributeError, RecursionError) as error:
        raise ConfigError(f"it isn't a config that this package wrote ({error}).") from None
    config = default_config()
    known = flatten(config)
    for name, value in stored.items():
        if name not in known:
            raise ConfigError(f"it has a field {name} that this version doesn't know.")
        if value is not None:
            set_field(config, name, value)
    return config


def set_field(config: ConfigDict, name: str, value: Any) -> None:
    """Set the field with a dotted name.

    Raises:
        ConfigError: no such field, or a value of another type.
    """
    known = flatten(config)
    if name not in known:
        raise unknown_field(name, known)
    *path, last = name.split(".")
    node = config
    for key in path:
        node = node[key]
    try:
        node[last] = value
    except (TypeError, ValueError, OverflowError):
        kind = node.get_type(last).__name__
        raise ConfigError(f"{name} can't be {_shown(value)}; it is of type {kind}.") from None


def _shown(value: Any) -> str:
    """The value as text of a reasonable length; Python writes no number of 5,000 digits."""
    try:
        text = repr(value)
    except ValueError:
        return "a number of thousands of digits"
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}…"


def describe_differences(old: str, new: str) -> list[str]:
    """Lines `name: old → new` for the fields of two JSON configs that differ, but may not.

    Raises:
        ConfigError: the old one can't be read by this version.
    """
    before, after = flatten(from_json(old)), flatten(from_json(new))
    return [
        f"{name}: {before[name]!r} → {after[name]!r}"
        for name in before
        if name not in MAY_CHANGE and before[name] != after[name]
    ]
