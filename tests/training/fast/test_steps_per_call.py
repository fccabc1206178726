"""How many steps a call makes: every limit is kept, and what a call made is known afterwards."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from finetune.optimizers.grouped import GroupedOptimizer
from finetune.training.fast.fast_loop import train_function
from finetune.training.fast.steps_per_call import (
    MOST_STEPS,
    Calls,
    calls_restored,
    divide_evenly,
    limit_next_call,
    share_calls,
    steps_done,
)

X, Y = np.random.default_rng(0).standard_normal((2, 40, 6)).astype("float32")


def compiled(steps: int = 1, **options) -> keras.Model:
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((6,)), layers.Dense(6)])
    model.compile(GroupedOptimizer([(keras.optimizers.Adam(0.1), model)]), "mse", steps_per_execution=steps, **options)
    model.optimizer.build(model.trainable_variables)
    return model


def fast(steps: int = 1) -> keras.Model:
    model = compiled(steps)
    model.train_function = train_function(model)
    return model


def plain(steps: int = 1) -> keras.Model:
    model = compiled(steps, run_eagerly=True)
    model.train_function = train_function(model)
    return model


def batches(rows: int = 40) -> tf.data.Dataset:
    return tf.data.Dataset.from_tensor_slices((X[:rows], Y[:rows])).batch(4)


def state(model: keras.Model) -> list[np.ndarray]:
    return [variable.numpy() for variable in [*model.variables, *model.optimizer.variables]]


def test_a_call_makes_the_steps_it_is_set_to_while_nothing_limits_it():
    assert Calls(8).begin() == 8


def test_the_smallest_of_several_limits_holds_for_one_call():
    calls = Calls(8)
    for limit in (5, 3, 6):
        calls.limit_next(limit)
    assert [calls.begin(), calls.begin()] == [3, 8]


def test_a_limit_above_the_steps_of_a_call_changes_nothing_and_one_below_1_leaves_one_step():
    calls = Calls(8)
    calls.limit_next(9)
    assert calls.begin() == 8
    calls.limit_next(0)
    assert calls.begin() == 1


def test_a_limited_call_makes_so_many_steps_and_the_next_one_is_not_limited():
    model, iterator = fast(steps=4), iter(batches())
    limit_next_call(model, 3)
    made = []
    for _ in range(2):
        model.train_function(iterator)
        made.append(int(model.optimizer.iterations))
    assert made == [3, 7]


def test_the_steps_done_are_those_that_the_call_made_and_not_those_that_were_planned():
    model, iterator = fast(steps=4), iter(batches(rows=12))
    model.train_function(iterator)
    assert steps_done(model, first=8, last=11) == 8 + 3  # the data ended after three steps


def test_keras_own_function_makes_the_steps_that_were_planned():
    model = plain(steps=4)
    limit_next_call(model, 1)  # it cannot be limited
    model.train_function(iter(batches()))
    assert int(model.optimizer.iterations) == 4
    assert steps_done(model, first=8, last=11) == 12


def test_before_its_first_call_a_function_has_no_steps_that_could_be_counted():
    assert steps_done(fast(), first=0, last=0) == 1


@pytest.mark.parametrize(
    ("steps", "lengths", "divided"), [(4, (10,), 2), (4, (10, 0), 2), (6, (12, 9), 3), (4, (7,), 1)]
)
def test_keras_own_calls_divide_epochs_and_phases_evenly(steps, lengths, divided):
    model = plain(steps)
    divide_evenly(model, *lengths)
    assert model.steps_per_execution == divided


def test_calls_of_the_fast_loop_need_not_divide_anything():
    model = fast(steps=4)
    divide_evenly(model, 10)
    assert model.steps_per_execution == 4


def test_steps_share_calls_without_a_trace_and_keras_divides_the_epoch_into_these_calls():
    model = fast()
    before = state(model)
    sharing = share_calls(model, batches(), steps_per_epoch=10)
    for old, new in zip(before, state(model), strict=True):
        np.testing.assert_array_equal(old, new)
    chosen = model.steps_per_execution
    assert 1 < chosen <= 10 < MOST_STEPS  # a step of this model takes far less than a tenth of a call
    seen = []
    recorder = keras.callbacks.LambdaCallback(on_train_batch_begin=lambda batch, logs=None: seen.append(batch))
    model.fit(batches(), shuffle=False, verbose=0, callbacks=[*sharing, recorder])
    assert seen == list(range(0, 10, chosen))
    assert int(model.optimizer.iterations) == 10


def test_evaluations_during_training_with_shared_calls_make_one_step_a_call():
    model = fast()
    sharing = share_calls(model, batches(), steps_per_epoch=10)
    seen = []
    recorder = keras.callbacks.LambdaCallback(on_test_batch_end=lambda batch, logs=None: seen.append(batch))
    model.fit(batches(), shuffle=False, verbose=0, callbacks=[*sharing, recorder], validation_data=batches(rows=12))
    assert seen == [0, 1, 2]


def test_an_epoch_of_one_step_has_nothing_to_share():
    model = fast()
    share_calls(model, batches(rows=4), steps_per_epoch=1)
    assert model.steps_per_execution == 1


def test_keras_own_function_shares_no_calls():
    model = plain()
    assert share_calls(model, batches(), steps_per_epoch=10) == []
    assert model.steps_per_execution == 1


def test_the_models_own_number_is_restored_after_an_error_too():
    model = compiled(steps=4)

    def fail() -> None:
        with calls_restored(model):
            model.steps_per_execution = 9
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert model.steps_per_execution == 4
