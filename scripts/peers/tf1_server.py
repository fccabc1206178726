"""The work loads in a session of TensorFlow 1: `tf.group` of a `minimize` for every group, as people wrote it then."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf
from serving import cuts, serve, wanted

tf1 = tf.compat.v1
tf1.disable_eager_execution()
random = np.random.default_rng(0)


def dense(x, inputs: int, outputs: int):
    limit = (6 / (inputs + outputs)) ** 0.5
    kernel = tf1.Variable(random.uniform(-limit, limit, (inputs, outputs)).astype("float32"))
    return tf.tensordot(x, kernel, 1) + tf1.Variable(np.zeros(outputs, "float32"))


def norm(x, width: int):
    gamma, beta = tf1.Variable(np.ones(width, "float32")), tf1.Variable(np.zeros(width, "float32"))
    mean, variance = tf.nn.moments(x, [-1], keepdims=True)
    return tf.nn.batch_normalization(x, mean, variance, beta, gamma, 1e-3)


def normal(*shape: int):
    return random.standard_normal(shape).astype("float32")


def small_layers():
    def call(x):
        for _ in range(99):
            x = tf.nn.relu(dense(x, 64, 64))
        return dense(x, 64, 64)

    return call, (normal(32, 64), normal(32, 64))


def transformer():
    width, heads, length = 384, 12, 64

    def attend(x):
        q, k, v = (tf.reshape(dense(x, width, width), (16, length, heads, width // heads)) for _ in range(3))
        weights = tf.nn.softmax(tf.einsum("bqhd,bkhd->bhqk", q, k) / (width // heads) ** 0.5)
        return dense(tf.reshape(tf.einsum("bhqk,bkhd->bqhd", weights, v), (16, length, width)), width, width)

    def call(x):
        x = norm(tf.gather(tf1.Variable(normal(30522, width) * 0.05), x), width)
        for _ in range(6):
            x = norm(x + attend(x), width)
            x = norm(x + dense(tf.nn.gelu(dense(x, width, 1536)), 1536, width), width)
        return dense(tf.reduce_mean(x, 1), width, 1)

    return call, (random.integers(0, 30522, (16, length)), normal(16, 1))


WORKLOADS = {"small layers": small_layers, "transformer": transformer}


def main() -> None:
    name, _, groups = wanted()
    call, batch = WORKLOADS[name]()
    x, y = tf1.data.make_one_shot_iterator(tf1.data.Dataset.from_tensors(batch).cache().repeat().prefetch(2)).get_next()
    loss = tf.reduce_mean(tf.math.squared_difference(call(x), y))
    variables = tf1.trainable_variables()
    updates = [
        tf1.train.AdamOptimizer(1e-4 * 0.99**i).minimize(loss, var_list=[variables[at] for at in cut])
        for i, cut in enumerate(cuts(len(variables), groups))
    ]
    together = tf.group(*updates)
    with tf1.Session() as session:
        session.run(tf1.global_variables_initializer())
        serve(session.make_callable(together))


main()
