"""VGG (Simonyan & Zisserman 2014, 1409.1556), what residual networks were first compared with."""

from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

from resnet_jax.errors import ConfigError
from resnet_jax.models.fields import Need, check_needs, setting
from resnet_jax.models.layers import Classifier, Conv
from resnet_jax.models.network import Network, Normalization
from resnet_jax.models.norms import BatchNorm

_POOLED = 7  # the map that the classifier sees, as a side

_NEEDS: tuple[Need, ...] = (
    (
        ("bn_group_size", "bn_momentum", "norm_epsilon"),
        lambda m: m.norm == "batch",
        "norm='batch'",
    ),
)


class VGG(Network, kw_only=True):
    """Stages of 3×3 convolutions and 2×2 maximum pooling, then three fully connected layers.

    Parameters are named as in our ResNets: "conv{stage}_{i}", "bn{stage}_{i}", "fc1", "fc2", "fc".

    Attributes:
        stage_sizes: convolutions per stage.
        width: channels of the first stage; each stage doubles them, up to eight times.
        hidden: units of the two hidden layers.
        norm: "batch" or "none", after each convolution.
        bn_group_size, bn_momentum, norm_epsilon: as in `ResNet`.
        head_dropout: after each hidden layer, in training.
    """

    stage_sizes: tuple[int, ...]
    width: int = setting(64, "shapes")
    hidden: int = setting(4096, "shapes")
    norm: Literal["batch", "none"] = "none"
    bn_group_size: int | None = setting(None, "training")
    bn_momentum: float = setting(0.9, "training", below=1)
    norm_epsilon: float = setting(1e-5, positive=True)
    head_dropout: float = setting(0.5, "training", below=1)

    @nn.nowrap
    def check(self) -> None:
        """Refuse fields of a batch normalisation that isn't there; see `Network.check`."""
        check_needs(self, _NEEDS)

    @nn.nowrap
    def normalization(self) -> Normalization:
        """How the network normalises."""
        return Normalization(self.norm, self.bn_momentum)

    @nn.compact
    def features(
        self, images: Float[Array, "n h w c"], *, train: bool = False, update_stats: bool = True
    ) -> dict[str, Array]:
        """Return "stage1", … (after the pooling), "pooled" (n, 7·7·c) and float32 "logits".

        Raises:
            ConfigError: the images are too small to be halved once per stage.
        """
        smallest, (height, width) = 2 ** len(self.stage_sizes), images.shape[1:3]
        if min(height, width) < smallest:
            raise ConfigError(
                f"Images of {height}×{width} are too small for a VGG of {len(self.stage_sizes)}"
                f" stages, each of which halves them; it takes {smallest}×{smallest} or larger."
            )
        conv = partial(Conv, use_bias=True, dtype=self.dtype, param_dtype=self.param_dtype)
        dense = partial(Classifier, dtype=self.dtype, param_dtype=self.param_dtype)
        norm = partial(
            BatchNorm,
            train=train,
            update_stats=update_stats,
            group_size=self.bn_group_size,
            momentum=self.bn_momentum,
            epsilon=self.norm_epsilon,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
        )
        taps: dict[str, Array] = {}
        x = images
        for stage, convolutions in enumerate(self.stage_sizes, start=1):
            features = self.width * min(2 ** (stage - 1), 8)
            for i in range(1, convolutions + 1):
                x = conv(features, 3, name=f"conv{stage}_{i}")(x)
                if self.norm == "batch":
                    x = norm(name=f"bn{stage}_{i}")(x)
                x = nn.relu(x)
            x = nn.max_pool(x, (2, 2), strides=(2, 2))
            taps[f"stage{stage}"] = x

        x = adaptive_average_pool(x, _POOLED)
        taps["pooled"] = x = x.reshape(x.shape[0], -1)
        for i in (1, 2):
            x = nn.relu(dense(self.hidden, name=f"fc{i}")(x))
            x = nn.Dropout(self.head_dropout, deterministic=not train)(x)
        taps["logits"] = dense(self.num_classes, name="fc")(x)
        return taps


def adaptive_average_pool(x: Float[Array, "n h w c"], size: int) -> Float[Array, "n s s c"]:
    """Average over size × size bins of the map, which may overlap, as in PyTorch."""

    def bins(length: int) -> jax.Array:
        starts = [i * length // size for i in range(size)]
        stops = [-(-(i + 1) * length // size) for i in range(size)]
        weights = np.zeros((size, length), np.float32)
        for i, (start, stop) in enumerate(zip(starts, stops, strict=True)):
            weights[i, start:stop] = 1 / (stop - start)
        return jnp.asarray(weights, x.dtype)

    _, h, w, _ = x.shape
    if (h, w) == (size, size):
        return x
    return jnp.einsum("ih,nhwc,jw->nijc", bins(h), x, bins(w))
