import csv

import keras
import numpy as np
import pytest
import tensorflow as tf

from finetune import Checkpoint, FastLoop, GroupedOptimizer, GroupMonitor, resolve_groups, train_phases
from finetune.errors import TrainingError
from finetune.optimizers.schedules import exponential_decay
from finetune.training.phases.phase import Phase


def built(kind=keras.Sequential):
    """A model with all that a forward pass writes: statistics, seeds; and its groups, by layer."""
    keras.utils.set_random_seed(0)
    layers = keras.layers
    model = kind(
        [
            *(keras.Input((6,)), layers.Dense(8, name="body"), layers.BatchNormalization(name="bn")),
            *(layers.Dropout(0.3, name="drop"), layers.Dense(3, activation="softmax", name="head")),
        ]
    )
    return model, resolve_groups(model, by="layer")


def compiled(model, groups, rate=keras.optimizers.Adam, **options):
    settings = {"loss": "sparse_categorical_crossentropy", "metrics": ["accuracy"]} | options
    model.compile(GroupedOptimizer({group.name: (rate(1e-2), group) for group in groups}), **settings)
    return model


def trained(rows, *, every=None, fast=True, **options):
    model, groups = built()
    compiled(model, groups, **options)
    monitor = [GroupMonitor(groups, every_steps=every)] if every else []
    callbacks = [*([FastLoop()] if fast else []), *monitor]
    history = model.fit(*rows, batch_size=8, epochs=2, verbose=0, callbacks=callbacks).history
    state = [v.numpy() for v in (*model.variables, *model.optimizer.variables)]
    return state, history, monitor[0] if every else None


@pytest.mark.sample(1)
@pytest.mark.parametrize(
    ("fast", "options"),
    [
        (True, {"steps_per_execution": 5}),
        (False, {}),
    ],
)
def test_weights_statistics_seeds_slots_and_metrics_have_the_bits_of_a_training_that_is_not_measured(
    rows, fast, options
):
    before, history, _ = trained(rows, fast=fast, **options)
    after, measured, monitor = trained(rows, fast=fast, every=5, **options)
    assert history == measured
    for one, other in zip(before, after, strict=True):
        np.testing.assert_array_equal(one, other)
    assert [row["step"] for row in monitor.rows] == [5, 10, 15, 20]
    assert [row["epoch"] for row in monitor.rows] == [1, 1, 2, 2]
    assert all(row[f"gradient_norm/{name}"] > 0 for row in monitor.rows for name in ("body", "bn", "head"))


def test_a_measured_step_has_the_numbers_that_plain_keras_and_numpy_compute(rows):
    model, groups = built()
    model.get_layer("drop").rate = 0.0
    rate = exponential_decay(0.5, decay_steps=1, decay_rate=0.5, staircase=True)
    compiled(model, groups, lambda _: keras.optimizers.SGD(rate))
    monitor = GroupMonitor(groups, every_steps=2)
    start = [weight.numpy() for weight in model.get_layer("head").weights]
    model.fit(*rows, batch_size=90, epochs=1, verbose=0)
    before = [weight.numpy() for weight in model.get_layer("head").weights]
    with tf.GradientTape() as tape:
        loss = keras.losses.SparseCategoricalCrossentropy()(rows[1], model(rows[0], training=True))
    gradients = tape.gradient(loss, [weight.value for weight in model.get_layer("head").weights])
    monitor._steps_before = 1  # the step before, which it has not seen
    model.fit(*rows, batch_size=90, epochs=1, verbose=0, callbacks=[monitor])
    after = [weight.numpy() for weight in model.get_layer("head").weights]

    def norm(arrays, others=(0.0, 0.0)):
        return np.sqrt(sum(np.sum((np.asarray(a, "float64") - b) ** 2) for a, b in zip(arrays, others, strict=True)))

    (row,) = monitor.rows
    assert row["loss"] == pytest.approx(float(loss), rel=1e-5)
    assert row["learning_rate/head"] == 0.25  # that of this step, not of the next
    assert row["gradient_norm/head"] == pytest.approx(norm(gradients), rel=1e-5)
    assert row["update_ratio/head"] == pytest.approx(0.25 * norm(gradients) / norm(before), rel=1e-4)
    assert row["update_ratio/head"] == pytest.approx(norm(after, before) / norm(before), rel=1e-4)
    assert row["drift/head"] == pytest.approx(norm(after, start) / norm(start), rel=1e-4)


def test_phases_are_counted_on_and_a_frozen_group_has_empty_cells(rows, tmp_path):
    model, groups = built()
    compiled(model, groups)
    monitor = GroupMonitor(groups, every_steps=2, path=tmp_path / "steps.csv")
    phases = [Phase(["head"], epochs=1), Phase("all", steps=4)]
    train_phases(model, groups, phases, *rows, batch_size=30, callbacks=monitor)
    with (tmp_path / "steps.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [(row["step"], row["epoch"], row["phase"]) for row in table] == [
        *(("2", "1", "1"), ("4", "2", "2"), ("6", "2", "2")),
    ]
    assert tuple(table[0]) == monitor.columns
    quantities = ("learning_rate", "gradient_norm", "update_ratio", "drift")
    assert all(table[0][f"{quantity}/body"] == "" for quantity in quantities)
    assert all(float(row[f"{quantity}/body"]) > 0 for row in table[1:] for quantity in quantities)


def test_a_group_that_does_not_move_is_reported_once(rows):
    model, groups = built()
    rates = {"body": 1e-12, "bn": 1e-2, "head": 1e-2}
    optimizer = GroupedOptimizer({group.name: (keras.optimizers.SGD(rates[group.name]), group) for group in groups})
    model.compile(optimizer, "sparse_categorical_crossentropy")
    said = []
    monitor = GroupMonitor(groups, every_steps=1, report=said.append)
    model.fit(*rows, batch_size=30, epochs=3, verbose=0, callbacks=[monitor])
    assert len(said) == 1
    assert said[0].startswith("warning: group `body` is trained and does not move")
    assert [*monitor.advice] == ["still/body"]


class KilledError(Exception):
    """What stands for a process that is killed."""


@pytest.mark.grid
def test_a_training_that_goes_on_has_the_rows_of_one_that_was_not_killed(rows, tmp_path):
    def train(folder, kill=None):
        model, groups = built()
        compiled(model, groups, steps_per_execution=4)
        monitor = GroupMonitor(groups, every_steps=5, path=folder / "steps.csv")
        checkpoint = Checkpoint(folder / "checkpoints", every_steps=4)
        batches = checkpoint.batches(*rows, batch_size=8, seed=7)
        loop = FastLoop()
        checkpoint.callbacks = [loop, monitor]

        def end(batch, logs):
            if kill and int(model.optimizer.iterations) >= kill:
                raise KilledError

        end = keras.callbacks.LambdaCallback(on_train_batch_end=end)
        callbacks = [loop, monitor, checkpoint, end]
        model.fit(batches, steps_per_epoch=12, epochs=3, shuffle=False, verbose=0, callbacks=callbacks)
        return (folder / "steps.csv").read_text(), model.get_weights()

    whole, weights = train(tmp_path / "whole")
    for kill in (11, 24, 32):
        with pytest.raises(KilledError):
            train(tmp_path / "killed", kill)
    text, again = train(tmp_path / "killed")
    assert text == whole
    assert [int(line.partition(",")[0]) for line in text.splitlines()[1:]] == [5, 10, 15, 20, 25, 30, 35]
    for one, other in zip(weights, again, strict=True):
        np.testing.assert_array_equal(one, other)


def test_rows_of_other_groups_that_a_checkpoint_brings_keep_what_has_the_same_name(rows):
    model, groups = built()
    compiled(model, groups)
    monitor = GroupMonitor(groups, every_steps=3)
    restored = {"table": np.array([[3.0, 1.0, 1.0, 0.5, 0.1, 0.2]])}
    restored["_columns_of_table"] = ["step", "epoch", "phase", "loss", "drift/head", "drift/former"]
    for name, value in restored.items():
        setattr(monitor, name, value)
    model.fit(*rows, batch_size=30, epochs=1, verbose=0, callbacks=[monitor])
    assert [(row["step"], row["drift/head"] == 0.1, row["drift/body"]) for row in monitor.rows[:1]] == [(3, True, None)]
    assert len(monitor.rows) == 2
    assert "drift/former" not in monitor.rows[0]


def test_only_steps_that_update_the_weights_are_measured(rows):
    model, groups = built()
    optimizer = GroupedOptimizer(
        {group.name: (keras.optimizers.SGD(0.1), group) for group in groups}, gradient_accumulation_steps=2
    )
    model.compile(optimizer, "sparse_categorical_crossentropy")
    monitor = GroupMonitor(groups, every_steps=3)
    model.fit(*rows, batch_size=10, epochs=1, verbose=0, callbacks=[monitor])
    assert [row["step"] for row in monitor.rows] == [4, 8]
    assert all(row["update_ratio/head"] > 0 for row in monitor.rows)


def test_float16_gradients_are_measured_without_the_scale_of_the_loss(rows):
    norms = []
    for policy in ("float32", "mixed_float16"):
        keras.config.set_dtype_policy(policy)
        try:
            model, groups = built()
        finally:
            keras.config.set_dtype_policy("float32")
        model.get_layer("drop").rate = 0.0  # its random numbers depend on the type
        optimizer = GroupedOptimizer({group.name: (keras.optimizers.SGD(0.1), group) for group in groups})
        if policy != "float32":
            optimizer = keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=64.0)
        model.compile(optimizer, "sparse_categorical_crossentropy")
        monitor = GroupMonitor(groups, every_steps=1)
        model.fit(*rows, batch_size=90, epochs=1, verbose=0, callbacks=[monitor])
        norms.append(monitor.rows[0]["gradient_norm/head"])
    assert norms[1] == pytest.approx(norms[0], rel=0.02)


class OwnStep(keras.Sequential):
    """A class whose step may compute any loss."""

    def train_step(self, data):
        return super().train_step(data)


def test_a_model_with_its_own_step_has_all_but_gradients_and_a_sentence_says_so(rows):
    model, groups = built(OwnStep)
    said = []
    monitor = GroupMonitor(groups, every_steps=1, report=said.append)
    compiled(model, groups).fit(*rows, batch_size=30, epochs=1, verbose=0, callbacks=[monitor])
    assert [row["gradient_norm/head"] for row in monitor.rows] == [None] * 3
    assert all(row["update_ratio/head"] > 0 for row in monitor.rows)
    assert said == ["note: the norms of gradients are not measured: `OwnStep` has its own `train_step`"]


def test_keras_own_calls_of_several_steps_are_not_measured_and_a_sentence_says_so(rows):
    model, groups = built()
    said = []
    monitor = GroupMonitor(groups, every_steps=1, report=said.append)
    compiled(model, groups, steps_per_execution=3).fit(*rows, batch_size=30, epochs=2, verbose=0, callbacks=[monitor])
    assert monitor.rows == []
    assert said == [
        "warning: the layer groups are not measured, since Keras' own loop makes 3 steps in a call. Compile with "
        "`steps_per_execution=1`"
    ]


def test_a_plain_optimizer_has_one_rate_for_all_groups(rows):
    model, groups = built()
    model.compile("sgd", "sparse_categorical_crossentropy")
    monitor = GroupMonitor(groups, every_steps=3)
    model.fit(*rows, batch_size=30, epochs=1, verbose=0, callbacks=[monitor])
    (row,) = monitor.rows
    assert (row["learning_rate/body"], row["learning_rate/head"], row["phase"]) == (0.01, 0.01, None)


@pytest.mark.parametrize("every", [0, 1.5, True])
def test_an_interval_that_is_no_positive_number_of_steps_is_an_error(every):
    _, groups = built()
    with pytest.raises(TrainingError, match=rf"whole number of at least 1. Received `every_steps={every}`"):
        GroupMonitor(groups, every_steps=every)
