"""Publishing the network of a run on the Hugging Face Hub.

A model there has model.safetensors, whose metadata hold the network's fields and the preprocessing
of its images; config.json, the run's configuration; README.md, the model card with the metadata
that the Hub reads; metrics.jsonl and curves.png. `pretrained("OWNER/NAME")` reads it back.
"""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath
from flax.traverse_util import flatten_dict

from resnet_jax.checkpoint.workdir import CURVES, METRICS, SUMMARY, no_client
from resnet_jax.config.io import to_json
from resnet_jax.errors import ConfigError, DataError
from resnet_jax.inference.card import (
    card_rows,
    describe_environment,
    make_card,
    published_preprocessing,
)
from resnet_jax.inference.network import TrainedNetwork
from resnet_jax.inference.privacy import check_private, public_config
from resnet_jax.inference.restore import restore_run
from resnet_jax.logging.metrics_log import read_metrics, records_text
from resnet_jax.logging.plots import draw_curves
from resnet_jax.logging.summary import read_summary
from resnet_jax.models.surgery import unstack_units
from resnet_jax.train.evaluate import Evaluation
from resnet_jax.train.records import recorded_scores
from resnet_jax.utils.paths import as_path, bucket_errors
from resnet_jax.weights.architecture_note import architecture_note
from resnet_jax.weights.hub import CONFIG, WEIGHTS, hub_client
from resnet_jax.weights.hub_upload import check_repo
from resnet_jax.weights.load import load_weights, read_model
from resnet_jax.weights.save import save_weights

CARD = "README.md"


@dataclasses.dataclass(frozen=True)
class Choice:
    """Which network of a run is published, and what its card says of it.

    Attributes:
        checkpoint, ema, seed_index: as for `restore_run`; "last" or "best", whose scores are on
            record.
        note: what users must know of the training; "" for nothing.
        licence: of the weights, an identifier of the Hub such as "apache-2.0"; "" for none.
    """

    checkpoint: str = "last"
    ema: bool = False
    seed_index: int = 0
    note: str = ""
    licence: str = ""


def prepare_push(run: epath.PathLike, repo: str, folder: Path, choice: Choice) -> str:
    """Write all files of a model on the Hub into a folder; nothing is sent.

    Args:
        run: directory of a finished run.
        repo: OWNER/NAME.
        folder: an empty folder.
        choice: of the network.

    Returns:
        The text of the model card.

    Raises:
        UsageError: `repo` isn't OWNER/NAME.
        ConfigError: the run isn't finished, the scores of the network aren't on record, a weight
            file can't hold the network, a file would hold what is private, or the extra [hub] isn't
            installed.
        DataError: the checkpoint is missing or damaged.
    """
    check_repo(repo)
    workdir = as_path(run)
    try:
        with bucket_errors(workdir):
            is_finished = (workdir / SUMMARY).exists()
    except ImportError:
        raise ConfigError(no_client(workdir)) from None
    except OSError as error:
        raise ConfigError(f"{workdir} can't be read ({error.strerror or error}).") from None
    if not is_finished:
        raise ConfigError(f"{workdir} isn't a finished run: it has no {SUMMARY}.")
    network = restore_run(
        workdir, checkpoint=choice.checkpoint, ema=choice.ema, seed_index=choice.seed_index
    )
    prepared = published_preprocessing(network)
    model: Any = network.model  # `save_weights` refuses all but a ResNet
    save_weights(folder / WEIGHTS, model, network.variables, metadata=prepared.metadata())
    _check_weights(folder / WEIGHTS, network)
    with read_summary(workdir) as summary:
        split, scored = _scores(summary, network, choice)
        card = make_card(
            network,
            summary,
            name=repo,
            file=folder / WEIGHTS,
            note=choice.note,
            scores={
                "split": split,
                "examples": scored.examples,
                "correct": round(scored.top1 * scored.examples),
                **scored.metrics,
            },
            licence=choice.licence,
        )
        environment = describe_environment(summary)
    readme = _readme(card, environment, network, ema=choice.ema)
    config = to_json(public_config(network.config))
    records = read_metrics(workdir / METRICS)
    title = f"{network.config.model.name} on {network.config.data.name}"
    draw_curves(epath.Path(folder), records, title=title)
    # Without the base64 of a mean image, in which anything may occur.
    described = dataclasses.replace(prepared, mean_image=None).metadata()
    texts = {CARD: readme, CONFIG: config, METRICS: records_text(records)}
    metadata = "\n".join((described | architecture_note(model)).values())
    check_private(
        {name: _without(repo, text) for name, text in (texts | {WEIGHTS: metadata}).items()},
        token=hub_client("Publishing").get_token(),
    )
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    return readme


def _without(repo: str, text: str) -> str:
    """The text without the name of the model, which may hold the user's; paths stay whole."""
    return re.sub(rf"(?<![\w/]){re.escape(repo)}(?![\w/])", "", text)


def _check_weights(path: Path, network: TrainedNetwork) -> None:
    """Read the file as users will, and compare it with the network bit by bit."""
    read, own = (
        flatten_dict(unstack_units(dict(variables)), sep="/")
        for variables in (load_weights(read_model(path), path), network.variables)
    )
    same = (np.array_equal(np.asarray(read[name]), np.asarray(own[name])) for name in own)
    if read.keys() != own.keys() or not all(same):
        raise DataError(f"{path.name} doesn't hold the network of {network.source}.")


def _scores(
    summary: dict[str, Any], network: TrainedNetwork, choice: Choice
) -> tuple[str, Evaluation]:
    """The split and the scores of a network on the run's record.

    Raises:
        ConfigError: the network isn't scored there.
    """
    best = summary["best"] or {}
    scores = recorded_scores(summary)
    splits = ("test", "validation")
    found: dict[str, Evaluation | None] = {}
    if network.step == summary["steps"]:
        found = {split: scores.get(f"{split}_ema" if choice.ema else split) for split in splits}
    elif network.step == best.get("step") and not choice.ema:
        of_validation = {k: v for k, v in best.items() if k not in ("step", "test")}
        found = {
            "test": scores.get("test_best"),
            "validation": Evaluation.from_scalars(of_validation),
        }
    for split, scored in found.items():
        if scored:
            return split, scored.seeds[choice.seed_index] if scored.seeds else scored
    weights = "moving averages" if choice.ema else "network"
    raise ConfigError(
        f"The {SUMMARY} of {network.source} has no scores of the {weights} of step {network.step};"
        " it has those of the last step and of the best checkpoint."
    )


def _readme(
    card: Mapping[str, Any], environment: str, network: TrainedNetwork, *, ema: bool
) -> str:
    """The model card with the Hub's metadata in front."""
    weights = "moving averages of the weights" if ema else "weights"
    rows = card_rows(card, weights=f"{weights} of step {network.step:,} of {card['steps']:,}")
    rows["trained with"] = f"resnet_jax, {environment}"
    rows["SHA-256 of the weights"] = f"`{card['file']['sha256']}`"
    table = "\n".join(f"| {heading} | {_in_cell(text)} |" for heading, text in rows.items())
    return f"""---
{_metadata(card)}
---

# {card["name"].split("/")[-1]}

`{card["model"]}` on {card["data"]["name"]}: top-1 {100 * card["scores"]["top1"]:.2f} % of
{card["scores"]["examples"]:,} {card["scores"]["split"]} images.

```python
import resnet_jax

network = resnet_jax.pretrained("{card["name"]}")
probabilities = network.predict(images)  # uint8 [h, w, {network.image_shape[-1]}] each, of any size
network.class_names

model = network.model  # a Flax module, for your own training
logits = model.apply(network.variables, network.preprocessing.normalize(crops))
```

|  |  |
|---|---|
{table}

![curves]({CURVES})

`{WEIGHTS}` has PyTorch's names and layouts. `{CONFIG}` is the configuration of the run, and
`{METRICS}` its record.
"""


def _in_cell(text: str) -> str:
    """A text in a cell of a Markdown table: class names and notes may hold anything."""
    return " ".join(text.split()).replace("|", r"\|")


def _metadata(card: Mapping[str, Any]) -> str:
    """The metadata that the Hub reads, in YAML, with the scores as its model index."""
    client, scores = hub_client("A model card"), card["scores"]
    kinds = {"top1": ("accuracy", "top-1 accuracy"), "loss": ("loss", "cross-entropy in nats")}
    results = [
        client.EvalResult(
            task_type="image-classification",
            dataset_type=card["data"]["name"],
            dataset_name=card["data"]["name"],
            dataset_split=scores["split"],
            metric_type=kind,
            metric_name=name,
            metric_value=scores[metric],
        )
        for metric, (kind, name) in kinds.items()
    ]
    data = client.ModelCardData(
        library_name="resnet_jax",
        license=card["licence"] or None,
        pipeline_tag="image-classification",
        tags=["jax", "flax", "resnet", card["model"]],
        metrics=["accuracy"],
        model_name=card["name"].split("/")[-1],
        eval_results=results,
    )
    return str(data.to_yaml()).strip()
