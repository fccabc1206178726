"""The rates of a phase in proportion to relative gradient norms."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from finetune.errors import TrainingError
from finetune.training.phases.phase import Phase
from finetune.training.phases.train_phases import train_phases


def test_auto_rgn_measures_before_every_epoch_and_the_largest_norm_takes_the_rate(
    tiny, rows, prepared, train, note_rates
):
    model = tiny()
    groups = prepared(model)
    rates = note_rates()
    train(model, groups, [Phase(epochs=2, auto_rgn=0.1)], rows, callbacks=[rates])
    first, second = rates.seen[0], rates.seen[3]
    assert max(first.values()) == pytest.approx(0.1)
    assert min(first.values()) < 0.1
    assert rates.seen[2] == first
    assert second != first


def test_auto_rgn_gives_each_group_the_rate_times_its_mean_norm_divided_by_the_largest_mean(
    tiny, rows, prepared, note_rates
):
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
    rates = note_rates()
    train_phases(model, groups, [Phase(epochs=1, auto_rgn=0.1)], *rows, batch_size=60, callbacks=[rates])
    assert list(rates.seen[0].values()) == pytest.approx(list(0.1 * means / max(means)), rel=1e-4)


def group_weights(group):
    return [leaf.variable.value for leaf in group.trainable]


def test_a_group_without_a_gradient_is_an_error_of_auto_rgn_that_names_the_group(tiny, rows, prepared, train):
    model = tiny()
    groups = prepared(model)
    head = model.get_layer("head")
    head.kernel.assign(np.zeros((8, 3)))  # no gradient passes through it
    with pytest.raises(TrainingError, match=r"a positive number\. It is not for `stem`, `body`"):
        train(model, groups, [Phase(epochs=1, auto_rgn=0.1)], rows)


def test_the_measurement_of_auto_rgn_leaves_the_moving_statistics_unchanged(tiny, rows, prepared, train):
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


@pytest.fixture
def auto_rgn_rates(prepared, note_rates):
    """Returns the rates that the first epoch of a phase with `auto_rgn` takes."""

    def rates_of(model_of, data, **more):
        keras.utils.set_random_seed(0)
        model = model_of()
        groups = prepared(model)
        rates = note_rates()
        train_phases(model, groups, [Phase(epochs=1, auto_rgn=1e-3)], *data, callbacks=rates, **more)
        return rates.seen[0]

    return rates_of


def test_auto_rgn_measures_the_loss_that_is_trained_with_weights_of_rows_and_of_classes(tiny, rows, auto_rgn_rates):
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
