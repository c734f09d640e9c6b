"""The tables of networks: sizes, published errors, the cost of depth, imported weights."""

from table_text import markdown, read

from resnet_jax.models.presets import PRESETS, list_models
from resnet_jax.models.published import PUBLISHED
from resnet_jax.models.sizes import preset_sizes


def models_table() -> str:
    """Every preset: its size, as benchmarks/sizes.py counts it, and its error, as published."""
    sizes = preset_sizes()
    return markdown(
        (
            "model",
            "parameters",
            "multiply-adds",
            "image",
            "published top-1 error",
            "recipe",
            "source",
        ),
        [
            (
                f"`{name}`",
                f"{sizes[name].params:,}",
                f"{sizes[name].macs / 1e6:,.1f} M",
                "×".join(map(str, PRESETS[name].image_shape)),
                *_published(name),
            )
            for name in list_models()
        ],
    )


def _published(name: str) -> tuple[str, str, str]:
    """The last three cells of a model's row."""
    if name not in PUBLISHED:
        return "", "", ""
    row = PUBLISHED[name]
    title, address = row.source
    return f"{row.error:.2f} % on {row.data}", row.recipe, f"[{title}]({address})"


def depth_table() -> str:
    """What depth costs on a CPU, by the form of the network."""
    return markdown(
        ("network", "batch", "form", "init", "trace", "compile", "step", "temporary memory"),
        [
            (
                f"`resnet{row['depth']}`",
                str(row["batch"]),
                row["form"],
                f"{row['init_s']:.1f} s",
                f"{row['trace_s']:.1f} s",
                f"{row['compile_s']:.1f} s",
                f"{row['step_s']:.2f} s",
                f"{row['temporary_mib']:,.0f} MiB",
            )
            for row in read("depth_cpu")["rows"]
        ],
    )


def imported_table() -> str:
    """Logits of imported networks against PyTorch's."""
    rows = []
    for row in read("imported_weights")["networks"]:
        fields = "".join(f", {name}={value!r}" for name, value in row["fields"].items())
        rows.append(
            (
                row["name"],
                row["library"],
                f"`{row['model']}{fields}`",
                f"{row['parameters']:,}",
                f"{row['error']:.1e}",
                f"{row['error_of_torch_float32']:.1e}",
            )
        )
    columns = (
        *("network", "published by", "here", "parameters"),
        *("logits differ by", "PyTorch's float32 by"),
    )
    return markdown(columns, rows)


def int8_table() -> str:
    """Accuracy on CIFAR-10 of a network as ONNX, in float32 and in int8."""
    result = read("onnx_int8")
    rows = [
        (
            {"float32": "ONNX Runtime, float32", "int8": "ONNX Runtime, int8"}.get(
                kind, "this package"
            ),
            f"{correct:,} of {result['test_images']:,}",
            f"{result['bytes'][kind]:,}" if kind in result["bytes"] else "",
        )
        for kind, correct in result["correct"].items()
    ]
    return markdown((f"`{result['weights']}`", "correct", "bytes"), rows)


TABLES = {
    "models": ("docs/models.md", models_table),
    "depth": ("docs/models.md", depth_table),
    "imported": ("docs/use_pretrained.md", imported_table),
    "int8": ("docs/use_pretrained.md", int8_table),
}
