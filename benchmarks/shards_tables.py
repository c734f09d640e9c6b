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


TABLES = {"shards": ("docs/runs.md", shards_table)}
