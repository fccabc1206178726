"""A strategy by name in Python is the strategy of that name in a recipe."""

import doctest

import keras
import numpy as np
import pytest
import tensorflow as tf

import finetune
from finetune.errors import GroupError
from finetune.groups.selectors import Selector, resolve_groups
from finetune.optimizers import schedules
from finetune.optimizers.grouped import GroupedOptimizer
from finetune.recipe.phase_strategies import STRATEGIES
from finetune.training.phases import named_strategies as module
from finetune.training.phases.named_strategies import peak_of_rate, phases_of_strategy, steps_in_epoch
from finetune.training.phases.phase import Phase

NUMBERS = {"stem": 4e-3, "body": 5e-3, "head": 1e-2}


def three_groups(model, frozen=()):
    layers = {"stem": ("stem", "bn"), "body": ("body",), "head": ("head",)}
    return resolve_groups(model, [Selector(name, prefixes=p, frozen=name in frozen) for name, p in layers.items()])


def compiled(model, rates):
    groups = three_groups(model)
    optimizers = {group.name: (keras.optimizers.SGD(rates[group.name]), group) for group in groups}
    model.compile(GroupedOptimizer(optimizers), loss="sparse_categorical_crossentropy")
    return groups


def test_the_example_runs():
    assert doctest.testmod(module).failed == 0


@pytest.mark.parametrize(
    "strategy",
    [
        *({"strategy": name} for name in STRATEGIES if name != "surgical"),
        {"strategy": "surgical", "train": "middle"},
        {"strategy": "gradual_unfreezing", "epochs_per_group": 2, "peak": 0.1, "decay": 1.5, "epochs": 3},
        {"strategy": "freeze_then_all", "frozen_epochs": 2, "ratio": 10.0},
        {"strategy": "lp_ft", "probe_epochs": 5},
    ],
    ids=str,
)
def test_a_strategy_has_the_groups_lengths_and_rates_that_the_recipe_gives_it(strategy, recipe, tiny):
    written = "{" + ", ".join(f"{key}: {value}" for key, value in strategy.items()) + "}"
    rates = [f"groups.{name}.learning_rate={rate}" for name, rate in NUMBERS.items() if name != "stem"]
    epochs = [] if "epochs" in strategy else ["train.epochs=8"]
    unset = ["train.epochs="] if "epochs" in strategy else []
    in_recipe = finetune.plan(recipe, overrides=[f"phases={written}", *rates, *epochs, *unset]).plan.phases

    groups = three_groups(tiny(), frozen=("stem",))
    name_or_mapping = strategy["strategy"] if list(strategy) == ["strategy"] else strategy
    length = {} if "epochs" in strategy else {"epochs": 8}
    phases = phases_of_strategy(name_or_mapping, groups, NUMBERS, steps_per_epoch=4, **length)

    assert len(phases) == len(in_recipe)
    for phase, planned in zip(phases, in_recipe, strict=True):
        assert (phase.names(groups), phase.epochs) == (planned.train, planned.epochs)
        for name, planned_rates in planned.learning_rates.items():
            rate = phase.auto_rgn or phase.rates.get(name, NUMBERS[name])
            steps = (0, (planned.steps - 1) // 2, planned.steps - 1)
            assert [float(rate(step)) if callable(rate) else rate for step in steps] == pytest.approx(planned_rates)


def test_train_phases_takes_the_name_of_a_strategy_and_trains_its_phases(tiny, rows):
    model = tiny()
    groups = compiled(model, NUMBERS)
    records = finetune.train_phases(model, groups, "gradual_unfreezing", *rows, epochs=4, batch_size=30)
    assert [(record.train, record.epochs, record.steps) for record in records] == [
        (("head",), 1, 3), (("body", "head"), 1, 3), (("stem", "body", "head"), 2, 6),
    ]  # fmt: skip


def test_train_phases_takes_a_strategy_that_trains_a_single_group(tiny, rows):
    model = tiny()
    groups = compiled(model, NUMBERS)
    [record] = finetune.train_phases(model, groups, {"strategy": "surgical", "train": "first"}, *rows, epochs=1)
    assert record.train == ("stem",)
    [record] = finetune.train_phases(model, groups, Phase("head", 1), *rows, every_group=False)
    assert record.train == ("head",)


def test_a_strategy_by_name_and_its_list_written_by_hand_end_with_the_same_bits(tiny, rows):
    def weights(phases, **length):
        keras.utils.set_random_seed(1)
        model = tiny()
        groups = compiled(model, NUMBERS)
        finetune.train_phases(model, groups, phases, *rows, batch_size=30, shuffle=False, **length)
        return [np.array(weight) for weight in model.weights]

    by_name = weights({"strategy": "lp_ft", "probe_epochs": 1}, epochs=3)
    by_hand = weights([Phase(["head"], 1, clock="phase"), Phase("all", 2, clock="phase")])
    for one, other in zip(by_name, by_hand, strict=True):
        np.testing.assert_array_equal(one, other)


def test_patience_of_a_strategy_ends_its_phases_early(tiny):
    phases = phases_of_strategy({"strategy": "chain_thaw", "patience": 2, "epochs": 5}, three_groups(tiny()), NUMBERS)
    assert {phase.until.patience for phase in phases} == {2}


def test_groups_that_are_frozen_for_good_have_no_phase(tiny):
    phases = phases_of_strategy("chain_thaw", three_groups(tiny(), frozen=("stem",)), NUMBERS, epochs=5)
    assert [phase.train for phase in phases] == [("head",), ("body",), "all"]


# -- Errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("strategy", "message"),
    [
        (
            "gradual_unfreeze",
            'train_phases: `phases` is not a known value. Received: `"gradual_unfreeze"`. Did you mean',
        ),
        ({"strategy": "auto_rgn", "peek": 1}, "train_phases: `phases.peek` is not a known key. Did you mean"),
        ({"epochs": 3}, "train_phases: `phases` must be a list of phases, or say which `strategy`: `freeze_then"),
        ({"strategy": "auto_rgn", "peak": 0.0}, "train_phases: `phases.peak` must be greater than 0. Received: `0.0`"),
    ],
)
def test_a_wrong_strategy_gets_the_message_of_the_recipe(strategy, message, tiny):
    with pytest.raises(GroupError) as caught:
        phases_of_strategy(strategy, three_groups(tiny()), NUMBERS, epochs=4)
    assert str(caught.value).startswith(message)


def test_a_strategy_of_unknown_length_asks_for_epochs_and_not_for_a_key_of_recipes(tiny):
    with pytest.raises(GroupError, match=r"does not say how long its last phase is\. .*of the whole run: `epochs`\."):
        phases_of_strategy("lp_ft", three_groups(tiny()), NUMBERS)
    with pytest.raises(GroupError, match=r"needs 2 epochs before its last phase, and `epochs` is 2\."):
        phases_of_strategy(
            {"strategy": "lp_ft", "probe_epochs": 2}, three_groups(tiny()), NUMBERS, epochs=2, steps_per_epoch=1
        )


def test_schedules_over_a_phase_need_the_number_of_batches(tiny):
    with pytest.raises(GroupError, match=r"sets schedules that last a whole phase, .* Pass `steps_per_epoch`"):
        phases_of_strategy("freeze_then_all", three_groups(tiny()), NUMBERS, epochs=4)


def test_a_peak_that_cannot_be_read_is_asked_for_only_where_it_is_needed(tiny):
    class Own(keras.optimizers.schedules.LearningRateSchedule):
        def __call__(self, step):
            return 0.1

    groups, rates = three_groups(tiny()), {**NUMBERS, "head": Own()}
    with pytest.raises(GroupError, match="needs the peak learning rates of the groups, and cannot read that of `head`"):
        phases_of_strategy("gradual_unfreezing", groups, rates, epochs=4, steps_per_epoch=1)
    peak = {"strategy": "gradual_unfreezing", "peak": 0.1}
    assert len(phases_of_strategy(peak, groups, rates, epochs=4, steps_per_epoch=1)) == 3
    assert len(phases_of_strategy("lp_ft", groups, rates, epochs=4)) == 2


def test_a_list_of_phases_takes_no_epochs_beside_it(tiny, rows):
    model = tiny()
    groups = compiled(model, NUMBERS)
    with pytest.raises(GroupError, match=r"In a list of phases, each phase has its own length\. Received `epochs=3`"):
        finetune.train_phases(model, groups, [Phase("all", 1)], *rows, epochs=3)


# -- What it reads from the call --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rate", "peak"),
    [
        (0.3, 0.3),
        (schedules.exponential_decay(0.1, 10, 0.5), 0.1),
        (schedules.piecewise_constant_decay([3], [0.1, 0.2]), 0.2),
        (schedules.one_cycle(0.4, 100), 0.4),
        (schedules.constant(0.5), 0.5),
        (schedules.with_warmup(schedules.cosine_decay(0.6, 10), 5), 0.6),
        (schedules.chain([schedules.constant(0.1), schedules.slanted_triangular(0.7, 9)], [5]), 0.7),
        (keras.optimizers.schedules.CosineDecay(0.1, 10, warmup_target=0.8, warmup_steps=5), 0.8),
        (lambda: 0.1, None),
    ],
)
def test_the_peak_of_a_schedule_is_its_first_or_highest_rate(rate, peak):
    assert peak_of_rate(rate) == (None if peak is None else pytest.approx(peak))


X = np.zeros((90, 6), "float32")


@pytest.mark.parametrize(
    ("x", "arguments", "steps"),
    [
        (X, {}, 3),
        (X, {"validation_split": 0.5}, 2),
        ({"left": X, "right": X}, {}, 3),
        (X, {"steps_per_epoch": 7}, 7),
        (tf.data.Dataset.from_tensor_slices(X).batch(20), {}, 5),
        (tf.data.Dataset.from_tensor_slices(X).batch(20).repeat(), {}, None),
        (iter([X]), {}, None),
    ],
)
def test_the_batches_of_an_epoch_are_counted_as_fit_counts_them(x, arguments, steps):
    assert steps_in_epoch(x, 32, arguments) == steps
