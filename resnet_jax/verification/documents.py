"""Checks that the documents of a run belong together: nothing is trained."""

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from resnet_jax.config.io import bound_fields, from_json
from resnet_jax.data.loaders.sampler import IndexSampler, batches_digest
from resnet_jax.logging.metrics_log import records_digest
from resnet_jax.train.experiment import Experiment
from resnet_jax.verification.run_record import RunRecord

DATA = "data"
"""`Check.what` of the check that the data are those of the run."""


@dataclasses.dataclass(frozen=True)
class Check:
    """The result of a check.

    Attributes:
        what: was checked.
        passed: None if the run's version didn't record what the check needs.
        detail: one line.
    """

    what: str
    passed: bool | None
    detail: str


def check_documents(run: RunRecord, experiment: Experiment) -> list[Check]:
    """Run all checks.

    Args:
        run: the run.
        experiment: of the run's config and data.
    """
    orders = experiment.spec.orders()
    return [
        _checkpoints(run),
        _check(DATA, _data_faults(run, experiment), "the fingerprint is the recorded one"),
        _order(run, orders),
        _metrics(run),
        _code(run),
        _summary(run, experiment),
    ]


def _check(what: str, faults: Iterator[str], good: str) -> Check:
    fault = next(faults, None)
    return Check(what, fault is None, good if fault is None else fault)


def _checkpoints(run: RunRecord) -> Check:
    faults = (f"step {step}: {reason}" for step, reason in sorted(run.damaged.items()))
    arrays = sum(len(manifest["checksums"]) for manifest in run.manifests.values())
    steps = ", ".join(f"{step:,}" for step in run.manifests)
    return _check("checkpoints", faults, f"{arrays} arrays of steps {steps} have their checksums")


def _data_faults(run: RunRecord, experiment: Experiment) -> Iterator[str]:
    found = experiment.dataset.fingerprint
    for step in run.manifests:
        recorded = run.progress(step)["fingerprint"]
        if recorded != found:
            yield f"the data have the fingerprint {found}, those of checkpoint {step} {recorded}"


def _order(run: RunRecord, orders: Sequence[IndexSampler]) -> Check:
    """Compare the digests of the batches with those of the order that config and data define."""
    what = "order of examples"
    training = [record for record in run.records if record["split"] == "train"]
    checked = [record for record in training if "batches" in record]
    if not checked:
        return Check(what, None, "the lines of metrics.jsonl have no digests of their batches")

    def faults() -> Iterator[str]:
        for number, record in enumerate(training):
            first, step = training[number - 1]["step"] if number else 0, record["step"]
            if "batches" in record and batches_digest(orders, first, step) != record["batches"]:
                yield f"the batches of steps {first + 1} to {step} aren't those of the config"

    return _check(what, faults(), f"the batches of {len(checked)} log points are the config's")


def _metrics(run: RunRecord) -> Check:
    """Compare metrics.jsonl with the digests in the checkpoints."""
    digests = {
        step: run.progress(step)["records_sha256"]
        for step in run.manifests
        if "records_sha256" in run.progress(step)
    }
    if not digests:
        return Check("metrics.jsonl", None, "the checkpoints have no digests of the records")

    def faults() -> Iterator[str]:
        before = 0
        for step, digest in digests.items():
            lines = run.progress(step)["records"]
            if records_digest(run.records[:lines]) != digest:
                part = f"lines {before + 1} to {lines}" if lines > before else f"line {lines}"
                yield f"{part} aren't those that were written before checkpoint {step}"
            before = lines

    lines = run.progress(max(digests))["records"]
    return _check("metrics.jsonl", faults(), f"{lines} lines have the checkpoints' digests")


def _code(run: RunRecord) -> Check:
    """Check that each checkpoint's environments continue those of the checkpoint before."""
    what, found = "code and hardware", run.environments
    if not found:
        return Check(what, None, "the checkpoints don't record what computed them")

    def faults() -> Iterator[str]:
        for step in run.manifests:
            recorded = list(run.progress(step).get("environments", []))
            if recorded != found[: len(recorded)]:
                yield f"checkpoint {step} was computed by others than the newest one says"

    changes = f", changed: {len(found) - 1}×" if len(found) > 1 else ""
    newest = found[-1]
    text = f"code {newest['code']}, jaxlib {newest['versions']['jaxlib']}, {_device(newest)}"
    return _check(what, faults(), text + changes)


def _device(environment: Mapping[str, Any]) -> str:
    hardware = environment["hardware"]
    kind = hardware["cpu"] if hardware["platform"] == "cpu" else hardware["device"]
    return f"{hardware['devices']} × {kind}"


def _summary(run: RunRecord, experiment: Experiment) -> Check:
    summary = run.summary
    if summary is None:
        return Check("summary.json", None, "the run hasn't finished")
    try:
        return _check("summary.json", _summary_faults(run, summary, experiment), "it is this run's")
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        return Check("summary.json", False, f"it is damaged ({error!r})")


def _summary_faults(
    run: RunRecord, summary: dict[str, Any], experiment: Experiment
) -> Iterator[str]:
    own = bound_fields(run.config)
    other = bound_fields(from_json(json.dumps(summary["config"])))
    for name in own:
        if own[name] != other.get(name):
            yield f"{name} is {other.get(name)!r} there, {own[name]!r} in config.json"
    facts = [
        ("fingerprint of the data", summary["data"]["fingerprint"], experiment.dataset.fingerprint),
        ("number of steps", summary["steps"], experiment.spec.intervals.total_steps),
    ]
    if run.environments and "environments" in summary:
        known = len(run.environments)  # the process that scored may be another one
        facts.append(("code or hardware", summary["environments"][:known], run.environments))
    for what, there, here in facts:
        if there != here:
            yield f"the {what} isn't this run's"
    if "records" in summary and summary["records"]["sha256"] != records_digest(run.records):
        yield "metrics.jsonl isn't the one that it was made from"
    for name, scores in summary["final"].items():
        yield from _score_faults(run, name, summary["steps"], scores)
    best = summary["best"]
    if best:
        own_scores = {k: v for k, v in best.items() if k not in ("step", "test")}
        yield from _score_faults(run, "validation", best["step"], own_scores)
        if "test" in best:
            yield from _score_faults(run, "test_best", best["step"], best["test"])


def _score_faults(run: RunRecord, name: str, step: int, scores: Mapping[str, Any]) -> Iterator[str]:
    """Compare scores of the summary with the line of metrics.jsonl."""
    split, _, weights = name.partition("_")
    weights = weights or "raw"
    lines = [
        record
        for record in run.records
        if (record["step"], record["split"]) == (step, split)
        and record.get("weights", "raw") == weights
    ]
    if not lines:
        yield f"metrics.jsonl has no {name} scores of step {step}"
        return
    for metric, value in scores.items():
        recorded = lines[-1].get(metric)
        if recorded != value:
            yield f"{name} {metric} is {value} there, {recorded} in metrics.jsonl"
