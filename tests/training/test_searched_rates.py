"""The choice among a few rates, and what is said about it; trainings of recipes and of a `FineTuner` are tested there."""

from io import StringIO
from math import nan

import pytest
from rich.console import Console

from finetune.errors import TrainingError
from finetune.training.searched_rates import FACTORS, StepCount, best_factor, search_sentence

RATES = {"body": 3e-4, "head": 3e-3}


def searched(losses, console=None):
    asked = []

    def loss_at(factor, on_step):
        asked.append(factor)
        on_step(7)
        return losses[len(asked) - 1]

    console = console or Console(quiet=True)
    best = best_factor(RATES, loss_at, console, steps=8, asked="`search`")
    assert asked == [*FACTORS]
    return best


def test_the_lowest_loss_chooses_and_each_is_printed_with_its_rates():
    console = Console(file=StringIO(), width=160)
    assert searched([0.5, 0.25, 0.75], console) == 1.0
    assert console.file.getvalue().splitlines() == [
        "  rate: body 1.00e-04  head 1.00e-03  validation loss 0.5000",
        "  rate: body 3.00e-04  head 3.00e-03  validation loss 0.2500",
        "  rate: body 9.00e-04  head 9.00e-03  validation loss 0.7500",
        "taken: body 3.00e-04  head 3.00e-03",
    ]


@pytest.mark.parametrize(("losses", "best"), [([nan, 0.5, 0.25], 3.0), ([0.25, nan, 0.5], 1 / 3), ([nan, 0.5, nan], 1)])
def test_a_loss_that_is_no_number_is_never_the_lowest(losses, best):
    assert searched(losses) == best


def test_without_a_finite_loss_there_is_nothing_to_take():
    with pytest.raises(TrainingError, match=r"^`search` takes the rates .* the loss is no finite number\. Write lower"):
        searched([nan, nan, nan])


def test_the_cost_is_told_as_far_as_it_is_known():
    assert search_sentence(50, 12) == (
        "search of the rates: 3 trainings of 50 steps each, at a third of the rates, at the rates and at three times the "
        "rates, of which the loss on 12 validation rows chooses; then the training itself: 200 steps in all"
    )
    assert search_sentence(None, None) == (
        "search of the rates: 3 trainings as long as the training itself, at a third of the rates, at the rates and at "
        "three times the rates, of which the loss on the validation rows chooses; then the training itself"
    )


def test_steps_are_counted_over_the_epochs():
    told = []
    count = StepCount(told.append, 10)
    for epoch, batch in ((0, 0), (0, 9), (2, 4)):
        count.on_epoch_begin(epoch)
        count.on_train_batch_end(batch)
    assert told == [1, 10, 25]
