"""The tables of fixed shards in docs/runs.md, from results/."""

from typing import Any

from table_text import RESULTS, markdown, read

COMPILED = {
    "v5e:16x16": "tpu_compile/{}resnet50_v5e-256_256_groups",
    "h100:4x8": "gpu_compile/{}resnet50_h100-4x8_256_groups",
}


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


def compiled_table() -> str:
    """What compiled programs with and without fixed shards exchange, move and hold."""
    rows = []
    for topology, name in COMPILED.items():
        for prefix in ("", "shards_"):
            path = name.format(prefix)
            if not (RESULTS / f"{path}.json").exists():
                continue
            program = read(path)
            rows.append(
                (
                    f"[{topology}](../benchmarks/results/{path}.json)",
                    str(program["devices"] if prefix else 0),
                    _exchanged(program),
                    f"{program['mb_per_image']:.1f}",
                    f"{program['memory']['peak_bytes'] / 2**30:.1f} GiB",
                )
            )
    columns = ("slice", "`mesh.shards`", "exchanged", "MB per image", "peak memory")
    return markdown(columns, rows)


TABLES = {
    "shards": ("docs/runs.md", shards_table),
    "shards-compiled": ("docs/runs.md", compiled_table),
}
