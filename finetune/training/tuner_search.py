"""The search of the rates for a `FineTuner`: what it trains, on what, and what of it cannot be searched."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from finetune.errors import DataError, GroupError
from finetune.recipe.rate_edits import tidy
from finetune.training.phases.named_strategies import peak_of_rate
from finetune.training.phases.phase import Phase
from finetune.training.searched_rates import best_factor, search_sentence, times

SEARCH = "search"


def is_search(learning_rate: Any) -> bool:
    """Whether a learning rate asks for a search."""
    return isinstance(learning_rate, str) and learning_rate == SEARCH


@dataclass(frozen=True)
class TunerSearch:
    """How a `FineTuner` trains in a search.

    Attributes:
        phases_at: Returns the phases for rates of the groups.
        loss_of: Trains these phases, leaves no trace, and returns the loss on the validation rows after it. It is
            called with a function, too, that takes the steps made.
        steps: Steps of an epoch; `None` where that is unknown.
        console: Where to print.
    """

    phases_at: Callable[[Mapping[str, float]], tuple[Phase, ...]]
    loss_of: Callable[[tuple[Phase, ...], Callable[[int], None]], float]
    steps: int | None
    console: Console

    def __call__(self, rates: Mapping[str, float]) -> dict[str, float]:
        """Returns these rates times the factor with the lowest loss.

        Raises:
            GroupError: All rates are set by the strategy.
            TrainingError: At none of the rates the loss is a finite number.
        """
        phases, doubled = self.phases_at(rates), self.phases_at(times(rates, 2.0))
        if repr([*map(_rates_of, phases)]) == repr([*map(_rates_of, doubled)]):
            raise GroupError(
                f'`learning_rate="{SEARCH}"` changes the rates of the groups, and the strategy sets all rates itself: '
                "nothing would change. Remove its `peak` or `rates`, or pass no `learning_rate`."
            )
        total = steps_in_all(phases, self.steps)
        self.console.print(search_sentence(total, None), highlight=False, markup=False)

        def loss_at(factor: float, on_step: Callable[[int], None]) -> float:
            return self.loss_of(self.phases_at(_tidied(rates, factor)), on_step)

        asked = f'`learning_rate="{SEARCH}"`'
        return _tidied(rates, best_factor(rates, loss_at, self.console, steps=total, asked=asked))


def _tidied(rates: Mapping[str, float], factor: float) -> dict[str, float]:
    """Rounds as a recipe does, so that both train at the same rates."""
    return {name: tidy(rate) for name, rate in times(rates, factor).items()}


def _rates_of(phase: Phase) -> tuple[Any, ...]:
    return phase.auto_rgn, {name: peak_of_rate(rate) or rate for name, rate in phase.rates.items()}


def steps_in_all(phases: Sequence[Phase], steps_per_epoch: int | None) -> int | None:
    """Counts the steps of some phases; `None` where the steps of an epoch are needed and unknown."""
    if steps_per_epoch is None and not all(phase.steps for phase in phases):
        return None
    return sum(phase.steps or (phase.epochs or 0) * (steps_per_epoch or 0) for phase in phases)


def check_searchable(x: Any, validation: Any, fit: Mapping[str, Any]) -> None:
    """Checks that there are rows to choose by, and that all rows can be read for every training.

    Args:
        x: The inputs of `fit`.
        validation: The rows to validate on, or `None`.
        fit: The arguments of `fit`.

    Raises:
        GroupError: There are no rows to validate on.
        DataError: Rows can be read a single time.
    """
    if validation is None and not fit.get("validation_split"):
        raise GroupError(
            f'`learning_rate="{SEARCH}"` goes by rows to validate on, and there are none. Make the `FineTuner` with '
            '`validation_data`, pass `validation_split=0.2`, or pass `"auto"`, which measures on the training rows.'
        )
    if any(hasattr(rows, "__next__") for rows in (x, validation)):
        raise DataError(
            f'`learning_rate="{SEARCH}"` trains several times on the same rows, and a generator yields them once. Pass '
            "arrays, a `tf.data.Dataset` or a `keras.utils.PyDataset`."
        )
