"""Tables of the plan and of measurements: plain data in, text out."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from io import StringIO
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from finetune.errors import printable, printable_lines
from finetune.results.fitted_table import FittedTable, TableColumn
from finetune.results.formatting import shape_text

Plan = Mapping[str, Any]
LEGEND = "Learning rates are those of the first, the middle and the last step."
_SUMMED_UP_BEYOND = 3  # groups in a cell
PHASED_LEGEND = "Learning rates are those of the first, the middle and the last step in which a group is trained."


def group_table(plan: Plan, *, restored: bool = True) -> FittedTable:
    """A row for each group: its layers, how it is trained, and how many of its weights are `restored`."""
    phases = plan.get("phases") or ()
    table = FittedTable(
        (
            *(
                TableColumn("group", names=True),
                TableColumn("layers", names=True, leaves=1),
                TableColumn("parameters", right=True),
            ),
            *(TableColumn("optimizer"), TableColumn("peak rate", right=True)),
            *([TableColumn("in phase", right=True)] if phases else []),
            *(TableColumn("learning rate", leaves=2), TableColumn("decay", right=True, leaves=5)),
            TableColumn("BatchNorm", leaves=4),
            *([TableColumn("restored", right=True, leaves=3)] if restored else []),
        )
    )
    for name in plan["groups"]:
        rows = [row for row in plan["weights"] if row["group"] == name]
        # What is trained has the optimizer and the rate of its group; the rest are statistics, or frozen in the model.
        trained = next((row for row in rows if row["learning_rate"]), None)
        # Biases and normalization have none, so a group has at most one that is not 0.
        decays = sorted({row["weight_decay"] for row in rows if row["weight_decay"]})
        peak, phase = _peak(name, trained, phases)
        table.add(
            name,
            _span(rows),
            f"{sum(row['parameters'] for row in rows):,}",
            trained["optimizer"] if trained else "frozen",
            peak,
            *([phase] if phases else []),
            _rates(trained["learning_rate"]) if trained else "",
            f"{decays[0]:g}" if decays else "",
            next((_mode(row) for row in rows if row["batch_normalization"]), ""),
            *([f"{sum(bool(row['restored_from']) for row in rows)}/{len(rows)}"] if restored else []),
        )
    return table


def _peak(name: str, trained: Mapping[str, Any] | None, phases: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """Returns the highest rate of a group, and the number of the first phase in which it has that rate."""
    peaks = [(phase["peaks"][name], -number) for number, phase in enumerate(phases, start=1) if name in phase["peaks"]]
    if not trained:
        return "", ""
    if peaks:
        peak, place = max(peaks)
        return f"{peak:.3g}", str(-place)
    return f"{max(trained['peak'] or 0.0, *trained['learning_rate']):.3g}", ""


def weight_table(plan: Plan) -> FittedTable:
    """A row for each weight."""
    table = FittedTable(
        (
            *(
                TableColumn("weight", names=True),
                TableColumn("group", names=True),
                TableColumn("shape"),
                TableColumn("optimizer"),
            ),
            *(TableColumn("learning rate", leaves=3), TableColumn("decay", right=True, leaves=4)),
            *(TableColumn("BatchNorm", leaves=2), TableColumn("restored from", names=True, leaves=1)),
        )
    )
    for row in plan["weights"]:
        # Why it is not trained, the most precise reason first.
        untrained = row.get("frozen_by") or ("frozen" if row["frozen"] else "not trainable")
        table.add(
            row["name"],
            row["group"],
            shape_text(row["shape"]),
            row["optimizer"] or untrained,
            _rates(row["learning_rate"]) if row["learning_rate"] else "",
            f"{row['weight_decay']:g}" if row["weight_decay"] else "",
            _mode(row),
            row["restored_from"] or "",
        )
    return table


def phase_table(plan: Plan) -> FittedTable:
    """A row for each phase: what is trained, for how long, at which rates. Many groups are summed up."""
    table = FittedTable(
        (
            *(
                TableColumn("phase", right=True),
                TableColumn("trains", names=True),
                TableColumn("parameters", right=True),
            ),
            *(TableColumn("epochs", right=True), TableColumn("steps", right=True), TableColumn("peak rate")),
            *(TableColumn("learning rate", names=True, leaves=1), TableColumn("BatchNorm", names=True, leaves=2)),
        )
    )
    for number, phase in enumerate(plan["phases"], start=1):
        table.add(
            str(number),
            several_names(phase["train"]),
            f"{phase['parameters']:,}",
            str(phase["epochs"]),
            str(phase["steps"]),
            _peaks_of_phase(phase["peaks"]),
            _rates_of_phase(phase["learning_rates"]),
            _modes_of_phase(phase["batch_norm"]),
        )
    return table


def _peaks_of_phase(peaks: Mapping[str, float]) -> str:
    """Returns the least and the highest of the peaks of the groups."""
    least, highest = f"{min(peaks.values()):.3g}", f"{max(peaks.values()):.3g}"
    return highest if least == highest else f"{least} to {highest}"


def _rates_of_phase(rates: Mapping[str, Sequence[float]]) -> str:
    """Returns the rates of each group; nothing for many groups, of which the range is there and the table of groups."""
    few = rates if len(rates) <= _SUMMED_UP_BEYOND else {}
    return "; ".join(f"{name} {_rates(three)}" for name, three in few.items())


def _modes_of_phase(modes: Mapping[str, str]) -> str:
    if len(modes) <= _SUMMED_UP_BEYOND:
        return ", ".join(f"{name} {mode}" for name, mode in modes.items())
    return ", ".join(f"{count} {mode}" for mode, count in Counter(modes.values()).items())


def several_names(names: Sequence[str]) -> str:
    """Returns names, or the first, the last and their number where there are many."""
    return ", ".join(names) if len(names) <= _SUMMED_UP_BEYOND else f"{names[0]} ... {names[-1]} ({len(names)})"


def phase_notes(plan: Plan) -> list[str]:
    """Notes on the phases; phases with the same note share a line."""
    notes: dict[str, list[str]] = {}
    for number, phase in enumerate(plan["phases"], start=1):
        layers = phase["inference_layers"]
        inference = [f"called in inference mode: {', '.join(layers)}"] if layers else []
        for note in (*phase["notes"], *inference):
            notes.setdefault(note, []).append(str(number))
    return [printable_lines(f"phase {', '.join(numbers)}: {note}") for note, numbers in notes.items()]


def rules_table(verdict: Mapping[str, Any]) -> Table:
    """A row for each rule of an LR range test: its rate, and whether the loss falls there."""
    table = _table("rule", "learning rate", "used")
    for suggestion in verdict["suggestions"]:
        used = "yes" if suggestion["used"] else "no: the loss does not fall there"
        _add_row(table, suggestion["rule"], f"{suggestion['learning_rate']:.2e}", used)
    return table


def norms_table(norms: Mapping[str, tuple[float, float]], rates: Mapping[str, float]) -> Table:
    """A row for each group: mean and standard deviation of its relative gradient norm, and the suggested rate."""
    table = _table("group", "|gradient| / |weights|", "of the largest", "learning rate")
    # Auto-RGN gives the group with the largest norm the peak rate, so that column is its factor.
    largest = max(mean for mean, _ in norms.values())
    for name, (mean, deviation) in norms.items():
        rate = f"{rates[name]:.3g}" if name in rates else "frozen"
        _add_row(table, name, f"{mean:.2e} ± {deviation:.0e}", f"{mean / largest:.3f}", rate)
    return table


def columns_table(inputs: Mapping[str, Mapping[str, Any]]) -> Table:
    """A row for each column of a table that is an input: what it was taken for, and what was fitted to it."""
    table = _table("column", "input", "type", "fitted to the training rows", "missing")
    for name, columns in inputs.items():
        for column, about in columns.items():
            if "categories" in about:
                # Some of them are enough to see what a column was taken for; `data.json` has all.
                shown = ", ".join(category or "(missing)" for category in about["categories"][:6])
                more = f" and {len(about['categories']) - 6} more" if len(about["categories"]) > 6 else ""
                _add_row(table, column, name, "category", shown + more, _missing(about))
            elif "mean" in about:
                fitted = f"mean {about['mean']:.4g}, standard deviation {about['variance'] ** 0.5:.4g}"
                _add_row(table, column, name, "number", fitted, _missing(about))
            elif "longest" in about:
                cut = f"at most {about['longest']} of {about['length']} tokens, {about['cut']} texts cut"
                _add_row(table, column, name, "text", cut, "")
            else:
                settings = ", ".join(f"{key} {value}" for key, value in about.items() if key != "kind")
                _add_row(table, column, name, about["kind"], settings, "")
    return table


def _missing(about: Mapping[str, Any]) -> str:
    words = ", ".join(about.get("missing_words", ()))
    return f"{about['missing']} ({words})" if words else str(about["missing"])


def classes_table(described: Mapping[str, Any], output: str = "") -> Table:
    """A row for each class or label of an output: how many rows of each split it has."""
    splits = described["rows_of_classes"]
    table = _table(f"class of {output}" if output else "class", *splits)
    for number, name in enumerate(described["class_names"]):
        _add_row(table, name, *(str(counts[number]) for counts in splits.values()))
    return table


def class_results_table(classes: Mapping[str, Mapping[str, Any]], output: str = "", rows: str = "test") -> Table:
    """A row for each class of an output: how many rows it has, and recall and precision on them.

    Args:
        classes: Rows, recall and precision of each class by its name.
        output: Name of the output; empty for the only one.
        rows: Heads the column with the number of rows.
    """
    table = _table(f"class of {output}" if output else "class", rows, "recall", "precision")
    for name, about in classes.items():
        shares = ("" if about[key] is None else f"{about[key]:.3f}" for key in ("recall", "precision"))
        _add_row(table, name, str(about["rows"]), *shares)
    return table


def confusion_table(names: Sequence[str], counts: Sequence[Sequence[int]], of: str = "") -> Table:
    """A row for each class that rows have, a column for each that the model takes them for.

    Args:
        names: Names of the classes, by number.
        counts: How many rows of a class (first index) are taken for a class (second index).
        of: Says of which output, behind the head of the first column.
    """
    table = _table(f"is{of} / taken for", *names)
    for column in table.columns[1:]:
        column.justify = "right"
    for name, row in zip(names, counts, strict=True):
        _add_row(table, name, *(f"{count:,}" if count else "" for count in row))
    return table


def arrays_table(arrays: Sequence[Mapping[str, Any]]) -> Table:
    """A row for each array of a data set: its type, the shape of a row, and its range in the training rows."""
    table = _table("array", "type", "shape of a row", "least", "greatest")
    for about in arrays:
        ends = [_number(about[key]) if key in about else "" for key in ("least", "greatest")]
        ends[1] += f" (first {about['rows']:,} rows)" if "rows" in about else ""
        _add_row(table, about["name"], about["type"], str(tuple(about["shape"])), *ends)
    return table


def _number(value: float) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def targets_table(columns: Mapping[str, Mapping[str, float]]) -> Table:
    """A row for each column of numbers that is a target: mean, spread and range in the training rows."""
    table = _table("target", "mean", "standard deviation", "least", "greatest")
    for name, about in columns.items():
        _add_row(table, name, *(f"{value:.4g}" for value in about.values()))
    return table


def plain_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """A table of texts under the heads of its columns."""
    table = _table(*heads)
    for row in rows:
        _add_row(table, *row)
    return table


def native_text(layers: Mapping[str, int]) -> str:
    """Returns numbers of layers by the names of their classes as text."""
    return ", ".join(f"{name} ({count:,})" for name, count in layers.items())


def plan_text(plan: Plan) -> str:
    """The whole plan as plain text: phases, groups, weights and advice."""
    return "\n".join(_plan_parts(plan, group_table(plan), as_text(weight_table(plan))))


def plan_summary(plan: Plan) -> str:
    """The plan as plain text without a row for each weight: phases, groups and advice."""
    restored = any(row["restored_from"] for row in plan["weights"])
    return "\n".join(_plan_parts(plan, group_table(plan, restored=restored))).rstrip()


def _plan_parts(plan: Plan, groups: FittedTable, *weights: str) -> list[str]:
    tables = [as_text(groups), *weights]
    advice = [printable_lines(f"Advice: {line}\n") for line in plan["advice"]]
    if plan.get("native"):
        tables.append(f"Native kernels where they apply, in {native_text(plan['native'])}\n")
    if not plan.get("phases"):
        return [LEGEND + "\n", *tables, *advice]
    notes = [f"{line[0].upper()}{line[1:]}\n" for line in phase_notes(plan)]
    return [PHASED_LEGEND + "\n", as_text(phase_table(plan)), *notes, *tables, *advice]


def as_text(table: Table | FittedTable) -> str:
    """A table as plain text, as wide as it needs to be."""
    out = StringIO()
    # A file has no width to wrap at, and must not depend on the terminal in which the command ran.
    # In a notebook Rich would display the table, whatever the file is.
    Console(file=out, width=10_000, color_system=None, force_jupyter=False).print(table)
    return "".join(line.rstrip() + "\n" for line in out.getvalue().splitlines())


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for column in columns:
        right = column in (
            "parameters",
            "decay",
            "restored",
            "epochs",
            "steps",
            "missing",
            "train",
            "test",
            "rows",
            "validation",
            "recall",
            "precision",
        )
        # On a narrow terminal long cells are wrapped; nothing is cut off.
        fixed = right or column in ("optimizer", "BatchNorm")
        head = Text(printable(column))  # an output or class in it may look like markup of Rich
        table.add_column(
            head, justify="right" if right else "left", no_wrap=fixed, min_width=min(8, len(column)), overflow="fold"
        )
    return table


def _add_row(table: Table, *cells: str) -> None:
    table.add_row(*(Text(printable(cell)) for cell in cells))  # plain text: a name may look like markup of Rich


def _mode(row: Mapping[str, Any]) -> str:
    # The mode alone: `plan.json` has what follows the comma, which explains it.
    return (row["batch_normalization"] or "").partition(",")[0]


def _rates(rates: Sequence[float]) -> str:
    return ", ".join(f"{rate:.3g}" for rate in rates) if len(set(rates)) > 1 else f"{rates[0]:.3g}"


def _span(rows: Sequence[Mapping[str, Any]]) -> str:
    # A weight without a layer stands for itself. `dict`, not `set`: the order is that of the model.
    layers: Iterable[str] = dict.fromkeys(row["name"].rpartition("/")[0] or row["name"] for row in rows)
    return several_names(list(layers))
