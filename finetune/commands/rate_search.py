"""`train: {learning_rate: search}`: the training itself at a few rates, of which the validation rows choose one.

On the tasks of `docs/transfer.md` this was closer to the best of ten strategies, each at its best rate, than the rate
of an LR range test, and than the default at a fixed rate.
"""

import tempfile
from collections.abc import Callable
from math import inf
from pathlib import Path

from rich.console import Console

from finetune.build.layout import Layout, fit_options, with_peaks
from finetune.distribution.workers import workers
from finetune.errors import FinetuneError, TrainingError, reason
from finetune.machine_failures import failure_text
from finetune.recipe.loader import place_of
from finetune.training.finished_steps import SEE_WHERE
from finetune.training.fit import train
from finetune.training.searched_rates import StepCount, best_factor, search_sentence, times
from finetune.training.snapshot import no_trace


def with_searched_rates(layout: Layout, console: Console) -> Layout:
    """Trains at a third of the rates, at the rates and at three times the rates, and derives the best layout.

    Each training begins with the same weights, is as long as the run, and leaves nothing behind.

    Args:
        layout: A layout of which nothing has been trained.
        console: Where to print the losses.

    Returns:
        The layout with the rates whose loss on the validation rows is lowest at the end.

    Raises:
        FinetuneError: Several workers train.
        TrainingError: At none of the rates the loss stays a finite number, or a training fails for another reason.
    """
    if workers():
        raise FinetuneError(
            f"{place_of(layout.recipe, 'train', 'learning_rate')}: `train.learning_rate: search` trains in a single "
            "process. Search there, and take the rates from the `recipe.yaml` in its run folder."
        )
    peaks = layout.peaks
    console.print(sentence_of(layout), highlight=False, markup=False)

    def loss_at(factor: float, on_step: Callable[[int], None]) -> float:
        nonlocal layout
        layout = with_peaks(layout, times(peaks, factor))
        return _loss(layout, on_step)

    asked = "`train.learning_rate: search`"
    best = best_factor(peaks, loss_at, console, steps=layout.length.steps, asked=asked)
    return with_peaks(layout, times(peaks, best))


def sentence_of(layout: Layout) -> str:
    """Says what the search of a run does, and how many steps it takes."""
    return search_sentence(layout.length.steps, len(layout.examples.validation or ()))


def _loss(layout: Layout, on_step: Callable[[int], None]) -> float:
    """Returns the loss on the validation rows after a training of which nothing remains."""
    assert layout.examples.validation
    model = layout.model
    with tempfile.TemporaryDirectory(prefix="finetune-search-") as folder, no_trace(model):
        options = fit_options(layout)
        training = model, layout.groups, layout.phases, layout.examples, options
        steps = StepCount(on_step, options.steps_per_epoch)
        try:
            train(*training, folder=Path(folder), console=Console(quiet=True), keepers=[steps])
        except TrainingError as error:
            cause = error.__cause__
            if isinstance(cause, Exception) and not isinstance(cause, FinetuneError):  # no rate is to blame for it
                what = failure_text(cause) or f"{type(cause).__name__}: {reason(cause)}."
                raise TrainingError(f"The search of the rates stopped with an error. {what} {SEE_WHERE}") from cause
            return inf  # a loss or a weight is no finite number
        rows = layout.examples.validation.batches(options.batch_size)
        return float(model.evaluate(rows, verbose=0, return_dict=True)["loss"])
