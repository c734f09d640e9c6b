"""The tables of speed on CPUs, from results/: by kind of processor."""

from typing import Any

from table_text import RESULTS, markdown, read

_OURS = ("resnet_jax", "resnet_jax onednn", "resnet_jax onednn bfloat16")


def _results(pattern: str) -> list[dict[str, Any]]:
    return [read(path.stem) for path in sorted(RESULTS.glob(pattern))]


def peers_table() -> str:
    """Speed beside others', by kind of processor, network and mode."""
    kinds: dict[str, list[dict[str, Any]]] = {}
    for result in _results("vs_peers_resnet*.json"):
        kinds.setdefault(_processor(result), []).append(result)
    return "\n\n".join(f"#### {kind}\n\n{_peers_of(kinds[kind])}" for kind in sorted(kinds))


def _processor(result: dict[str, Any]) -> str:
    name = f"{result['cpu']}, {result['cores']} cores"
    if "processor" not in result:
        return f"Instruction sets not recorded ({name})"
    told = result["processor"]
    return f"{told['kind']} ({name}: {', '.join(told['flags'])})"


def _peers_of(results: list[dict[str, Any]]) -> str:
    rows = []
    for result in results:
        for mode in (mode for mode in ("train", "inference", "latency") if mode in result):
            of = result[mode]
            images = of.get("images", result["batch_size"])
            what = f"{result['network']}, {'inference' if mode == 'latency' else mode}"
            rows.append((f"**{what}, {images} image{'s' * (images > 1)}**", "", "", "", ""))
            for name, speed in of["img_per_s"].items():
                ratios = [of["ours_divided_by"].get(ours, {}).get(name) for ours in _OURS]
                cells = [f"{ratio['median']:.2f}" if ratio else "" for ratio in ratios]
                rows.append((name, f"{speed:,.1f}", *cells))
    return markdown(
        ("", "img/s", "resnet_jax / peer", "with oneDNN", "with oneDNN, bfloat16"), rows
    )


def changes_table() -> str:
    """What folding, fusing and preparing gave, by network and processor."""
    measured = {
        "inference with oneDNN: folded": ("inference_with_onednn", "folded"),
        "inference with oneDNN: folded and fused": ("inference_with_onednn", "folded and fused"),
        "the same for one image": ("latency_with_onednn", "folded and fused"),
        "the same for one image, prepared": ("latency_with_onednn", "folded, fused and prepared"),
        "inference without oneDNN: folded": ("inference_pure", "folded"),
    }
    results = _results("cpu_changes_*.json")
    rows = []
    for what, (name, variant) in measured.items():
        ratios = [r[name].get(variant, {}).get("first_divided_by_it") for r in results]
        if any(ratios):
            rows.append((what, *(f"{ratio:.2f}" if ratio else "" for ratio in ratios)))
    return markdown(
        ("time without the change / time with it, one core", *map(_title, results)), rows
    )


def _title(result: dict[str, Any]) -> str:
    return f"{result['network']}, {result['batch_size']} images, {result['processor']['kind']}"


def before_table() -> str:
    """Speed after a change, divided by the speed of the checkout before it."""
    names = {
        "train": "training, oneDNN",
        "train_bfloat16": "training, oneDNN, bfloat16",
        "inference": "inference, oneDNN",
        "latency": "inference of one image, oneDNN",
        "train_pure": "training, XLA",
        "inference_pure": "inference, XLA",
        "latency_pure": "inference of one image, XLA",
    }
    changes = {"threads": "cpu_threads_*.json", "memory": "cpu_changes_*.json"}
    results = [
        (result, f"{change}: {result['network']}, {result['processor']['kind']}")
        for change, pattern in changes.items()
        for result in _results(pattern)
        if "before_and_after" in result
    ]
    rows = []
    for key, name in names.items():
        cells = []
        for result, _ in results:
            of = result["before_and_after"][key]
            ratio = of["after_divided_by_before"]
            cells.append(f"{ratio:.2f} ({of['lowest']:.2f} to {of['highest']:.2f})")
        rows.append((name, *cells))
    titles = [title for _, title in results]
    return markdown(("img/s after, divided by before", *titles), rows)


def profile_table() -> str:
    """Where the time of a training step goes, before and after, on all cores."""
    kinds = ("convolution", "normalisation", "elementwise", "other")
    names = {
        "profile_pure_before": "XLA, before",
        "profile_pure": "XLA",
        "profile_with_onednn_before": "oneDNN, before",
        "profile_with_onednn": "oneDNN",
    }
    rows = []
    for result in _results("cpu_changes_*.json"):
        for measurement in (name for name in names if name in result):
            of = result[measurement]
            shares = (f"{100 * of['shares'].get(kind, 0):.0f} %" for kind in kinds)
            what = f"{result['network']}, {result['batch_size']} images: {names[measurement]}"
            rows.append((what, *shares))
    return markdown(("shares of a training step", *kinds), rows)


TABLES = {
    "peers": ("docs/performance.md", peers_table),
    "cpu-changes": ("docs/performance.md", changes_table),
    "cpu-before": ("docs/performance.md", before_table),
    "cpu-profile": ("docs/performance.md", profile_table),
}
