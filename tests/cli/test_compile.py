"""resnet-jax compile: its mistakes, and its report of documents that are given to it."""

import importlib.util
import json
from pathlib import Path

import pytest
from rich.console import Console

from resnet_jax.cli import compile as command
from resnet_jax.cli.main import main
from tests.cli.mistakes import assert_one_line

IMAGENET = "--config=configs/imagenet.py:resnet50"
RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([IMAGENET], 64, "--topology is missing; give a slice of any size, such as v4:2x2x1,"),
        ([IMAGENET, "--topology=v5x:2x2"], 64, "isn't of a known TPU"),
        ([IMAGENET, "--topology=h300:8"], 64, "or GPU (a100, h100, h200, b200, b300)"),
        ([IMAGENET, "--topology=h100:2x9"], 64, "NVLink joins at most 8; use h100:3x8"),
        ([IMAGENET, "--topology=v5e:4"], 64, "usual are v5e:2x2"),
        ([IMAGENET, "--topology=v5e:2x2", "--all"], 64, "not allowed with argument"),
        ([IMAGENET, "--topology=v5e:2x2", "--batch-per-chip=x"], 64, "invalid int value"),
        ([IMAGENET, "--all", "--hlo=step.txt"], 64, "leave out --all"),
        ([IMAGENET, "--topology=v5e:2x2", "--hlo=/no/step.txt"], 73, "there is no folder /no"),
    ],
)
def test_mistakes_are_one_line(arguments, code, message, capsys):
    assert_one_line(["compile", *arguments], code, message, capsys)


@pytest.mark.parametrize(
    ("topology", "extra"), [("v5e:2x2", "tpu"), ("h200:8", "gpu-compile"), ("", "tpu")]
)
def test_without_a_compiler_one_line_says_how_to_get_it(topology, extra, monkeypatch, capsys):
    find = importlib.util.find_spec
    hidden = ("libtpu", "jax_cuda12_plugin", "jax_cuda13_plugin")
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name in hidden else find(name)
    )
    target = f"--topology={topology}" if topology else "--all"
    assert main(["compile", IMAGENET, target]) == 64
    error = capsys.readouterr().err
    assert f"pip install -e '.[{extra}]'" in error
    assert error.count("\n") == 1


def _document(**fields):
    memory = {"limit_bytes": 16 * 2**30, "peak_bytes": 20 * 2**30, "fits": False}
    memory |= dict.fromkeys(
        ("parameter_bytes", "optimizer_bytes", "other_state_bytes", "example_bytes"), 2**20
    )
    document = {
        "model": "resnet50",
        "dtype": "bfloat16",
        "topology": "v5e:2x2",
        "chip": "TPU v5 lite",
        "unit": "chip",
        "chips": 4,
        "devices": 4,
        "batch_size": 4096,
        "batch_per_chip": 1024,
        "steps_per_dispatch": 10,
        "memory": memory,
    }
    return document | fields


def _shown(document) -> str:
    console = Console(width=120, highlight=False, soft_wrap=True)
    with console.capture() as captured:
        command.show(document, console)
    return captured.get()


def test_a_program_that_does_not_fit_is_reported_without_figures():
    text = _shown(_document())
    assert "1,024 images per chip, batch 4,096" in text
    assert "20.00 GiB" in text
    assert "It doesn't fit." in text
    assert "img/s" not in text


def test_a_sweep_is_one_line_per_slice():
    runs = [_document(), _document(topology="v6e:2x2")]
    text = _shown({"runs": runs, "missing": ["XLA's GPU compiler isn't installed"]})
    assert "GPU compiler isn't installed" in text
    assert "v5e:2x2" in text
    assert "v6e:2x2" in text
    assert text.count("20.00 !") == 2


def test_the_report_of_a_program_that_was_compiled():
    document = json.loads(
        (RESULTS / "tpu_compile" / "resnet50_v5e-256_256_groups.json").read_text()
    )
    document = {"unit": "chip", "kernels": []} | document  # measured before both were added
    text = _shown(document)
    assert "resnet50 in bfloat16 on v5e:16x16: 256 chips (TPU v5 lite), 256 images per chip" in text
    assert "It fits. About " in text
    assert "Evaluation fits" in text
    assert f"Per image {document['gflop_per_image']:.1f}" in text
    assert "all-reduce" in text
    assert "summed as bf16: 2.0 bytes per parameter" in text
    assert f"That is {document['roofline']['img_per_s_per_chip']:,.0f} img/s per chip" in text
    verified = {"largest_batch_verified": True, "largest_batch_peak_bytes": 15 * 2**30}
    assert "(verified: 15.00 GiB)" in _shown(document | verified)


def test_the_report_of_a_program_for_gpus():
    path = RESULTS / "gpu_compile" / "resnet50_h100-4x8_256_groups.json"
    document = json.loads(path.read_text())
    text = _shown(document)
    assert "resnet50 in bfloat16 on h100:4x8: 32 GPUs (NVIDIA H100 80GB HBM3), 256 images" in text
    assert "memory per GPU" in text
    assert "cuDNN" in text
    assert "input fusion" in text
    assert "on-chip" not in text
    assert f"{document['roofline']['img_per_s_per_node']:,.0f} per node" in text
    assert "NCCL's latencies" in text


def test_a_step_that_does_not_fit_a_gpu_says_how_much_it_would_need():
    memory = _document()["memory"] | {"limit_bytes": 60 * 2**30, "peak_bytes": 75 * 2**30}
    text = _shown(_document(memory=memory, unit="GPU", topology="h100:8", chips=8, devices=8))
    assert "75.00 GiB" in text
    assert "It doesn't fit." in text
