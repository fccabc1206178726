"""Weights lie in buffers only where nothing goes past these; whatever a model does with them, it trains as in `fit`."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

from finetune.optimizers.grouped import GroupedOptimizer
from finetune.training.fast.fast_loop import FastLoop
from finetune.training.fast.moved_weights import captured, in_custom_gradients, shown, without_dense_gradient

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")
Adam = keras.optimizers.Adam


def test_a_variable_shows_a_tensor_to_whatever_reads_it_through_keras_and_its_own_value_again_afterwards():
    variable = keras.Variable([1.0, 2.0])
    kept = variable.value
    with shown([(variable, tf.constant([3.0, 4.0]))]):
        assert ops.sum(variable) == 7
        with pytest.raises(AttributeError, match="assign"):
            variable.assign([0.0, 0.0])
    assert variable.value is kept
    with pytest.raises(KeyError), shown([(variable, tf.constant([3.0, 4.0]))]):
        raise KeyError
    assert variable.value is kept


def test_missing_and_sparse_gradients_are_found():
    first, second, third = (keras.Variable([1.0]) for _ in range(3))
    sparse = tf.IndexedSlices(tf.ones(1), tf.constant([0]))
    kept = without_dense_gradient([first, second, third], [None, tf.ones(1), sparse])
    assert [id(variable) for variable in kept] == [id(first), id(third)]


def test_only_what_a_custom_gradient_uses_beside_its_arguments_is_found():
    passed, hidden, outside = (keras.Variable([float(i)]) for i in range(1, 4))
    reached = []

    @tf.function(autograph=False)
    def step(x):
        slices = [(variable, tf.identity(variable.value)) for variable in (passed, hidden, outside)]
        shown_as = {id(variable): part for variable, part in slices}

        @tf.custom_gradient
        def product(x):
            return x * shown_as[id(hidden)], lambda upstream: upstream

        result = product(x * shown_as[id(passed)]) * shown_as[id(outside)]
        reached.extend(in_custom_gradients(slices))
        return result

    step(tf.ones(1))
    assert [id(variable) for variable in reached] == [id(hidden)]


def test_what_the_graph_uses_is_found():
    used, unused = keras.Variable([1.0]), keras.Variable([1.0])
    names = []

    @tf.function(autograph=False)
    def step():
        used.assign_add([1.0])
        names.extend(id(variable) for variable in captured([used, unused]))

    step()
    assert names == [id(used)]


# -- Whatever a model does with its weights ---------------------------------------------------------------------------


def stem_and(*more, **options):
    """A model of equal layers, which are updated together, and others."""
    stem = [layers.Dense(4, activation="tanh", name=f"stem_{i}", **options) for i in range(3)]
    return keras.Sequential([keras.Input((4,)), *stem, *more])


class Tied(layers.Layer):
    """Reads the kernel of another layer."""

    def __init__(self, other):
        super().__init__()
        self.other = other

    def call(self, x):
        return x @ ops.transpose(self.other.kernel)


def tied():
    model = stem_and()
    return keras.Sequential([model, Tied(model.layers[1])])


class Writes(layers.Dense):
    """Scales its kernel in every call, as SpectralNormalization does."""

    def call(self, x, training=False):
        if training:
            self.kernel.assign(self.kernel * 0.9)
        return super().call(x)


class PastKeras(layers.Dense):
    """Uses the `tf.Variable` inside the Keras variable, beside the Keras variable."""

    def build(self, shape):
        super().build(shape)
        self.inner = self.kernel.value

    def call(self, x):
        return super().call(x) + tf.stop_gradient(tf.reduce_sum(self.inner.read_value()))


class WritesPastKeras(PastKeras):
    def call(self, x, training=False):
        if training:
            self.inner.assign(self.inner * 0.9, read_value=False)
        return layers.Dense.call(self, x)


class Hidden(layers.Dense):
    """Uses its kernel in a custom gradient that does not have it as an argument, and again outside."""

    def call(self, x):
        @tf.custom_gradient
        def product(x):
            def gradient(upstream, variables=None):
                own = [tf.matmul(x, upstream, transpose_a=True)] if variables else None
                into_x = tf.matmul(upstream, self.kernel.value, transpose_b=True)
                return (into_x, own) if variables else into_x

            return tf.matmul(x, ops.convert_to_tensor(self.kernel)), gradient

        return product(x) + x @ self.kernel


class MadeFrozen(layers.Layer):
    """Its kernel is made frozen and set trainable afterwards, which TensorFlow's tape does not see."""

    def build(self, shape):
        self.kernel = self.add_weight(shape=(4, 4), trainable=False, name="kernel", initializer="ones")
        self.kernel.trainable = True

    def call(self, x):
        return x @ self.kernel


class AddsLoss(layers.Dense):
    def call(self, x):
        self.add_loss(0.1 * ops.sum(ops.square(self.kernel)))
        return super().call(x)


class Product(layers.Layer):
    def build(self, shape):
        self.kernel = self.add_weight(shape=(4, 4), name="kernel", regularizer="l2")

    def call(self, x):
        return x @ self.kernel


def rematerialized():
    with keras.RematScope(mode="full"):
        products = [Product(), Product()]
    return keras.Sequential([keras.Input((4,)), *products])


def shared_three_times():
    inputs, shared = keras.Input((4,)), layers.Dense(4, activation="tanh")
    return keras.Model(inputs, shared(shared(shared(layers.Dense(4)(inputs)))))


def stateful():
    inputs = keras.Input(batch_shape=(4, 4))
    cells = [layers.GRU(4, stateful=True, return_sequences=True), layers.LSTM(4, stateful=True)]
    return keras.Sequential([inputs, layers.Reshape((2, 2)), *cells, layers.Dense(4)])


def loss_that_reads_weights(model):
    return lambda y, y_pred: ops.mean(ops.square(y - y_pred)) + 0.1 * ops.sum(ops.abs(model.layers[0].kernel))


class NormOfWeights(keras.metrics.Metric):
    def __init__(self, layer):
        super().__init__(name="norm")
        self.layer, self.value = layer, self.add_weight(name="value", initializer="zeros")

    def update_state(self, y, y_pred, sample_weight=None):
        self.value.assign_add(ops.sum(ops.square(self.layer.kernel)))

    def result(self):
        return self.value + 0.0


# What a model does; and how many weights are in buffers nevertheless.
CASES = {
    "a regularizer of a weight in a buffer": (lambda: stem_and(kernel_regularizer="l2"), 6),
    "a regularizer of a weight that is updated alone": (lambda: stem_and(layers.Dense(2, kernel_regularizer="l1")), 6),
    "regularizers of activities and biases": (
        lambda: stem_and(bias_regularizer="l2", activity_regularizer="l1"),
        6,
    ),
    "a constraint": (lambda: stem_and(kernel_constraint="unit_norm"), 3),
    "a weight of another layer": (tied, 6),
    "a write through Keras": (lambda: stem_and(Writes(4)), 0),
    "a write by Keras": (lambda: stem_and(layers.SpectralNormalization(layers.Dense(4))), 0),
    "a read past Keras": (lambda: stem_and(PastKeras(4)), 4),
    "a write past Keras": (lambda: stem_and(WritesPastKeras(4)), 4),
    "a custom gradient": (lambda: stem_and(Hidden(4, use_bias=False)), 3),
    "an activation with a custom gradient": (lambda: stem_and(layers.Dense(4, activation="silu")), 8),
    "rematerialization and a regularizer": (rematerialized, 0),
    "a weight that was made frozen": (lambda: stem_and(MadeFrozen()), 3),
    "a loss of a layer": (lambda: stem_and(AddsLoss(4)), 8),
    "statistics": (lambda: stem_and(layers.BatchNormalization(momentum=0.5), layers.LayerNormalization()), 10),
    "random numbers": (lambda: stem_and(layers.Dropout(0.5, seed=3), layers.GaussianNoise(0.1, seed=4)), 6),
    "a layer that is called three times": (shared_three_times, 4),
    "states of recurrent layers": (stateful, 4),
    "a model inside of a model": (lambda: keras.Sequential([stem_and(), layers.Dense(4)]), 8),
}


def trained(build, callbacks, make=lambda: Adam(0.05), compile_options=lambda model: {"loss": "mse"}):
    keras.utils.set_random_seed(2)
    model = build()
    groups = {f"{i}": (make(), variable) for i, variable in enumerate(model.trainable_variables)}
    model.compile(GroupedOptimizer(groups), **{"steps_per_execution": 2, **compile_options(model)})
    x = np.random.default_rng(0).standard_normal((20, 4)).astype("f4")
    y = x[:, : model.output_shape[-1]]
    history = model.fit(x, y, batch_size=4, epochs=2, shuffle=False, verbose=0, callbacks=callbacks)
    return model, [v.numpy() for v in [*model.variables, *model.optimizer.variables]], history.history


def assert_same_as_in_fit(build, **options):
    """Returns how many weights were in buffers."""
    loop = FastLoop()
    model, values, history = trained(build, [loop], **options)
    _, expected, expected_history = trained(build, [], **options)
    assert loop.reason is None
    for value, other in zip(values, expected, strict=True):
        np.testing.assert_array_equal(value, other)
    assert history == expected_history
    return len(vars(model)["_finetune_function"].moved)


@pytest.mark.sample(9)
@pytest.mark.filterwarnings("ignore:Gradients do not exist for variables:UserWarning")
@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_it_trains_as_in_fit_to_the_last_bit(case):
    build, in_buffers = CASES[case]
    assert assert_same_as_in_fit(build) == in_buffers


@pytest.mark.slow
def test_a_loss_that_reads_weights_sees_the_present_values():
    options = lambda model: {"loss": loss_that_reads_weights(model)}  # noqa: E731
    assert assert_same_as_in_fit(stem_and, compile_options=options) == 6


@pytest.mark.slow
def test_a_metric_that_reads_weights_sees_them_after_the_update():
    options = lambda model: {"loss": "mse", "metrics": [NormOfWeights(model.layers[0])]}  # noqa: E731
    assert assert_same_as_in_fit(stem_and, compile_options=options) == 3  # the biases


@pytest.mark.slow
def test_weight_decay_of_a_part_of_equal_weights_is_not_lost():
    decays = itertools.cycle([0.5, 0.5, None])
    assert assert_same_as_in_fit(stem_and, make=lambda: Adam(0.05, weight_decay=next(decays))) == 0
