"""Plain and residual networks of 20 and 56 layers on CIFAR-10: He et al. 2015, figure 6, table 6.

The recipe of 1512.03385, section 4.2 (batch 128, SGD with momentum 0.9, weight decay 1e-4, rate 0.1
divided by 10 twice, crops with padding 4 and flips, batch norm over groups of 64), with an eighth
of the paper's 64,000 steps and three seeds of each network; and one ResNet-20 with all steps.

COMMAND: resnet-jax sweep --config=configs/cifar10_table6.py --workdir=runs/papers/runs/cifar
EXPECTED: a test error of 8.64 % for ResNet-20 after 64,000 steps (seed 0; the paper's 8.75 %), in
2.5 hours on two CPU cores with oneDNN and AVX-512. After 8,000 steps (means of seeds 0, 1, 2):
12.68 % for ResNet-20, 15.21 % for plain-20, 14.25 % for ResNet-56 and 36.00 % for plain-56.
benchmarks/results/cifar10_table6/ has the finished runs.

`resnet-jax reproduce he2015-fig6 --size=cifar` draws its figure from these runs, and he2015-table6,
he2015-fig7, veit2016-lesion, li2018 and balduzzi2017 use them, too. The recipe is in
resnet_jax/research/table6.py.
"""

from resnet_jax.research.table6 import get_config, sweep

__all__ = ["get_config", "sweep"]
