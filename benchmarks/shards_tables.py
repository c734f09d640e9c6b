"""The tables of fixed shards in docs/runs.md, from results/."""

from typing import Any

from table_text import markdown, read


def _exchanged(program: dict[str, Any]) -> str:
    counts = [
        f"{row['count']} {row['kind']} ({row['bytes'] / 1e6:.3g} MB)"
        for row in program["collectives"]
    ]
    return ", ".join(counts) or "nothing"


def shards_table() -> str:
    """Bits, time and communication on each mesh, and the bits of jobs."""
    results = read("shards_cpu")
    columns = ("data × fsdp", "`mesh.shards`", "SHA-256 of the state", "loss", "step", "exchanged")
    meshes = [
        (
            f"{row['data']} × {row['fsdp']}",
            str(row["shards"]),
            f"`{row['sha256'][:12]}`",
            f"{row['loss']:.9f}",
            f"{row['step_ms']:.0f} ms",
            _exchanged(row),
        )
        for row in results["meshes"]
    ]
    jobs = [
        (f"{row['processes']} × {row['devices']}", f"`{row['sha256'][:12]}`")
        for row in results["jobs"]
    ]
    of_jobs = markdown(("processes × devices", "SHA-256 of the last checkpoint"), jobs)
    return f"{markdown(columns, meshes)}\n\n{of_jobs}"


COMPILED = {
    "resnet50_h100-4x8_256_groups": "gpu_compile",
    "resnet50_v5e-256_256_groups": "tpu_compile",
}
"""Programs that have a result without and, by the prefix "shards_", with fixed shards."""


def cost_table() -> str:
    """What fixed shards cost, from compiled programs with a shard for each device and without."""
    columns = ("program", "`mesh.shards`", "exchanged in a step", "memory", "traffic", "step")
    rows = []
    for name, folder in COMPILED.items():
        for prefix in ("", "shards_"):
            program = read(f"{folder}/{prefix}{name}")
            roofline = program["roofline"]
            rows.append(
                (
                    f"[{program['model']}, {program['topology']}]"
                    f"(../benchmarks/results/{folder}/{prefix}{name}.json)",
                    str(program["devices"] if prefix else 0),
                    _exchanged(program),
                    f"{program['memory']['peak_bytes'] / 2**30:.1f} GiB",
                    f"{program['mb_per_image']:.0f} MB/image",
                    f"{1e3 * roofline['step_s']:.1f} ms, of which"
                    f" {1e3 * roofline['exposed_s']:.2f} ms exchange",
                )
            )
    return markdown(columns, rows)


TABLES = {
    "shards": ("docs/runs.md", shards_table),
    "shards-cost": ("docs/runs.md", cost_table),
}
