"""Directories as runs leave them, without training."""

import json

from resnet_jax.config.io import to_json
from resnet_jax.config.schema import default_config, set_field
from tests.research import fake_child


def write_run(folder, *, top1=0.9, steps=(4, 8, 12), finished=True, seeds=(), **fields):
    """A run whose losses fall, and whose validation is at `top1` in the end."""
    config = default_config()
    for name, value in fields.items():
        set_field(config, name.replace("__", "."), value)
    config.seeds = seeds
    records = []
    for step in steps:
        for split in ("train", "validation"):
            scores = {"loss": 12 / step, "top1": top1 * step / 12}
            rates = {"lr": 0.1, "img_per_s": 900.0} if split == "train" else {}
            if seeds:
                of_seeds = {name: [v - 0.01, v, v + 0.01] for name, v in scores.items()}
                scores |= {"seeds": of_seeds}
            records.append({"step": step, "epoch": step / 4, "split": split, **scores, **rates})
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(to_json(config))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    if finished:
        summary = fake_child.summary(config.to_dict(), top1)
        (folder / "summary.json").write_text(json.dumps(summary))
    return folder
