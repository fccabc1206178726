"""Two groups under staircase rates go the way of TF1: `tf.group` of two `minimize` calls in a session.

The settings are what a user who comes from TF1 has to write; `docs/tf1.md` lists them.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf

from finetune.optimizers.grouped import GroupedOptimizer
from finetune.optimizers.schedules import exponential_decay
from finetune.optimizers.tf1_momentum import Momentum
from finetune.optimizers.tf1_rmsprop import TF1RMSprop

tf1 = tf.compat.v1
optimizers = keras.optimizers
NUM_STEPS = 20
SHAPES = {"body/kernel": (5, 4), "body/bias": (4,), "head/kernel": (4, 3), "head/bias": (3,)}
RNG = np.random.default_rng(0)
START = {name: RNG.normal(size=shape, scale=0.5).astype("float32") for name, shape in SHAPES.items()}
X = RNG.normal(size=(NUM_STEPS, 8, 5)).astype("float32")
Y = RNG.normal(size=(NUM_STEPS, 8, 3)).astype("float32")
# By TF1's name: TF1's optimizer, ours with the settings that make it the same, and a rate that moves the weights.
PAIRS = {
    "GradientDescent": (tf1.train.GradientDescentOptimizer, optimizers.SGD, 0.1),
    "Momentum": (lambda rate: tf1.train.MomentumOptimizer(rate, 0.9), Momentum, 0.05),
    "Momentum, Nesterov": (
        lambda rate: tf1.train.MomentumOptimizer(rate, 0.9, use_nesterov=True),
        lambda rate: Momentum(rate, 0.9, nesterov=True),
        0.05,
    ),
    "Adam": (tf1.train.AdamOptimizer, lambda rate: optimizers.Adam(rate, epsilon=1e-8), 0.01),
    "Adagrad": (tf1.train.AdagradOptimizer, lambda rate: optimizers.Adagrad(rate, epsilon=0.0), 0.1),
    "Adadelta": (
        lambda rate: tf1.train.AdadeltaOptimizer(rate, epsilon=1e-4),
        lambda rate: optimizers.Adadelta(rate, epsilon=1e-4),
        1.0,
    ),
    "RMSProp": (tf1.train.RMSPropOptimizer, TF1RMSprop, 0.01),
    "RMSProp of Inception": (
        lambda rate: tf1.train.RMSPropOptimizer(rate, 0.9, momentum=0.9, epsilon=1.0),
        lambda rate: TF1RMSprop(rate, 0.9, momentum=0.9, epsilon=1.0),
        0.05,
    ),
    "RMSProp, centered": (
        lambda rate: tf1.train.RMSPropOptimizer(rate, centered=True, epsilon=1e-3),
        lambda rate: TF1RMSprop(rate, centered=True, epsilon=1e-3),
        0.01,
    ),
    "Ftrl": (tf1.train.FtrlOptimizer, optimizers.Ftrl, 0.1),
    "Ftrl, regularized": (
        lambda rate: tf1.train.FtrlOptimizer(
            rate,
            l1_regularization_strength=0.01,
            l2_regularization_strength=0.1,
            l2_shrinkage_regularization_strength=0.05,
        ),
        lambda rate: optimizers.Ftrl(
            rate,
            l1_regularization_strength=0.01,
            l2_regularization_strength=0.1,
            l2_shrinkage_regularization_strength=0.05,
        ),
        0.1,
    ),
}


def loss_of(weights, x, y):
    hidden = tf.nn.relu(x @ weights["body/kernel"] + weights["body/bias"])
    return tf.reduce_mean((hidden @ weights["head/kernel"] + weights["head/bias"] - y) ** 2)


def of_tf1(make_body, body_rate, make_head, head_rate):
    """The weights after the last step of a program of TF1, whose body trains at a tenth of the rate."""
    with tf.Graph().as_default(), tf1.Session() as session:
        weights = {name: tf1.get_variable(name, initializer=value) for name, value in START.items()}
        step = tf1.train.get_or_create_global_step()
        loss = loss_of(weights, tf.gather(X, step), tf.gather(Y, step))
        body, head = ([v for name, v in weights.items() if name.startswith(part)] for part in ("body", "head"))
        slow = tf1.train.exponential_decay(body_rate, step, 5, 0.5, staircase=True)
        fast = tf1.train.exponential_decay(head_rate, step, 10, 0.8, staircase=True)
        gradients = tf.gradients(loss, body + head)
        with tf.control_dependencies(gradients):
            train = tf.group(
                make_body(slow).apply_gradients(list(zip(gradients[:2], body, strict=True))),
                make_head(fast).apply_gradients(list(zip(gradients[2:], head, strict=True))),
            )
        with tf.control_dependencies([train]):
            train = tf1.assign_add(step, 1)
        session.run(tf1.global_variables_initializer())
        for _ in range(NUM_STEPS):
            session.run(train)
        return {name: session.run(variable) for name, variable in weights.items()}


def ours(make_body, body_rate, make_head, head_rate):
    weights = {name: keras.Variable(value, name=name.replace("/", "_")) for name, value in START.items()}
    body, head = ([v for name, v in weights.items() if name.startswith(part)] for part in ("body", "head"))
    optimizer = GroupedOptimizer(
        {
            "body": (make_body(exponential_decay(body_rate, 5, 0.5, staircase=True)), body),
            "head": (make_head(exponential_decay(head_rate, 10, 0.8, staircase=True)), head),
        }
    )
    optimizer.build(body + head)

    @tf.function
    def train(x, y):
        with tf.GradientTape() as tape:
            loss = loss_of({name: variable.value for name, variable in weights.items()}, x, y)
        optimizer.apply(tape.gradient(loss, [variable.value for variable in body + head]), body + head)

    for x, y in zip(X, Y, strict=True):
        train(x, y)
    return {name: variable.numpy() for name, variable in weights.items()}


@pytest.mark.sample(6)
@pytest.mark.parametrize("name", PAIRS)
def test_two_groups_of_one_kind_under_staircase_rates_are_tf1s(name):
    theirs, mine, rate = PAIRS[name]
    expected = of_tf1(theirs, rate / 10, theirs, rate)
    for weight, value in ours(mine, rate / 10, mine, rate).items():
        np.testing.assert_allclose(value, expected[weight], rtol=0, atol=1e-6)
        assert np.abs(value - START[weight]).max() > 1e-3


@pytest.mark.parametrize(("body", "head"), [("RMSProp", "Adam"), ("Ftrl", "Momentum"), ("Adagrad", "RMSProp")])
def test_two_groups_of_different_kinds_under_staircase_rates_are_tf1s(body, head):
    (their_body, my_body, slow), (their_head, my_head, fast) = PAIRS[body], PAIRS[head]
    expected = of_tf1(their_body, slow / 10, their_head, fast)
    for weight, value in ours(my_body, slow / 10, my_head, fast).items():
        np.testing.assert_allclose(value, expected[weight], rtol=0, atol=1e-6)
