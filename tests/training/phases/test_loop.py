import time

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from finetune.errors import TrainingError
from finetune.groups.layer_tree import layer_tree
from finetune.groups.selectors import Selector, resolve_groups
from finetune.optimizers.grouped import GroupedOptimizer
from finetune.optimizers.schedules import constant, exponential_decay
from finetune.training.phases.loop import run_phases
from finetune.training.phases.phase import Phase
from finetune.training.phases.plateau import Plateau

SGD, Adam = keras.optimizers.SGD, keras.optimizers.Adam


def values(model):
    return {leaf.name: np.array(leaf.variable.numpy()) for leaf in layer_tree(model).leaves}


def changed(before, model):
    return {name for name, value in values(model).items() if not np.array_equal(before[name], value)}


# -- Who is trained ---------------------------------------------------------------------------------------------------


def test_each_phase_trains_its_groups_and_leaves_the_others_bit_identical_with_their_statistics(tiny, rows, prepared):
    model = tiny()
    groups = prepared(model)
    seen = []

    def fit(start, callbacks, **more):
        before = values(model)
        model.fit(*rows, batch_size=30, verbose=0, shuffle=False, callbacks=callbacks, **more)
        seen.append(changed(before, model))

    records = list(run_phases(model, groups, [Phase(["head"], 1), Phase(["body", "head"], 1), Phase("all", 1)], fit))
    every = set(values(model))
    stem = {name for name in every if name.startswith(("stem", "bn"))}
    assert seen == [{"head/kernel", "head/bias"}, every - stem, every]
    assert [(record.frozen_tensors, record.frozen_unchanged) for record in records] == [(8, True), (6, True), (0, True)]
    assert [(record.train, record.parameters) for record in records] == [
        (("head",), 27), (("body", "head"), 99), (("stem", "body", "head"), 171),
    ]  # fmt: skip


def test_slots_of_a_group_that_stays_survive_the_change_of_phase(tiny, rows, prepared, train):
    momenta = {"stem": SGD(1e-3), "body": SGD(1e-3), "head": SGD(1e-3, momentum=0.9)}
    model = tiny()
    groups = prepared(model, momenta)
    slots = []
    head = list(model.optimizer.group_optimizers.values())[-1]
    note = keras.callbacks.LambdaCallback(
        on_train_begin=lambda logs: slots.append([np.array(v.numpy()) for v in head.variables if "momentum" in v.path]),
        on_train_end=lambda logs: slots.append([np.array(v.numpy()) for v in head.variables if "momentum" in v.path]),
    )
    train(model, groups, [Phase(["head"], 1), Phase("all", 1)], rows, callbacks=[note])
    assert all(np.array_equal(a, b) for a, b in zip(slots[1], slots[2], strict=True))
    assert any(np.any(slot) for slot in slots[2])


@pytest.mark.slow
def test_a_compiled_function_is_kept_so_that_going_back_traces_nothing(tiny, rows, prepared, train):
    model = tiny()
    groups = prepared(model)
    traces, numbers = [], []
    call = model.get_layer("stem").call
    model.get_layer("stem").call = lambda inputs, training=None: traces.append(1) or call(inputs)
    phases = [
        Phase(["head"], 1),
        Phase("all", 1, rates={"head": 0.01, "body": 0.02}),
        Phase(["head"], 1),
        Phase("all", 1, rates={"body": 0.03, "head": 0.04}),  # the order in which rates are written does not matter
        Phase(["head"], 1, rates={"head": 0.01}),
    ]
    end = keras.callbacks.LambdaCallback(on_train_end=lambda logs: numbers.append(len(traces)))
    train(model, groups, phases, rows, callbacks=[end])
    first, second, third, fourth, _ = numbers
    assert second > first > 0
    assert fourth == third == second


def test_epochs_are_counted_through_and_a_phase_in_steps_ends_after_them(tiny, rows, prepared, train):
    model = tiny()
    groups = prepared(model)
    epochs, told = [], []
    note = keras.callbacks.LambdaCallback(on_epoch_begin=lambda epoch, logs: epochs.append(epoch))
    phases = [Phase(["head"], steps=4), Phase("all", epochs=1)]
    records = train(model, groups, phases, rows, callbacks=[note], on_phase=lambda start: told.append(str(start)))
    assert epochs == [0, 1, 2]
    assert [(record.epochs, record.steps) for record in records] == [(2, 4), (1, 3)]
    assert told == [
        "phase 1/2: train head (27 of 187 parameters), 4 steps",
        "phase 2/2: train stem, body, head (171 of 187 parameters), 1 epoch",
    ]


# -- Rates ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_rates_of_a_phase_take_the_place_of_the_groups_own_and_go_with_it(tiny, rows, prepared, train, note_rates):
    model = tiny()
    groups = prepared(model, {"stem": SGD(0.3), "body": SGD(constant(0.2)), "head": SGD(0.1)})
    rates = note_rates()
    phases = [
        Phase(epochs=1, rates={"head": 0.01, "body": 0.02}),
        Phase(epochs=1),
        Phase(epochs=1, rates={"head": 0.5}),
    ]
    train(model, groups, phases, rows, callbacks=[rates])
    assert rates.of("head") == pytest.approx([0.01] * 3 + [0.1] * 3 + [0.5] * 3)
    assert rates.of("body") == pytest.approx([0.02] * 3 + [0.2] * 6)
    assert rates.of("stem") == pytest.approx([0.3] * 9)


@pytest.mark.parametrize("clock", ["run", "phase"])
def test_a_schedule_counts_from_the_start_of_the_run_or_of_the_phase(tiny, rows, clock, prepared, train, note_rates):
    model = tiny()
    halving = exponential_decay(0.1, decay_steps=1, decay_rate=0.5)
    groups = prepared(model, {"stem": SGD(0.3), "body": SGD(0.2), "head": SGD(halving)})
    rates = note_rates()
    train(model, groups, [Phase(epochs=1, clock=clock)] * 2, rows, callbacks=[rates])
    steps = [0, 1, 2, 3, 4, 5] if clock == "run" else [0, 1, 2, 0, 1, 2]
    assert rates.of("head") == pytest.approx([0.1 * 0.5**step for step in steps])


def test_a_kept_function_uses_the_rate_of_the_phase_that_it_is_in(tiny, rows, prepared):
    """With plain SGD and no rate the weights stand: a stale rate would move them."""
    model = tiny()
    fall = exponential_decay(0.5, decay_steps=1, decay_rate=1e-9)
    groups = prepared(model, {"stem": SGD(0.1), "body": SGD(0.1), "head": SGD(0.1)})
    moved = []

    def fit(start, callbacks, **more):
        model.fit(*rows, batch_size=90, verbose=0, callbacks=callbacks, **{**more, "epochs": more["initial_epoch"] + 1})
        before = values(model)
        model.fit(*rows, batch_size=90, verbose=0, callbacks=callbacks, **{**more, "epochs": more["initial_epoch"] + 1})
        moved.append([max(np.abs(before[n] - values(model)[n]).max() for n in before if n.startswith("head"))])

    phase = Phase(["head"], 1, rates={"head": fall}, clock="phase")
    list(run_phases(model, groups, [phase, Phase("all", 1), phase], fit))
    assert moved[0][0] < 1e-6 < moved[1][0]
    assert moved[2][0] < 1e-6


def phase_steps(model, groups, rows, phases):
    """How far each phase moves the bias of the head in its first step, divided by the gradient: its rate."""
    rates = []

    def fit(start, **more):
        with tf.GradientTape() as tape:
            loss = model.compute_loss(rows[0], rows[1], model(rows[0], training=True))
        bias = model.get_layer("head").bias
        gradient, before = tape.gradient(loss, bias.value).numpy(), bias.numpy()
        model.fit(*rows, batch_size=90, verbose=0, **more)
        rates.append(float(np.max(np.abs(bias.numpy() - before)) / np.max(np.abs(gradient))))

    list(run_phases(model, groups, phases, fit))
    return rates


SLOW, FAST = constant(0.01), constant(0.5)


@pytest.mark.parametrize(
    ("own", "phases", "expected"),
    [
        (SLOW, [Phase(steps=1), Phase(steps=1, rates={"head": 0.5}), Phase(steps=1)], [0.01, 0.5, 0.01]),
        (0.1, [Phase(steps=1, rates={"head": SLOW}), Phase(steps=1, rates={"head": FAST})], [0.01, 0.5]),
        (0.1, [Phase(steps=1, rates={"head": SLOW}), Phase(steps=1, rates={"head": 0.5})], [0.01, 0.5]),
        (0.1, [Phase(steps=1, rates={"body": 0.5}), Phase(steps=1, rates={"head": 0.5})], [0.1, 0.5]),
        (SLOW, [Phase(steps=1, rates={"body": 0.5}), Phase(steps=1, rates={"head": 0.5})], [0.01, 0.5]),
    ],
    ids=["own, number, own", "two schedules", "schedule, number", "numbers", "number of another group"],
)
def test_a_step_is_made_with_the_rate_of_its_phase(tiny, rows, prepared, own, phases, expected):
    model = tiny()
    groups = prepared(model, {"stem": SGD(0.01), "body": SGD(0.01), "head": SGD(own)})
    assert phase_steps(model, groups, rows, phases) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("clocks", [("run", "phase"), ("phase", "run")])
def test_a_step_is_made_at_the_step_that_the_clock_of_its_phase_shows(tiny, rows, prepared, clocks):
    model = tiny()
    groups = prepared(model, {"stem": SGD(0.01), "body": SGD(0.01), "head": SGD(0.01)})
    halving = exponential_decay(0.5, decay_steps=1, decay_rate=0.5)
    phases = [Phase(steps=1, rates={"head": halving}, clock=clock) for clock in clocks]
    expected = [0.5 * 0.5 ** (step if clock == "run" else 0) for step, clock in enumerate(clocks)]
    assert phase_steps(model, groups, rows, phases) == pytest.approx(expected, rel=1e-3)


def test_a_plateau_lowers_the_rates_of_its_phase(tiny, rows, prepared, train, note_rates):
    model = tiny()
    groups = prepared(model)
    rates = note_rates()
    plateau = Plateau("loss", factor=0.5, patience=0, min_delta=100.0)
    train(model, groups, [Phase(["head"], 3, reduce_on_plateau=plateau), Phase(epochs=1)], rows, callbacks=[rates])
    assert rates.of("head")[::3] == pytest.approx([0.1, 0.1, 0.05, 0.1])


def test_auto_rgn_measures_only_what_its_phase_trains(tiny, rows, prepared, train, note_rates):
    model = tiny()
    groups = prepared(model)
    stem = model.get_layer("stem")
    stem.kernel.assign(stem.kernel * 1e-2)  # so its gradient is by far the largest in proportion to its weights
    rates = note_rates()
    train(model, groups, Phase(["head"], 1, auto_rgn=0.05), rows, callbacks=[rates], every_group=False)
    assert rates.of("head")[0] == pytest.approx(0.05)


def test_a_record_has_the_seconds_of_its_phase(tiny, rows, prepared, train):
    model = tiny()
    groups = prepared(model)
    wait = keras.callbacks.LambdaCallback(on_epoch_begin=lambda epoch, logs: time.sleep(0.2 if epoch == 0 else 0))
    begin = time.monotonic()
    records = train(model, groups, [Phase(["head"], 1), Phase(epochs=1)], rows, callbacks=[wait])
    whole = time.monotonic() - begin
    assert records[0].seconds >= 0.2
    assert all(record.seconds > 0 for record in records)
    assert sum(record.seconds for record in records) <= whole + 0.002  # each is rounded to a millisecond


# -- Entering ---------------------------------------------------------------------------------------------------------


def test_a_group_that_returns_takes_a_first_step_of_its_rate_as_one_that_begins(tiny, rows, prepared):
    """Its slots are fresh, so Adam's bias correction counts from 1 again: the step of every weight is the rate.

    The function of the first phase, in which the head counted from the start of the run, must not serve again.
    """
    model = tiny()
    groups = prepared(model, {name: Adam(0.01, epsilon=1e-30) for name in ("stem", "body", "head")})
    steps = []

    def fit(start, **more):
        before = values(model)
        model.fit(*rows, batch_size=30, verbose=0, shuffle=False, **more)
        after = values(model)
        steps.append(np.abs(after["head/bias"] - before["head/bias"]))

    phases = [Phase(["head"], steps=1), Phase(["body"], steps=5), Phase(["head"], steps=1)]
    list(run_phases(model, groups, phases, fit))
    np.testing.assert_allclose(steps[0], 0.01, rtol=1e-4)
    np.testing.assert_allclose(steps[2], 0.01, rtol=1e-4)


def test_rates_of_groups_that_enter_can_warm_up(tiny, rows, prepared, train, note_rates):
    model = tiny()
    groups = prepared(model)
    rates = note_rates()
    train(
        model,
        groups,
        [Phase(["head"], 1), Phase(["body", "head"], 1, warmup_steps=2), Phase(epochs=1)],
        rows,
        callbacks=[rates],
    )
    assert rates.of("body")[3:6] == pytest.approx([0.0, 0.05, 0.1])
    assert rates.of("head")[3:6] == pytest.approx([0.1] * 3)


@pytest.mark.slow
def test_auto_rgn_follows_a_warm_up(tiny, rows, prepared, train, note_rates):
    model = tiny()
    groups = prepared(model)
    rates = note_rates()
    train(model, groups, [Phase(["head"], 1), Phase(epochs=2, auto_rgn=0.1, warmup_steps=2)], rows, callbacks=[rates])
    head, body = rates.of("head"), rates.of("body")
    assert body[3] == 0
    assert body[4] == pytest.approx(body[5] / 2)
    assert head[3] == head[4] == head[5]  # it was trained before
    assert max(max(rate.values()) for rate in rates.seen[5:]) == pytest.approx(0.1)


# -- Behind our back --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("layer", "as_planned"), [("stem", "frozen"), ("bn", "frozen"), ("head", "trained")])
def test_flipping_trainable_during_a_phase_is_an_error_that_names_the_layer(
    tiny, rows, layer, as_planned, prepared, train
):
    model = tiny()
    groups = prepared(model)

    def flip(epoch, logs):
        model.get_layer(layer).trainable = not model.get_layer(layer).trainable

    with pytest.raises(TrainingError) as caught:
        train(
            model,
            groups,
            [Phase(["head"], 2), Phase(epochs=1)],
            rows,
            callbacks=[keras.callbacks.LambdaCallback(on_epoch_end=flip)],
        )
    assert f"During phase 1/2 other code changed `trainable` of `{layer}`, which must be {as_planned}" in str(
        caught.value
    )


def test_flipping_trainable_between_two_phases_is_an_error(tiny, rows, prepared):
    model = tiny()
    groups = prepared(model)

    def fit(start, callbacks, **more):
        model.fit(*rows, batch_size=30, verbose=0, callbacks=callbacks, **more)
        model.get_layer("body").trainable = True

    with pytest.raises(TrainingError, match="phase 1/2 other code changed `trainable` of `body`"):
        list(run_phases(model, groups, [Phase(["head"], 1), Phase(epochs=1)], fit))


def test_a_frozen_tensor_that_changes_fails_loudly_and_by_name(tiny, rows, prepared, train):
    model = tiny()
    groups = prepared(model)
    meddle = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: model.get_layer("bn").moving_mean.assign([9.0] * 8)
    )
    with pytest.raises(TrainingError, match=r"1 of 8 changed in phase 1: `bn/moving_mean`"):
        train(model, groups, [Phase(["head"], 1), Phase(epochs=1)], rows, callbacks=[meddle])


# -- BatchNormalization and dropout -----------------------------------------------------------------------------------

GAMMA_BETA, STATISTICS = {"bn/gamma", "bn/beta"}, {"bn/moving_mean", "bn/moving_variance"}


@pytest.mark.parametrize(
    ("mode", "moves"),
    [("train", GAMMA_BETA | STATISTICS), ("freeze", set()), ("affine", GAMMA_BETA), ("statistics", STATISTICS)],
)
def test_batch_normalization_of_a_trained_group_has_four_modes(tiny, rows, mode, moves, prepared, train):
    model = tiny()
    groups = prepared(model)
    before = values(model)
    (record,) = train(model, groups, [Phase(epochs=1, batch_norm={"stem": mode})], rows)
    assert (
        changed(before, model)
        == {"stem/kernel", "stem/bias", "body/kernel", "body/bias", "head/kernel", "head/bias"} | moves
    )
    assert record.frozen_tensors == 4 - len(moves)


@pytest.mark.parametrize(("mode", "moves"), [("freeze", set()), ("statistics", STATISTICS)])
def test_batch_normalization_of_a_frozen_group_may_still_estimate(tiny, rows, mode, moves, prepared, train):
    model = tiny()
    groups = prepared(model)
    before = values(model)
    train(model, groups, Phase(["body", "head"], 1, batch_norm={"stem": mode}), rows, every_group=False)
    assert changed(before, model) == {"body/kernel", "body/bias", "head/kernel", "head/bias"} | moves


def test_normalization_may_train_in_groups_that_are_frozen(tiny, rows, prepared, train):
    model = tiny()
    groups = prepared(model)
    before = values(model)
    train(model, groups, Phase(["head"], 1, always_train_normalization=True), rows, every_group=False)
    assert changed(before, model) == {"head/kernel", "head/bias"} | GAMMA_BETA | STATISTICS


def with_dropout():
    parts = [
        keras.Input((6,)),
        layers.Dense(8, name="stem"),
        layers.BatchNormalization(name="bn"),
        layers.Dropout(0.5, name="inner"),
        layers.Dense(8, activation="relu", name="body"),
        layers.Dropout(0.5, name="last"),
        layers.Dense(3, activation="softmax", name="head"),
    ]
    return keras.Sequential(parts, name="dropping")


@pytest.mark.parametrize(("dropout_groups", "is_exact"), [((), True), (("stem", "body"), False)])
def test_dropout_inside_frozen_groups_is_off_unless_asked_for(rows, dropout_groups, is_exact, prepared):
    model = with_dropout()
    groups = prepared(model)
    body = keras.Model(model.layers[0].input, model.get_layer("body").output)
    outputs = []

    def look(batch, logs):
        outputs.append(body(rows[0], training=True).numpy())

    call = keras.callbacks.LambdaCallback(on_train_batch_end=look)

    def fit(start, callbacks, **more):
        model.fit(*rows, batch_size=30, verbose=0, callbacks=[*callbacks, call], **more)

    list(run_phases(model, groups, [Phase(["head"], 1, dropout_groups=dropout_groups)], fit))
    assert np.array_equal(outputs[0], outputs[1]) == is_exact
    assert not np.array_equal(body(rows[0], training=True), outputs[0])  # let go afterwards


def nested():
    inner = keras.Sequential(
        [keras.Input((6,)), layers.Dense(8, name="dense"), layers.BatchNormalization(name="bn")], name="inner"
    )
    inputs = keras.Input((6,))
    return keras.Model(inputs, layers.Dense(3, activation="softmax", name="head")(inner(inputs)))


@pytest.mark.parametrize(
    ("mode", "moves"), [("affine", {"gamma", "beta"}), ("statistics", {"moving_mean", "moving_variance"})]
)
def test_modes_of_batch_normalization_reach_into_nested_models(rows, mode, moves, train):
    model = nested()
    groups = resolve_groups(model, [Selector("inner", prefixes=("inner",)), Selector("head", rest=True)])
    grouped = GroupedOptimizer({group.name: (SGD(0.1), group) for group in groups})
    model.compile(grouped, loss="sparse_categorical_crossentropy")
    before = values(model)
    train(model, groups, [Phase(epochs=1, batch_norm={"inner": mode})], rows)
    assert {name.rpartition("/")[2] for name in changed(before, model) if "/bn/" in name} == moves


def test_flipping_trainable_while_a_record_is_handled_is_an_error_of_the_phase_that_ended(tiny, rows, prepared):
    model = tiny()
    groups = prepared(model)

    def fit(start, callbacks, **more):
        model.fit(*rows, batch_size=30, verbose=0, callbacks=callbacks, **more)

    phases = run_phases(model, groups, [Phase(["head"], 1), Phase(epochs=1)], fit)
    next(phases)
    model.get_layer("body").trainable = True
    with pytest.raises(TrainingError, match="During phase 1/2 other code changed `trainable` of `body`"):
        next(phases)
