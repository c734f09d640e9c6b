"""The tables of docs/weights.md, from the model cards in the package."""

from typing import Any

from table_text import markdown, minutes

from resnet_jax.weights.zoo import list_weights


def weights_table() -> str:
    """One line for each network."""
    rows = [
        (
            f"[`{own.name}`](#{own.name.replace('.', '')})",
            own.data,
            f"{own.params:,}",
            f"{100 * own.top1:.2f} % of {own.examples:,}",
            f"{100 * own.card['scores']['calibration_error']:.1f} %",
            own.card["note"],
            f"{own.path.stat().st_size / 2**20:.2f} MiB",
        )
        for own in list_weights()
    ]
    headings = ("weights", "data", "parameters", "top-1", "calibration error", "", "file")
    return markdown(headings, rows)


def cards() -> str:
    """The model cards."""
    return "\n".join(_card(own.card) for own in list_weights()).rstrip()


def _card(card: dict[str, Any]) -> str:
    data, scores, trained = card["data"], card["scores"], card["trained_by"]
    counts = ", ".join(f"{split} {count:,}" for split, count in data["examples"].items())
    versions = ", ".join(f"{k} {v}" for k, v in trained["versions"].items() if k in _VERSIONS)
    rows = (
        ("network", f"`{card['model']}`, {card['params']:,} parameters, {card['file']['type']}"),
        ("training", f"{card['note']}: {card['recipe']}; {card['epochs']:.1f} epochs"),
        ("seed", str(card["seed"])),
        ("data", f"{data['name']}, fingerprint `{data['fingerprint']}`; images: {counts}"),
        ("splits", f"training `{data['train']}`, test `{data['test']}`; weights of the last step"),
        ("classes", ", ".join(data["classes"])),
        (
            "accuracy",
            f"{100 * scores['top1']:.2f} %: {scores['correct']:,} of {scores['examples']:,} test"
            f" images; loss {scores['loss']:.3f} nats",
        ),
        (
            "calibration",
            f"expected calibration error {100 * scores['calibration_error']:.1f} % in"
            f" {scores['calibration_bins']} bins (Guo et al. 2017, 1706.04599)",
        ),
        ("images", card["preprocessing"]),
        ("intended use", card["intended_use"]),
        ("licence", f"{card['licence']}; of the data: {data['licence']}"),
        ("log", f"[{card['log']}](../{card['log']})"),
        (
            "trained by",
            f"`{trained['command']}` at `{trained['commit'][:12]}`; {versions};"
            f" {trained['hardware']['cpu_cores']} cores, {trained['hardware']['cpu']};"
            f" {minutes(trained['wall_s'])}",
        ),
        (
            "published by",
            f"`{card['published_by']['command']}` at `{card['published_by']['commit'][:12]}`",
        ),
        ("SHA-256", f"`{card['file']['sha256']}`"),
    )
    return f"### {card['name']}\n\n{markdown(('', ''), rows)}\n"


_VERSIONS = ("jax", "flax", "optax")

TABLES = {
    "weights": ("docs/weights.md", weights_table),
    "cards": ("docs/weights.md", cards),
}
