"""The sections of a report on the answers to the test rows: one for each output of the network, by its kind."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from finetune.results.report.figures import curve, histogram, line_chart, share_bar
from finetune.results.report.markup import Markup, element, sentence, table
from finetune.results.report.output_facts import CLASSES, LABELS
from finetune.results.report.run_files import RunFiles

_MOST_CLASSES = 100  # in a table; of more, those with the least recall


def answers_sections(run: RunFiles) -> Iterator[Markup]:
    """Yields what is said of each output by its kind, and the rows that are furthest off."""
    for output, facts in run.report.get("outputs", {}).items():
        named = f" of `{output}`" if output else ""
        kinds = {CLASSES: _classes, LABELS: _labels}
        parts = list(kinds.get(facts["kind"], _numbers)(facts))
        title = {CLASSES: "Classes", LABELS: "Labels"}.get(facts["kind"], "Residuals")
        if not run.report.get("is_all", True):
            parts.insert(0, element("p", f"Of {facts['rows']:,} evenly spaced test rows.", class_="quiet"))
        yield element("section", element("h2", sentence(title + named)), parts)
        if worst := facts.get("worst"):
            yield _worst(worst, named)


def _classes(facts: Mapping[str, Any]) -> Iterator[Markup]:
    yield _shares(facts["classes"], "class")
    if "confusion" in facts:
        names = [each["name"] for each in facts["classes"]]
        yield element("h3", "Confusion")
        yield _confusion(names, facts["confusion"])
    elif pairs := facts.get("confused"):
        yield table(("is", "taken for", "rows"), pairs, caption="Most often taken for another", numbers=2)
    yield from _calibration(facts, "share that is right")


def _labels(facts: Mapping[str, Any]) -> Iterator[Markup]:
    yield _shares(facts["classes"], "label", _threshold)
    threshold = facts["threshold"]
    yield element(
        "p",
        f"A row gets a label from a score of {threshold:g} on. The best threshold is the one with the highest F1 on "
        "these test rows: to use it, choose it on other rows.",
        class_="quiet",
    )
    yield from _calibration(facts, "share that has the label")


def _threshold(of: Mapping[str, Any]) -> tuple[Any, ...]:
    if of.get("best_threshold") is None:
        return ("-", "-")
    return f"{of['best_threshold']:.3f}", f"{of['best_f1']:.3f}"


def _shares(classes: Sequence[Mapping[str, Any]], kind: str, more: Any = None) -> Markup:
    """A row for each class: test rows, recall, precision."""
    shown = list(classes)
    if cut := len(shown) > _MOST_CLASSES:
        shown = sorted((of for of in shown if of["recall"] is not None), key=lambda of: of["recall"])[:_MOST_CLASSES]
    rows = [
        (
            of["name"],
            f"{of['rows']:,}",
            share_bar(of["recall"]),
            share_bar(of["precision"]),
            *(more(of) if more else ()),
        )
        for of in shown
    ]
    heads = (kind, "test rows", "recall", "precision", *(("best threshold", "F1 there") if more else ()))
    return table(heads, rows, caption=f"The {len(shown)} with the least recall of {len(classes)}" if cut else "")


def _confusion(names: Sequence[str], counts: Sequence[Sequence[int]]) -> Markup:
    """A row for each class that is, a column for each that the network says; the darker, the larger the share."""
    rows = []
    for place, name in enumerate(names):
        total = max(sum(counts[place]), 1)
        cells = [
            element(
                "td",
                str(count) if count else "",
                class_="n hit" if place == other else "n miss",
                style=f"--v:{100 * count / total:.0f}%" if count else None,
                title=f"{count} of {name} taken for {names[other]}" if count else None,
            )
            for other, count in enumerate(counts[place])
        ]
        rows.append(element("tr", element("th", name, scope="row"), cells))
    head = element(
        "tr", element("th", "is / taken for"), [element("th", name, scope="col", class_="n") for name in names]
    )
    return element("div", element("table", element("thead", head), element("tbody", rows), class_="confusion"),
                   class_="scroll", tabindex="0")  # fmt: skip


def _calibration(facts: Mapping[str, Any], share: str) -> Iterator[Markup]:
    if not (of := facts.get("calibration")):
        return
    points = [(each["confidence"], each["share"]) for each in of["bins"]]
    yield element("h3", "Calibration")
    yield element("p", f"Expected calibration error {of['error']:.3f}: how far, on average, the probability that the "
                       f"network gives is from the {share}.")  # fmt: skip
    most = max(each["rows"] for each in of["bins"])
    radii = [3 + 9 * (each["rows"] / most) ** 0.5 for each in of["bins"]]
    title = f"{share}; line: perfectly calibrated; larger dots: more rows"
    lines = {"test rows": points}
    yield line_chart(title, lines, x_label="probability given", diagonal=True, dots=radii, unit=True)


def _numbers(facts: Mapping[str, Any]) -> Iterator[Markup]:
    names = ("mean_absolute_error", "root_mean_squared_error", "bias", "r2")
    columns = facts["columns"]
    rows = [
        (of["name"] or "target", *("-" if of[name] is None else f"{of[name]:.4g}" for name in names)) for of in columns
    ]
    heads = ("", "mean absolute error", "root mean squared error", "bias (mean residual)", "R²")
    yield table(heads, rows, caption=f"The first {len(rows)} columns" if facts.get("more_columns") else "")
    figures = []
    for of in columns[:4]:
        name = of["name"] or "target"
        figures.append(
            line_chart(f"{name}: answer (line: equal to the target)", {"test rows": of["points"]}, x_label="target",
                       diagonal=True, dots=[3.0])
        )  # fmt: skip
        bins = of["histogram"]
        figures.append(histogram(f"{name}: rows by residual", bins["counts"], bins["edges"], x_label="answer - target"))
    yield element("div", figures, class_="grid")


def _worst(rows: Sequence[Mapping[str, Any]], named: str) -> Markup:
    return element(
        "section", element("h2", sentence(f"Worst errors{named}")), element("ul", cards_of(rows), class_="cards")
    )


def cards_of(rows: Sequence[Mapping[str, Any]]) -> list[Markup]:
    """Returns a card for each row: its inputs, what it is, and what the network says.

    Args:
        rows: What `worst_rows` has returned, with `inputs` and `place` where they are known.
    """
    cards = []
    for row in rows:
        inputs = [_input(name, of) for name, of in (row.get("inputs") or {}).items()]
        score = f" ({row['score']:.2f})" if row.get("score") is not None else ""
        facts = [("target", row["actual"]), ("answer", f"{row['answer']}{score}")]
        pairs = [element("div", element("dt", name), element("dd", value)) for name, value in facts]
        place = element("p", row.get("place") or f"test row {row['row']}", class_="quiet place")
        cards.append(element("li", inputs, element("dl", pairs), place))
    return cards


def _input(name: str, of: Mapping[str, Any]) -> Markup:
    if "picture" in of:
        source = f"data:image/png;base64,{of['picture']}"
        return element("img", src=source, alt=f"the input {name}".strip(), loading="lazy")
    if "curve" in of:
        return curve(of["curve"])
    return element("p", f"{name}: " if name else None, of.get("text", of.get("values", "")), class_="input")
