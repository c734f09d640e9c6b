"""A network as ONNX in float32 and in int8, scored on CIFAR-10's test images.

    pip install onnxruntime
    python benchmarks/onnx_int8.py --data-dir tfds --save build/onnx

The network is exported by `export_onnx`. ONNX Runtime's tools quantise it after training: weights
to int8 for each output channel, activations to uint8, whose ranges are measured on training images
(Jacob et al. 2018, 1712.05877). Both files stay in the folder.
"""

import argparse
import json
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from report import write_report

import resnet_jax
from resnet_jax.data.datasets import load_dataset
from resnet_jax.inference.onnx import export_onnx, write_onnx

ROOT = Path(__file__).resolve().parents[1]
BATCH = 100


class Calibration(CalibrationDataReader):
    """Batches of images, of which ONNX Runtime measures the ranges of the activations."""

    def __init__(self, images: np.ndarray) -> None:
        self._batches: Iterator[np.ndarray] = iter(np.split(images, len(images) // BATCH))

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next batch; None after the last."""
        batch = next(self._batches, None)
        return None if batch is None else {"images": batch}


def quantize(source: Path, target: Path, images: np.ndarray) -> None:
    """Write a network in int8, with ranges measured on uint8 `images`."""
    prepared = target.with_suffix(".prepared.onnx")
    quant_pre_process(source, prepared, skip_symbolic_shape=True)  # which needs SymPy
    quantize_static(
        prepared,
        target,
        Calibration(images),
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        # ONNX Runtime 1.32 fails in this adjustment where weights have a scale for each channel.
        extra_options={"QDQDisableWeightAdjustForInt32Bias": True},
    )
    prepared.unlink()


def logits_of(path: Path, images: np.ndarray) -> np.ndarray:
    """Logits by ONNX Runtime on the CPU."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    batches = np.split(images, len(images) // BATCH)
    return np.concatenate([session.run(["logits"], {"images": batch})[0] for batch in batches])


def main() -> None:
    """Export, quantise, score, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", default="resnet20.cifar10_eighth", help="a published name")
    parser.add_argument("--data-dir", required=True, help="where the prepared data set lies")
    parser.add_argument("--save", type=Path, required=True, help="folder of the ONNX files")
    parser.add_argument("--calibration", type=int, default=1000, help="training images")
    out = ROOT / "benchmarks/results/onnx_int8.json"
    parser.add_argument("--out", type=Path, default=out)
    args = parser.parse_args()

    network = resnet_jax.pretrained(args.weights)
    splits = {"train": f"train[:{args.calibration}]", "test": "test"}
    data = load_dataset("cifar10", splits=splits, data_dir=args.data_dir)
    train, test = data.splits["train"], data.splits["test"]
    args.save.mkdir(parents=True, exist_ok=True)
    files = {kind: args.save / f"{args.weights}.{kind}.onnx" for kind in ("float32", "int8")}
    preprocessing = network.preprocessing
    graph = export_onnx(
        network.model,
        network.variables,
        preprocessing.shape,
        normalization=preprocessing.normalization,
    )
    write_onnx(files["float32"], graph, notes={"model": args.weights})
    quantize(files["float32"], files["int8"], train.images)

    logits = {kind: logits_of(file, test.images) for kind, file in files.items()}
    own = network.predict(list(test.images))
    logits |= {"resnet_jax": np.log(own)}  # up to a constant for each image
    results: dict[str, Any] = {
        "versions": {name: version(name) for name in ("onnx", "onnxruntime")},
        "weights": args.weights,
        "data_fingerprint": data.fingerprint,
        "calibration_images": len(train.images),
        "test_images": len(test.images),
        "correct": {
            kind: int((values.argmax(axis=-1) == test.labels).sum())
            for kind, values in logits.items()
        },
        "bytes": {kind: file.stat().st_size for kind, file in files.items()},
    }
    write_report(args.out, results)
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
