import keras
import numpy as np
import pytest

from finetune import FastLoop, GroupedOptimizer, GroupMonitor, resolve_groups
from finetune.training.callbacks import StopAtNonFiniteLoss


def monitored(tiny, every, **options):
    keras.utils.set_random_seed(0)
    model = tiny()
    groups = resolve_groups(model, by="layer")
    optimizer = GroupedOptimizer({group.name: (keras.optimizers.SGD(0.1), group) for group in groups})
    model.compile(optimizer, "sparse_categorical_crossentropy", **options)
    return model, GroupMonitor(groups, every_steps=every)


def test_batches_with_a_part_that_is_missing_and_a_last_one_of_another_size_are_measured(tiny, rows):
    model, monitor = monitored(tiny, 1)
    batches = ((rows[0][start : start + 40], rows[1][start : start + 40], None) for start in (0, 40, 80))
    model.fit(batches, steps_per_epoch=3, shuffle=False, verbose=0, callbacks=[monitor])
    model.fit(*rows, batch_size=40, sample_weight=np.ones(90), verbose=0, callbacks=[monitor])
    assert [row["step"] for row in monitor.rows] == [1, 2, 3, 4, 5, 6]
    assert all(row["gradient_norm/head"] > 0 for row in monitor.rows)


@pytest.mark.parametrize("bad", [3, 4])  # a step that is measured, and one that is not
def test_a_call_ends_at_the_first_loss_that_is_not_finite_and_its_step_is_named(tiny, rows, bad):
    model, monitor = monitored(tiny, 3, steps_per_execution=6)
    weights = np.ones(90)
    weights[10 * (bad - 1)] = np.nan
    guard = StopAtNonFiniteLoss()
    callbacks = [FastLoop(), monitor, guard]
    model.fit(*rows, sample_weight=weights, batch_size=10, shuffle=False, verbose=0, callbacks=callbacks)
    assert guard.stopped_at[:2] == (1, bad)
    assert int(model.optimizer.iterations) == bad + 1  # the loss is read when the next call is over
    assert [row["step"] for row in monitor.rows] == [3]
    assert (monitor.rows[0]["loss"] is None) == (bad == 3)


def test_a_call_that_is_measured_is_as_long_as_planned_and_the_train_function_is_the_one_before(tiny, rows):
    model, monitor = monitored(tiny, 2, steps_per_execution=5)
    functions, batches = set(), []
    look = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: (batches.append(batch), functions.add(model.train_function))
    )
    model.fit(*rows, batch_size=10, epochs=2, verbose=0, callbacks=[FastLoop(), monitor, look])
    assert batches == [4, 9, 4, 9]
    assert int(model.optimizer.iterations) == 18
    assert [row["step"] for row in monitor.rows] == [2, 4, 6, 8, 10, 12, 14, 16, 18]
    assert len(functions) == 1
