"""The tables of docs/verify.md: what verification finds, and goodput predicted and measured."""

from table_text import markdown, read


def verify_table() -> str:
    """What `resnet-jax verify` finds in a run, as it is and after changes."""
    result = read("verify")
    rows = []
    for what, found in result["verified"].items():
        checks = "; ".join(f"{name}: {why}" for name, why in found["failed_checks"].items())
        differences = "; ".join(
            f"step {one['step']}: {one['what']} {one['detail']}"
            for part in found["slices"]
            for one in part["differences"]
        )
        equal = sum(part["outcome"] == "equal" for part in found["slices"])
        rows.append(
            (
                what,
                found["verdict"],
                checks,
                f"{differences or 'no difference'}; {equal} of {len(found['slices'])} slices equal",
                f"{found['seconds']:.0f} s",
            )
        )
    about = (
        f"{result['steps']} steps in {result['trained_s']:.0f} s, a checkpoint after every"
        f" {result['checkpoint_every_steps']}, on {result['cores']} cores of {result['cpu']}:\n\n"
    )
    columns = ("changed", "verdict", "checks that fail", "trained again", "time")
    return about + markdown(columns, rows)


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
    "goodput": ("docs/verify.md", goodput_table),
}
