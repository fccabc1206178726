"""How a run fits: on which batches, in which calls, on which features, and always to the same result."""

import csv
from pathlib import Path

import numpy as np
import pytest

import finetune

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")


def run(recipe, out, *overrides):
    result = finetune.run(recipe, out=out, overrides=list(overrides))
    rows = list(csv.DictReader((Path(out) / "metrics.csv").read_text().splitlines()))
    return result, [v.numpy() for v in result.model.variables], rows


def assert_same(some, others):
    for one, other in zip(some[1], others[1], strict=True):
        np.testing.assert_array_equal(one, other)
    assert some[0].metrics == others[0].metrics
    assert some[2] == others[2]


@pytest.mark.sample(2)
@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        pytest.param([], marks=pytest.mark.grid),
        ["train.batch_size=20", "train.validation_fraction=0.1"],
        ["train.global_clipnorm=0.5", "train.gradient_accumulation_steps=2"],
        ["phases=gradual_unfreezing"],
    ],
    ids=str,
)
def test_neither_calls_of_several_steps_nor_the_cache_change_a_bit(recipe, overrides):
    fast = run(recipe, "fast", *overrides, "train.cache=memory", "train.batch_size=15")
    plain = run(recipe, "plain", *overrides, "train.cache=off", "train.steps_per_execution=1", "train.batch_size=15")
    assert_same(fast, plain)


def test_features_on_disk_are_gone_after_the_run(recipe, capsys):
    from rich.console import Console

    console = Console(width=200)
    finetune.run(recipe, out="out", overrides=["train.cache=disk"], console=console)
    told = capsys.readouterr().out
    assert "cache: the frozen part is run once: 2 layers with weights, the last of them `bn`" in told
    assert not Path("out/features").exists()


def test_a_cache_that_was_asked_for_and_cannot_be_says_why(recipe, capsys):
    from rich.console import Console

    more = [
        "groups.stem.frozen=false",
        "groups.stem.optimizer=sgd",
        "groups.stem.learning_rate=1e-3",
        "train.cache=memory",
    ]
    finetune.run(recipe, out="out", overrides=more, console=Console(width=200))
    assert (
        "cache: not used, because there is no frozen layer with weights that can be run beforehand"
        in capsys.readouterr().out
    )


def test_the_loss_that_is_no_number_is_reported_with_its_step_though_steps_share_a_call(recipe):
    with pytest.raises(finetune.FinetuneError, match=r"It became `(nan|inf)` in epoch 1, step [1-4]\."):
        finetune.run(recipe, out="out", overrides=["groups.head.learning_rate=1e30", "groups.head.optimizer=sgd"])
