"""ResNets for ImageNet-size and CIFAR-size images (He et al. 2015, 1512.03385)."""

import functools
from typing import Any, Literal, get_args

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from resnet_jax.errors import ConfigError, did_you_mean
from resnet_jax.models.blocks import Branch, ResidualUnit, Shortcut, StrideOn
from resnet_jax.models.layers import BatchNorm, Classifier, Conv, max_pool

Stem = Literal["imagenet", "cifar"]


class ResNet(nn.Module):
    """A stem, stages of residual units, global average pooling and a classifier.

    Each stage after the first doubles the width and halves the map in its first unit.

    Attributes:
        stage_sizes: residual units per stage.
        num_classes: number of logits.
        branch: "basic" (two 3×3) or "bottleneck" (1×1, 3×3, 1×1 to four times the width).
        stem: "imagenet" (7×7 stride 2, then 3×3 max pool stride 2) or "cifar" (one 3×3).
        width: channels of the stem and width of the first stage.
        shortcut: where the shape changes, "A" subsamples and zero-pads channels, "B" projects.
        stride_on: which convolution of a shrinking bottleneck has the stride;
            "1x1" is v1 (the paper), "3x3" is v1.5. Parameters are the same.
        zero_init_scale: start the last scale of each branch at zero.
        bn_group_size: normalise over groups of so many examples; None is the whole batch.
        bn_momentum, bn_epsilon: of every batch normalisation; momentum as Flax counts it.
        dtype: type of the computation; logits and statistics are float32 always.
        param_dtype: type of the parameters.
    """

    stage_sizes: tuple[int, ...]
    num_classes: int = 1000
    branch: Branch = "basic"
    stem: Stem = "imagenet"
    width: int = 64
    shortcut: Shortcut = "B"
    stride_on: StrideOn = "3x3"
    zero_init_scale: bool = False
    bn_group_size: int | None = None
    bn_momentum: float = 0.9
    bn_epsilon: float = 1e-5
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        """Refuse what can't be built, by name, before anything is traced."""
        choices = {"branch": Branch, "stem": Stem, "shortcut": Shortcut, "stride_on": StrideOn}
        for field, allowed in choices.items():
            value, known = getattr(self, field), get_args(allowed)
            if value not in known:
                hint = did_you_mean(str(value), known)
                choice = ", ".join(known)
                raise ConfigError(f"model.{field} is {value!r}; it can be {choice}.{hint}")
        if not isinstance(self.stage_sizes, tuple) or not self.stage_sizes:
            raise ConfigError(f"model.stage_sizes is {self.stage_sizes!r}; it must be a tuple.")
        counts: dict[str, tuple[int, ...]] = {
            "stage_sizes": self.stage_sizes,
            "width": (self.width,),
            "num_classes": (self.num_classes,),
        }
        if self.bn_group_size is not None:
            counts["bn_group_size"] = (self.bn_group_size,)
        for field, numbers in counts.items():
            if not all(isinstance(n, int) and n >= 1 for n in numbers):
                value = getattr(self, field)
                raise ConfigError(f"model.{field} is {value!r}; it takes integers from 1 up.")
        if not 0 <= self.bn_momentum < 1:
            raise ConfigError(f"model.bn_momentum is {self.bn_momentum}; it must be in [0, 1).")
        if self.bn_epsilon <= 0:
            raise ConfigError(f"model.bn_epsilon is {self.bn_epsilon}; it must be positive.")
        super().__post_init__()

    def __call__(
        self, images: Float[Array, "n h w c"], *, train: bool = False, update_stats: bool = True
    ) -> Float[Array, "n k"]:
        """Return float32 logits; see `features` for the arguments."""
        return self.features(images, train=train, update_stats=update_stats)["logits"]

    @nn.compact
    def features(
        self, images: Float[Array, "n h w c"], *, train: bool = False, update_stats: bool = True
    ) -> dict[str, Array]:
        """Return the activations on the way to the logits.

        Args:
            images: normalised images, NHWC.
            train: normalise by the statistics of this batch, not by the running ones.
            update_stats: with `train`, also update the running statistics; the collection
                "batch_stats" must then be mutable. Ignored without `train`.

        Returns:
            "stem", "stage1", … (NHWC, type `dtype`), "pooled" (n, c), "logits" (n, k) float32.
        """
        kinds = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        stats = {"train": train, "update_stats": update_stats}
        norm = functools.partial(
            BatchNorm,
            group_size=self.bn_group_size,
            momentum=self.bn_momentum,
            epsilon=self.bn_epsilon,
            **kinds,
        )
        taps: dict[str, Array] = {}

        kernel_size, stride = (7, 2) if self.stem == "imagenet" else (3, 1)
        x = Conv(self.width, kernel_size, stride, name="conv1", **kinds)(images)
        x = nn.relu(norm(name="bn1")(x, **stats))
        if self.stem == "imagenet":
            x = max_pool(x)
        taps["stem"] = x

        for stage, units in enumerate(self.stage_sizes, start=1):
            for unit in range(units):
                x = ResidualUnit(
                    width=self.width * 2 ** (stage - 1),
                    stride=2 if stage > 1 and unit == 0 else 1,
                    branch=self.branch,
                    shortcut=self.shortcut,
                    stride_on=self.stride_on,
                    zero_init_scale=self.zero_init_scale,
                    norm=norm,
                    name=f"layer{stage}_{unit}",
                    **kinds,
                )(x, **stats)
            taps[f"stage{stage}"] = x

        taps["pooled"] = x.astype(jnp.float32).mean(axis=(1, 2))
        taps["logits"] = Classifier(self.num_classes, name="fc", **kinds)(taps["pooled"])
        return taps
