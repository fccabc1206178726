"""A step with a gradient that is not finite leaves no trace in the optimizer, and the record says which it was."""

from functools import cache

import keras
import numpy as np
import pytest
import tensorflow as tf

from finetune.optimizers.finite_gradients import FiniteGradients, Record
from finetune.optimizers.grouped import GroupedOptimizer

GOOD = [[0.5, -1.0], [2.0]]


def variables():
    return [keras.Variable([1.0, 2.0], name="a"), keras.Variable([3.0], name="b")]


def optimizer_for(kernel, bias, **settings):
    adam = keras.optimizers.Adam
    return GroupedOptimizer({"body": (adam(0.1), kernel), "head": (adam(0.2), bias)}, **settings)


def trained(steps, *, guard=None, compiled=False, **settings):
    """Applies gradients one after another; returns all values of weights and optimizer."""
    of_model = variables()
    optimizer = optimizer_for(*of_model, **settings)
    optimizer.build(of_model)
    optimizer.finite_gradients = guard

    def apply(*gradients):
        optimizer.apply(list(gradients), of_model)

    step = tf.function(apply, autograph=False, jit_compile=compiled) if compiled is not None else apply
    for gradients in steps:
        step(*[None if g is None else tf.convert_to_tensor(g, tf.float32) for g in gradients])
    return [v.numpy() for v in [*of_model, *optimizer.variables]]


@cache
def without_bad_steps(compiled, settings):
    return trained([GOOD] * 3, compiled=compiled, **dict(settings))


@pytest.mark.sample(14)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("compiled", [None, False, True], ids=["eager", "graph", "xla"])
@pytest.mark.parametrize(
    "settings",
    [{}, {"gradient_accumulation_steps": 2}, {"use_ema": True}, {"global_clipnorm": 1.0}, {"fused": "on"}],
    ids=str,
)
def test_everything_is_as_if_the_step_had_not_been(bad, compiled, settings):
    guard = FiniteGradients(5)
    steps = [GOOD, [[0.1, 0.2], [bad]], GOOD, [[bad, 0.0], [1.0]], GOOD]
    values = trained(steps, guard=guard, compiled=compiled, **settings)
    plain = without_bad_steps(compiled, tuple(settings.items()))
    for value, expected in zip(values, plain, strict=True):
        np.testing.assert_array_equal(value, expected)
    assert guard.record == Record(steps=5, left_out=2, in_row=0, first=2, position=1)


def test_finite_gradients_give_the_bits_of_a_step_without_a_guard():
    steps = [[np.random.default_rng(n).normal(size=2), [n * 1e-3]] for n in range(20)]
    for value, expected in zip(trained(steps, guard=FiniteGradients(0)), trained(steps), strict=True):
        np.testing.assert_array_equal(value, expected)


def test_after_too_many_steps_in_a_row_no_step_is_made_any_more():
    guard, bad = FiniteGradients(1), [[np.nan, 0.0], [1.0]]
    values = trained([GOOD, bad, GOOD, bad, bad, GOOD, GOOD], guard=guard)
    for value, expected in zip(values, trained([GOOD, GOOD]), strict=True):
        np.testing.assert_array_equal(value, expected)
    assert guard.too_many
    assert guard.record == Record(steps=7, left_out=3, in_row=2, first=2, position=0)


def test_what_the_forward_pass_wrote_is_put_back():
    mean, (kernel, bias) = tf.Variable(1.0), variables()
    optimizer = optimizer_for(kernel, bias)
    optimizer.build([kernel, bias])
    guard = optimizer.finite_gradients = FiniteGradients(5)
    guard.protect([mean])
    seen = []
    for written, gradient in [(2.0, 1.0), (np.nan, np.nan), (3.0, 1.0), (np.inf, np.inf), (7.0, np.nan)]:
        mean.assign(written)
        optimizer.apply([tf.constant([0.0, 0.0]), tf.constant([gradient])], [kernel, bias])
        seen.append(float(mean))
    assert seen == [2.0, 2.0, 3.0, 3.0, 3.0]
    mean.assign(0.0)  # as by Keras, at the begin of an epoch
    guard.take_copies()
    optimizer.apply([tf.constant([0.0, 0.0]), tf.constant([np.nan])], [kernel, bias])
    assert float(mean) == 0.0


@pytest.mark.filterwarnings("ignore:Gradients do not exist:UserWarning")
def test_sparse_missing_and_small_gradients_are_looked_at():
    table, bias = keras.Variable(np.ones((4, 2))), keras.Variable([1.0])
    optimizer = optimizer_for(table, bias)
    optimizer.build([table, bias])
    guard = optimizer.finite_gradients = FiniteGradients(5)
    with pytest.raises(ValueError, match="No gradients provided for any variable"):
        optimizer.apply([None, None], [table, bias])
    for value in (1.0, np.nan):
        rows = tf.IndexedSlices(tf.constant([[value, 1.0]]), tf.constant([2]), tf.constant([4, 2]))
        optimizer.apply([rows, None], [table, bias])
    assert guard.record == Record(steps=2, left_out=1, in_row=1, first=2, position=0)
    assert np.isfinite(table.numpy()).all()
    assert guard.variables == [table]
    for dtype in ("float16", "bfloat16", "float64", "float8_e5m2"):
        weight = keras.Variable([1.0], dtype="float32")
        FiniteGradients(0).apply([tf.cast([1.0], dtype)], [weight], lambda grads, variables: variables[0].assign([2.0]))
        assert weight.numpy() == [2.0]
        FiniteGradients(0).apply(
            [tf.cast([np.nan], dtype)], [weight], lambda grads, variables: variables[0].assign([3.0])
        )
        assert weight.numpy() == [2.0]


def test_a_step_that_other_code_leaves_out_is_counted_and_the_loss_of_a_step_left_out_is_zero():
    guard = FiniteGradients(5)
    guard.leave_out()
    assert guard.record == Record(steps=1, left_out=1, in_row=1, first=1, position=-1)
    assert float(guard.loss_of_step(tf.constant(np.nan))) == 0.0
    guard.record = Record(steps=3)
    assert float(guard.loss_of_step(tf.constant(2.5))) == 2.5
