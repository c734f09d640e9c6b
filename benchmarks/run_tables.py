"""The table of docs/verify.md: goodput predicted and measured."""

from table_text import markdown, read


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
    "goodput": ("docs/verify.md", goodput_table),
}
