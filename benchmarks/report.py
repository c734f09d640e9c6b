"""What every benchmark's result file says about how it came about."""

import datetime
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jaxlib


def cpu_model() -> str:
    """Return the processor's name as the kernel gives it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())


def write_report(out: Path, results: dict[str, Any]) -> None:
    """Write results as JSON, after command, commit, versions, hardware and date."""

    def git(*arguments: str) -> str:
        try:
            done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
        except FileNotFoundError:  # no git here
            return ""
        return done.stdout.strip()

    # Results, this one or others, are no part of what was run.
    code = (":/", ":(top,exclude)benchmarks/results")
    changed = git("status", "--porcelain", "--untracked-files=no", "--", *code)
    report = {
        "command": " ".join(["python", *sys.argv]),
        "commit": git("rev-parse", "HEAD") + ("+" if changed else ""),  # "+": and changes
        "jax": jax.__version__,
        "jaxlib": jaxlib.__version__,
        "device": jax.devices()[0].device_kind,
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(report | results, indent=1) + "\n", encoding="utf-8")
