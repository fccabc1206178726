"""A search of the rates: the training itself at a few rates, of which the loss on the validation rows chooses one.

A recipe asks for it with `train: {learning_rate: search}`, a `FineTuner` with `fit(learning_rate="search")`. Both train
in their own way, and choose here.
"""

from collections.abc import Callable, Mapping
from math import inf, isfinite

import keras
from rich.console import Console

from finetune.errors import TrainingError
from finetune.training.callbacks import progress_bar, values_of_groups

FACTORS = (1 / 3, 1.0, 3.0)  # of the rates that were written


def times(rates: Mapping[str, float], factor: float) -> dict[str, float]:
    """Returns the rates of all groups times a factor."""
    return {name: rate * factor for name, rate in rates.items()}


def search_sentence(steps: int | None, rows: int | None) -> str:
    """Says what a search does, and how many steps it takes.

    Args:
        steps: Steps of the training; `None` where that is unknown.
        rows: How many rows there are to validate on; `None` where that is unknown.
    """
    count = len(FACTORS)
    length = "as long as the training itself" if steps is None else f"of {steps:,} steps each"
    by = "the loss on the validation rows" if rows is None else f"the loss on {rows:,} validation rows"
    total = "" if steps is None else f": {(count + 1) * steps:,} steps in all"
    return (
        f"search of the rates: {count} trainings {length}, at a third of the rates, at the rates and at three times "
        f"the rates, of which {by} chooses; then the training itself{total}"
    )


class StepCount(keras.callbacks.Callback):
    """Tells the steps that were made, over all epochs.

    Args:
        on_step: Called with them.
        steps_per_epoch: Steps of an epoch; where that is unknown, 0, and the steps of the epoch are told.
    """

    def __init__(self, on_step: Callable[[int], None], steps_per_epoch: int):
        super().__init__()
        self.on_step, self.steps, self._epoch = on_step, steps_per_epoch, 0

    def on_epoch_begin(self, epoch: int, logs: object = None) -> None:
        self._epoch = epoch

    def on_train_batch_end(self, batch: int, logs: object = None) -> None:
        self.on_step(self._epoch * self.steps + batch + 1)


def best_factor(
    rates: Mapping[str, float],
    loss_at: Callable[[float, Callable[[int], None]], float],
    console: Console,
    *,
    steps: int | None,
    asked: str,
) -> float:
    """Trains at the rates times each of `FACTORS`, and says what the loss was.

    Args:
        rates: The rates of the groups, by name.
        loss_at: Trains at the rates times a factor, leaves no trace, and returns the loss on the validation rows after
            it. It is called with a function, too, that takes the steps made.
        console: Where to print.
        steps: Steps of a training; `None` where that is unknown.
        asked: What the user has written to ask for this.

    Returns:
        The factor with the lowest loss.

    Raises:
        TrainingError: At none of the rates the loss is a finite number.
    """
    losses: dict[float, float] = {}
    for number, factor in enumerate(FACTORS, start=1):
        with progress_bar(console, f"search of the rates, training {number} of {len(FACTORS)}") as show:
            loss = loss_at(factor, lambda done, show=show: show(done, steps))
        losses[factor] = loss if isfinite(loss) else inf
        shown = f"{loss:.4f}" if isfinite(loss) else "no finite number"
        tried = values_of_groups(times(rates, factor))
        console.print(f"  rate: {tried}  validation loss {shown}", highlight=False, markup=False)
    best = min(losses, key=lambda factor: losses[factor])
    if not isfinite(losses[best]):
        raise TrainingError(
            f"{asked} takes the rates whose loss on the validation rows is lowest, and at all of them the loss is no "
            "finite number. Write lower rates."
        )
    console.print(f"taken: {values_of_groups(times(rates, best))}", highlight=False, markup=False)
    return best
