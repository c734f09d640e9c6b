"""The tables of docs/weights.md, from the model cards in the package."""

from typing import Any

from table_text import markdown, minutes

from resnet_jax.inference.card import card_rows, describe_environment
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
    trained = card["trained_by"]
    rows = card_rows(card) | {
        "log": f"[{card['log']}](../{card['log']})",
        "trained by": f"`{trained['command']}` at `{trained['commit'][:12]}`;"
        f" {describe_environment(trained)}; {minutes(trained['wall_s'])}",
        "published by": f"`{card['published_by']['command']}` at"
        f" `{card['published_by']['commit'][:12]}`",
        "SHA-256": f"`{card['file']['sha256']}`",
    }
    return f"### {card['name']}\n\n{markdown(('', ''), tuple(rows.items()))}\n"


TABLES = {
    "weights": ("docs/weights.md", weights_table),
    "cards": ("docs/weights.md", cards),
}
