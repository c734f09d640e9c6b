"""Residual, plain and highway networks of 8, 14 and 20 layers on scikit-learn's digits.

COMMAND: resnet-jax sweep --config=configs/digits_sweep.py --workdir=runs/digits_sweep --processes=2
EXPECTED: test error in %, mean ± standard deviation of three seeds, at 8, 14 and 20 layers:
residual 2.50 ± 0.28, 2.50 ± 0.00, 2.69 ± 0.58;
plain 3.98 ± 0.42, 16.48 ± 11.53, 44.44 ± 20.74;
highway 2.31 ± 0.70, 2.87 ± 0.70, 2.69 ± 0.32.
benchmarks/results/digits_sweep/ has the scores.
"""

from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from resnet_jax.research.configs import digits

# The same blocks, merged in three ways: H(x) + x, H(x), and T(x) H(x) + (1 - T(x)) x (Srivastava et
# al. 2015, 1505.00387). Gates with a bias of -2 begin at T = 0.12, by which H's gradients are
# multiplied. With a learning rate eight times as high, highway networks learn as residual ones do.
KINDS: dict[str, dict[str, Any]] = {
    "residual": {"model.shortcut": "A"},
    "plain": {"model.shortcut": "none"},
    "highway": {"model.shortcut": "A", "model.merge": "coupled_gates", "schedule.base_lr": 0.8},
}


def get_config() -> ConfigDict:
    """160 steps of 32, at half the width of the networks for CIFAR; three seeds in one program."""
    config = digits("resnet20")
    config.seeds = (0, 1, 2)
    config.data.train = "train[:1293]"
    config.data.validation = "train[1293:]"  # 144 images
    config.eval_every = config.duration / 8
    config.schedule.name = "cosine"
    return config


def sweep() -> Iterator[dict[str, Any]]:
    """Depth is 6 n + 2: three stages of n blocks."""
    for kind, fields in KINDS.items():
        for blocks in (1, 2, 3):
            yield {
                "name": f"{kind}{6 * blocks + 2}",
                "model.stage_sizes": (blocks,) * 3,
                **fields,
            }
