"""The tables of fixed shards in docs/runs.md, from results/."""

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"
COMPILED = {
    "v5e:16x16": "tpu_compile/{}resnet50_v5e-256_256_groups.json",
    "h100:4x8": "gpu_compile/{}resnet50_h100-4x8_256_groups.json",
}


def _load(name: str) -> dict[str, Any]:
    return dict(json.loads((RESULTS / name).read_text(encoding="utf-8")))


def _exchanged(program: dict[str, Any]) -> str:
    counts = [
        f"{row['count']} {row['kind']} ({row['bytes'] / 1e6:.3g} MB)"
        for row in program["collectives"]
    ]
    return ", ".join(counts) or "nothing"


def shards_table() -> str:
    """Bits, time and communication on each mesh, and the bits of jobs."""
    results = _load("shards_cpu.json")
    lines = [
        "| mesh | `mesh.shards` | SHA-256 of the state | loss | time | exchanged in a step |",
        "|---|---|---|---|---|---|",
    ]
    for row in results["meshes"]:
        lines.append(
            f"| {row['data']} × {row['fsdp']} | {row['shards']} | `{row['sha256'][:12]}`"
            f" | {row['loss']:.9f} | {row['step_ms']:.0f} ms | {_exchanged(row)} |"
        )
    lines += ["", "| job by `train.py` | SHA-256 of the last checkpoint |", "|---|---|"]
    for row in results["jobs"]:
        lines.append(f"| {row['processes']} × {row['devices']} devices | `{row['sha256'][:12]}` |")
    return "\n".join(lines)


def compiled_table() -> str:
    """What compiled programs with and without fixed shards exchange, move and hold."""
    lines = [
        "| slice | `mesh.shards` | exchanged in a step | MB per image | peak memory |",
        "|---|---|---|---|---|",
    ]
    for topology, name in COMPILED.items():
        for prefix in ("", "shards_"):
            path = RESULTS / name.format(prefix)
            if not path.exists():
                continue
            program = _load(name.format(prefix))
            shards = program["devices"] if prefix else 0
            lines.append(
                f"| [{topology}](../benchmarks/results/{name.format(prefix)}) | {shards}"
                f" | {_exchanged(program)} | {program['mb_per_image']:.1f}"
                f" | {program['memory']['peak_bytes'] / 2**30:.1f} GiB |"
            )
    return "\n".join(lines)


TABLES = {"shards": shards_table, "shards-compiled": compiled_table}
