"""`fit(learning_rate="search")`: the rates that a recipe finds on the same rows, and no trace of their trainings."""

from io import StringIO

import keras
import numpy as np
import pytest
from rich.console import Console

import finetune
from finetune.commands.rate_search import with_searched_rates
from finetune.errors import FinetuneError
from finetune.groups.selectors import Selector
from finetune.training import searched_rates

GROUPS = [Selector("stem", prefixes=("stem", "bn"), frozen=True), Selector("body", prefixes=("body",))]
GROUPS.append(Selector("head", rest=True))


@pytest.fixture
def tuner(tiny, rows):
    """Makes a `FineTuner` of the tiny model, with 50 rows to train on and 10 to validate on, that prints nothing."""

    def make(**more):
        x, y = rows
        keras.utils.set_random_seed(0)
        model, settings = tiny(), {"groups": GROUPS, "verbose": False, "batch_size": 16, "learning_rate": 1e-2}
        return finetune.FineTuner(model, x[:50], y[:50], **settings | {"validation_data": (x[50:60], y[50:60])} | more)

    return make


def values(tuner):
    return [variable.numpy() for variable in (*tuner.model.variables, *tuner.model.optimizer.variables)]


def same(first, second):
    return all(np.array_equal(*pair, equal_nan=True) for pair in zip(first, second, strict=True))


def losses(printed):
    return [line.split()[-1] for line in printed.splitlines() if "validation loss " in line]


def test_the_rates_are_those_of_a_recipe_on_the_same_rows_and_the_training_that_of_these_rates(
    tuner, recipe, rows, monkeypatch, capsys
):
    monkeypatch.setattr(searched_rates, "FACTORS", (1e-2, 3.0))
    x, y = rows
    np.savez(
        "parts.npz", x_train=x[:50], y_train=y[:50], x_test=x, y_test=y, x_validation=x[50:60], y_validation=y[50:60]
    )
    adamw = "{name: %s, %s, optimizer: adamw, learning_rate: 1.0e-2}"
    overrides = [
        f"groups=[{{name: stem, prefixes: [stem, bn], frozen: true}}, "
        f"{adamw % ('body', 'prefixes: [body]')}, {adamw % ('head', 'rest: true')}]",
        *("data.npz=parts.npz", "train.learning_rate=search", "train.shuffle=false", "train.kernels=exact"),
    ]
    console = Console(file=StringIO(), width=160)
    found = with_searched_rates(finetune.plan(recipe, overrides=overrides), console).peaks
    assert found == {"body": 0.03, "head": 0.03}
    ours, plain = tuner(verbose=True), tuner()
    ours.fit(2, "search", shuffle=False)
    assert losses(capsys.readouterr().out) == losses(console.file.getvalue())
    plain.fit(2, found, shuffle=False)
    assert same(values(ours), values(plain))


def test_a_search_begins_with_what_was_trained_before_and_leaves_no_trace_of_itself(tuner, monkeypatch):
    monkeypatch.setattr(searched_rates, "FACTORS", (3.0,))
    ours = tuner(validation_data=None)
    ours.fit(1)
    before = values(ours)
    found = ours.search_rates(1, slice(1e-4, 1e-2), schedule="cosine_decay", validation_split=0.2)
    assert found == {"body": 3e-4, "head": 3e-2}
    assert same(before, values(ours))
    with pytest.raises(FinetuneError, match=r"by rows to validate on, and there are none.*`validation_split=0\.2`"):
        ours.fit(1, "search")


def test_the_plan_says_what_a_search_costs_and_does_not_search(tuner, capsys):
    ours = tuner(verbose=True)
    plan = ours.plan(3, "search")
    assert "3 trainings of 12 steps each" in " ".join(capsys.readouterr().out.split())
    assert {row.peak for row in plan.weights if row.peak} == {1e-2}


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda t: t.fit(1, "serch"), r"`auto` or `search`\. Received: `'serch'`\. Did you mean `search`"),
        (
            lambda t: t.fit(
                learning_rate="search", strategy={"strategy": "freeze_then_all", "epochs": 1, "peak": 1e-3}
            ),
            "the strategy sets all rates itself: nothing would change. Remove its `peak`",
        ),
        (lambda t: t.fit(1, "search", validation_data=iter([])), "trains several times on the same rows"),
    ],
)
def test_what_cannot_be_searched_is_refused(tuner, ask, message):
    with pytest.raises(FinetuneError, match=message):
        ask(tuner())


def test_a_search_is_asked_of_a_training(tuner):
    with pytest.raises(FinetuneError, match=r'Pass it to `fit`: `tuner\.fit\(3, "search"\)`'):
        tuner(learning_rate="search")
