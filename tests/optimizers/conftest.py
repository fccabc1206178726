"""Twenty steps of an optimizer on the same gradients, by TF1 in a session and by Keras in a compiled step."""

import numpy as np
import pytest
import tensorflow as tf

from finetune.optimizers.schedules import exponential_decay

tf1 = tf.compat.v1


@pytest.fixture(scope="session")
def twenty_steps():
    return TwentySteps()


class TwentySteps:
    """The weights after each of twenty steps under a staircase.

    The kind of a gradient is `dense`, or `sparse`: rows of which some occur twice and the last one never.
    """

    num_steps = 20
    stairs = (5, 0.5)  # decay_steps, decay_rate: the rate falls three times
    start = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)
    gradients = np.random.default_rng(1).standard_normal((num_steps, 6, 4)).astype(np.float32)
    rows = np.random.default_rng(2).integers(0, 5, (num_steps, 3))
    row_gradients = np.random.default_rng(3).standard_normal((num_steps, 3, 4)).astype(np.float32)

    def falling(self, rate):
        return exponential_decay(rate, *self.stairs, staircase=True)

    def of_tf1(self, make, rate, kind="dense"):
        """Minimizes as a TF1 program does; `make` makes TF1's optimizer with a decaying rate."""
        with tf.Graph().as_default(), tf1.Session() as session:
            weight = tf1.get_variable("weight", initializer=self.start, use_resource=True)
            global_step = tf1.train.get_or_create_global_step()
            optimizer = make(tf1.train.exponential_decay(rate, global_step, *self.stairs, staircase=True))
            gradient = self._gradient(kind, global_step)
            update = optimizer.apply_gradients([(gradient, weight)], global_step=global_step)
            session.run(tf1.global_variables_initializer())
            return np.array([(session.run(update), session.run(weight))[1] for _ in range(self.num_steps)])

    def of_keras(self, optimizer, kind="dense", jit_compile=False, variable=None):
        """Applies a Keras optimizer, to a new variable by default."""
        weight = tf.Variable(self.start) if variable is None else variable
        optimizer.build([weight])

        @tf.function(jit_compile=jit_compile)
        def update(step):
            optimizer.apply([self._gradient(kind, step)], [weight])

        weights = []
        for step in range(self.num_steps):
            update(tf.constant(step))
            weights.append(weight.numpy())
        return np.array(weights)

    def _gradient(self, kind, step):
        if kind == "dense":
            return tf.gather(self.gradients, step)
        values, rows = tf.gather(self.row_gradients, step), tf.gather(self.rows, step)
        return tf.IndexedSlices(values, rows, tf.constant([6, 4], tf.int64))
