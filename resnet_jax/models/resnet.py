"""Residual networks since He et al. 2015 (1512.03385): a stem, stages of blocks, a classifier."""

import dataclasses
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from resnet_jax.errors import ConfigError
from resnet_jax.models.block import ResidualBlock
from resnet_jax.models.block_config import ORDERS, BlockConfig, BlockFields
from resnet_jax.models.block_layers import Layers
from resnet_jax.models.branches import find_branch
from resnet_jax.models.fields import Need, check_needs, fields_of, setting
from resnet_jax.models.layers import Classifier, Conv, SpaceToDepthConv
from resnet_jax.models.network import Network, Normalization
from resnet_jax.models.norms import ScaleBias
from resnet_jax.ops.batch_norm import MaxPooled
from resnet_jax.ops.pooling import max_pool

Stem = Literal["imagenet", "cifar", "deep", "space_to_depth"]
StemPool = Literal["max", "conv", "none"]

_NEEDS: tuple[Need, ...] = (
    (("stem_norm",), lambda m: m.order == "preact", "order='preact'"),
    (("deep_stem_widths",), lambda m: m.stem == "deep", "stem='deep'"),
)


class Feature(NamedTuple):
    """Channels of a tap of `ResNet.features`, and pixels of the image per step of its map."""

    channels: int
    stride: int


class ResNet(Network, BlockFields, kw_only=True):  # type: ignore[misc]  # BlockFields is thawed
    """A stem, stages of residual blocks, global average pooling and a classifier.

    Each stage after the first doubles the width and halves the feature map in its first block.

    Attributes:
        stage_sizes: residual blocks per stage.
        num_classes: number of logits; 0 for no classifier: the pooled features are the result.
        stem: "imagenet" (7×7 stride 2), "deep" (three 3×3, the first of stride 2), "cifar" (one
            3×3), or "space_to_depth" (equal to "imagenet", parameters included, but computed on
            2×2 blocks of pixels).
        stem_pool: what halves the feature map after the stem: "max" (3×3), "conv" (3×3, normalised,
            activated; ResNet-RS) or "none". None is "max", and "none" for the "cifar" stem.
        stem_width: channels of the stem; None is `width`. The "deep" stem begins with
            `deep_stem_widths`.
        deep_stem_widths: channels of the first two convolutions of the "deep" stem; None is half
            of its width for both.
        stem_norm: normalise and activate after the stem. False is BiT's: pre-activation blocks
            begin with both, and the maximum is taken over a feature map padded with zeros.
        width: width of the first stage; each stage doubles it.
        output_stride: pixels of the image per step of the last stage's feature map. Strides
            beyond it become dilations; None for none (Yu et al. 2017, 1705.09914; as in
            torchvision).
        head_dropout: dropout rate before the classifier, in training.
        scan: compile the blocks of a stage that are alike once, and loop over them. Parameters
            of these blocks are stacked: "layer1_rest" instead of "layer1_1", "layer1_2", …;
            `stack_units` and `unstack_units` convert.
        remat: gradient checkpointing: keep only the input of each block for the backward pass,
            and compute the block again.

    The other fields are those of `BlockConfig`.
    """

    stage_sizes: tuple[int, ...] = dataclasses.field(metadata={"changes": "shapes"})
    num_classes: int = setting(1000, "shapes", least=0)
    stem: Stem = "imagenet"
    stem_pool: StemPool | None = None
    stem_width: int | None = setting(None, "shapes")
    deep_stem_widths: tuple[int, int] | None = setting(None, "shapes")
    stem_norm: bool = True
    width: int = setting(64, "shapes")
    output_stride: int | None = None
    head_dropout: float = setting(0.0, "training", below=1)
    scan: bool = setting(False, "compilation")
    remat: bool = setting(False, "compilation")

    @nn.nowrap
    def check(self) -> None:
        """Check the fields of blocks, then the fields that need others; see `Network.check`."""
        object.__setattr__(self, "branch", BlockConfig.of(self).branch)
        check_needs(self, _NEEDS)
        for name in fields_of(find_branch(self.branch)):
            if name in fields_of(self):
                raise ConfigError(
                    f"model.branch is {self.branch!r}, whose field {name} is one of ResNet's,"
                    " too; rename it."
                )
        width = self.stem_width or self.width
        if self.stem == "deep" and self.deep_stem_widths is None and width % 2:
            raise ConfigError(f"model.stem is 'deep', which halves its width; it is {width}, odd.")
        features = self.width * find_branch(self.branch).expansion
        if self.shortcut.startswith("A") and width > features:
            raise ConfigError(
                f"model.stem_width is {width}, more than the {features} channels of the first"
                f" stage; shortcut {self.shortcut!r} only adds channels. Use shortcut 'B'."
            )
        if self.output_stride is not None:
            strides = [self._stem_stride() * 2**i for i in range(len(self.stage_sizes))]
            if self.output_stride not in strides:
                known = ", ".join(map(str, strides))
                raise ConfigError(
                    f"model.output_stride is {self.output_stride}; it can be {known}."
                )

    def __call__(
        self, images: Float[Array, "n h w c"], *, train: bool = False, update_stats: bool = True
    ) -> Float[Array, "n k"] | Float[Array, "n c"]:
        """Return float32 logits [n, k], or the pooled features [n, c] with `num_classes=0`.

        The arguments are those of `features`.
        """
        taps = self.features(images, train=train, update_stats=update_stats)
        return taps["logits" if self.num_classes else "pooled"]

    @nn.compact
    def features(
        self, images: Float[Array, "n h w c"], *, train: bool = False, update_stats: bool = True
    ) -> dict[str, Array]:
        """Return the activations on the way to the logits.

        Args:
            images: normalised.
            train: use the statistics of the batch, dropout and stochastic depth.
            update_stats: with `train`, update the running statistics.

        Returns:
            "stem", "stage1", … (NHWC, type `dtype`), "pooled" (n, c), "logits" (n, k), the last
            two float32; without "logits" if `num_classes` is 0. The last stage's map is taken after
            a pre-activation network's final normalisation and activation.
        """
        make = Layers(BlockConfig.of(self), train, update_stats)
        taps = {"stem": self._stem(images, make)}
        x = taps["stem"]
        for stage in range(1, len(self.stage_sizes) + 1):
            x = self._stage(x, stage, make)
            if stage == len(self.stage_sizes):
                x = make.apply(ORDERS[self.order].before, x, "bn_final")
            taps[f"stage{stage}"] = x

        taps["pooled"] = x = x.astype(jnp.float32).mean(axis=(1, 2))
        if self.num_classes:
            x = nn.Dropout(self.head_dropout, deterministic=not train)(x)
            is_fixup = self.norm == "fixup"
            if is_fixup:
                x = ScaleBias(param_dtype=self.param_dtype, name="fc_shift")(x)
            kinds = self.dtype, self.param_dtype
            taps["logits"] = Classifier(self.num_classes, is_fixup, *kinds, name="fc")(x)
        return taps

    @nn.nowrap
    def feature_info(self) -> dict[str, Feature]:
        """Channels and stride of the taps that are maps, without running the network."""
        info = {"stem": Feature(self.stem_width or self.width, self._stem_stride())}
        expansion, total = find_branch(self.branch).expansion, self._stem_stride()
        for stage in range(1, len(self.stage_sizes) + 1):
            total *= self._stride_and_dilation(stage)[0]
            info[f"stage{stage}"] = Feature(self.width * 2 ** (stage - 1) * expansion, total)
        return info

    @nn.nowrap
    def normalization(self) -> Normalization:
        """How the network normalises."""
        return Normalization(self.norm, self.bn_momentum, self.bn_frozen)

    @nn.nowrap
    def canonical(self) -> "ResNet":
        """The network with the same inference whose fields are spelled in one way.

        Defaults that depend on other fields are resolved; a field that leaves inference alone has
        its default: the stem on blocks of pixels, and stochastic depth by the example.
        """
        by_example = self.stochastic_depth_mode == "example"
        return self.copy(
            stem="imagenet" if self.stem == "space_to_depth" else self.stem,
            stem_pool=self.resolved_stem_pool(),
            output_stride=self.feature_info()[f"stage{len(self.stage_sizes)}"].stride,
            stochastic_depth=0.0 if by_example else self.stochastic_depth,
            stochastic_depth_mode="batch",
        )

    @nn.nowrap
    def resolved_stem_pool(self) -> StemPool:
        """`stem_pool`, or what None stands for."""
        return self.stem_pool or ("none" if self.stem == "cifar" else "max")

    @nn.nowrap
    def _stem_stride(self) -> int:
        return (1 if self.stem == "cifar" else 2) * (
            1 if self.resolved_stem_pool() == "none" else 2
        )

    def _stem(self, x: Array, make: Layers) -> Array:
        width = self.stem_width or self.width
        around = ("norm", "act") if self.stem_norm else ()
        if self.stem == "deep":
            first, second = self.deep_stem_widths or (width // 2, width // 2)
            for i, features, stride in ((1, first, 2), (2, second, 1)):
                x = make.conv(features, 3, stride, name=f"conv1_{i}")(x)
                x = make.apply(("norm", "act"), x, f"bn1_{i}")
            x = make.conv(width, 3, name="conv1_3")(x)
        elif self.stem == "cifar":
            x = make.conv(width, 3, name="conv1")(x)
        else:
            kind = SpaceToDepthConv if self.stem == "space_to_depth" else Conv
            x = make.conv(width, 7, 2, name="conv1", kind=kind)(x)
        pool = self.resolved_stem_pool()
        if pool == "max" and self._can_pool_first(make):
            return make.apply(around, MaxPooled(x), "bn1")
        x = make.apply(around, x, "bn1")
        if pool == "max":
            x = max_pool(x, zero_padded=not self.stem_norm)
        elif pool == "conv":
            x = make.conv(width, 3, 2, name="pool_conv")(x)
            x = make.apply(around, x, "pool_bn")
        return x

    def _can_pool_first(self, make: Layers) -> bool:
        """Whether the stem can be pooled before it is activated, of a quarter as many values.

        The maximum of values that are activated by ReLU is the activated maximum.
        """
        by_batch = make.use_batch_statistics and not self.is_initializing()
        return by_batch and self.stem_norm and self.activation == "relu"

    @nn.nowrap
    def _stride_and_dilation(self, stage: int) -> tuple[int, int]:
        """Stride of the stage's first block, and dilation of all blocks after the first."""
        if stage == 1:
            return 1, 1
        wanted = self._stem_stride() * 2 ** (stage - 1)
        dilation = max(1, wanted // (self.output_stride or wanted))
        return (1 if dilation > 1 else 2), dilation

    def _stage(self, x: Array, stage: int, make: Layers) -> Array:
        blocks, depth = self.stage_sizes[stage - 1], sum(self.stage_sizes)
        stride, dilation = self._stride_and_dilation(stage)
        scale = 2 ** (stage - 1)
        survivals = None
        if self.stochastic_depth:
            done = sum(self.stage_sizes[: stage - 1])
            number = done + 1 + jnp.arange(blocks)
            survivals = 1 - number / depth * self.stochastic_depth

        def block(name: str, *, stride: int = 1, first_dilation: int = dilation) -> ResidualBlock:
            return ResidualBlock(
                make.config,
                width=self.width * scale,
                inner=self.groups * (self.group_width or self.width) * scale,
                stride=stride,
                dilation=dilation,
                first_dilation=first_dilation,
                activated=name == "layer1_0" and self.stem_norm,
                depth=depth,
                train=make.train,
                update_stats=make.update_stats,
                name=name,
            )

        def call(block: ResidualBlock, x: Array, survival: Array | None) -> tuple[Array, None]:
            return block(x, survival), None

        def applied(*, in_loop: bool) -> Callable[..., tuple[Array, None]]:
            # Inside a loop the recomputation can't be merged with the forward pass by mistake.
            return nn.remat(call, prevent_cse=not in_loop) if self.remat else call

        apply = applied(in_loop=False)
        is_looped = self.scan and blocks > 1
        # As in torchvision, a stage's first block has the dilation of the stage before.
        before = self._stride_and_dilation(stage - 1)[1] if stage > 1 else dilation
        for i in range(1 if is_looped else blocks):
            name = f"layer{stage}_{i}"
            of_first = {"stride": stride, "first_dilation": before} if i == 0 else {}
            x, _ = apply(block(name, **of_first), x, None if survivals is None else survivals[i])
        if is_looped:
            loop = nn.scan(
                applied(in_loop=True),
                variable_axes={"params": 0, "batch_stats": 0},
                split_rngs={"params": True, "dropout": True},
                length=blocks - 1,
            )
            rest = block(f"layer{stage}_rest")
            x, _ = loop(rest, x, None if survivals is None else survivals[1:])
        return x
