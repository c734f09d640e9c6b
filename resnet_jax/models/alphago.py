"""The network of AlphaGo Zero (Silver et al. 2017, Nature 550): a residual tower with two heads."""

from functools import partial

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from resnet_jax.models.fields import setting
from resnet_jax.models.layers import Classifier, Conv
from resnet_jax.models.network import Network, Normalization
from resnet_jax.models.norms import BatchNorm
from resnet_jax.models.resnet import ResNet


class AlphaGoZero(Network, kw_only=True):
    """A convolution and residual blocks of one width, a policy head and a value head.

    The input is the board with 17 planes: eight positions of either player, and whose turn it is.

    Attributes:
        units: residual blocks of the tower; 19 or 39.
        num_classes: moves, 19 · 19 and passing.
        width: channels of the tower.
        hidden: units of the value head's hidden layer.
        bn_group_size, bn_momentum: as in `ResNet`.
    """

    units: int
    num_classes: int = setting(362, "shapes")
    width: int = setting(256, "shapes")
    hidden: int = setting(256, "shapes")
    bn_group_size: int | None = setting(None, "training")
    bn_momentum: float = setting(0.9, "training", below=1)

    @nn.nowrap
    def normalization(self) -> Normalization:
        """How the network normalises."""
        return Normalization("batch", self.bn_momentum)

    @nn.compact
    def features(
        self, images: Float[Array, "n h w c"], *, train: bool = False, update_stats: bool = True
    ) -> dict[str, Array]:
        """Return "tower" (NHWC), "logits" of the moves and "value" (n,) in [-1, 1], float32."""
        conv = partial(Conv, dtype=self.dtype, param_dtype=self.param_dtype)
        dense = partial(Classifier, dtype=self.dtype, param_dtype=self.param_dtype)
        norm = partial(
            BatchNorm,
            train=train,
            update_stats=update_stats,
            group_size=self.bn_group_size,
            momentum=self.bn_momentum,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
        )
        tower = ResNet(
            stage_sizes=(self.units,),
            num_classes=0,
            stem="cifar",
            width=self.width,
            bn_group_size=self.bn_group_size,
            bn_momentum=self.bn_momentum,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            name="tower",
        )
        x = tower.features(images, train=train, update_stats=update_stats)["stage1"]

        def head(name: str, features: int) -> Array:
            y = norm(name=f"{name}_bn")(conv(features, 1, name=f"{name}_conv")(x))
            return nn.relu(y).reshape(x.shape[0], -1)

        logits = dense(self.num_classes, name="policy_fc")(head("policy", 2))
        value = nn.relu(dense(self.hidden, name="value_fc1")(head("value", 1)))
        value = dense(1, name="value_fc2")(value)
        return {"tower": x, "logits": logits, "value": jnp.tanh(value[:, 0])}
