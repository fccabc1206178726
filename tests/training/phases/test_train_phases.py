import doctest

import keras
import numpy as np
import pytest

import finetune
from finetune.errors import GroupError, TrainingError
from finetune.groups.selectors import Selector, resolve_groups
from finetune.kernels.native_kernels import active_kernels
from finetune.optimizers.grouped import GroupedOptimizer
from finetune.training.freezing import freeze
from finetune.training.phases import train_phases as module
from finetune.training.phases.phase import Phase
from finetune.training.phases.train_phases import train_phases
from finetune.training.phases.until import Until

SGD, Adam = keras.optimizers.SGD, keras.optimizers.Adam


def test_the_example_runs():
    assert doctest.testmod(module).failed == 0


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
        results.append(model.get_weights())
    assert all(map(np.array_equal, *results))


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
        results.append(model.get_weights())
    for first, second in zip(*results, strict=True):
        np.testing.assert_allclose(first, second, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("frequency", [2, [2, 4]])
def test_a_phase_ends_by_a_metric_of_the_validation_however_rarely_there_is_one(tiny, rows, prepared, train, frequency):
    model = tiny()
    groups = prepared(model)
    phase = Phase(["head"], 9, until=Until("val_loss", min_delta=100.0, patience=1))
    options = {"validation_data": rows, "validation_freq": frequency, "every_group": False}
    assert [record.epochs for record in train(model, groups, phase, rows, **options)] == [4]


def test_a_second_training_begins_with_its_first_phase(tiny, rows, prepared, train):
    model = tiny()
    groups = prepared(model)
    phases = [Phase(["head"], 1), Phase(epochs=1)]
    for _ in range(2):
        records = train(model, groups, phases, rows)
        assert [(record.number, record.epochs) for record in records] == [(1, 1), (2, 1)]


# NumPy 2 warns when Keras copies a TensorFlow variable to save it.
@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")
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


def test_afterwards_what_is_trained_is_as_the_groups_say_whatever_happened(tiny, rows, prepared, train):
    model = tiny()
    groups = prepared(model)
    train(model, groups, [Phase(epochs=1), Phase(["head"], 1)], rows)
    assert len(model.trainable_variables) == 8
    before = model.get_layer("stem").kernel.numpy().copy()
    model.fit(*rows, batch_size=30, verbose=0)
    assert not np.array_equal(before, model.get_layer("stem").kernel)


def test_an_optimizer_without_groups_is_refused(tiny, rows, train, three_groups):
    model = tiny()
    model.compile("adam", loss="sparse_categorical_crossentropy")
    with pytest.raises(GroupError, match=r"is compiled with `Adam`. Compile it with a `finetune.GroupedOptimizer`"):
        train(model, three_groups(model), [Phase(epochs=1)], rows)


@pytest.mark.slow
def test_a_model_trained_in_phases_opens_in_plain_keras_and_is_the_same(tiny, rows, tmp_path, prepared, train):
    model = tiny()
    groups = prepared(model)
    train(model, groups, Phase(epochs=1, batch_norm={"stem": "affine"}), rows)
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
    records = train(model, groups, [Phase(["head"], 1), Phase(epochs=1)], rows)
    assert [record.frozen_unchanged for record in records] == [True, True]


def test_train_phases_refuses_phases_that_leave_a_group_untrained(tiny, rows, prepared, train):
    model = tiny()
    groups = prepared(model)
    before = model.get_weights()
    with pytest.raises(GroupError, match="no phase trains `stem`"):
        train(model, groups, [Phase(["body", "head"], 1)], rows)
    assert all(map(np.array_equal, before, model.get_weights()))


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


@pytest.mark.sample(3)
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
