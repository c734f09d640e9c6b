"""Publish the network of a finished run with the package, together with its model card.

    python benchmarks/publish.py runs/table6/resnet20_full_seed0 resnet20.cifar10_full \\
        --note "the paper's 64,000 steps"

It writes resnet_jax/weights/zoo_files/NAME.safetensors and NAME.json, both or none. A name that is
published is refused. The network is that of the last step. The file is scored on all test images
as users would score it, and must classify as many of them correctly as the run's summary says.
config.json, metrics.jsonl, summary.json and curves.png of the run must be in a folder of
benchmarks/results, which the card names as its log. Afterwards `python benchmarks/tables.py` writes
docs/weights.md.
"""

import argparse
import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any

from table_text import RESULTS, ROOT

from resnet_jax.data.datasets import ImageSet
from resnet_jax.inference.card import TERMS, make_card, measured_scores, published_preprocessing
from resnet_jax.inference.pretrained import pretrained
from resnet_jax.inference.restore import restore_run
from resnet_jax.logging.provenance import provenance
from resnet_jax.train.experiment import load_data
from resnet_jax.weights.save import save_weights
from resnet_jax.weights.zoo import FILES

_LICENCE = "Apache-2.0"
_BATCH = 250


def find_log(run: Path) -> tuple[str, str]:
    """The folder of benchmarks/results with the run's log, and the SHA-256 of metrics.jsonl."""
    digest = hashlib.sha256((run / "metrics.jsonl").read_bytes()).hexdigest()
    for path in sorted(RESULTS.rglob("metrics.jsonl")):
        if hashlib.sha256(path.read_bytes()).hexdigest() == digest:
            return str(path.parent.relative_to(ROOT)), digest
    raise SystemExit(
        f"No folder of {RESULTS} has the log of {run}. Copy config.json, metrics.jsonl,"
        " summary.json and curves.png of the run there first."
    )


def publish(run: Path, name: str, note: str, folder: Path) -> dict[str, Any]:
    """Write the weights and the card of a run into a folder; returns the card."""
    names = [f"{name}.safetensors", f"{name}.json"]
    if there := [file for file in names if (folder / file).exists()]:
        raise SystemExit(f"{folder / there[0]} exists. Choose another name.")
    with tempfile.TemporaryDirectory(prefix=".", dir=folder) as temporary:
        card = _write(run, name, note, Path(temporary))
        for file in names:  # the card last, which lists the weights
            (Path(temporary) / file).replace(folder / file)
    return card


def _write(run: Path, name: str, note: str, folder: Path) -> dict[str, Any]:
    """Write the weights and the card, and compare the scores of the file with the run's."""
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    about = summary["data"]
    if about["name"] not in TERMS:
        raise SystemExit(f"The licence and intended use of {about['name']} aren't listed here.")
    log, digest = find_log(run)
    network = restore_run(run)
    if network.step != summary["steps"]:
        raise SystemExit(f"The last checkpoint of {run} isn't that of its last step.")
    path = folder / f"{name}.safetensors"
    save_weights(
        path, network.model, network.variables, metadata=published_preprocessing(network).metadata()
    )
    data = load_data(network.config).splits["test"]
    assert isinstance(data, ImageSet)
    probabilities = pretrained(path).predictor(list(data.images), batch_size=_BATCH)
    found = measured_scores(probabilities, data.labels)
    promised = round(summary["final"]["test"]["top1"] * summary["final"]["test"]["examples"])
    if found["correct"] != promised:
        raise SystemExit(f"The file classifies {found['correct']} images, the run {promised}.")
    card = make_card(
        network,
        summary,
        name=name,
        file=path,
        note=note,
        scores={"split": "test", **found},
        licence=_LICENCE,
    )
    card |= {
        "log": log,
        "log_sha256": digest,
        "trained_by": {
            key: summary[key] for key in ("command", "commit", "versions", "hardware", "wall_s")
        },
        "published_by": {
            key: value for key, value in provenance().items() if key in ("command", "commit")
        },
    }
    text = json.dumps(card, indent=1, ensure_ascii=False) + "\n"
    (folder / f"{name}.json").write_text(text, encoding="utf-8")
    return card


def main() -> None:
    """Publish a run, and print its scores."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, metavar="RUN", help="the directory of a finished run")
    parser.add_argument("name", metavar="NAME", help="MODEL.DATA or MODEL.DATA_TAG")
    parser.add_argument("--note", required=True, help="what users must know of the training")
    parser.add_argument("--out", type=Path, default=FILES, help="default: the package")
    args = parser.parse_args()
    card = publish(args.run, args.name, args.note, args.out)
    print(f"{args.name}: {json.dumps(card['scores'])}, {card['file']['bytes']:,} bytes")


if __name__ == "__main__":
    main()
