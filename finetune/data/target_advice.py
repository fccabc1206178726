"""Advice on targets that a network can be trained on, but hardly as it was meant: too many outputs, far-off numbers."""

from collections.abc import Iterator, Mapping
from typing import Any

from finetune.data.loss_families import NUMBERS, ONE_HOT, SPARSE, family_of
from finetune.errors import quote

_FAR = 10  # times the size of the outputs with which training begins
_UNEQUAL = 10  # times the spread of another column of the same output


def advice_on_targets(
    facts: Mapping[str, Any], loss: str, width: int | None, size: float | None = None, output: str = ""
) -> Iterator[str]:
    """Yields a sentence for each thing about the targets of an output that is probably not meant.

    Args:
        facts: What `target_facts.describe` says about the output.
        loss: Name of its loss.
        width: How many values the network gives for a row; `None` where that is not known.
        size: Root mean square of the values that the network gives before training; `None` where that is not known.
        output: Name of the output; empty for the only one.
    """
    of_output = f" for `{output}`" if output else ""
    classes = facts.get("class_names", ()) if "rows_of_classes" in facts else ()
    if classes and family_of(loss) in (SPARSE, ONE_HOT) and width and width > max(len(classes), 1):
        yield (
            f"the network gives {width:,} classes{of_output}, and the data have {len(classes):,}: {quote(classes)}. "
            f"Its outputs from number {len(classes):,} on, counted from 0, are never a target. If they stand for no "
            "class, take `head: {classes: auto}`, or a network with as many outputs as classes"
        )
    if classes and family_of(loss) == SPARSE and width and 1 < width < len(classes):
        yield (
            f"the network gives {width:,} classes{of_output}, and the data have {len(classes):,}: {quote(classes)}. It "
            "cannot be trained on them: take `head: {classes: auto}`, or a network with as many outputs as classes"
        )
    numbers = facts.get("numbers", {}) if family_of(loss) == NUMBERS else {}
    for column, about in numbers.items():
        reach = (about["mean"] ** 2 + about["standard_deviation"] ** 2) ** 0.5
        if size is not None and reach > _FAR * max(size, 1):
            yield (
                f"the target {_named(column)}has the mean {about['mean']:.4g} and the standard deviation "
                f"{about['standard_deviation']:.4g}, and before training the network gives values of the size "
                f"{size:.2g}. Under `{loss}` it takes very many steps to reach them, or diverges. Set "
                "`head: {standardize: true}`, which gives the head outputs of this mean and spread, or divide the "
                "target by a number"
            )
    spreads = {column: about["standard_deviation"] for column, about in numbers.items()}
    if len(spreads) > 1 and max(spreads.values()) > _UNEQUAL * max(min(spreads.values()), 1e-30):
        shown = ", ".join(f"`{column}` {spread:.3g}" for column, spread in list(spreads.items())[:5])
        most = max(spreads, key=lambda column: spreads[column])
        yield (
            f"the target's columns have very different standard deviations ({shown}), and `{loss}` is their mean "
            f"error: nearly all of it is that of `{most}`. Divide the columns by numbers that bring them to one scale"
        )


def _named(column: str) -> str:
    return f"`{column}` " if column else ""
