"""How many epochs and steps a phase makes."""

import keras
import pytest
import tensorflow as tf

from finetune.training.phases.phase import Phase
from finetune.training.phases.phase_length import EpochWatch, StopAfterSteps
from finetune.training.phases.train_phases import train_phases

SGD = keras.optimizers.SGD


@pytest.mark.parametrize("together", [1, 2, 3, 16])
def test_a_phase_in_steps_makes_just_them_however_many_share_a_call(tiny, rows, together, prepared, train):
    model = tiny()
    groups = prepared(model, steps_per_execution=together)
    records = train(model, groups, [Phase(["head"], steps=4), Phase(steps=5), Phase(steps=1)], rows)
    assert [record.steps for record in records] == [4, 5, 1]


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


def test_steps_are_counted_where_the_length_of_an_epoch_is_unknown(tiny, rows):
    model = tiny()
    model.compile(SGD(0.1), loss="sparse_categorical_crossentropy")
    batches = tf.data.Dataset.from_tensor_slices(rows).batch(30).filter(lambda *_: True)
    model.fit(batches, epochs=9, shuffle=False, verbose=0, callbacks=[StopAfterSteps(2)])
    assert int(model.optimizer.iterations) == 2


def test_the_last_call_of_a_phase_makes_only_the_steps_that_are_left_in_the_middle_of_an_epoch(tiny, rows, prepared):
    model = tiny()
    groups = prepared(model, steps_per_execution=2)
    records = train_phases(model, groups, [Phase(steps=3), Phase(steps=5)], *rows, batch_size=10)  # 9 in an epoch
    assert [record.steps for record in records] == [3, 5]


def test_a_call_that_is_planned_beyond_the_end_of_an_epoch_counts_only_the_steps_of_the_epoch(tiny, rows):
    model = tiny()
    model.compile(SGD(0.1), loss="sparse_categorical_crossentropy", steps_per_execution=2)
    stop, begun = StopAfterSteps(4), []
    note = keras.callbacks.LambdaCallback(on_train_batch_begin=lambda batch, logs: begun.append(batch))
    model.fit(*rows, batch_size=30, epochs=9, verbose=0, callbacks=[stop, note])
    assert begun == [0, 2, 0]  # 3 steps in the first epoch, not 4
