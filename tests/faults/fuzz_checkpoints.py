"""The small documents of a run: progress, config.json, metrics.jsonl, summary.json."""

import json
import random
from pathlib import Path

from etils import epath

from resnet_jax.checkpoint.corruption import CorruptionError
from resnet_jax.checkpoint.integrity import sealed as seal
from resnet_jax.checkpoint.integrity import unsealed
from resnet_jax.checkpoint.workdir import CONFIG, METRICS, check_config, read_config
from resnet_jax.config.io import describe_differences, from_json, to_json
from resnet_jax.config.schema import default_config
from resnet_jax.logging.metrics_log import read_metrics
from tests.faults import mutate

PROGRESS = {
    "progress": {
        "best": {"step": 8, "top1": 0.5, "loss": 1.25},
        "wall_s": 12.5,
        "nonfinite": 0,
        "class_names": ["cat", "dog"],
        "image_shape": [8, 8, 1],
        "fingerprint": "3f" * 16,
    },
    "checksums": {"params/conv1/kernel": "ab" * 16, "step": "cd" * 16},
}
RECORD = {"step": 5, "epoch": 0.5, "split": "train", "loss": 2.25, "top1": 0.125, "lr": 0.1}
RECORD |= {"img_per_s": 900.0}


def main(record: mutate.Record, cases: int, folder: Path) -> dict[str, object]:
    """Read each case; what isn't refused must be what was written."""
    workdir = epath.Path(folder)
    (folder / "checkpoints" / "1").mkdir(parents=True)
    sealed, config = seal(PROGRESS), to_json(default_config())
    lines = "".join(json.dumps(RECORD | {"step": step}) + "\n" for step in (5, 10, 12))
    forged = 0
    for case in range(cases):
        rng = random.Random(f"checkpoint {case}")
        kind = case % 3
        if kind == 0:
            text = json.dumps(mutate.document(sealed, rng)).encode()
            if rng.random() < 0.5:
                text = mutate.raw(json.dumps(sealed).encode(), rng)
            try:
                content = json.loads(text)  # Orbax's part; what it raises, the restore wraps
            except (ValueError, RecursionError):
                record.refused += 1
                continue
            with record.case(case):
                try:
                    inner = unsealed(content)
                except CorruptionError:
                    record.refused += 1
                    record.accepted -= 1
                else:
                    forged += json.dumps(inner, sort_keys=True) != json.dumps(
                        PROGRESS, sort_keys=True
                    )
        elif kind == 1:
            content = mutate.raw(config.encode(), rng)
            if rng.random() < 0.5:
                content = json.dumps(mutate.document(json.loads(config), rng)).encode()
            (folder / CONFIG).write_bytes(content)
            with record.case(case):
                from_json(read_config(workdir))
                check_config(workdir, config, describe_differences)
        else:
            changed = mutate.raw(lines.encode(), rng)
            if rng.random() < 0.5:
                changed = json.dumps(mutate.document([RECORD], rng)).encode()[1:-1] + b"\n"
            (folder / METRICS).write_bytes(changed)
            with record.case(case):
                for one in read_metrics(folder / METRICS):
                    assert isinstance(one["step"], int)
                    assert isinstance(one["split"], str)
    return {"forged": forged}
