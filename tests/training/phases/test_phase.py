"""A phase is data, and is checked against the layer groups before anything is trained."""

import pytest

from finetune.errors import GroupError
from finetune.groups.selectors import Selector, resolve_groups
from finetune.optimizers.schedules import exponential_decay
from finetune.training.phases.phase import Phase, check_phases, frozen_in_all, state_of
from finetune.training.phases.plateau import Plateau
from finetune.training.phases.until import Until


def groups_of(model, *, frozen=()):
    selectors = [("stem", ("stem", "bn")), ("body", ("body",)), ("head", ("head",))]
    return resolve_groups(model, [Selector(name, prefixes=p, frozen=name in frozen) for name, p in selectors])


def names(leaves):
    return {leaf.name for leaf in leaves}


def test_all_means_every_group_that_is_not_frozen_for_good_in_the_order_of_the_groups(tiny):
    groups = groups_of(tiny(), frozen=("stem",))
    assert Phase().names(groups) == ("body", "head")
    assert Phase(["head", "body"]).names(groups) == ("body", "head")


@pytest.mark.parametrize(
    "settings",
    [
        {"rates": {"head": 0.1}},
        {"auto_rgn": 0.1},
        {"warmup_steps": 1},
        {"reduce_on_plateau": Plateau("loss")},
        {"clock": "phase"},
    ],
    ids=str,
)
def test_a_phase_sets_rates_exactly_if_one_of_its_settings_can_change_them(settings):
    assert Phase(epochs=1, **settings).sets_rates
    assert not Phase(epochs=1, until=Until("loss"), batch_norm={"stem": "freeze"}).sets_rates


def test_the_state_of_a_phase_follows_from_all_of_its_settings(tiny):
    model = tiny()
    phase = Phase(["head"], 1, batch_norm={"stem": "statistics"})
    state = state_of(model, groups_of(model), phase)
    assert names(state.trained) == {"head/kernel", "head/bias"}
    assert names(state.updated_statistics) == {"bn/moving_mean", "bn/moving_variance"}
    always = state_of(model, groups_of(model), Phase(["head"], 1, always_train_normalization=True))
    assert names(always.trained) == {"head/kernel", "head/bias", "bn/gamma", "bn/beta"}


def test_a_run_leaves_the_groups_alone_that_are_frozen_for_good_but_for_statistics_that_a_phase_updates(tiny):
    model = tiny()
    groups = groups_of(model, frozen=("stem",))
    statistics = {"bn/moving_mean", "bn/moving_variance"}
    stem = {"stem/kernel", "stem/bias", "bn/gamma", "bn/beta"}
    assert names(frozen_in_all(model, groups, [Phase(["head"], 1), Phase("all", 1)])) == stem | statistics
    updating = Phase("all", 1, batch_norm={"stem": "statistics"})
    assert names(frozen_in_all(model, groups, [Phase(["head"], 1), updating])) == stem


@pytest.mark.parametrize(
    ("phases", "message"),
    [
        ([], "Training needs at least one phase. Received none. Pass `[Phase(epochs=1)]`, for example."),
        ([Phase(["hed"], 1)], "phase 1: `train` names `hed`, which is not a group. Groups are `stem`, `body`, `head`. Did you mean `head`?"),
        ([Phase("hed", 1)], "phase 1: `train` names `hed`, which is not a group. Groups are `stem`, `body`, `head`. Did you mean `head`?"),
        ([Phase(epochs=1, rates={"hed": 1.0})], "phase 1: `rates` names `hed`, which is not a group. Groups are `stem`, `body`, `head`. Did you mean `head`?"),
        ([Phase(epochs=1, batch_norm={"bod": "train"})], "phase 1: `batch_norm` names `bod`, which is not a group. Groups are `stem`, `body`, `head`. Did you mean `body`?"),
        ([Phase(["head"], 1)], "no phase trains `stem`, `body`. Add a phase that does, or set `frozen: true` in the group."),
        ([Phase([], 1)], "phase 1: `train` names no group. Name at least one, or write `all`."),
        ([Phase()], "phase 1: the length is given either in `epochs` or in `steps`. Received `epochs: None` and `steps: None`. Give one of the two."),
        ([Phase(epochs=1, steps=2)], "phase 1: the length is given either in `epochs` or in `steps`. Received `epochs: 1` and `steps: 2`. Give one of the two."),
        ([Phase(epochs=1, clock="fase")], "phase 1: `clock` must be one of `run`, `phase`. Received `fase`. Did you mean `phase`?"),
        (
            [Phase(epochs=1, batch_norm={"stem": "afine"})],
            "phase 1: `batch_norm` of `stem` must be one of `train`, `freeze`, `affine`, `statistics`. Received `afine`. Did you mean `affine` or `train`?",
        ),
        (
            [Phase(["head"], 1, batch_norm={"stem": "affine"}), Phase(epochs=1)],
            "phase 1: `batch_norm: affine` trains gamma and beta, and `stem` is frozen in this phase. Use `statistics` or `freeze`, or train the group.",
        ),
    ],
)  # fmt: skip
def test_phases_that_do_not_fit_the_groups_are_an_error_that_says_what_exists(tiny, phases, message):
    with pytest.raises(GroupError) as caught:
        check_phases(groups_of(tiny()), phases)
    assert str(caught.value) == message


def test_a_group_frozen_for_good_cannot_be_named(tiny):
    groups = groups_of(tiny(), frozen=("stem",))
    with pytest.raises(GroupError, match=r"`train` names `stem`, which is frozen in all phases. Write `frozen: false`"):
        check_phases(groups, [Phase(["stem"], 1), Phase(epochs=1)])


def test_gamma_and_beta_of_a_frozen_group_may_train_where_normalization_always_does(tiny):
    phase = Phase(["head"], 1, batch_norm={"stem": "affine"}, always_train_normalization=True)
    check_phases(groups_of(tiny()), [phase, Phase(epochs=1)])


def test_one_phase_of_several_may_leave_groups_untrained(tiny):
    check_phases(groups_of(tiny()), [Phase(["head"], 1)], every=False)


def test_five_problems_are_reported_at_most(tiny):
    with pytest.raises(GroupError) as caught:
        check_phases(groups_of(tiny()), [Phase([f"no{n}"], 1) for n in range(7)])
    assert str(caught.value).count("\n") == 4


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"rates": {"head": 0}}, "`rates` of `head` must be a finite number above 0. Received: `0`."),
        ({"rates": {"head": -1.0}}, "`rates` of `head` must be a finite number above 0. Received: `-1.0`."),
        ({"rates": {"head": float("nan")}}, "`rates` of `head` must be a finite number above 0. Received: `nan`."),
        ({"rates": {"head": True}}, "`rates` of `head` must be a finite number above 0. Received: `True`."),
        ({"rates": {"head": "1e-4"}}, "`rates` of `head` must be a finite number above 0. Received: `'1e-4'`. That is"),
        ({"rates": {"head": [1e-3]}}, "`rates` of `head` must be a finite number above 0. Received: `[0.001]`."),
        ({"auto_rgn": 0.0}, "`auto_rgn` must be a finite number above 0. Received: `0.0`."),
        ({"rates": 1e-3}, "`rates` maps names of groups to values. Received `0.001`. Write a dictionary."),
        ({"batch_norm": "freeze"}, "`batch_norm` maps names of groups to values. Received `'freeze'`."),
        ({"dropout_groups": "hed"}, "`dropout_groups` names `hed`, which is not a group."),
        ({"epochs": 0}, "`epochs` must be a whole number >= 1. Received `0`."),
        ({"epochs": True}, "`epochs` must be a whole number >= 1. Received `True`."),
        ({"epochs": None, "steps": 1.5}, "`steps` must be a whole number >= 1. Received `1.5`."),
        ({"warmup_steps": -1}, "`warmup_steps` must be a whole number >= 0. Received `-1`."),
    ],
    ids=str,
)
def test_rates_lengths_and_settings_that_are_not_possible_are_said(tiny, settings, problem):
    with pytest.raises(GroupError) as error:
        check_phases(groups_of(tiny()), [Phase(**{"epochs": 1, **settings})])
    assert str(error.value).startswith(f"phase 1: {problem}")


def test_a_schedule_is_a_rate(tiny):
    check_phases(groups_of(tiny()), [Phase(epochs=1, rates={"head": exponential_decay(0.1, 5, 0.5)})])


def test_what_other_code_froze_is_among_what_a_whole_run_leaves_unchanged(tiny):
    model = tiny()
    model.get_layer("body").enable_lora(2)
    groups = resolve_groups(model, [Selector("all", rest=True)])
    assert names(frozen_in_all(model, groups, [Phase(epochs=1)])) == {"body/kernel"}
