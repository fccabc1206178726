"""Several steps in one call: the same results as `fit`, and what cannot be done so says why."""

import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from finetune.errors import TrainingError
from finetune.optimizers.grouped import GroupedOptimizer
from finetune.training.fast.compiled_steps import FastFunction
from finetune.training.fast.fallback_reasons import reason_against
from finetune.training.fast.fast_loop import FastLoop

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")
Adam, AdamW, SGD = keras.optimizers.Adam, keras.optimizers.AdamW, keras.optimizers.SGD


def dense(*more):
    return keras.Sequential(
        [keras.Input((6,)), *more, *(layers.Dense(6, activation="tanh") for _ in range(4)), layers.Dense(3)]
    )


def with_statistics():
    return dense(layers.Dense(6), layers.BatchNormalization(momentum=0.5), layers.Dropout(0.3, seed=1))


def regularized():
    return dense(layers.Dense(6, kernel_regularizer="l2"), layers.ActivityRegularization(0.1))


def recurrent():
    return keras.Sequential(
        [keras.Input((6,)), layers.Reshape((3, 2)), layers.LSTM(4), layers.Dense(4), layers.Dense(4), layers.Dense(3)]
    )


def attentive():
    inputs = keras.Input((6,))
    x = layers.Reshape((3, 2))(inputs)
    x = layers.LayerNormalization()(x + layers.MultiHeadAttention(2, 2)(x, x))
    return keras.Model(inputs, layers.Dense(3)(layers.Flatten()(x)))


def embedded():
    inputs = keras.Input((6,))
    x = layers.Embedding(8, 4)(
        tf.zeros((1,), "int32") if False else layers.Lambda(lambda x: tf.cast(abs(x) * 2, "int32") % 8)(inputs)
    )
    return keras.Model(inputs, layers.Dense(3)(layers.Flatten()(x)))


def constrained():
    return keras.Sequential(
        [keras.Input((6,)), *(layers.Dense(6, kernel_constraint="max_norm") for _ in range(3)), layers.Dense(3)]
    )


def a_group_each(model, make=Adam, **settings):
    owners = [layer for layer in model._flatten_layers(include_self=False) if layer._trainable_variables]
    return GroupedOptimizer(
        [(make(0.05 / (i + 1)), owner._trainable_variables) for i, owner in enumerate(owners)], **settings
    )


def trained(
    build,
    callbacks,
    make=Adam,
    steps=4,
    wrap=lambda optimizer: optimizer,
    batch_size=4,
    freeze=(),
    metrics=("mae",),
    **settings,
):
    """Trains for two epochs of nine batches, the last of them smaller; returns all state and the history."""
    keras.utils.set_random_seed(3)
    model = build()
    for index in freeze:
        model.layers[index].trainable = False
    model.compile(wrap(a_group_each(model, make, **settings)), "mse", metrics=["mae"], steps_per_execution=steps)
    x, y = np.random.default_rng(0).standard_normal((2, 35, 6)).astype("f4")
    history = model.fit(x, y[:, :3], batch_size=batch_size, epochs=2, verbose=0, callbacks=callbacks, shuffle=True)
    return model, [v.numpy() for v in [*model.variables, *model.optimizer.variables]], history.history


def assert_identical(some, others):
    assert len(some[1]) == len(others[1])
    for one, other in zip(some[1], others[1], strict=True):
        np.testing.assert_array_equal(one, other)
    assert some[2] == others[2]


CASES = {
    "dense": (dense, {}),
    "one step a call": (dense, {"steps": 1}),
    "more steps than batches": (dense, {"steps": 50}),
    "weight decay": (dense, {"make": AdamW}),
    "momentum": (dense, {"make": lambda rate: SGD(rate, 0.9)}),
    "clipping": (dense, {"global_clipnorm": 0.1}),
    "accumulation": (dense, {"gradient_accumulation_steps": 3}),
    "moving average": (dense, {"use_ema": True, "ema_overwrite_frequency": 2}),
    "loss scale": (dense, {"wrap": lambda optimizer: keras.optimizers.LossScaleOptimizer(optimizer, 8.0)}),
    "batch normalization and dropout": (with_statistics, {}),
    "regularization": (regularized, {}),
    "recurrent": (recurrent, {}),
    "attention": (attentive, {}),
    "sparse gradients": (embedded, {}),
    "constraints": (constrained, {}),
    "frozen in part": (dense, {"freeze": (1,)}),
    "not fused": (dense, {"fused": "off"}),
    "all fused": (dense, {"fused": "on"}),
}


@pytest.fixture
def sums_as_written():
    """TensorFlow's graph optimizer adds up the gradients of one tensor in an order of its own, here or there."""
    tf.config.optimizer.set_experimental_options({"arithmetic_optimization": False})
    yield
    tf.config.optimizer.set_experimental_options({"arithmetic_optimization": True})


# The others differ from these in one thing that a module of their own tests, too.
SAMPLE = (
    *("dense", "more steps than batches", "accumulation", "moving average", "loss scale", "sparse gradients"),
    *("batch normalization and dropout", "recurrent", "constraints", "frozen in part"),
)


@pytest.mark.sample(5)
@pytest.mark.slow
@pytest.mark.usefixtures("sums_as_written")
@pytest.mark.parametrize("case", [pytest.param(c, marks=() if c in SAMPLE else pytest.mark.grid) for c in CASES])
def test_it_gives_what_fit_gives_to_the_last_bit(case):
    build, options = CASES[case]
    loop = FastLoop()
    fast = trained(build, [loop], **options)
    assert loop.reason is None
    assert_identical(fast, trained(build, [], **options))


@pytest.mark.parametrize("case", ["dense", "batch normalization and dropout"])
@pytest.mark.slow
def test_small_weights_lie_together_meanwhile_and_are_in_their_own_variables_afterwards(case):
    build, options = CASES[case]
    model, state, _ = trained(build, [FastLoop()], **options)
    function = vars(model)["_finetune_function"]
    assert len(function._buffers) == 2  # kernels and biases of the four layers
    assert_identical((model, state, {}), (*trained(build, [], **options)[:2], {}))


@pytest.mark.slow
def test_mixed_precision_gives_what_fit_gives():
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        assert_identical(trained(dense, [FastLoop()]), trained(dense, []))
    finally:
        keras.config.set_dtype_policy(before)


@pytest.mark.slow
def test_a_layer_that_looks_past_the_keras_variables_keeps_its_own():
    class Raw(layers.Layer):
        def build(self, shape):
            self.kernel = self.add_weight(shape=(6, 6), name="kernel")
            self.raw = self.kernel.value

        def call(self, x):
            return x @ self.raw

    build = lambda: keras.Sequential([keras.Input((6,)), Raw(), layers.Dense(6), layers.Dense(6), layers.Dense(3)])  # noqa: E731
    assert_identical(trained(build, [FastLoop()]), trained(build, []))


def test_a_forward_pass_of_ones_own_takes_the_place_of_the_models():
    keras.utils.set_random_seed(0)
    model = dense()
    model.compile(a_group_each(model), "mse", steps_per_execution=2)
    head = model.layers[-1]
    features = np.random.default_rng(0).standard_normal((8, 6)).astype("f4")
    model._symbolic_build(data_batch=(features, np.ones((8, 3), "f4")))
    for layer in model.layers[:-1]:
        layer.trainable = False
    model.train_function = FastFunction(model, lambda x, training: head(x, training=training))
    before, body = head.kernel.numpy(), model.layers[0].kernel.numpy()
    history = model.fit(features, np.ones((8, 3), "f4"), batch_size=4, epochs=3, verbose=0)
    assert history.history["loss"][-1] < history.history["loss"][0]
    assert np.any(head.kernel.numpy() != before)
    np.testing.assert_array_equal(model.layers[0].kernel.numpy(), body)


class OwnStep(keras.Sequential):
    def train_step(self, data):
        return super().train_step(data)


@pytest.mark.parametrize(
    ("make", "settings", "reason"),
    [
        (OwnStep, {}, "`OwnStep` has its own `train_step`"),
        (keras.Sequential, {"run_eagerly": True}, "it runs eagerly"),
        (keras.Sequential, {"jit_compile": True}, "XLA compiles its step"),
    ],
)
def test_a_model_that_needs_its_own_loop_keeps_it_and_reports_why(make, settings, reason):
    model = make([keras.Input((6,)), layers.Dense(3, name="only")], name="own")
    model.compile(a_group_each(model), "mse", **settings)
    assert reason_against(model) == reason
    loop = FastLoop()
    model.fit(np.ones((8, 6), "f4"), np.ones((8, 3), "f4"), verbose=0, callbacks=[loop])
    assert loop.reason == reason
    with pytest.raises(TrainingError, match=re.escape(
        "The fast loop repeats Keras' own training step, so it trains models that use that step. It cannot train "
        f"`own`: {reason}. Call `model.fit` without it."
    )):  # fmt: skip
        FastFunction(model)


class NotInLoops(layers.Layer):
    """Stands for an operation that cannot be traced inside of a loop."""

    def call(self, x):
        graph = tf.compat.v1.get_default_graph()
        while hasattr(graph, "outer_graph"):
            if graph.name.startswith("while_body"):
                raise NotImplementedError("not inside of a loop")
            graph = graph.outer_graph
        return x * 1.0


def test_a_model_whose_step_cannot_share_a_call_gets_keras_own_steps_and_the_reason():
    build = lambda: dense(NotInLoops())  # noqa: E731
    loop = FastLoop()
    fast = trained(build, [loop], steps=4)
    assert loop.reason == "its step cannot be compiled with others in one call: not inside of a loop"
    assert_identical(fast, trained(build, [], steps=1))


def test_an_error_in_a_model_is_the_one_that_keras_reports():
    class Fails(layers.Layer):
        def call(self, x, training=False):
            if training and not isinstance(x, keras.KerasTensor):
                raise ValueError("three channels are needed")
            return x

    build = lambda: keras.Sequential([keras.Input((6,)), layers.Dense(6), Fails(), layers.Dense(3)])  # noqa: E731
    with pytest.raises(ValueError, match="three channels are needed"):
        trained(build, [FastLoop()])


def test_an_error_in_a_step_that_runs_is_not_tried_again():
    calls = []

    class Counts(layers.Layer):
        def call(self, x, training=False):
            def check(value):
                calls.append(1)
                raise ValueError("a bad row")

            return tf.ensure_shape(tf.py_function(check, [x], "float32"), x.shape) if training else x

    build = lambda: keras.Sequential([keras.Input((6,)), layers.Dense(6), Counts(), layers.Dense(3)])  # noqa: E731
    with pytest.raises(tf.errors.OpError, match="a bad row"):
        trained(build, [FastLoop()])
    assert len(calls) == 1


def test_a_model_with_losses_of_several_outputs_is_trained_before_anything_has_evaluated_it():
    losses = []
    for callbacks in ([FastLoop()], []):
        keras.utils.set_random_seed(1)
        inputs = keras.Input((6,))
        hidden = layers.Dense(6)(inputs)
        model = keras.Model(inputs, {"a": layers.Dense(3)(hidden), "b": layers.Dense(3)(hidden)})
        model.compile(GroupedOptimizer([(Adam(0.1), model)]), {"a": "mse", "b": "mae"}, loss_weights={"a": 0.3, "b": 2})
        y = {"a": tf.ones((8, 3)), "b": tf.zeros((8, 3))}
        losses.append(model.fit(tf.ones((8, 6)), y, batch_size=4, verbose=0, callbacks=callbacks).history)
    assert losses[0] == losses[1]
    assert len(losses[0]) == 3
