"""The tables of GPUs in docs/scaling.md and docs/performance.md, from results/gpu_compile/."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from published_speeds import GPUS

RESULTS = Path(__file__).resolve().parent / "results" / "gpu_compile"


def _load(name: str) -> dict[str, Any]:
    return dict(json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8")))


def _scope(program: dict[str, Any]) -> str:
    size = program["bn_group_size"]
    return f"groups of {size}" if size else "whole batch"


def programs_table() -> str:
    """What was compiled."""
    lines = [
        "| model, GPUs | images per GPU | statistics of | GFLOP per image | MB per image"
        " | peak memory, of | largest batch | all-reduces | their MB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for path in sorted(RESULTS.glob("resnet*.json"), key=lambda path: path.stem.split("_")):
        program = _load(path.stem)
        memory = program["memory"]
        sums = [row for row in program["collectives"] if row["kind"] == "all-reduce"]
        lines.append(
            f"| [{program['model']}, {program['topology']}]"
            f"(../benchmarks/results/gpu_compile/{path.name})"
            f" | {program['batch_per_chip']} | {_scope(program)}"
            f" | {program['gflop_per_image']:.2f} | {program['mb_per_image']:.1f}"
            f" | {memory['peak_bytes'] / 2**30:.1f} GiB, {memory['limit_bytes'] / 2**30:.1f}"
            f" | {program['largest_batch_per_chip']:,}"
            f" | {sum(row['count'] for row in sums)}"
            f" | {sum(row['bytes'] for row in sums) / 1e6:.1f} |"
        )
    return "\n".join(lines)


def nodes_table() -> str:
    """One GPU, a node and several nodes: the roofline of each compiled program."""
    lines = [
        "| resnet50, 256 images per GPU | statistics of | step | of it collectives | img/s per GPU"
        " | img/s per node | img/s | efficiency |",
        "|---|---|---|---|---|---|---|---|",
    ]
    pairs = (("h200-1", "h200-8"), ("h100-1", "h100-4x8"))
    for alone, many in pairs:
        single = _load(f"resnet50_{alone}_256")["roofline"]["img_per_s_per_chip"]
        for name in (f"{alone}_256", f"{many}_256", f"{many}_256_groups"):
            program = _load(f"resnet50_{name}")
            time = program["roofline"]
            nodes = max(1, program["chips"] // 8)
            per_node = f"{time['img_per_s'] / nodes:,.0f}" if program["chips"] > 1 else ""
            lines.append(
                f"| {program['topology']} | {_scope(program)} | {1e3 * time['step_s']:.2f} ms"
                f" | {1e3 * time['exposed_s']:.2f} ms | {time['img_per_s_per_chip']:,.0f}"
                f" | {per_node} | {time['img_per_s']:,.0f}"
                f" | {time['img_per_s_per_chip'] / single:.0%} |"
            )
    return "\n".join(lines)


def published_table() -> str:
    """The roofline of google/flax's step on one GPU against what was measured.

    Like the codes that were measured, that step keeps the outputs of all convolutions.
    """
    lines = [
        "| GPU | measured, img/s per GPU | MB per image, as compiled | roofline, img/s | error"
        " | source |",
        "|---|---|---|---|---|---|",
    ]
    for gpu in GPUS:
        # A V100 has no bfloat16; its float16 is taken to move as much.
        compiled_for = "h200" if gpu.name.startswith("H") else "a100"
        program = _load(f"flax_resnet50_{compiled_for}-1_256")
        memory = gpu.hbm_gb_per_s * 1e3 / program["mb_per_image"]
        speed = min(memory, gpu.tflop_per_s * 1e3 / program["gflop_per_image"])
        lines.append(
            f"| {gpu.name} | {gpu.img_per_s:,.0f} | {program['mb_per_image']:.0f} | {speed:,.0f}"
            f" | {speed / gpu.img_per_s - 1:+.0%} | {gpu.source} |"
        )
    return "\n".join(lines)


def peers_table() -> str:
    """Memory traffic of a ResNet-50's step beside others, by the same compiler."""
    lines = [
        "| 256 images on | program | MB per image | of google/flax's | cuDNN | Triton | fusions"
        " with reductions | other fusions | kernels | peak memory | GFLOP per image |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for gpu in ("h200", "a100"):
        theirs = _load(f"flax_resnet50_{gpu}-1_256")
        names = {
            "resnet_jax, statistics of the batch": f"resnet50_{gpu}-1_256",
            "resnet_jax, statistics of 32": f"resnet50_{gpu}-1_256_groups",
            "google/flax": f"flax_resnet50_{gpu}-1_256",
            "plain linen": f"plain_resnet50_{gpu}-1_256",
        }
        for what, name in names.items():
            if not (RESULTS / f"{name}.json").exists():
                continue
            program = _load(name)
            total = sum(row["bytes"] for row in program["kernels"])
            mb = {row["kind"]: row["bytes"] / total for row in program["kernels"]}
            cells = [
                f"{mb.get(kind, 0) * program['mb_per_image']:.0f}"
                for kind in ("cuDNN", "Triton", "input fusion", "loop fusion")
            ]
            lines.append(
                f"| {gpu} | {what} | {program['mb_per_image']:.1f}"
                f" | {program['mb_per_image'] / theirs['mb_per_image']:.2f} | {' | '.join(cells)}"
                f" | {sum(row['count'] for row in program['kernels']):,}"
                f" | {program['memory']['peak_bytes'] / 2**30:.1f} GiB"
                f" | {program['gflop_per_image']:.2f} |"
            )
    return "\n".join(lines)


def variants_table() -> str:
    """What each form for GPUs saves, and what other forms would cost."""
    lines = [
        "| resnet50, 256 images on an h200 | MB per image | peak memory | kernels"
        " | GFLOP per image |",
        "|---|---|---|---|---|",
    ]
    base = "resnet50_h200-1_256"
    names = ("without_convolution", "wide_convolutions", "without_relu", "without_barrier")
    names += ("without_places", "no_forms", "as_on_tpus", "rounded_sums")
    for name in ("", *names):
        program = _load(f"{name}_{base}" if name else base)
        lines.append(
            f"| {program.get('differs', 'as it is')} | {program['mb_per_image']:.1f}"
            f" | {program['memory']['peak_bytes'] / 2**30:.1f} GiB"
            f" | {sum(row['count'] for row in program['kernels']):,}"
            f" | {program['gflop_per_image']:.2f} |"
        )
    return "\n".join(lines)


TABLES: dict[str, Callable[[], str]] = {
    "gpu-programs": programs_table,
    "gpu-nodes": nodes_table,
    "gpu-published": published_table,
}
