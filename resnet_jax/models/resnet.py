"""Residual networks, from He et al. 2015 (1512.03385) on: a stem, stages of units, a classifier."""

import dataclasses
from typing import Literal, NamedTuple

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from resnet_jax.models import checks
from resnet_jax.models.block import EXPANSION, ORDERS, Grammar, ResidualUnit
from resnet_jax.models.layers import Classifier, SpaceToDepthConv, max_pool
from resnet_jax.models.norms import Scalars

Stem = Literal["imagenet", "cifar", "deep", "space_to_depth"]
StemPool = Literal["max", "conv", "none"]

_SHARED = tuple(f.name for f in dataclasses.fields(Grammar) if f.name not in ("parent", "name"))


class Feature(NamedTuple):
    """What a tap of `ResNet.features` holds: channels, and pixels of the image per step."""

    channels: int
    stride: int


class ResNet(Grammar, kw_only=True):
    """A stem, stages of residual units, global average pooling and a classifier.

    Each stage after the first doubles the width and halves the map in its first unit.

    Attributes:
        stage_sizes: residual units per stage.
        num_classes: number of logits; 0 for no classifier, the pooled features then being the
            result.
        stem: "imagenet" (7×7 stride 2), "deep" (three 3×3, the first of stride 2), "cifar" (one
            3×3), or "space_to_depth" (equal to "imagenet", parameters included, but computed on
            2×2 blocks of pixels).
        stem_pool: what halves the map after the stem: "max" (3×3), "conv" (3×3, normalised,
            activated; ResNet-RS) or "none". None is "max", and "none" for the "cifar" stem.
        stem_width: channels of the stem; None is `width`. The "deep" stem begins with
            `deep_stem_widths`.
        deep_stem_widths: channels of the first two convolutions of the "deep" stem; None is half
            of its width for both.
        stem_norm: normalise and activate after the stem. False is BiT's: pre-activation units
            begin with both, and the maximum is taken over a map padded with zeros.
        width: width of the first stage; each stage doubles it.
        output_stride: pixels of the image per step of the last stage's map. Strides beyond it
            become dilations; None for none (Yu et al. 2017, 1705.09914; as in torchvision).
        head_dropout: before the classifier, in training.
        scan: compile the units of a stage that are alike once, and loop over them. Parameters
            of these units are stacked: "layer1_rest" instead of "layer1_1", "layer1_2", …;
            `stack_units` and `unstack_units` convert.
        remat: keep only the input of each unit for the backward pass, and compute it again.

    The other fields are those of `Grammar`.
    """

    stage_sizes: tuple[int, ...]
    num_classes: int = 1000
    stem: Stem = "imagenet"
    stem_pool: StemPool | None = None
    stem_width: int | None = None
    deep_stem_widths: tuple[int, int] | None = None
    stem_norm: bool = True
    width: int = 64
    output_stride: int | None = None
    head_dropout: float = 0.0
    scan: bool = False
    remat: bool = False

    def __post_init__(self) -> None:
        """Refuse what can't be built, by name, before anything is traced."""
        checks.check_resnet(self)
        super().__post_init__()

    def __call__(
        self, images: Float[Array, "n h w c"], *, train: bool = False, update_stats: bool = True
    ) -> Float[Array, "n k"]:
        """Return float32 logits; see `features` for the arguments."""
        taps = self.features(images, train=train, update_stats=update_stats)
        return taps["logits" if self.num_classes else "pooled"]

    @nn.compact
    def features(
        self, images: Float[Array, "n h w c"], *, train: bool = False, update_stats: bool = True
    ) -> dict[str, Array]:
        """Return the activations on the way to the logits.

        Args:
            images: normalised images, NHWC.
            train: normalise by the statistics of this batch, not by the running ones, and drop
                what is to be dropped; the latter needs `rngs={"dropout": key}`.
            update_stats: with `train`, also update the running statistics; the collection
                "batch_stats" must then be mutable. Ignored without `train`.

        Returns:
            "stem", "stage1", … (NHWC, type `dtype`), "pooled" (n, c), "logits" (n, k), the last
            two float32. The last stage's is taken after a pre-activation network's final
            normalisation and activation.
        """
        stats = {"train": train, "update_stats": update_stats}
        taps = {"stem": self._stem(images, stats)}
        x = taps["stem"]
        for stage in range(1, len(self.stage_sizes) + 1):
            x = self._stage(x, stage, stats)
            if stage == len(self.stage_sizes):
                x = self._steps(ORDERS[self.order].before, x, "bn_final", **stats)
            taps[f"stage{stage}"] = x

        taps["pooled"] = x = x.astype(jnp.float32).mean(axis=(1, 2))
        if self.num_classes:
            x = nn.Dropout(self.head_dropout, deterministic=not train)(x)
            if self.norm == "fixup":
                x = Scalars(name="fc_shift", param_dtype=self.param_dtype)(x)
            zero = self.norm == "fixup"
            fc = Classifier(self.num_classes, zero_init=zero, name="fc", **self._kinds())
            taps["logits"] = fc(x)
        return taps

    def feature_info(self) -> dict[str, Feature]:
        """Channels and stride of the taps that are maps, without running the network."""
        info = {"stem": Feature(self.stem_width or self.width, self._stem_stride())}
        for stage in range(1, len(self.stage_sizes) + 1):
            stride, _ = self._stride_and_dilation(stage)
            total = info["stem" if stage == 1 else f"stage{stage - 1}"].stride * stride
            features = self.width * 2 ** (stage - 1) * EXPANSION[self.branch]
            info[f"stage{stage}"] = Feature(features, total)
        return info

    def resolved_stem_pool(self) -> StemPool:
        """`stem_pool`, or what None stands for."""
        return self.stem_pool or ("none" if self.stem == "cifar" else "max")

    def _stem_stride(self) -> int:
        return (1 if self.stem == "cifar" else 2) * (
            1 if self.resolved_stem_pool() == "none" else 2
        )

    def _stem(self, x: Array, stats: dict[str, bool]) -> Array:
        width = self.stem_width or self.width
        around = ("norm", "act") if self.stem_norm else ()
        if self.stem == "deep":
            first, second = self.deep_stem_widths or (width // 2, width // 2)
            for i, features, stride in ((1, first, 2), (2, second, 1)):
                x = self._conv(features, 3, stride, name=f"conv1_{i}")(x)
                x = self._steps(("norm", "act"), x, f"bn1_{i}", **stats)
            x = self._conv(width, 3, name="conv1_3")(x)
        elif self.stem == "space_to_depth":
            plain = self._conv(width, 7, 2)
            fields = {f.name: getattr(plain, f.name) for f in dataclasses.fields(plain)}
            fields |= {"parent": self, "name": "conv1"}
            x = SpaceToDepthConv(**fields)(x)
        else:
            kernel_size, stride = (3, 1) if self.stem == "cifar" else (7, 2)
            x = self._conv(width, kernel_size, stride, name="conv1")(x)
        pool = self.resolved_stem_pool()
        # The maximum of activated values is the activated maximum, of a quarter as many values.
        keeps_order = self.stem_norm and self.activation == "relu"
        if pool == "max" and keeps_order and self._by_batch(train=stats["train"]):
            x = self._batch_norm("bn1", **stats)(x, pool=max_pool)
            return self._steps(("act",), x, "", **stats)
        x = self._steps(around, x, "bn1", **stats)
        if pool == "max":
            x = max_pool(x, zero_padded=not self.stem_norm)
        elif pool == "conv":
            x = self._conv(width, 3, 2, name="pool_conv")(x)
            x = self._steps(around, x, "pool_bn", **stats)
        return x

    def _stride_and_dilation(self, stage: int) -> tuple[int, int]:
        """Stride of the stage's first unit, and dilation of all units after that one."""
        if stage == 1:
            return 1, 1
        wanted = self._stem_stride() * 2 ** (stage - 1)
        dilation = max(1, wanted // (self.output_stride or wanted))
        return (1 if dilation > 1 else 2), dilation

    def _stage(self, x: Array, stage: int, stats: dict[str, bool]) -> Array:
        units, depth = self.stage_sizes[stage - 1], sum(self.stage_sizes)
        stride, dilation = self._stride_and_dilation(stage)
        scale = 2 ** (stage - 1)
        fields = {name: getattr(self, name) for name in _SHARED} | stats
        fields |= {
            "width": self.width * scale,
            "inner": self.groups * (self.group_width or self.width) * scale,
            "dilation": dilation,
            "depth": depth,
        }
        survivals = None
        if self.stochastic_depth:
            done = sum(self.stage_sizes[: stage - 1])
            number = done + 1 + jnp.arange(units)
            survivals = 1 - number / depth * self.stochastic_depth

        def call(unit: ResidualUnit, x: Array, survival: Array | None) -> tuple[Array, None]:
            return unit(x, survival), None

        # Inside a loop nothing can be merged with the forward pass by mistake.
        apply = nn.remat(call, prevent_cse=not self.scan) if self.remat else call
        looped = self.scan and units > 1
        for i in range(1 if looped else units):
            first = i == 0
            unit = ResidualUnit(
                **fields,
                stride=stride if first else 1,
                # As in torchvision, a stage's first unit has the dilation of the stage before.
                first_dilation=self._stride_and_dilation(stage - 1)[1]
                if first and stage > 1
                else dilation,
                activated=stage == 1 and first and self.stem_norm,
                name=f"layer{stage}_{i}",
            )
            x, _ = apply(unit, x, None if survivals is None else survivals[i])
        if looped:
            loop = nn.scan(
                apply,
                variable_axes={"params": 0, "batch_stats": 0},
                split_rngs={"params": True, "dropout": True},
                length=units - 1,
            )
            unit = ResidualUnit(**fields, first_dilation=dilation, name=f"layer{stage}_rest")
            x, _ = loop(unit, x, None if survivals is None else survivals[1:])
        return x
