"""What ends a phase, what moves its rates, and what watches it."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from finetune.errors import TrainingError
from finetune.groups.selectors import Selector, resolve_groups
from finetune.optimizers.grouped import GroupedOptimizer
from finetune.training.phases.endings import (
    EpochWatch,
    Plateau,
    StopAfterSteps,
    Until,
    plateau_callbacks,
    until_callbacks,
)
from finetune.training.phases.loop import train_phases
from finetune.training.phases.phase import Phase

SGD = keras.optimizers.SGD


def prepared(model, **more):
    """The tiny model, compiled, and its groups: stem (with `bn`), body, head."""
    selectors = [("stem", ("stem", "bn")), ("body", ("body",)), ("head", ("head",))]
    groups = resolve_groups(model, [Selector(name, prefixes=prefixes) for name, prefixes in selectors])
    grouped = GroupedOptimizer({group.name: (SGD(0.1), group) for group in groups})
    model.compile(grouped, loss="sparse_categorical_crossentropy", **more)
    return groups


def train(model, groups, phases, rows, **more):
    return train_phases(model, groups, phases, *rows, batch_size=30, **more)


class Rates(keras.callbacks.Callback):
    """Notes the rates before every step."""

    def on_train_begin(self, logs=None):
        self.seen = getattr(self, "seen", [])

    def on_train_batch_begin(self, batch, logs=None):
        self.seen.append(self.model.optimizer.learning_rates)

    def of(self, name):
        return [rates[name] for rates in self.seen]


def test_a_phase_ends_when_its_metric_no_longer_gets_better_and_the_next_one_follows(tiny, rows):
    model = tiny()
    groups = prepared(model)
    phases = [Phase(["head"], 9, until=Until("loss", patience=1, min_delta=100.0)), Phase(epochs=1)]
    records = train(model, groups, phases, rows)
    assert [(record.epochs, record.epochs_left) for record in records] == [(2, 7), (1, 0)]


def test_a_metric_that_is_not_measured_is_an_error_that_names_those_that_are(tiny, rows):
    model = tiny()
    groups = prepared(model)
    with pytest.raises(TrainingError) as caught:
        train(model, groups, [Phase(epochs=2, until=Until("val_loss"))], rows)
    assert str(caught.value) == (
        "The metric that `until` watches must be measured. Received `val_loss`; measured are `loss`. Metrics that begin "
        "with `val_` need validation examples. Did you mean `loss`?"
    )


def test_what_a_plateau_took_from_the_rates_comes_back_with_the_next_phase(tiny, rows):
    model = tiny()
    groups = prepared(model)
    rates = Rates()
    plateau = Plateau("loss", factor=0.5, patience=0, min_delta=100.0)
    train(model, groups, [Phase(epochs=3, reduce_on_plateau=plateau), Phase(epochs=1)], rows, callbacks=[rates])
    assert rates.of("stem") == rates.of("head")
    assert rates.of("head")[::3] == pytest.approx([0.1, 0.1, 0.05, 0.1])


def test_auto_rgn_measures_before_every_epoch_and_the_largest_norm_takes_the_rate(tiny, rows):
    model = tiny()
    groups = prepared(model)
    rates = Rates()
    train(model, groups, [Phase(epochs=2, auto_rgn=0.1)], rows, callbacks=[rates])
    first, second = rates.seen[0], rates.seen[3]
    assert max(first.values()) == pytest.approx(0.1)
    assert min(first.values()) < 0.1
    assert rates.seen[2] == first
    assert second != first


@pytest.mark.parametrize("together", [1, 2, 3, 16])
def test_a_phase_in_steps_makes_just_them_however_many_share_a_call(tiny, rows, together):
    model = tiny()
    groups = prepared(model, steps_per_execution=together)
    records = train(model, groups, [Phase(["head"], steps=4), Phase(steps=5), Phase(steps=1)], rows)
    assert [record.steps for record in records] == [4, 5, 1]


def test_nothing_is_watched_unless_a_phase_asks_for_it():
    assert until_callbacks(None) == plateau_callbacks(None) == []


def test_until_is_early_stopping_of_keras_with_the_same_settings():
    _, callback = until_callbacks(Until("accuracy", patience=2, min_delta=0.5, mode="max", restore_best=True))
    assert isinstance(callback, keras.callbacks.EarlyStopping)
    assert (callback.monitor, callback.patience, callback.min_delta) == ("accuracy", 2, 0.5)
    assert callback.mode == "max"
    assert callback.restore_best_weights


def test_a_plateau_is_reduce_lr_on_plateau_of_keras_with_the_same_settings():
    _, callback = plateau_callbacks(Plateau("loss", factor=0.3, patience=4, min_delta=0.2, mode="min", cooldown=5))
    assert isinstance(callback, keras.callbacks.ReduceLROnPlateau)
    assert (callback.monitor, callback.factor, callback.patience) == ("loss", 0.3, 4)
    assert (callback.min_delta, callback.mode, callback.cooldown) == (0.2, "min", 5)


def test_until_may_end_a_phase_with_the_weights_of_its_best_epoch(tiny, rows):
    model = tiny()
    groups = prepared(model)
    bias = []
    end = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: bias.append(np.array(model.weights[-1])))
    until = Until("loss", patience=1, min_delta=100.0, restore_best=True)
    train(model, groups, [Phase(epochs=9, until=until)], rows, callbacks=[end])
    np.testing.assert_array_equal(np.array(model.weights[-1]), bias[0])
    assert not np.array_equal(bias[0], bias[1])


def test_steps_are_counted_over_epochs_with_the_function_of_keras(tiny, rows):
    model = tiny()
    model.compile(SGD(0.1), loss="sparse_categorical_crossentropy")
    model.fit(*rows, batch_size=30, epochs=9, verbose=0, callbacks=[StopAfterSteps(5)])
    assert int(model.optimizer.iterations) == 5


def test_the_watch_counts_epochs_and_checks_after_each(tiny, rows):
    model = tiny()
    model.compile(SGD(0.1), loss="sparse_categorical_crossentropy")
    checks = []
    watch = EpochWatch(lambda: checks.append(watch.epochs))
    model.fit(*rows, batch_size=30, epochs=3, verbose=0, callbacks=[watch])
    assert checks == [1, 2, 3]


def test_until_and_plateau_have_the_defaults_of_keras():
    (_, stops), keras_stops = until_callbacks(Until()), keras.callbacks.EarlyStopping()
    for name in ("monitor", "patience", "min_delta", "mode", "restore_best_weights"):
        assert getattr(stops, name) == getattr(keras_stops, name), name
    (_, lowers), keras_lowers = plateau_callbacks(Plateau()), keras.callbacks.ReduceLROnPlateau()
    for name in ("monitor", "factor", "patience", "min_delta", "mode", "cooldown"):
        assert getattr(lowers, name) == getattr(keras_lowers, name), name


def test_steps_are_counted_where_the_length_of_an_epoch_is_unknown(tiny, rows):
    model = tiny()
    model.compile(SGD(0.1), loss="sparse_categorical_crossentropy")
    batches = tf.data.Dataset.from_tensor_slices(rows).batch(30).filter(lambda *_: True)
    model.fit(batches, epochs=9, shuffle=False, verbose=0, callbacks=[StopAfterSteps(2)])
    assert int(model.optimizer.iterations) == 2


def test_the_last_call_of_a_phase_makes_only_the_steps_that_are_left_in_the_middle_of_an_epoch(tiny, rows):
    model = tiny()
    groups = prepared(model, steps_per_execution=2)
    records = train_phases(model, groups, [Phase(steps=3), Phase(steps=5)], *rows, batch_size=10)  # 9 in an epoch
    assert [record.steps for record in records] == [3, 5]


def test_a_plateau_waits_after_a_reduction_as_long_as_it_says():
    (_, lowers) = plateau_callbacks(Plateau(cooldown=3))
    assert lowers.cooldown == 3


def test_a_plateau_lowers_the_rates_without_printing(tiny, rows, capsys):
    model = tiny()
    groups = prepared(model)
    train(model, groups, [Phase(epochs=3, reduce_on_plateau=Plateau("loss", patience=0, min_delta=100.0))], rows)
    assert model.optimizer.learning_rates["head"] == pytest.approx(0.1 * 0.1 * 0.1)
    assert capsys.readouterr().out == ""


def test_a_call_that_is_planned_beyond_the_end_of_an_epoch_counts_only_the_steps_of_the_epoch(tiny, rows):
    model = tiny()
    model.compile(SGD(0.1), loss="sparse_categorical_crossentropy", steps_per_execution=2)
    stop, begun = StopAfterSteps(4), []
    note = keras.callbacks.LambdaCallback(on_train_batch_begin=lambda batch, logs: begun.append(batch))
    model.fit(*rows, batch_size=30, epochs=9, verbose=0, callbacks=[stop, note])
    assert begun == [0, 2, 0]  # 3 steps in the first epoch, not 4


def test_auto_rgn_gives_each_group_the_rate_times_its_mean_norm_divided_by_the_largest_mean(tiny, rows):
    model = tiny()
    groups = prepared(model)
    norms = []  # shape `(batches, groups)`
    for x, y in ((rows[0][:60], rows[1][:60]), (rows[0][60:], rows[1][60:])):
        with tf.GradientTape() as tape:
            loss = model.compute_loss(x, y, model(x, training=True), training=True)
        gradients = tape.gradient(loss, [group_weights(group) for group in groups])
        pairs = zip(gradients, groups, strict=True)
        norms.append([float(tf.linalg.global_norm(g) / tf.linalg.global_norm(group_weights(of))) for g, of in pairs])
    means = np.mean(norms, axis=0)
    rates = Rates()
    train_phases(model, groups, [Phase(epochs=1, auto_rgn=0.1)], *rows, batch_size=60, callbacks=[rates])
    assert list(rates.seen[0].values()) == pytest.approx(list(0.1 * means / max(means)), rel=1e-4)


def group_weights(group):
    return [leaf.variable.value for leaf in group.trainable]


def test_a_group_without_a_gradient_is_an_error_of_auto_rgn_that_names_the_group(tiny, rows):
    model = tiny()
    groups = prepared(model)
    head = model.get_layer("head")
    head.kernel.assign(np.zeros((8, 3)))  # no gradient passes through it
    with pytest.raises(TrainingError, match=r"a positive number\. It is not for `stem`, `body`"):
        train(model, groups, [Phase(epochs=1, auto_rgn=0.1)], rows)


def test_the_measurement_of_auto_rgn_leaves_the_moving_statistics_unchanged(tiny, rows):
    statistics = []
    for auto_rgn in (None, 0.1):
        keras.utils.set_random_seed(0)
        model = tiny()
        groups = prepared(model)
        note = keras.callbacks.LambdaCallback(
            on_train_batch_begin=lambda batch, logs, model=model: statistics.append(
                np.array(model.get_layer("bn").moving_mean)
            )
        )
        train(model, groups, [Phase(epochs=1, auto_rgn=auto_rgn)], rows, callbacks=[note])
    np.testing.assert_array_equal(statistics[0], statistics[3])
    assert not np.array_equal(statistics[3], statistics[4])


@pytest.mark.parametrize("frequency", [2, [2, 4]])
def test_until_and_plateau_wait_over_epochs_without_validation(tiny, rows, frequency):
    model = tiny()
    groups = prepared(model)
    # No epoch counts as better than the first validation, which is after epoch 2: the phase ends after the next one.
    until, plateau = Until("val_loss", min_delta=100.0, patience=1), Plateau("val_loss", min_delta=100.0, patience=1)
    rates = Rates()
    records = train(
        model,
        groups,
        [Phase(epochs=9, until=until, reduce_on_plateau=plateau)],
        rows,
        validation_data=rows,
        validation_freq=frequency,
        callbacks=rates,
    )
    assert records[0].epochs == 4
    assert rates.of("head")[-1] == pytest.approx(0.1)
    with pytest.raises(TrainingError, match="Received `val_los`; measured are"):
        train(
            model,
            groups,
            [Phase(epochs=4, until=Until("val_los"))],
            rows,
            validation_data=rows,
            validation_freq=frequency,
        )


def auto_rgn_rates(model_of, data, **more):
    keras.utils.set_random_seed(0)
    model = model_of()
    groups = prepared(model)
    rates = Rates()
    train_phases(model, groups, [Phase(epochs=1, auto_rgn=1e-3)], *data, callbacks=rates, **more)
    return rates.seen[0]


def test_auto_rgn_measures_the_loss_that_is_trained_with_weights_of_rows_and_of_classes(tiny, rows):
    x, y = rows
    of_classes = {0: 100.0, 1: 0.0, 2: 0.0}
    weights = np.array([of_classes[int(label)] for label in y], "float32")
    plain = auto_rgn_rates(tiny, rows, batch_size=30)
    weighted = auto_rgn_rates(tiny, rows, batch_size=30, class_weight=of_classes)
    assert plain != weighted
    by_rows = auto_rgn_rates(tiny, rows, batch_size=30, sample_weight=weights)
    assert by_rows == pytest.approx(weighted, rel=1e-5)
    batches = tf.data.Dataset.from_tensor_slices((x, y, weights)).batch(30)
    assert auto_rgn_rates(tiny, (batches,), shuffle=False) == pytest.approx(weighted, rel=1e-5)
    unweighted = batches.map(lambda x, y, _: (x, y))
    of_dataset = auto_rgn_rates(tiny, (unweighted,), class_weight=of_classes, shuffle=False)
    assert of_dataset == pytest.approx(weighted, rel=1e-5)
