"""`train: {learning_rate: search}`: the training itself at a few rates, of which the validation rows choose one.

On the tasks of `docs/transfer.md` this was closer to the best of ten strategies, each at its best rate, than the rate
of an LR range test, and than the default at a fixed rate.
"""

import tempfile
from collections.abc import Mapping
from math import inf, isfinite
from pathlib import Path

from rich.console import Console

from finetune.build.layout import Layout, fit_options, with_peaks
from finetune.distribution.workers import workers
from finetune.errors import FinetuneError, TrainingError, reason
from finetune.machine_failures import failure_text
from finetune.recipe.loader import place_of
from finetune.training.finished_steps import SEE_WHERE
from finetune.training.fit import train
from finetune.training.snapshot import no_trace

FACTORS = (1 / 3, 1.0, 3.0)  # of the rates in the recipe


def with_searched_rates(layout: Layout, console: Console) -> Layout:
    """Trains at a third of the rates, at the rates and at three times the rates, and derives the best layout.

    Each training begins with the same weights, is as long as the run, and leaves nothing behind.

    Args:
        layout: A layout of which nothing has been trained.
        console: Where to print the losses.

    Returns:
        The layout with the rates whose loss on the validation rows is lowest at the end.

    Raises:
        FinetuneError: There are no validation rows, or several workers train.
        TrainingError: At none of the rates the loss stays a finite number, or a training fails for another reason.
    """
    _check(layout)
    peaks, losses = layout.peaks, {}
    console.print(
        f"search of the rates: {len(FACTORS)} trainings of {layout.length.steps:,} steps, judged by "
        f"{len(layout.examples.validation or ()):,} validation rows; then the run itself",
        highlight=False,
        markup=False,
    )
    for factor in FACTORS:
        layout = with_peaks(layout, _times(peaks, factor))
        losses[factor] = _loss(layout)
        rates = ", ".join(f"{name} {rate:.2g}" for name, rate in _times(peaks, factor).items())
        shown = f"{losses[factor]:.4f}" if isfinite(losses[factor]) else "no finite number"
        console.print(f" rates {rates}: validation loss {shown}", highlight=False, markup=False)
    best = min(losses, key=lambda factor: losses[factor])
    if not isfinite(losses[best]):
        raise TrainingError(
            "`train.learning_rate: search` takes the rates whose loss on the validation rows is lowest, and at all of "
            "them the loss is no finite number. Write lower rates into the groups."
        )
    return with_peaks(layout, _times(peaks, best))


def _check(layout: Layout) -> None:
    place = place_of(layout.recipe, "train", "learning_rate")
    if layout.examples.validation is None:
        raise FinetuneError(
            f"{place}: `train.learning_rate: search` goes by the validation rows, and there are none. Set "
            "`data.split.validation` or `train.validation_fraction`, or write `auto`, which measures the rate on the "
            "training rows."
        )
    if workers():
        raise FinetuneError(
            f"{place}: `train.learning_rate: search` trains in a single process. Search there, and take the rates from "
            "the `recipe.yaml` in its run folder."
        )


def _times(peaks: Mapping[str, float], factor: float) -> dict[str, float]:
    return {name: peak * factor for name, peak in peaks.items()}


def _loss(layout: Layout) -> float:
    """Returns the loss on the validation rows after a training of which nothing remains."""
    assert layout.examples.validation
    model = layout.model
    with tempfile.TemporaryDirectory(prefix="finetune-search-") as folder, no_trace(model):
        options = fit_options(layout)
        quiet = Console(quiet=True)
        try:
            train(model, layout.groups, layout.phases, layout.examples, options, folder=Path(folder), console=quiet)
        except TrainingError as error:
            cause = error.__cause__
            if isinstance(cause, Exception) and not isinstance(cause, FinetuneError):  # no rate is to blame for it
                what = failure_text(cause) or f"{type(cause).__name__}: {reason(cause)}."
                raise TrainingError(f"The search of the rates stopped with an error. {what} {SEE_WHERE}") from cause
            return inf  # a loss or a weight is no finite number
        rows = layout.examples.validation.batches(options.batch_size)
        return float(model.evaluate(rows, verbose=0, return_dict=True)["loss"])
