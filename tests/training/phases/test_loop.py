import doctest
import time

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import finetune
from finetune.errors import GroupError, TrainingError
from finetune.groups.layer_tree import layer_tree
from finetune.groups.selectors import Selector, resolve_groups
from finetune.kernels.native_kernels import active_kernels
from finetune.optimizers.grouped import GroupedOptimizer
from finetune.optimizers.schedules import constant, exponential_decay
from finetune.training.freezing import freeze
from finetune.training.phases import loop as phases_module
from finetune.training.phases.loop import run_phases, train_phases
from finetune.training.phases.phase import Phase
from finetune.training.phases.plateau import Plateau
from finetune.training.phases.until import Until

SGD, Adam = keras.optimizers.SGD, keras.optimizers.Adam
# NumPy 2 warns when Keras copies a TensorFlow variable to save it.
saves_a_model = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")


def values(model):
    return {leaf.name: np.array(leaf.variable.numpy()) for leaf in layer_tree(model).leaves}


def changed(before, model):
    return {name for name, value in values(model).items() if not np.array_equal(before[name], value)}


# -- Who is trained ---------------------------------------------------------------------------------------------------


def test_the_example_runs():
    assert doctest.testmod(phases_module).failed == 0


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


@pytest.mark.slow
def test_one_phase_of_all_groups_is_bit_identical_to_fit(tiny, rows, prepared, train):
    results = []
    for phased in (False, True):
        keras.utils.set_random_seed(1)
        model = tiny()
        groups = prepared(model, {"stem": Adam(1e-2), "body": SGD(0.1, momentum=0.9), "head": Adam(1e-1)})
        if phased:
            train(model, groups, [Phase(epochs=2)], rows)
        else:
            model.fit(*rows, batch_size=30, epochs=2, verbose=0)
        results.append(values(model))
    assert all(np.array_equal(results[0][name], results[1][name]) for name in results[0])


@pytest.mark.slow
def test_phases_are_as_two_fits_with_a_freeze_and_a_compile_between_and_one_optimizer(tiny, rows, prepared, train):
    """Plain SGD has no slots: what remains is which gradients are applied."""
    results = []
    for phased in (False, True):
        keras.utils.set_random_seed(1)
        model = tiny()
        groups = prepared(model)
        if phased:
            train(model, groups, [Phase(["head"], 1), Phase("all", 1)], rows, shuffle=False)
        else:
            model.get_layer("stem").trainable = model.get_layer("bn").trainable = model.get_layer("body").trainable = (
                False
            )
            model.compile(SGD(0.1), loss="sparse_categorical_crossentropy")
            model.fit(*rows, batch_size=30, verbose=0, shuffle=False)
            freeze(model, groups)
            model.compile(SGD(0.1), loss="sparse_categorical_crossentropy")
            model.fit(*rows, batch_size=30, verbose=0, shuffle=False)
        results.append(values(model))
    for name in results[0]:
        np.testing.assert_allclose(results[0][name], results[1][name], rtol=1e-6, atol=1e-7, err_msg=name)


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
    train(model, groups, [Phase(["head"], 1, auto_rgn=0.05), Phase(epochs=1)], rows, callbacks=[rates])
    assert rates.of("head")[0] == pytest.approx(0.05)


@pytest.mark.parametrize("frequency", [2, [2, 4]])
def test_a_phase_ends_by_a_metric_of_the_validation_however_rarely_there_is_one(tiny, rows, prepared, train, frequency):
    model = tiny()
    groups = prepared(model)
    phases = [Phase(["head"], 9, until=Until("val_loss", min_delta=100.0, patience=1)), Phase(epochs=1)]
    records = train(model, groups, phases, rows, validation_data=rows, validation_freq=frequency)
    assert [record.epochs for record in records] == [4, 1]


def test_a_second_training_begins_with_its_first_phase(tiny, rows, prepared, train):
    model = tiny()
    groups = prepared(model)
    phases = [Phase(["head"], 1), Phase(epochs=1)]
    for _ in range(2):
        records = train(model, groups, phases, rows)
        assert [(record.number, record.epochs) for record in records] == [(1, 1), (2, 1)]


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


# -- A backup ---------------------------------------------------------------------------------------------------------


@saves_a_model
def test_a_run_that_was_killed_goes_on_in_the_epoch_of_its_backup_to_the_same_end(
    tiny, rows, prepared, train, tmp_path
):
    """Phase 1 has the epoch 0, phase 2 (5 steps, 3 an epoch) the epochs 1 and 2, phase 3 the epochs 3 and 4."""

    def trained(*callbacks):
        keras.utils.set_random_seed(0)
        model = tiny()
        groups = prepared(model, {name: Adam(0.01) for name in ("stem", "body", "head")})
        phases = [Phase(["head"], 1), Phase(["body"], steps=5), Phase("all", 2)]
        backup = keras.callbacks.BackupAndRestore(tmp_path / "backup")
        return model, train(model, groups, phases, rows, shuffle=False, callbacks=[backup, *callbacks])

    expected, _ = trained()
    for moment, killed, left in (("begin", 2, [2, 2]), ("end", 2, [2])):

        def kill(epoch, logs, killed=killed):
            if epoch == killed:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            trained(keras.callbacks.LambdaCallback(**{f"on_epoch_{moment}": kill}))
        resumed, records = trained()
        assert [record.epochs for record in records] == left
        for one, other in zip(resumed.get_weights(), expected.get_weights(), strict=True):
            np.testing.assert_array_equal(one, other)


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


def test_afterwards_what_is_trained_is_as_the_groups_say_whatever_happened(tiny, rows, prepared, train):
    model = tiny()
    groups = prepared(model)
    train(model, groups, [Phase(epochs=1), Phase(["head"], 1)], rows)
    assert len(model.trainable_variables) == 8
    before = values(model)
    model.fit(*rows, batch_size=30, verbose=0)
    assert "stem/kernel" in changed(before, model)


def test_an_optimizer_without_groups_is_refused(tiny, rows, train, three_groups):
    model = tiny()
    model.compile("adam", loss="sparse_categorical_crossentropy")
    with pytest.raises(GroupError, match=r"is compiled with `Adam`. Compile it with a `finetune.GroupedOptimizer`"):
        train(model, three_groups(model), [Phase(epochs=1)], rows)


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
    seen = []
    end = keras.callbacks.LambdaCallback(on_train_end=lambda logs: seen.append(changed(before, model)))
    phases = [Phase(["body", "head"], 1, batch_norm={"stem": mode}), Phase(epochs=1)]
    train(model, groups, phases, rows, callbacks=[end])
    assert seen[0] == {"body/kernel", "body/bias", "head/kernel", "head/bias"} | moves


def test_normalization_may_train_in_groups_that_are_frozen(tiny, rows, prepared, train):
    model = tiny()
    groups = prepared(model)
    before = values(model)
    seen = []
    end = keras.callbacks.LambdaCallback(on_train_end=lambda logs: seen.append(changed(before, model)))
    train(model, groups, [Phase(["head"], 1, always_train_normalization=True), Phase(epochs=1)], rows, callbacks=[end])
    assert seen[0] == {"head/kernel", "head/bias"} | GAMMA_BETA | STATISTICS


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


@pytest.mark.slow
def test_a_model_trained_in_phases_opens_in_plain_keras_and_is_the_same(tiny, rows, tmp_path, prepared, train):
    model = tiny()
    groups = prepared(model)
    train(model, groups, [Phase(["head"], 1), Phase(epochs=1, batch_norm={"stem": "affine"})], rows)
    model.optimizer, model.compiled = None, False
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded.predict(rows[0], verbose=0), model.predict(rows[0], verbose=0))


def test_mixed_precision_is_looked_through(tiny, rows, train, three_groups):
    model = tiny()
    groups = three_groups(model)
    grouped = GroupedOptimizer({group.name: (SGD(0.1), group) for group in groups})
    model.compile(keras.optimizers.LossScaleOptimizer(grouped), loss="sparse_categorical_crossentropy")
    records = train(model, groups, [Phase(["head"], 1), Phase(epochs=1, rates={"head": 0.01})], rows)
    assert [record.steps for record in records] == [3, 3]


def test_the_names_are_handed_out():
    assert (finetune.Phase, finetune.train_phases, finetune.Until) == (Phase, train_phases, Until)


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


@pytest.mark.parametrize("more", [{"jit_compile": True}, {"steps_per_execution": 2}, {"run_eagerly": True}])
def test_phases_run_in_every_way_that_keras_compiles(tiny, rows, more, prepared, train):
    model = tiny()
    groups = prepared(model, **more)
    records = train(
        model, groups, [Phase(["head"], 1), Phase(epochs=1, rates={"head": 0.01}), Phase(["head"], 1)], rows
    )
    assert [record.steps for record in records] == [3, 3, 3]


def test_with_a_moving_average_every_phase_ends_with_it_and_the_frozen_stand(tiny, rows, train, three_groups):
    model = tiny()
    groups = three_groups(model)
    grouped = GroupedOptimizer({group.name: (SGD(0.1), group) for group in groups}, use_ema=True, ema_momentum=0.5)
    model.compile(grouped, loss="sparse_categorical_crossentropy")
    records = train(model, groups, [Phase(["head"], 1), Phase(epochs=1), Phase(["stem"], 1)], rows)
    assert [record.frozen_unchanged for record in records] == [True, True, True]


def test_train_phases_refuses_phases_that_leave_a_group_untrained(tiny, rows, prepared, train):
    model = tiny()
    groups = prepared(model)
    before = values(model)
    with pytest.raises(GroupError, match="no phase trains `stem`"):
        train(model, groups, [Phase(["body", "head"], 1)], rows)
    assert changed(before, model) == set()


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


def test_a_strategy_counts_the_batches_of_an_epoch_with_the_batch_size_of_keras(tiny, rows, prepared, note_rates):
    seen = []
    x, y = (np.concatenate([part, part])[:129] for part in rows)  # 5 batches of 32, and 4 of 33
    for batch_size in (None, 32):
        model = tiny()
        groups = prepared(model)
        rates = note_rates()
        train_phases(model, groups, "freeze_then_all", x, y, epochs=2, batch_size=batch_size, callbacks=[rates])
        seen.append(rates.of("head"))
    assert seen[0] == seen[1]
    assert len(set(seen[0])) > 2  # the rates follow schedules


# -- What is passed on to `fit` ---------------------------------------------------------------------------------------


def test_arguments_that_the_phases_decide_and_arguments_that_do_not_exist_are_errors(tiny, rows, prepared, train):
    model = tiny()
    groups = prepared(model)
    with pytest.raises(GroupError) as error:
        train(model, groups, [Phase(epochs=1)], rows, initial_epoch=2)
    assert str(error.value) == (
        "`train_phases` begins with the first epoch of the first phase. Received `initial_epoch=2`. Remove it, and pass "
        "the phases that are still to be trained."
    )
    with pytest.raises(GroupError) as error:
        train(model, groups, [Phase(epochs=1)], rows, class_wieght={0: 1.0})
    assert str(error.value).startswith(
        "`train_phases` takes its own arguments and those of `model.fit`. Received `class_wieght`. `fit` takes `x`, `y`, "
    )
    assert str(error.value).endswith("Did you mean `class_weight`?")


@pytest.mark.parametrize("callbacks", [None, "single", "list"])
def test_callbacks_are_none_a_single_one_or_several_as_for_fit(tiny, rows, callbacks, prepared, train):
    model = tiny()
    groups = prepared(model)
    epochs = []
    note = keras.callbacks.LambdaCallback(on_epoch_begin=lambda epoch, logs: epochs.append(epoch))
    train(model, groups, [Phase(epochs=1)], rows, callbacks={None: None, "single": note, "list": [note]}[callbacks])
    assert epochs == ([] if callbacks is None else [0])


def several_inputs(kind):
    keras.utils.set_random_seed(0)
    inputs = [keras.Input((6,), name="a"), keras.Input((2,), name="b")]
    joined = keras.layers.Concatenate()([keras.layers.Dense(4, name="body")(inputs[0]), inputs[1]])
    outputs = [keras.layers.Dense(3, activation="softmax", name="c")(joined), keras.layers.Dense(1, name="d")(joined)]
    as_dict = kind is dict
    model = keras.Model(
        dict(zip("ab", inputs, strict=True)) if as_dict else inputs,
        dict(zip("cd", outputs, strict=True)) if as_dict else outputs,
    )
    groups = resolve_groups(model, [Selector("body", prefixes="body"), Selector("head", rest=True)])
    losses = {"c": "sparse_categorical_crossentropy", "d": "mse"}
    model.compile(
        GroupedOptimizer({group.name: (SGD(0.1), group) for group in groups}),
        loss=losses if as_dict else [*losses.values()],
    )
    return model, groups


@pytest.mark.parametrize("kind", [list, tuple, dict])
@pytest.mark.parametrize("weights", [False, True])
def test_several_inputs_outputs_and_weights_of_each_output_train_as_with_fit(rows, kind, weights):
    x, y = rows
    of_rows = np.linspace(0, 1, len(y)).astype("float32")

    def structure(*parts, names):
        return dict(zip(names, parts, strict=True)) if kind is dict else kind(parts)

    inputs, targets = structure(x, x[:, :2], names="ab"), structure(y, x[:, :1], names="cd")
    more = {"sample_weight": structure(of_rows, of_rows**2, names="cd")} if weights else {}
    fitted, _ = several_inputs(kind)
    keras.utils.set_random_seed(1)
    fitted.fit(inputs, targets, batch_size=30, epochs=2, verbose=0, **more)
    trained, groups = several_inputs(kind)
    keras.utils.set_random_seed(1)
    train_phases(trained, groups, [Phase(epochs=2)], inputs, targets, batch_size=30, **more)
    for a, b in zip(fitted.get_weights(), trained.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    "more", [{"validation_split": 0.5}, {"steps_per_epoch": 1}, {"class_weight": {1: 3.0}}], ids=str
)
def test_what_fit_takes_beside_the_data_has_the_same_effect(tiny, rows, more, prepared, train):
    results = []
    for phases in (False, True):
        keras.utils.set_random_seed(0)
        model = tiny()
        groups = prepared(model)
        if phases:
            train(model, groups, [Phase(epochs=2)], rows, **more)
        else:
            model.fit(*rows, batch_size=30, epochs=2, verbose=0, **more)
        results.append(model.get_weights())
    for a, b in zip(*results, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_single_phase_is_a_list_of_one(tiny, rows, prepared, train):
    model = tiny()
    groups = prepared(model)
    assert [record.epochs for record in train(model, groups, Phase(epochs=1), rows)] == [1]


def test_phases_with_native_kernels_train_to_within_rounding_and_give_the_model_back_exact(tiny, rows, prepared):
    losses = []
    for kernels in ("exact", "native", "native"):
        keras.utils.set_random_seed(0)
        model = tiny()
        groups, history, active = prepared(model), [], set()

        def note(epoch, logs, history=history, active=active):
            history.extend([logs["loss"], logs["val_loss"]])
            active.add(active_kernels())

        phases = [Phase(["head"], 1), Phase("all", 2)]
        keep = keras.callbacks.LambdaCallback(on_epoch_end=note)
        train_phases(model, groups, phases, *rows, kernels=kernels, callbacks=keep, validation_data=rows, shuffle=False)
        losses.append(history)
        assert active == {kernels}
        assert model.test_function is None or kernels == "exact"
    assert losses[1] == losses[2]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)
    with pytest.raises(TrainingError, match="Received `kernels='both'`"):
        train_phases(model, groups, phases, *rows, kernels="both")
