"""Measured speeds of training ResNet-50 that others have published, for docs/scaling.md."""

from typing import NamedTuple


class Published(NamedTuple):
    """A measured speed of ResNet-50 v1.5 at 224², in bfloat16 or float16.

    Attributes:
        what: chips and code.
        img_per_s: per chip.
        batch: images per chip; None where the publication doesn't say.
        shape: of the slice.
        source: of the number.
    """

    what: str
    img_per_s: float
    batch: int | None
    shape: tuple[int, ...]
    source: str


# Per chip, derived from the logs of MLPerf (github.com/mlcommons/training_results_v*): epochs ×
# 1,281,167 / (run_stop − run_start) / chips, so that evaluation is part of the time.
V4_POINTS = [
    Published("8 chips, TensorFlow", 3296, None, (2, 2, 2), "MLPerf Training, Google"),
    Published("64 chips, TensorFlow", 3258, None, (4, 4, 4), "MLPerf Training, Google"),
    Published("128 chips, JAX, Shampoo", 2212, 256, (4, 4, 8), "MLPerf Training v1.0"),
    Published("3,456 chips", 2158, None, (12, 12, 24), "MLPerf Training, Google"),
    Published("4,096 chips", 1646, None, (16, 16, 16), "MLPerf Training, Google"),
]


class Gpu(NamedTuple):
    """A GPU's data sheet, and the best published speed of one GPU, alone or of eight."""

    name: str
    hbm_gb_per_s: float
    tflop_per_s: float
    img_per_s: float
    source: str


# NVIDIA's data sheets: V100 SXM2, A100 SXM 80 GB, H100 SXM, H200 SXM; dense, without sparsity.
GPUS = [
    Gpu("V100", 900, 125, 1492, "NVIDIA DeepLearningExamples, MXNet"),
    Gpu("A100", 2039, 312, 3411, "NVIDIA DeepLearningExamples, MXNet"),
    Gpu("H100", 3350, 989, 7162, "MLPerf Training v4.0"),
    Gpu("H200", 4800, 989, 7950, "MLPerf Training v4.0"),
]
