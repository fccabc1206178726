"""What came of a run, in a few sentences: the first lines of its report."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from finetune.results.report.run_files import RunFiles

_WEAK = 0.5  # a recall below it is told
_SHOWN = 5
_LOWER_IS_BETTER = ("loss", "error", "crossentropy", "hinge", "divergence", "poisson", "mse", "mae", "mape", "msle")


@dataclass(frozen=True)
class RunVerdict:
    """The first lines of a report.

    Attributes:
        good: Whether nothing speaks against the result.
        sentence: The result.
        notes: What speaks against it, or should be known, worst first.
    """

    good: bool
    sentence: str
    notes: tuple[str, ...]


def verdict_of(run: RunFiles) -> RunVerdict:
    """Returns what is said of a run.

    Args:
        run: The files of its folder.
    """
    result = run.result
    if not result:
        return RunVerdict(False, "This run has not come to its end.", _of_unfinished(run))
    problems = [*_of_proof(result), *_of_learning(result), *_of_classes(result), *result.get("warnings", ())]
    return RunVerdict(not problems, _result(run), tuple(problems))


def main_metric(metrics: Mapping[str, float]) -> str:
    """Returns the metric that says most of a result: an accuracy, else the first that is no loss, else the loss."""
    others = [name for name in metrics if not name.endswith("loss")]
    return next((name for name in others if "accuracy" in name), next(iter(others), "loss"))


def is_lower_better(name: str) -> bool:
    """Returns whether less of a metric is better, as far as its name tells."""
    plain = name.lower().replace("_", "")
    return any(word in plain for word in _LOWER_IS_BETTER)


def interval_text(run: RunFiles, name: str) -> str:
    """Returns the interval of a metric as `0.899 to 0.933`; empty where there is none."""
    interval = run.report.get("intervals", {}).get(name)
    return f"{interval[0]:.4g} to {interval[1]:.4g}" if interval and None not in interval else ""


def _result(run: RunFiles) -> str:
    metrics, rows = run.result["metrics"], run.data.get("rows", {}).get("test")
    name = main_metric(metrics)
    text = f"{name} {metrics[name]:.4g}" if metrics.get(name) is not None else f"{name} unknown"
    text += f" on {rows:,} test rows" if rows else " on the test rows"
    if interval := interval_text(run, name):
        text += f" (95 % interval {interval})"
    before, mean = (run.result.get(key, {}).get(name) for key in ("metrics_before", "metrics_of_mean"))
    text += f", {before:.4g} before training" if before is not None else ""
    text += f"; the same answer for every row gives {mean:.4g}" if mean is not None else ""
    recalls = {key: of["recall"] for of_all in run.result.get("classes", {}).values() for key, of in of_all.items()}
    recalls = {key: recall for key, recall in recalls.items() if recall is not None}
    if len(recalls) > 2 and len(run.result["classes"]) == 1:
        weakest = min(recalls, key=lambda key: recalls[key])
        text += f"; the weakest class is `{weakest}`, of whose rows {recalls[weakest]:.0%} are recognised"
    return f"{text[0].upper()}{text[1:]}."


def _of_unfinished(run: RunFiles) -> tuple[str, ...]:
    epochs = len(run.epochs)
    done = f"{epochs} epochs are finished." if epochs != 1 else "One epoch is finished."
    return (f"{done} `finetune resume {run.folder}` goes on where it was stopped or killed.",)


def _of_proof(result: Mapping[str, Any]) -> list[str]:
    if result.get("frozen_unchanged", True):
        return []
    return ["Frozen tensors have changed: the run has failed. `plan.json` and `result.json` name them."]


def _of_learning(result: Mapping[str, Any]) -> list[str]:
    metrics, mean = result["metrics"], result.get("metrics_of_mean", {})
    name = main_metric(metrics)
    value, constant, before = metrics.get(name), mean.get(name), result.get("metrics_before", {}).get(name)
    if value is None:
        return [f"{name} is no number."]
    sign = -1 if is_lower_better(name) else 1
    if constant is not None and sign * value <= sign * constant:
        return [
            f"The network does no better than the same answer for every row ({name} {constant:.4g}): it has learned "
            "nothing from its inputs that holds for the test rows."
        ]
    if before is not None and sign * value < sign * before:
        return [f"Training has made it worse: {name} was {before:.4g} before."]
    return []


def _of_classes(result: Mapping[str, Any]) -> list[str]:
    """Names the classes that are never, or rarely, recognised: a good mean hides them."""
    notes = []
    for output, classes in result.get("classes", {}).items():
        of = f" of `{output}`" if output else ""
        recalls = {name: each["recall"] for name, each in classes.items() if each.get("recall") is not None}
        never = [name for name, recall in recalls.items() if recall == 0]
        weak = [name for name in sorted(recalls, key=lambda name: recalls[name]) if 0 < recalls[name] < _WEAK]
        if never:
            verb = "is" if len(never) == 1 else "are"
            notes.append(f"{len(never)} of {len(recalls)} classes{of} {verb} never recognised: {_named(never)}.")
        if weak:
            shown = [f"`{name}` ({recalls[name]:.2f})" for name in weak[:_SHOWN]]
            more = f" and {len(weak) - _SHOWN} more" if len(weak) > _SHOWN else ""
            notes.append(f"Fewer than half of the rows of these classes{of} are recognised: {', '.join(shown)}{more}.")
    return notes


def _named(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(f"`{name}`" for name in names[:_SHOWN]) + more
