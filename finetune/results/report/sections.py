"""The sections of a report on a run: metrics, curves, plan, data, and what it ran on."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from finetune.results.formatting import rate_text, size_text
from finetune.results.report.figures import as_points, line_chart
from finetune.results.report.markup import Markup, definitions, element, sentence, table
from finetune.results.report.run_files import RunFiles
from finetune.results.report.verdict import interval_text

# Columns that are drawn for each group, with the title of their figure.
_OF_GROUPS = {
    "learning_rate/": "learning rate of each group",
    "gradient_norm/": "gradient norm of each group",
    "update_ratio/": "size of a step relative to the weights, of each group",
    "drift/": "distance from the weights at the start, of each group",
}
_MOST_ROWS = 60  # of a table in the page; the files have all


def metrics_section(run: RunFiles) -> Markup | None:
    """Loss and metrics on the test rows with their intervals, before training, and of a constant answer."""
    if not run.result:
        return None
    after, before, mean = (run.result.get(key, {}) for key in ("metrics", "metrics_before", "metrics_of_mean"))
    rows = [
        (name, _figure(value), interval_text(run, name) or "-", _figure(before.get(name)), _figure(mean.get(name)))
        for name, value in after.items()
    ]
    heads = ("", "after training", "95 % interval", "before", "same answer for every row")
    note = "Intervals: test rows drawn again with replacement (bootstrap, 200 draws, a fixed seed). "
    note += "The last column is the score of the mean of the training targets as the answer for every row."
    if not run.report.get("intervals"):
        note = "No intervals: they need predictions that the run has kept. " + run.report.get("problem", "")
    return _section("Metrics", table(heads, rows), element("p", note, class_="quiet"))


def curves_section(run: RunFiles) -> Markup | None:
    """Loss, metrics and what was measured of each group, over time."""
    columns = list(dict.fromkeys(key for row in run.epochs for key in row))
    plain = [name for name in columns if "/" not in name and name not in ("epoch", "phase", "step")]
    titles = dict.fromkeys(name.removeprefix("val_") for name in sorted(plain, key=lambda name: "loss" not in name))
    marks = _phase_marks(run.epochs, "epoch")
    figures = []
    for title in titles:
        lines = {"training": title, "validation": f"val_{title}"}
        points = {name: as_points(run.epochs, "epoch", key) for name, key in lines.items() if key in plain}
        if any(points.values()):
            figures.append(line_chart(title, points, x_label="epoch", marks=marks))
    rows, x = (run.steps, "step") if run.steps else (run.epochs, "epoch")
    marks = _phase_marks(rows, x)
    for prefix, title in _OF_GROUPS.items():
        names = list(dict.fromkeys(key for row in rows for key in row if key.startswith(prefix)))
        lines = {name.removeprefix(prefix): as_points(rows, x, name) for name in names}
        lines = {name: [point for point in points if point[1] != 0] for name, points in lines.items()}
        if any(lines.values()):
            figures.append(line_chart(title, lines, x_label=x, log_y=True, marks=marks))
    return _section("Curves", element("div", figures, class_="grid")) if figures else None


def range_section(run: RunFiles) -> Markup | None:
    """The LR range test that chose the rates, where the recipe asked for it."""
    curves, verdicts = run.range_test.get("curves", {}), run.range_test.get("verdicts", {})
    figures = []
    for name, curve in curves.items():
        points = [
            (rate, loss) for rate, loss in zip(curve["rates"], curve["smoothed"], strict=False) if loss is not None
        ]
        if not points:
            continue
        lowest, first = min(loss for _, loss in points), points[0][1]
        # The divergence is cut off: the curve before it would look flat beside it.
        points = [point for point in points if point[1] <= first + max(first - lowest, 0.1 * abs(first))]
        chosen = verdicts.get(name, {}).get("learning_rate")
        marks = [(chosen, f"suggested {rate_text(chosen)}")] if chosen else []
        title = f"loss, {name}"
        figures.append(line_chart(title, {"smoothed": points}, x_label="learning rate", log_x=True, marks=marks))
    return _section("LR range test", element("div", figures, class_="grid")) if figures else None


def plan_section(run: RunFiles) -> Markup | None:
    """What was trained and how, what was restored, and the proof of what was left alone."""
    if not run.plan:
        return None
    groups, weights = run.plan.get("groups", ()), run.plan.get("weights", ())
    rows = [_group_row(name, [row for row in weights if row["group"] == name]) for name in groups[:_MOST_ROWS]]
    heads = ("group", "trained by", "weight decay", "parameters", "rate: start, middle, end", "restored")
    parts: list[Any] = [table(heads, rows, numbers=3)]
    if phases := run.plan.get("phases"):
        phase_rows = [
            (number, ", ".join(phase["train"]), f"{phase['parameters']:,}", phase["epochs"], phase["steps"])
            for number, phase in enumerate(phases, start=1)
        ]
        parts.append(table(("phase", "trains", "parameters", "epochs", "steps"), phase_rows, numbers=2))
    parts += [element("p", "Advice: ", sentence(line)) for line in run.plan.get("advice", ())]
    parts += [element("p", sentence) for sentence in _proof(run)]
    return _section("Plan, restored weights and proof", *parts)


def data_section(run: RunFiles) -> Markup | None:
    """Rows of each split, rows of each class, and what was fitted to the training rows."""
    if not run.data:
        return None
    source, rows = run.data.get("source", {}), run.data.get("rows", {})
    facts = [(f"{name} rows", f"{count:,}") for name, count in rows.items()]
    facts += [(key, str(value)) for key, value in source.items() if isinstance(value, str | int | float | bool)]
    parts: list[Any] = [definitions(facts)]
    for output, of in (run.data.get("outputs") or {"": run.data}).items():
        parts += list(_targets(output, of))
    if inputs := source.get("inputs"):
        parts.append(_fitted(inputs))
    parts += [element("p", "Warning: ", sentence(str(text))) for text in source.get("warnings", ())]
    return _section("Data", *parts)


def machine_section(run: RunFiles) -> Markup | None:
    """Seconds of each stage, memory, versions, devices and settings."""
    seconds, environment = run.result.get("seconds", {}), run.environment
    facts = [(f"{stage}", f"{value:.1f} s") for stage, value in seconds.items()]
    facts += [("all stages", f"{sum(seconds.values()):.1f} s")] if seconds else []
    if peak := run.report.get("peak_bytes"):
        facts.append(("peak memory of the process", size_text(peak)))
    if (share := run.result.get("data_wait")) is not None:
        facts.append(("share of training spent waiting for rows", f"{share:.1%}"))
    if loop := run.result.get("keras_loop"):
        facts.append(("Keras' own loop was used", loop))
    parts: list[Any] = [definitions(facts)] if facts else []
    for key in ("versions", "machine", "devices", "settings"):
        if values := environment.get(key):
            parts += [element("h3", key.capitalize()), definitions(_pairs(values))]
    return _section("Resources and environment", *parts) if parts else None


def repeat_section(run: RunFiles) -> Markup:
    """The commands that repeat and check the run, and its recipe as it was resolved."""
    lines = [f"finetune run {run.folder / 'recipe.yaml'} --out {run.folder}-again{_allowed(run)}"]
    commands = element("pre", "\n".join([run.report.get("command") or lines[0]]))
    recipe = element("details", element("summary", "The recipe as it was resolved"), element("pre", run.recipe))
    return _section("Repeat it", commands, recipe)


def _allowed(run: RunFiles) -> str:
    return "".join(f" --allow-code {name}" for name in run.report.get("allowed_code", ()))


def _section(title: str, *parts: Any) -> Markup:
    return element("section", element("h2", title), *parts)


def _figure(value: Any) -> str:
    return "-" if value is None else f"{value:.4g}"


def _phase_marks(rows: Sequence[Mapping[str, Any]], x: str) -> list[tuple[float, str]]:
    """Returns where phases begin."""
    marks, before = [], None
    for row in rows:
        phase = row.get("phase")
        if phase != before and phase is not None and row.get(x) is not None:
            name = f"{phase:g}" if isinstance(phase, float) else str(phase)
            marks.append((row[x], f"phase {name}"))
        before = phase
    return marks if len(marks) > 1 else []


def _group_row(name: str, weights: Sequence[Mapping[str, Any]]) -> tuple[Any, ...]:
    trained = next((row for row in weights if row["learning_rate"]), None)
    decay = next((row["weight_decay"] for row in weights if row["weight_decay"]), None)
    rates = list(dict.fromkeys(rate_text(rate) for rate in trained["learning_rate"])) if trained else []
    return (
        name,
        trained["optimizer"] if trained else "frozen",
        "" if decay is None else f"{decay:g}",
        f"{sum(row['parameters'] for row in weights):,}",
        ", ".join(rates) or "-",
        f"{sum(bool(row['restored_from']) for row in weights)} of {len(weights)}",
    )


def _proof(run: RunFiles) -> Iterator[str]:
    if run.restore:
        counts = {key: len(run.restore.get(key) or ()) for key in ("restored", "missing", "unused", "excluded")}
        others = ", ".join(f"{count} {key}" for key, count in counts.items() if key != "restored" and count)
        yield f"{counts['restored']} weights were restored from {run.restore.get('path')}" + (
            f"; {others}." if others else "."
        )
    tensors, holds = run.result.get("frozen_tensors"), run.result.get("frozen_unchanged")
    if tensors:
        yield (
            f"All {tensors} frozen tensors are bit for bit what they were at the start."
            if holds
            else (f"Of {tensors} frozen tensors some have changed.")
        )


def _targets(output: str, of: Mapping[str, Any]) -> Iterator[Markup]:
    named = f" of {output}" if output else ""
    if counts := of.get("rows_of_classes"):
        names = of.get("class_names", ())
        rows = [(name, *(f"{part[place]:,}" for part in counts.values())) for place, name in enumerate(names)]
        yield table((f"class{named}", *counts), rows[:_MOST_ROWS], caption=_cut(len(rows)))
    if numbers := of.get("numbers"):
        rows = [(name, *(_figure(value) for value in about.values())) for name, about in numbers.items()]
        yield table((f"target{named}", "mean", "standard deviation", "least", "greatest"), rows[:_MOST_ROWS])


def _fitted(inputs: Any) -> Markup:
    rows = []
    for name, columns in inputs.items() if isinstance(inputs, Mapping) else ():
        for column, about in columns.items() if isinstance(columns, Mapping) else ():
            if not isinstance(about, Mapping):  # of an older version
                continue
            kept = {key: value for key, value in about.items() if key not in ("kind", "categories", "missing_words")}
            if categories := about.get("categories"):
                kept["categories"] = f"{', '.join(map(str, categories[:6]))}" + (" ..." if len(categories) > 6 else "")
            shown = ", ".join(f"{key} {_short(value)}" for key, value in kept.items())
            rows.append((column, name, about.get("kind", ""), shown))
    heads = ("column", "input", "type", "fitted to the training rows")
    return table(heads, rows[:_MOST_ROWS], caption=_cut(len(rows)), numbers=9)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _cut(count: int) -> str:
    return f"The first {_MOST_ROWS} of {count}; `data.json` has all" if count > _MOST_ROWS else ""


def _pairs(values: Any) -> list[tuple[str, str]]:
    if isinstance(values, Mapping):
        return [(str(key), str(value)) for key, value in values.items()]
    return [(str(number), str(value)) for number, value in enumerate(values)]
