"""A network that PyTorch trained, imported and scored on CIFAR-10's test images, in two ways.

    resnet-jax convert resnet20.pth resnet20.safetensors
    python benchmarks/imported_accuracy.py --weights resnet20.safetensors --data-dir tfds

The weights are those of github.com/EhanW/advrob-cifar10 (MIT), whose own code scores 90.01 %. Once
`resnet-jax eval` reads the prepared data set; then `resnet-jax predict` reads its images as 10,000
PNG files.
"""

import argparse
import contextlib
import hashlib
import io
import json
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image
from report import write_report

from resnet_jax.cli.main import main as resnet_jax
from resnet_jax.data.datasets import load_dataset

ROOT = Path(__file__).resolve().parents[1]
NETWORK = ["--model=resnet20", "--field=shortcut=B", "--mean=0.485,0.456,0.406"]
NETWORK += ["--std=0.229,0.224,0.225", "--size=32", "--resize=none"]


def run(*arguments: str) -> dict[str, Any]:
    """The document of a command."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        code = resnet_jax([*arguments, "--json"])
    if code:
        raise SystemExit(code)
    return json.loads(printed.getvalue())


def main() -> None:
    """Score in both ways, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--data-dir", required=True, help="where the prepared data set lies")
    out = ROOT / "benchmarks/results/imported_accuracy.json"
    parser.add_argument("--out", type=Path, default=out)
    args = parser.parse_args()
    network = [f"--weights={args.weights}", *NETWORK]
    scores = run("eval", *network, "--data=cifar10", f"--data-dir={args.data_dir}")

    data = load_dataset("cifar10", splits={"test": "test"}, data_dir=args.data_dir)
    test = data.splits["test"]
    with tempfile.TemporaryDirectory() as folder:
        for number, image in enumerate(test.images):
            Image.fromarray(image).save(Path(folder, f"{number:05d}.png"))
        predictions = run("predict", *network, "--top=1", folder)["predictions"]
    first = [prediction["top"][0]["index"] for prediction in predictions]
    right = sum(index == label for index, label in zip(first, test.labels.tolist(), strict=True))
    results = {
        "network": NETWORK,
        "weights_sha256": hashlib.sha256(args.weights.read_bytes()).hexdigest(),
        "data_fingerprint": data.fingerprint,
        "published_right": 9001,
        "eval": {"examples": scores["examples"], "right": round(scores["top1"] * 10_000)},
        "predict": {"examples": len(predictions), "right": right},
    }
    write_report(args.out, results)
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
