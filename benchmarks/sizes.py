"""Counts the parameters and multiply-adds of every preset, and writes resnet_jax/models/sizes.json.

python benchmarks/sizes.py
"""

import json
from pathlib import Path

import resnet_jax
from resnet_jax.models.presets import PRESETS
from resnet_jax.models.sizes import TABLE, Size

PATH = Path(__file__).parents[1] / "resnet_jax" / "models" / TABLE


def count(name: str) -> Size:
    """The size of a preset."""
    preset = PRESETS[name]
    # Scanned, a network of a thousand layers is traced as quickly as one of twenty.
    fields = {"scan": True} if preset.build is resnet_jax.ResNet else {}
    summary = resnet_jax.summarize(resnet_jax.create_model(name, **fields), preset.image_shape)
    return Size(summary.params, summary.macs)


def main() -> None:
    """Write the table, a line for each network."""
    rows = (f"  {json.dumps(name)}: {json.dumps(count(name))}" for name in resnet_jax.list_models())
    PATH.write_text("{\n" + ",\n".join(rows) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
