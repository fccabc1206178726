"""The plan shows for every phase who trains, at which rates, and in which mode BatchNormalization runs."""

import keras
import pytest

from finetune.groups.batch_norm import BATCH_NORM_MODES
from finetune.groups.layer_tree import layer_tree
from finetune.groups.selectors import Selector, resolve_groups
from finetune.optimizers.schedules import exponential_decay
from finetune.planning.plan import GroupSettings, make_plan
from finetune.training.phases.phase import Phase
from finetune.training.phases.plateau import Plateau
from finetune.training.phases.preview import with_phases
from finetune.training.phases.until import Until


def settings_of(rate):
    peak = 0.1 if callable(rate) else rate
    return GroupSettings(optimizer=keras.optimizers.SGD(), optimizer_name="sgd", learning_rate=rate, peak=peak)


@pytest.fixture
def planned(tiny):
    """Returns the plan of phases of 4 steps an epoch; groups stem (with `bn`), body, head."""

    def plan_of(*phases, rates=(0.1, 0.2, 0.3)):
        model = tiny()
        selectors = [("stem", ("stem", "bn")), ("body", ("body",)), ("head", ("head",))]
        groups = resolve_groups(model, [Selector(name, prefixes=prefixes) for name, prefixes in selectors])
        settings = {group.name: settings_of(rate) for group, rate in zip(groups, rates, strict=True)}
        lengths = [(phase.epochs or 1, phase.steps or 4 * phase.epochs) for phase in phases]
        plan = make_plan(layer_tree(model), groups, settings, steps=sum(steps for _, steps in lengths))
        return with_phases(plan, model, groups, phases, settings, lengths)

    return plan_of


def row_of(plan, name):
    return next(row for row in plan.weights if row.name == name)


def test_a_phase_has_a_row_with_its_groups_length_and_numbers(planned):
    first, second = planned(Phase(["head"], 2), Phase("all", 1)).phases
    assert (first.train, first.epochs, first.steps, first.parameters) == (("head",), 2, 8, 27)
    assert (second.train, second.epochs, second.steps) == (("stem", "body", "head"), 1, 4)
    assert first.batch_norm == {"stem": "freeze"}
    assert second.batch_norm == {"stem": "train"}


@pytest.mark.parametrize(("clock", "starts"), [("run", (0, 4)), ("phase", (0, 0))])
def test_rates_of_a_schedule_are_those_of_the_steps_that_the_clock_counts(planned, clock, starts):
    halving = exponential_decay(1.0, decay_steps=1, decay_rate=0.5)
    plan = planned(Phase(epochs=1, clock=clock), Phase(epochs=1, clock=clock), rates=(0.1, 0.2, halving))
    for phase, start in zip(plan.phases, starts, strict=True):
        expected = tuple(0.5 ** (start + step) for step in (0, 1, 3))  # first, middle and last of four steps
        assert phase.learning_rates["head"] == pytest.approx(expected)


def test_the_rates_of_a_phase_replace_those_of_the_groups(planned):
    first, second = planned(Phase(epochs=1, rates={"head": 0.7}), Phase(epochs=1, auto_rgn=0.9)).phases
    assert (first.learning_rates["head"][0], first.learning_rates["body"][0]) == (0.7, 0.2)
    assert second.learning_rates["stem"] == second.learning_rates["head"] == (0.9, 0.9, 0.9)


def test_only_groups_that_enter_warm_up(planned):
    _, second = planned(Phase(["head"], 1), Phase("all", 1, warmup_steps=2)).phases
    assert second.learning_rates["body"] == pytest.approx((0.0, 0.1, 0.2))
    assert second.learning_rates["head"] == pytest.approx((0.3, 0.3, 0.3))


def test_a_weight_has_the_rates_of_the_steps_in_which_it_trains(planned):
    halving = exponential_decay(1.0, decay_steps=1, decay_rate=0.5)
    plan = planned(Phase(["head"], 1), Phase(["body"], 1), Phase(["head"], 1), rates=(0.1, 0.2, halving))
    first, middle, last = 0.5**0, 0.5**3, 0.5**11  # steps 0 to 3 and 8 to 11: the middle of the eight is step 3
    assert row_of(plan, "head/kernel").learning_rate == pytest.approx((first, middle, last))


def test_a_weight_that_no_phase_trains_counts_as_frozen_and_the_plan_says_so(planned):
    plan = planned(Phase(["head"], 1))
    row = row_of(plan, "body/kernel")
    assert (row.frozen, row.optimizer, row.learning_rate) == (True, None, None)
    assert any("No phase trains `stem`, `body`." in advice for advice in plan.advice)


def test_the_mode_of_batch_normalization_is_reported_by_phase_where_it_changes(planned):
    fixed = planned(Phase(epochs=1, batch_norm={"stem": "affine"}))
    assert row_of(fixed, "bn/gamma").batch_normalization == "inference, statistics fixed, gamma and beta train"
    changing = planned(Phase(["head"], 1), Phase("all", 1))
    assert row_of(changing, "bn/gamma").batch_normalization == "by phase, freeze, then train"
    assert row_of(changing, "head/kernel").batch_normalization is None


def test_layers_in_inference_mode_are_named(planned):
    (phase,) = planned(Phase(epochs=1, batch_norm={"stem": "affine"})).phases
    assert phase.inference_layers == ("bn",)


def test_notes_say_everything_else_that_a_phase_does(planned):
    plain, busy = planned(
        Phase(epochs=1),
        Phase(
            epochs=1,
            clock="phase",
            warmup_steps=2,
            until=Until("loss", patience=3),
            reduce_on_plateau=Plateau("loss"),
            always_train_normalization=True,
        ),
    ).phases
    assert plain.notes == ()
    assert busy.notes == (
        "schedules count from the start of the phase",
        "the rates of newly trained groups rise for 2 steps",
        "ends after 3 epochs without a better `loss`",
        "rates are lowered when `loss` stops improving",
        "gamma and beta of normalization layers also train in frozen groups, at the rates of their groups",
    )


@pytest.mark.parametrize(("steps", "middle"), [((3, 4), 3), ((5, 2), 3), ((1, 9), 4), ((4, 4), 3)])
def test_the_middle_rate_is_that_of_the_middle_step_in_whichever_phase_it_lies(planned, steps, middle):
    halving = exponential_decay(1.0, decay_steps=1, decay_rate=0.5)
    plan = planned(*[Phase(steps=count) for count in steps], rates=(0.1, 0.2, halving))
    assert row_of(plan, "head/kernel").learning_rate == pytest.approx((1, 0.5**middle, 0.5 ** (sum(steps) - 1)))


def test_the_middle_rate_of_a_phase_of_many_steps_is_that_of_its_middle_step(planned):
    halving = exponential_decay(1.0, decay_steps=1, decay_rate=0.5)
    [phase] = planned(Phase(steps=9), rates=(0.1, 0.2, halving)).phases
    assert phase.learning_rates["head"] == pytest.approx((1, 0.5**4, 0.5**8))


def test_a_weight_that_no_phase_trains_has_no_optimizer_and_no_decay_and_keeps_its_mode(planned):
    plan = planned(Phase(["head"], 1))
    row = row_of(plan, "body/kernel")
    assert (row.optimizer, row.learning_rate, row.weight_decay, row.frozen) == (None, None, None, True)
    assert row_of(plan, "bn/gamma").batch_normalization == BATCH_NORM_MODES["freeze"]


def test_the_advice_of_the_plan_stays_beside_that_of_the_phases(planned):
    plan = planned(Phase(["head"], 1), rates=(9.0, 0.2, 0.3))  # an earlier group with a higher rate
    assert len(plan.advice) == 2
    assert "No phase trains `stem`, `body`" in plan.advice[1]
