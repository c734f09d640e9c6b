"""The tables of speed and memory, from results/."""

import statistics

from table_text import RESULTS, markdown, read


def pipeline_table() -> str:
    """Images per second of loaders."""
    result = read("input_pipeline")
    ratios = {name: f"{ratio:.2f}" for name, ratio in result["ours_divided_by"].items() if ratio}
    return markdown(
        ("loader", "img/s", "resnet_jax / this loader"),
        [
            (name, f"{rate:,.0f}", ratios.get(name, ""))
            for name, rate in result["median_img_per_s"].items()
        ],
    )


def seeds_table() -> str:
    """What several seeds in one program cost."""
    result = read("seeds_cpu")
    steps, runs = result["steps"], result["runs"]
    of_one, of_all = (statistics.median(runs[name]) for name in ("one_s", "several_s"))
    return markdown(
        ("on CPU", f"{result['seeds']} seeds in one program, divided by one"),
        [
            (f"a whole run (`make train`: {of_one:.0f} s; {of_all:.0f} s)", f"{runs['ratio']:.2f}"),
            ("a training step, one seed after the other", f"{steps['one_by_one_ratio']:.2f}"),
            ("a training step, all together by `vmap`", f"{steps['together_ratio']:.2f}"),
        ],
    )


def startup_table() -> str:
    """How long it takes to begin."""
    median = read("startup_cpu")["median_s"]
    jax_s = median.pop("import jax")
    names = {
        "import resnet_jax": "`import resnet_jax`, beyond `import jax`",
        "resnet_jax.create_model": "`resnet_jax.create_model`, beyond `import jax`",
        "resnet_jax.fit": "`resnet_jax.fit`, all that training imports, beyond `import jax`",
    }
    rows = [(what, f"{median.pop(name) - jax_s:.2f} s") for name, what in names.items()]
    rows += [(f"{name[0].upper()}{name[1:]}", f"{s:.2f} s") for name, s in median.items()]
    return markdown(("", "median"), rows)


def fast_table() -> str:
    """The shortest comparison, for README."""
    names = {
        "resnet_jax": "resnet_jax",
        "resnet_jax onednn": "resnet_jax with oneDNN (`resnet-jax build`)",
        "resnet_jax onednn bfloat16": "the same, bfloat16",
        "flax": "Flax as most write it",
        "torch": "PyTorch, channels last",
        "torch.compile": "PyTorch compiled",
        "torch bfloat16": "PyTorch, bfloat16",
        "torch.compile bfloat16": "PyTorch compiled, bfloat16",
    }
    columns = {
        f"{network}, {mode}": (read(f"vs_peers_{network}_avx512")[mode]["img_per_s"], digits)
        for network, digits in (("resnet20", 0), ("resnet50", 1))
        for mode in ("train", "inference")
    }
    rows = [
        (shown, *(f"{speeds[name]:,.{digits}f}" for speeds, digits in columns.values()))
        for name, shown in names.items()
    ]
    return markdown(("img/s on two CPU cores", *columns), rows)


def changes_table() -> str:
    """What a step takes without each change for CPUs."""
    results = [read(f"changes_{network}_cpu") for network in ("resnet20", "resnet50")]
    names = [f"{result['network']}, {result['batch_size']} images" for result in results]
    rows = []
    for change, told in results[0]["changes"].items():
        cells = []
        for result in results:
            of, temp_mb = result["changes"][change], result["temp_mb"]
            more = of["temp_mb_without"] - temp_mb
            memory = f", {more:+,.0f} MB" if abs(more) > temp_mb / 50 else ""
            cells.append(f"{of['without_divided_by_with']:.2f}{memory}")
        rows.append((told["change"], *cells))
    return markdown(("a step without it, divided by a step with it", *names), rows)


def tpu_peers_table() -> str:
    """Memory traffic of a ResNet-50's step beside that of google/flax's example."""
    rows = []
    for path in sorted((RESULTS / "tpu_compile").glob("flax_*.json")):
        theirs = read(f"tpu_compile/{path.stem}")
        ours = read(f"tpu_compile/{path.stem.removeprefix('flax_')}")
        both = (ours, theirs)
        rows.append(
            (
                f"{ours['topology']}, {ours['batch_per_chip']}",
                *(f"{one['mb_per_image']:.0f}" for one in both),
                f"{ours['mb_per_image'] / theirs['mb_per_image']:.2f}",
                *(f"{one['memory']['peak_bytes'] / 2**30:.1f} GiB" for one in both),
                *(f"{one['gflop_per_image']:.2f}" for one in both),
            )
        )
    columns = (
        *(
            "slice, images per chip",
            "MB per image",
            "google/flax",
            "resnet_jax / google/flax",
            "peak memory",
        ),
        *("google/flax", "GFLOP per image", "google/flax"),
    )
    return markdown(columns, rows)


def tpu_variants_table() -> str:
    """What was tried on one slice."""
    names = {
        "before_": "before both changes",
        "": "as it is",
        "remat_": "blocks recomputed (`model.remat`)",
        "space_to_depth_": "stem on blocks of 2×2 pixels (`model.stem=space_to_depth`)",
    }
    rows = []
    for prefix, what in names.items():
        one = read(f"tpu_compile/{prefix}resnet50_v5e-4_256")
        rows.append(
            (
                what,
                f"{one['mb_per_image']:.0f}",
                f"{one['memory']['peak_bytes'] / 2**30:.1f} GiB",
                f"{one['gflop_per_image']:.2f}",
            )
        )
    heading = "resnet50, v5e:2x2, 256 images per chip"
    return markdown((heading, "MB per image", "peak memory", "GFLOP per image"), rows)


def cost_table() -> str:
    """How a step's time grows with its multiply-adds."""
    result = read("cost_scaling_cpu")
    rows = []
    for name, exponent in result["exponent_of_time_in_macs"].items():
        values = [str(row[name]) for row in result["rows"] if row["varied"] == name]
        rows.append((name, ", ".join(values), f"{exponent:.2f}"))
    return markdown(("varied", "values", "time grows with the multiply-adds to the power of"), rows)


TABLES = {
    "pipeline": ("docs/data.md", pipeline_table),
    "seeds": ("docs/runs.md", seeds_table),
    "startup": ("docs/performance.md", startup_table),
    "fast": ("README.md", fast_table),
    "changes": ("docs/performance.md", changes_table),
    "tpu-peers": ("docs/performance.md", tpu_peers_table),
    "tpu-variants": ("docs/performance.md", tpu_variants_table),
    "cost": ("docs/performance.md", cost_table),
}
