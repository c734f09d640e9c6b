"""The table of config fields: name, default, accepted values and meaning of each.

`default_config` is built from the table, `validate` runs its checks, and docs/config.md shows it.
The fields of `config.model` beside `model.name` are those of the network classes.
"""

import dataclasses
from typing import Any, Literal, get_args

from resnet_jax.config.checks import (
    AT_LEAST_1,
    BELOW_1,
    LOCAL,
    NOT_NEGATIVE,
    NUMBERS,
    POSITIVE,
    POWER_OF_TWO,
    PROBABILITY,
    RANGE_OF_SHARES,
    SEED,
    SHARE,
    SPLIT,
    UP_TO_1,
    WORKERS,
    Check,
    at_most,
    one_of,
)
from resnet_jax.data.augment.policies import LARGEST_MAGNITUDE, PolicyName
from resnet_jax.data.images.preprocessing import Interpolation
from resnet_jax.data.readers.skipped import CorruptPolicy

Diagnostic = Literal["norms", "signal", "bn_drift", "updates", "gates", "cka", "sharpness"]


@dataclasses.dataclass(frozen=True)
class Field:
    """A field of the config.

    Attributes:
        name: dotted.
        default: None if the field is unset by default.
        check: the accepted values; None if the code that uses the field checks it, or any value of
            the type is accepted. Not called for None.
        doc: one line of Markdown.
        kind: type of the values; needed for a field that is unset by default.
        may_change: the field doesn't change what is computed and may differ when a run is resumed.
    """

    name: str
    default: Any
    check: Check | None
    doc: str
    kind: type | None = None
    may_change: bool = False


# fmt: off
FIELDS: tuple[Field, ...] = (
    Field("seed", 0, SEED, "Seed of the initial values, the order of examples and augmentation."),
    Field("seeds", (), None,
          "Several seeds, trained in one program; () trains `seed` alone."),
    Field("vary", (), None,
          'Values for each seed: pairs such as `("schedule.base_lr", (0.1, 0.05))`.'),
    Field("extensions", (), None,
          "Python modules to import first, which [register names of your own](extend.md)."),

    Field("model.name", "resnet20", None,
          "A preset of `resnet-jax list`; empty for the network of `init_from`'s file."),
    Field("init_from", "", None,
          "Weight file of the initial values, as `load_weights` takes it; empty: random values."),
    Field("new_head", False, None,
          "Start with a new classifier. Otherwise the file's must have the classes of the data."),

    Field("data.name", "digits", None,
          "`digits`; the name of a TFDS data set, of which `mnist` and `fashion_mnist` may also be"
          " a folder of IDX files; or `folder` for images in `data.dir`. `arrays` is on record"
          " for [data passed in Python](data.md#data-from-python)."),
    Field("data.dir", None, None, kind=str, may_change=True,
          doc="Folder of the data; unset: `$TFDS_DATA_DIR`, else `~/tensorflow_datasets`."),
    Field("data.image_size", None, AT_LEAST_1, kind=int,
          doc="Side of the images: the shorter side is scaled to it, the centre cropped."
              " Unset: images stay as they are, and must have one size."),
    Field("data.train", "train", SPLIT, "TFDS split expression of the training examples."),
    Field("data.validation", "", None,
          "Split that selects the best checkpoint; empty for no selection."),
    Field("data.test", "test", None, "Split that is scored only, never selected on."),
    Field("data.normalize", "channel", None,
          "Statistics of the normalisation: `channel`, or `pixel_mean` for the mean image."),
    Field("data.mean", (), NUMBERS,
          "Mean per channel, 0 to 1, for `channel`; () takes that of `init_from`'s file, or else of"
          " the training images."),
    Field("data.std", (), NUMBERS, "Standard deviation per channel; goes with `data.mean`."),
    Field("data.random_crop_area", (), RANGE_OF_SHARES,
          "Smallest and largest share of the area of a random-resized crop, scaled to"
          " `data.image_size`. Training images are then decoded as needed, as RGB."),
    Field("data.early_sizes", (), None,
          "Smaller crop sizes at first (progressive resizing). Each is compiled on its own."),
    Field("data.size_boundaries", (), NUMBERS,
          "Where each of `data.early_sizes` ends, in `duration_unit`."),
    Field("data.eval_size", None, AT_LEAST_1, kind=int,
          doc="With `data.random_crop_area`: side of the centre crop of scored images; unset:"
              " `data.image_size`."),
    Field("data.eval_resize", None, AT_LEAST_1, kind=int,
          doc="With `data.random_crop_area`: shorter side to which scored images are scaled before"
              " the crop; unset: `data.eval_size`."),
    Field("data.interpolation", "bilinear", one_of(get_args(Interpolation)),
          "Interpolation of every scaling, except that of random-resized crops."),
    Field("data.workers", -1, WORKERS, may_change=True,
          doc="Processes that decode images; 0: this process; -1: this process up to eight cores,"
              " then one for every eight further cores."),
    Field("data.repeats", 1, POSITIVE,
          "Times that an image is in a batch, augmented differently each time."),
    Field("data.crop_padding", 4, NOT_NEGATIVE,
          "Pixels of padding before the random crop; 0 disables the crop."),
    Field("data.flip", True, None, "Flip half of the images left to right."),
    Field("data.policy", "", one_of(get_args(PolicyName)),
          "Random operations on RGB images: TrivialAugment or RandAugment."),
    Field("data.magnitude", 9.0, at_most(LARGEST_MAGNITUDE), "Mean magnitude of `randaugment`."),
    Field("data.magnitude_std", 0.0, NOT_NEGATIVE,
          "Standard deviation of the magnitude of `randaugment`."),
    Field("data.augmentations", (), None,
          "Names of [registered augmentations](extend.md), applied in this order after"
          " `data.policy`."),
    Field("data.random_erasing", 0.0, PROBABILITY, "Probability that a rectangle is erased."),
    Field("data.corrupt", "stop", one_of(get_args(CorruptPolicy)), may_change=True,
          doc="What a damaged image does: `stop` ends the run, `skip` leaves the example out, up to"
              " 0.1 % of a split. Split expressions still count it."),
    Field("data.resident", True, None, may_change=True,
          doc="Keep the training split on every device. Otherwise batches are sent from the host."),

    Field("batch_size", 128, POSITIVE, "Examples of a training step, over all devices."),
    Field("accumulate", 1, POSITIVE,
          "Gradient accumulation: micro-batches of a batch, one after the other."),
    Field("eval_batch_size", 500, POSITIVE, "Examples that are scored at once, over all devices."),
    Field("duration_unit", "epochs", one_of(("epochs", "examples")),
          "Unit of all lengths, which therefore don't depend on the batch size."),
    Field("duration", 20.0, POSITIVE, "Length of the run, in `duration_unit`."),
    Field("eval_every", 1.0, POSITIVE,
          "Interval of scoring the validation split; each scoring also saves a checkpoint."),
    Field("checkpoint_every", 1.0, POSITIVE, "Interval of checkpoints.", may_change=True),
    Field("keep_checkpoints", 2, POSITIVE, may_change=True,
          doc="Newest checkpoints that are kept, beside the best."),
    Field("keep_every", 0.0, NOT_NEGATIVE, may_change=True,
          doc="Interval of checkpoints that are never deleted, from which `resnet-jax verify` can"
              " train again; 0 for none."),
    Field("save_attempts", 10, POSITIVE, may_change=True,
          doc="Saves that may fail in a row before the run ends."),
    Field("log_every", 20, POSITIVE, "Steps between log points.", may_change=True),
    Field("prometheus_dir", "", LOCAL, may_change=True,
          doc="Folder in which the run writes [a file for Prometheus](watching.md#prometheus);"
              " empty for none."),
    Field("trackers", ("tensorboard",), one_of(("tensorboard", "wandb", "mlflow"), each=True),
          "[Services that show the run](watching.md#trackers); () for none.", may_change=True),
    Field("steps_per_dispatch", 10, POSITIVE, may_change=True,
          doc="Steps of one call of the compiled program, a dispatch."),
    Field("hang_timeout_s", 1800.0, NOT_NEGATIVE, may_change=True,
          doc="Seconds without progress after which a run counts as stuck; must exceed the time to"
              " compile, to score a split and to save. 0 disables the watchdog."),
    Field("nonfinite.policy", "abort", one_of(("abort", "skip", "rollback")), may_change=True,
          doc="What a loss, gradient or parameter that isn't finite does: end the run, skip the"
              " step, or go back to the last checkpoint and leave out the batches since."),
    Field("nonfinite.limit", 10, NOT_NEGATIVE, may_change=True,
          doc="How often a run may skip or go back."),

    Field("optimizer.name", "sgd", None,
          "`sgd`, `lars`, `lamb`, `adamw`, `muon`, or a [registered optimiser](extend.md)."),
    Field("optimizer.momentum", 0.9, BELOW_1, "Momentum; β₁ of `lamb` and `adamw`."),
    Field("optimizer.nesterov", False, None, "Nesterov's momentum."),
    Field("optimizer.beta2", 0.999, BELOW_1,
          "β₂ of `lamb`, of `adamw`, and of the parameters that `muon` leaves to AdamW."),
    Field("optimizer.epsilon", 1e-8, POSITIVE,
          "Added to the root of the second moment, for the same optimisers."),
    Field("optimizer.trust_coefficient", 0.001, POSITIVE, "Trust coefficient of `lars`."),
    Field("optimizer.weight_decay", 1e-4, NOT_NEGATIVE, "Weight decay."),
    Field("optimizer.decay", "l2", None,
          "`l2` (`sgd`, `lars`) or `decoupled` (`sgd`, `lamb`, `adamw`, `muon`)."),
    Field("optimizer.decay_exempt", (), None,
          "Parameter groups without weight decay: `norm`, `bias`. `lars` and `lamb` don't scale"
          " their rates either."),
    Field("optimizer.clip_norm", 0.0, NOT_NEGATIVE,
          "Largest norm of the whole gradient; 0 disables clipping."),
    Field("optimizer.trainable", "all", one_of(("all", "head")),
          "`head` trains the classifier alone; running statistics are used and stay."),
    Field("optimizer.layer_decay", 1.0, UP_TO_1,
          "The learning rate d stages before the classifier is multiplied by `layer_decay`**d."),
    Field("optimizer.scalar_rate", 1.0, POSITIVE,
          "Factor of the learning rate of biases and scales: of all parameters but kernels."),

    Field("schedule.name", "cosine", None, "`cosine`, `step`, `constant`, `linear` or `poly`."),
    Field("schedule.base_lr", 0.1, NOT_NEGATIVE, "Peak learning rate for `reference_batch`."),
    Field("schedule.reference_batch", 128, POSITIVE,
          "The peak is `base_lr` × `batch_size` / `reference_batch`."),
    Field("schedule.warmup", 0.0, NOT_NEGATIVE, "Length of the linear warm-up."),
    Field("schedule.warmup_from", 0.0, BELOW_1, "Share of the peak at which the warm-up starts."),
    Field("schedule.final", 0.0, BELOW_1,
          "Share of the peak at which `cosine`, `linear` and `poly` end."),
    Field("schedule.power", 2.0, POSITIVE, "Power of `poly`."),
    Field("schedule.boundaries", (), NUMBERS, "Where `step` changes the rate."),
    Field("schedule.scales", (1.0,), NUMBERS,
          "Shares of the peak of `step`: one more than boundaries."),

    Field("loss", "softmax", None,
          "Cross-entropy of the softmax; of each class on its own, their mean `bce` or sum"
          " `bce_sum`; or a [registered loss](extend.md)."),
    Field("bce_threshold", 0.0, BELOW_1,
          "Smoothed and mixed targets above it become 1, others 0, for `bce` and `bce_sum`;"
          " 0 keeps them."),
    Field("label_smoothing", 0.0, BELOW_1, "Probability spread evenly over all classes."),
    Field("mixup", 0.0, NOT_NEGATIVE,
          "α of mixup of neighbours in a batch; 0 disables it. Training `top1` counts the label of"
          " the image itself."),
    Field("cutmix", 0.0, NOT_NEGATIVE,
          "α of CutMix; 0 disables it. With both, an example has one of them."),
    Field("metrics", (), None,
          "Names of [registered metrics](extend.md), scored beside loss, top1 and top5."),
    Field("distill.teacher", "", None,
          "Weight file of a network to learn from, as `load_weights` takes it; empty for none."),
    Field("distill.model", "", None, "Preset of the teacher."),
    Field("distill.weight", 0.5, SHARE,
          "Share of the loss that is the divergence from the teacher's softmax."),
    Field("distill.temperature", 1.0, POSITIVE, "Temperature of both softmaxes."),
    Field("ema_decay", 0.0, BELOW_1,
          "Decay of the moving averages of the parameters, which are scored too; 0 for none."),
    Field("ema_every", 1, POSITIVE, "Steps between updates of the moving averages."),
    Field("ema_warmup", False, None, "The decay after t updates is at most (1 + t) / (10 + t)."),
    Field("sam_radius", 0.0, NOT_NEGATIVE, "Radius of SAM's ascent step; 0 disables SAM."),
    Field("sam_every", 1, POSITIVE, "Steps between gradients of SAM; the others are plain."),
    Field("precise_bn", 0, NOT_NEGATIVE,
          "Before scoring, compute the running statistics anew on the batches of this number of"
          " last steps; 0 disables it."),

    Field("diagnostics.every", 0.0, NOT_NEGATIVE, may_change=True,
          doc="Interval of [measurements inside the network](runs.md#diagnostics), from before the"
              " first step; 0 for never."),
    Field("diagnostics.what", ("norms", "signal", "bn_drift", "updates", "gates", "cka"),
          one_of(get_args(Diagnostic), each=True), "Measurements to take.", may_change=True),
    Field("diagnostics.examples", 128, POSITIVE, may_change=True,
          doc="Number of training images to measure on."),

    Field("mesh.data", -1, None, may_change=True,
          doc="Devices along the data axis; -1 for all. A batch is split over data × fsdp."),
    Field("mesh.fsdp", 1, None, may_change=True,
          doc="Fully sharded data parallelism: devices over which parameters and the optimiser's"
              " state are split."),
    Field("mesh.shards", 0, POWER_OF_TWO,
          doc="Fixed shards of a batch, for the same bits on any mesh; 0 leaves sums to XLA."),
)
# fmt: on

MAY_CHANGE = tuple(field.name for field in FIELDS if field.may_change)
"""Fields that don't change what is computed, and so may differ when a run is resumed."""

FOLDERS = ("data.dir", "prometheus_dir")
"""Fields that name folders of one machine."""
