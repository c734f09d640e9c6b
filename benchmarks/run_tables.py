"""The tables of docs/verify.md: what verify finds, and goodput predicted and measured."""

from typing import Any

from table_text import markdown, minutes, read


def verify_table() -> str:
    """What verify says of a run, and of copies that were tampered with."""
    result = read("verify_cifar10")
    rows = [_verified("nothing", result["intact"])]
    rows += [_verified(row["what"], row) for row in result["tampered"]]
    columns = ("what was done", "exit code", "checks that failed", "slices trained again", "time")
    top1 = result["final"]["test"]["top1"]
    about = (
        f"ResNet-20, {result['steps']:,} steps of 128 images, {top1:.1%} of the test images right,"
        f" trained in {minutes(result['train_s'])} on {result['cores']} cores.\n\n"
    )
    return about + markdown(columns, rows)


def older_run_table() -> str:
    """The last slice of an older version's run, trained again, as it is and tampered with."""
    result = read("verify_older")
    steps = "{:,} → {:,}".format(*result["slice"])
    rows = []
    for what, name in (("nothing", "intact"), ("a bit of the last checkpoint", "forged")):
        found = result["by_its_version"][name]
        differences = [
            f"step {row['step']:,}, {row['what']} {row['detail']}" for row in found["differences"]
        ]
        equal = f"{found['arrays']} arrays and {found['records']} records equal"
        rows.append((what, "the run's", steps, "; ".join(differences) or equal))
    present = result["by_present"]["slices"][-1]
    outcome = present["outcome"] or present["reason"]
    rows.append(("nothing", "this one, by `verify`", steps, f"{outcome} ({present['other']})"))
    return markdown(("what was changed", "code", "steps", "result"), rows)


def _verified(what: str, found: dict[str, Any]) -> tuple[str, ...]:
    failed = [
        f"{check['what']}: {check['detail']}"
        for check in found["checks"]
        if check["passed"] is False
    ]
    unknown = [check["what"] for check in found["checks"] if check["passed"] is None]
    if unknown:
        failed.append(f"unknown: {', '.join(unknown)}")
    again = [row for row in found["slices"] if row["outcome"]]
    equal = sum(row["outcome"] == "equal" for row in again)
    slices = [f"{equal} equal"] if equal else []
    slices += [_differs(row) for row in again if row["outcome"] != "equal"]
    return (
        what,
        str(found["exit_code"]),
        "; ".join(failed) or "none",
        "; ".join(slices) or "none",
        minutes(found["seconds"]),
    )


def _differs(row: dict[str, Any]) -> str:
    steps = f"{row['first']:,} → {row['last']:,}"
    return f"{steps}: {'; '.join(row['differences'])}"


def goodput_table() -> str:
    """Predicted and measured goodput of runs that are killed at random."""
    result = read("goodput")
    costs = result["costs"]
    rows = [
        ("measured", f"{result['measured_goodput']:.1%}"),
        ("predicted by the formula", f"{result['predicted_goodput']:.1%}"),
        ("simulated", f"{result['simulated_goodput']:.1%}"),
    ]
    about = (
        f"{len(result['killed_runs'])} runs of {result['steps']:,} steps with {result['kills']}"
        f" kills, {result['mtbf_s']:.0f} s apart in the mean, and a checkpoint every"
        f" {result['checkpoint_every_steps']} steps. A step takes {1e3 * costs['step_s']:.1f} ms, a"
        f" save {1e3 * costs['save_s']:.0f} ms, a restart {costs['restart_s']:.1f} s; Daly's"
        f" interval is {result['best_checkpoint_every_steps']} steps.\n\n"
    )
    return about + markdown(("", "goodput"), rows)


TABLES = {
    "verify": ("docs/verify.md", verify_table),
    "verify-older": ("docs/verify.md", older_run_table),
    "goodput": ("docs/verify.md", goodput_table),
}
