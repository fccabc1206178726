"""`finetune evaluate`: the figures of a fine-tuned model on the console."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console

from finetune.commands.run_result import print_class_results
from finetune.errors import printable
from finetune.inference.evaluation import Evaluation
from finetune.results.report.output_facts import QUANTITIES
from finetune.results.tables import confusion_table, plain_table

_MOST_IN_MATRIX = 10  # classes; of more, the pairs that are taken for each other most often
_PAIRS = 6


def print_evaluation(result: Evaluation, console: Console) -> None:
    """Prints figures with their intervals and, for each output, classes, confusion and calibration, or residuals.

    Args:
        result: The figures.
        console: Where to print.
    """
    console.print(f"{result.rows:,} rows of {printable(result.data)}", markup=False, highlight=False)
    for name, value in result.metrics.items():
        interval = result.intervals.get(name)
        spread = f"  ({interval[0]:.4f} to {interval[1]:.4f})" if interval else ""
        console.print(f"{printable(name)}: {value:.4f}{spread}", markup=False, highlight=False)
    if result.intervals:
        console.print("in brackets: where 95 of 100 such sets of rows would lie (bootstrap)", highlight=False)
    for output, classes in result.classes.items():
        print_class_results(classes, output, console, rows="rows")
    for output, facts in result.outputs.items():
        _print_output(facts, f" of {printable(output)}" if output else "", console)


def _print_output(facts: Mapping[str, Any], of: str, console: Console) -> None:
    if facts["kind"] == QUANTITIES:
        keys = ("mean_absolute_error", "root_mean_squared_error", "bias", "r2")
        rows = [
            (each["name"] or "target", *("" if each[key] is None else f"{each[key]:.4g}" for key in keys))
            for each in facts["columns"]
        ]
        console.print(plain_table((f"number{of}", "mean absolute error", "root mean square", "bias", "R2"), rows))
    names = [each["name"] for each in facts.get("classes", ())]
    if "confusion" in facts and len(names) <= _MOST_IN_MATRIX:
        console.print(confusion_table(names, facts["confusion"], of))
    elif facts.get("confused"):
        pairs = [(actual, answer, f"{count:,}") for actual, answer, count in facts["confused"][:_PAIRS]]
        console.print(plain_table((f"is{of}", "taken for", "rows"), pairs))
    if "calibration" in facts:
        error = f"calibration error{of}: {facts['calibration']['error']:.3f}"
        console.print(
            f"{error}  (how far probabilities are from the share that is right)", markup=False, highlight=False
        )
