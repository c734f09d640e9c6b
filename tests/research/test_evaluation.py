"""Modified networks are evaluated on every image once."""

import jax
import jax.numpy as jnp
import numpy as np

import resnet_jax
from resnet_jax.data.datasets import ImageSet
from resnet_jax.research.evaluation import make_evaluator
from resnet_jax.train.losses import cross_entropy


def test_every_image_counts_once():
    model = resnet_jax.create_model("resnet20", stage_sizes=(1,), width=4, stem_width=4)
    variables = resnet_jax.init_variables(model, jax.random.key(0), (8, 8, 3))
    pixels = np.random.default_rng(0).integers(0, 255, (7, 8, 8, 3), np.uint8)
    labels = np.arange(7, dtype=np.int32) % 10
    normalization = {"mean": jnp.zeros(3), "std": jnp.full(3, 255.0)}

    def apply(modified, inputs):
        variables, scale = modified
        return scale * model.apply(variables, inputs)

    evaluate = make_evaluator(apply, ImageSet(pixels, labels))
    for scale in (1.0, 0.5):
        scores = evaluate((variables, jnp.float32(scale)), normalization)
        logits = scale * model.apply(variables, pixels / 255.0)
        np.testing.assert_allclose(scores.loss, cross_entropy(logits, labels).mean(), rtol=1e-5)
        assert scores.top1 == (logits.argmax(axis=-1) == labels).mean()
        assert scores.examples == 7
