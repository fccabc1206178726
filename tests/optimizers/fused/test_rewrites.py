"""A compiled step of grouped optimizers, held to the bits of Keras' own at rates with long mantissas."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from finetune.optimizers.fused.rewrites import as_written, is_power_of_steps, keeps_vectors, may_be_products
from finetune.optimizers.grouped import GroupedOptimizer
from finetune.optimizers.tf1_momentum import Momentum
from finetune.optimizers.tf1_rmsprop import TF1RMSprop
from finetune.training.fast.fast_loop import FastLoop

SGD, Adam, AdamW, RMSprop = (getattr(keras.optimizers, name) for name in ("SGD", "Adam", "AdamW", "RMSprop"))
layers = keras.layers

RULES = {
    "sgd": SGD,
    "sgd_decay": lambda rate: SGD(rate, weight_decay=0.0137),
    "momentum": lambda rate: SGD(rate, momentum=0.9),
    "nesterov": lambda rate: SGD(rate, momentum=0.9, nesterov=True),
    "rmsprop": RMSprop,
    "rmsprop_centered": lambda rate: RMSprop(rate, momentum=0.9, centered=True),
    "adagrad": keras.optimizers.Adagrad,
    "adam": Adam,
    "amsgrad": lambda rate: Adam(rate, amsgrad=True),
    "adamw": lambda rate: AdamW(rate, weight_decay=0.0137),
    "adamax": keras.optimizers.Adamax,
    "lion": keras.optimizers.Lion,
    "tf1_momentum": lambda rate: Momentum(rate, 0.9),
    "tf1_nesterov": lambda rate: Momentum(rate, 0.9, nesterov=True),
    "tf1_rmsprop": lambda rate: TF1RMSprop(rate, momentum=0.9, centered=True),
}


def dense_net():
    """Layers of 16 units, which fill whole vectors, and of 6, which do not; heads whose biases are one number."""
    x = inputs = keras.Input((6,))
    for units in (6, 6, 16, 16):
        x = layers.BatchNormalization()(layers.Dense(units)(x))
    return keras.Model(inputs, layers.Concatenate()([layers.Dense(1)(x) for _ in range(3)]))


def conv_net():
    x = inputs = keras.Input((5, 5, 3))
    for _ in range(2):
        x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(3, 3, padding="same")(x)))
    x = layers.PReLU()(layers.SeparableConv2D(3, 1)(layers.DepthwiseConv2D(3)(x)))
    return keras.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling2D()(x)))


def fit(make_net, make_optimizer, way):
    """Returns the weights that `fit` ends with, by a rule alone, in groups or in the fast loop."""
    keras.utils.clear_session()  # the order in which TensorFlow adds gradients up depends on the names of layers
    keras.utils.set_random_seed(1)
    model = make_net()
    x = np.random.default_rng(0).normal(size=(24, *model.input_shape[1:])).astype("f4")
    optimizer = make_optimizer()
    if way != "keras":
        optimizer = GroupedOptimizer([(make_optimizer(), layer) for layer in model.layers if layer.weights])
    model.compile(optimizer, "mse", steps_per_execution=6 if way == "fast" else 1)
    model.optimizer.build(model.trainable_variables)  # otherwise Keras traces its step twice
    callbacks = [FastLoop()] if way == "fast" else []
    model.fit(x, x.reshape(24, -1)[:, :3], batch_size=4, epochs=3, shuffle=False, verbose=0, callbacks=callbacks)
    return {weight.path: weight.numpy() for weight in model.weights}


# Rules whose steps are unlike each other; the others, and most for kernels of four dimensions, which take the same
# rewrites as those of two, are left to the whole grid.
SAMPLE = ("sgd_decay", "rmsprop_centered", "amsgrad", "tf1_rmsprop")
SAMPLE_OF_CONVOLUTIONS = ("amsgrad",)


@pytest.mark.sample(2)
@pytest.mark.parametrize(
    ("rule", "make_net"),
    [
        *(pytest.param(rule, dense_net, marks=() if rule in SAMPLE else pytest.mark.grid) for rule in RULES),
        *(
            pytest.param(rule, conv_net, marks=pytest.mark.slow if rule in SAMPLE_OF_CONVOLUTIONS else pytest.mark.grid)
            for rule in RULES
        ),
    ],
)
def test_compiled_groups_have_the_bits_of_keras_at_any_rate(rule, make_net):
    seed = [*map(ord, rule), len(make_net.__name__)]
    rate = float(np.float32(np.random.default_rng(seed).uniform(1e-3, 0.1)))
    expected = fit(make_net, lambda: RULES[rule](rate), "keras")
    assert all(np.isfinite(value).all() for value in expected.values())
    for way in ("groups", "fast"):
        trained = fit(make_net, lambda: RULES[rule](rate), way)
        different = [path for path, value in expected.items() if not np.array_equal(value, trained[path])]
        assert different == [], (way, rate)


def test_clipped_gradients_of_single_numbers_have_the_bits_of_groups_that_are_updated_alone():
    def train(fused):
        variables = [tf.Variable(np.random.default_rng(i).normal(size=(1,)).astype("f4")) for i in range(8)]
        optimizer = GroupedOptimizer([(SGD(0.0371234), v) for v in variables], fused=fused, global_clipnorm=0.3)
        optimizer.build(variables)
        step = tf.function(lambda: optimizer.apply([tf.sin(v) + 0.1 for v in variables], variables))
        for _ in range(20):
            step()
        reason = "it is one number, as its rate is, and the order of their product depends on the graph"
        assert fused == "off" or set(optimizer.not_fused.values()) == {reason}
        return [v.numpy() for v in variables]

    np.testing.assert_array_equal(train("auto"), train("off"))


@pytest.mark.parametrize("shape", [(16,), (5,)])
def test_adam_without_epsilon_has_the_bits_of_keras(shape):
    # Keras makes NaN of a gradient that is 0 then, so a whole model is no example.
    def train(make):
        variables = [tf.Variable(np.random.default_rng(i).normal(size=shape).astype("f4")) for i in range(3)]
        optimizer = make(variables)
        optimizer.build(variables)
        step = tf.function(lambda: optimizer.apply([tf.sin(v) + 2.1 for v in variables], variables))
        for _ in range(9):
            step()
        return [v.numpy() for v in variables]

    expected = train(lambda _: Adam(0.0137, epsilon=0.0))
    assert np.isfinite(expected).all()
    np.testing.assert_array_equal(train(lambda v: GroupedOptimizer([(Adam(0.0137, epsilon=0.0), v)])), expected)


@pytest.mark.sample(2)
@pytest.mark.parametrize("make", [Adam, AdamW, keras.optimizers.Adamax, lambda rate: Adam(rate, amsgrad=True)])
def test_groups_that_start_at_different_steps_have_the_bits_of_groups_that_are_updated_alone(make):
    def train(fused):
        variables = [tf.Variable(np.random.default_rng(i).normal(size=5).astype("f4")) for i in range(24)]
        groups = {f"g{i}": (make(0.0137 / (i + 1)), variables[3 * i : 3 * i + 3]) for i in range(8)}
        optimizer = GroupedOptimizer(groups, fused=fused)

        def run(steps):
            step = tf.function(lambda: optimizer.apply([tf.sin(v) + 0.1 for v in variables], variables))
            for _ in range(steps):
                step()

        optimizer.build(variables)
        for start in range(4):
            run(5)
            optimizer.restart([f"g{start}"])
        run(20)
        return [v.numpy() for v in variables]

    np.testing.assert_array_equal(train("auto"), train("off"))


@pytest.mark.parametrize(
    ("make", "shape", "expected"),
    [
        (RMSprop, (16,), True),
        (RMSprop, (3, 3, 4), False),
        (keras.optimizers.Adagrad, (5,), False),
        (Adam, (5,), True),
        (lambda rate: Adam(rate, epsilon=0.0), (5,), False),
        (lambda rate: AdamW(rate, epsilon=0.0), (4, 8), True),
        (SGD, (5,), True),
        (TF1RMSprop, (5,), True),
    ],
)
def test_a_rule_that_divides_by_a_root_is_stacked_only_in_whole_vectors(make, shape, expected):
    variables = [tf.Variable(tf.ones(shape)) for _ in range(2)]
    assert keeps_vectors(make(0.1), variables[0]) is expected
    reasons = set(GroupedOptimizer([(make(0.1), variables)]).not_fused.values())
    reason = "its rule divides by a square root, the last bits of which depend on the place in an array"
    assert reasons == (set() if expected else {reason})


def test_only_rules_with_bias_corrections_compute_powers_of_the_step():
    variable = tf.Variable(tf.ones(3))
    powers = [make for make in RULES if is_power_of_steps(RULES[make](0.1), variable)]
    assert powers == ["adam", "amsgrad", "adamw", "adamax"]


def test_the_gradient_of_a_sum_of_products_is_no_product_and_eager_steps_are_not_rewritten():
    seen = []

    @tf.function
    def trace(a, b):
        seen.extend(may_be_products(gradients) for gradients in ([a @ b], [a * b], [a @ b, tf.identity(a @ b)]))

    trace(tf.ones((2, 2)), tf.ones((2, 2)))
    assert seen == [False, True, True]
    assert not may_be_products([tf.ones(3) * 2.0])


def test_tensorflow_rewrites_a_quotient_by_a_root_and_leaves_it_as_written():
    x, y = (tf.Variable(np.random.default_rng(i).uniform(0.1, 1, 99).astype("f4")) for i in range(2))
    exact = (x / tf.sqrt(y)).numpy()
    assert not np.array_equal(tf.function(lambda: x / tf.sqrt(y))().numpy(), exact)  # or nothing here is needed
    np.testing.assert_array_equal(tf.function(lambda: x / as_written(tf.sqrt(y)))().numpy(), exact)
