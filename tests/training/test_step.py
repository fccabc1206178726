import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import finetune
from finetune import GroupedOptimizer, grouped_train_step
from finetune.errors import GroupError, TrainingError
from finetune.training.step import compile_state, loss_and_gradients

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

DATA = np.random.default_rng(0)
X = DATA.normal(size=(24, 6)).astype("float32")
Y = np.arange(24) % 3


class Dense(tf.Module):
    def __init__(self, width_in, width, activation):
        super().__init__()
        self.kernel = tf.Variable(tf.zeros((width_in, width)), name="kernel")
        self.bias = tf.Variable(tf.zeros((width,)), name="bias")
        self.activation = activation

    def __call__(self, x):
        return self.activation(tf.matmul(x, self.kernel) + self.bias)


class Network(tf.Module):
    """What `keras_network` is, written without Keras."""

    def __init__(self):
        super().__init__()
        self.body = Dense(6, 8, tf.nn.relu)
        self.head = Dense(8, 3, tf.nn.softmax)

    def __call__(self, x):
        return self.head(self.body(x))


def keras_network():
    keras.utils.set_random_seed(1)
    body, head = layers.Dense(8, activation="relu", name="body"), layers.Dense(3, activation="softmax", name="head")
    return keras.Sequential([keras.Input((6,)), body, head])


def same_weights(module, model):
    for part, layer in ((module.body, model.layers[0]), (module.head, model.layers[1])):
        part.kernel.assign(layer.kernel.value)
        part.bias.assign(layer.bias.value)


def optimizer_of(body, head):
    schedule = finetune.exponential_decay(1e-2, decay_steps=2, decay_rate=0.5, staircase=True)
    return GroupedOptimizer(
        {"body": (keras.optimizers.SGD(schedule, momentum=0.9), body), "head": (keras.optimizers.AdamW(1e-2), head)},
        global_clipnorm=0.5,
    )


@pytest.mark.slow
def test_a_bare_module_is_trained_bit_for_bit_as_train_on_batch_trains_an_equal_keras_model():
    model, module = keras_network(), Network()
    same_weights(module, model)
    loss = "sparse_categorical_crossentropy"
    model.compile(optimizer_of(*model.layers), loss, jit_compile=False)
    # In the model's order: the sum below the norm of all gradients depends on it in the last bit.
    variables = [module.body.kernel, module.body.bias, module.head.kernel, module.head.bias]
    step = grouped_train_step(module, loss, optimizer_of(module.body, module.head), variables=variables)
    for n in range(5):
        at = slice(5 * n, 5 * n + 5)
        model.reset_metrics()
        assert float(step(X[at], Y[at])) == model.train_on_batch(X[at], Y[at])
    for part, layer in ((module.body, model.layers[0]), (module.head, model.layers[1])):
        np.testing.assert_array_equal(part.kernel.numpy(), layer.kernel.numpy())
        np.testing.assert_array_equal(part.bias.numpy(), layer.bias.numpy())


@pytest.mark.slow
def test_a_keras_model_in_a_loop_of_ones_own_is_trained_as_by_train_on_batch():
    one, other = keras_network(), keras_network()
    one.compile(optimizer_of(*one.layers), "mse", jit_compile=False)
    step = grouped_train_step(other, "mse", optimizer_of(*other.layers))
    targets = np.eye(3, dtype="float32")[Y]
    for _ in range(3):
        one.train_on_batch(X, targets)
        step(X, targets)
    for a, b in zip(one.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_function_is_compiled_once_for_batches_of_one_shape():
    module = Network()
    step = grouped_train_step(module, "sparse_categorical_crossentropy", optimizer_of(module.body, module.head))
    for _ in range(3):
        step(tf.constant(X), tf.constant(Y))
    assert step.experimental_get_tracing_count() == 1


def test_frozen_groups_are_left_alone_and_cost_no_slots():
    module = Network()
    same_weights(module, keras_network())
    body, head = finetune.resolve_groups(
        module,
        [finetune.Selector("body", prefixes=("body",), frozen=True), finetune.Selector("head", rest=True)],
    )
    before = module.body.kernel.numpy()
    optimizer = GroupedOptimizer({"head": (keras.optimizers.Adam(1e-2), head)})
    step = grouped_train_step(module, "sparse_categorical_crossentropy", optimizer, variables=[body, head])
    losses = [float(step(X, Y)) for _ in range(5)]
    assert losses[-1] < losses[0]
    np.testing.assert_array_equal(module.body.kernel.numpy(), before)


def test_a_plain_optimizer_trains_all_that_was_created_trainable():
    module = Network()
    same_weights(module, keras_network())
    step = grouped_train_step(module, "sparse_categorical_crossentropy", keras.optimizers.Adam(1e-2))
    before = [variable.numpy() for variable in module.trainable_variables]
    step(X, Y)
    changed = [(a != v.numpy()).any() for a, v in zip(before, module.trainable_variables, strict=True)]
    assert changed == [True] * 4


def test_a_loss_may_be_a_function_of_ones_own():
    module = Network()
    same_weights(module, keras_network())
    step = grouped_train_step(
        module, lambda y, outputs: tf.reduce_sum((outputs - y) ** 2, -1), keras.optimizers.SGD(0.1)
    )
    expected = float(np.mean(np.sum((module(X).numpy() - np.eye(3)[Y]) ** 2, -1)))
    assert float(step(X, np.eye(3, dtype="float32")[Y])) == pytest.approx(expected, rel=1e-6)


def two_outputs(kind):
    keras.utils.set_random_seed(2)
    inputs = [keras.Input((6,), name="a"), keras.Input((2,), name="b")]
    joined = layers.Concatenate()([layers.Dense(4, name="body")(inputs[0]), inputs[1]])
    outputs = [layers.Dense(3, activation="softmax", name="c")(joined), layers.Dense(1, name="d")(joined)]
    if kind is dict:
        return keras.Model(dict(zip("ab", inputs, strict=True)), dict(zip("cd", outputs, strict=True)))
    return keras.Model(inputs, outputs)


@pytest.mark.sample(3)
@pytest.mark.parametrize("kind", [list, tuple, dict])
@pytest.mark.parametrize("weights", [False, True])
def test_several_inputs_outputs_and_weights_of_each_output_are_trained_as_by_train_on_batch(kind, weights):
    def structure(*parts, names):
        return dict(zip(names, parts, strict=True)) if kind is dict else kind(parts)

    x, y = structure(X, X[:, :2], names="ab"), structure(Y, X[:, :1], names="cd")
    of_rows = np.linspace(0, 1, 24).astype("float32")
    weight = [structure(of_rows, of_rows**2, names="cd")] if weights else []
    loss = structure("sparse_categorical_crossentropy", "mse", names="cd")
    one, other = two_outputs(kind), two_outputs(kind)
    one.compile(keras.optimizers.Adam(0.1), list(loss) if kind is tuple else loss, jit_compile=False)
    step = grouped_train_step(other, loss, keras.optimizers.Adam(0.1))
    for _ in range(3):
        one.reset_metrics()
        expected = one.train_on_batch(x, y, *weight, return_dict=True)["loss"]
        assert float(step(x, y, *weight)) == pytest.approx(expected, rel=1e-6)
    for a, b in zip(one.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("how", ["rows", "classes"])
def test_weights_of_rows_and_of_classes_weigh_the_loss_as_train_on_batch_weighs_it(how):
    of_classes = {0: 1.0, 1: 3.0, 2: 0.5}
    of_rows = np.array([of_classes[label] for label in Y], "float32")
    one, other = keras_network(), keras_network()
    one.compile(keras.optimizers.SGD(0.1), "sparse_categorical_crossentropy", jit_compile=False)
    more = {"class_weight": of_classes} if how == "classes" else {}
    step = grouped_train_step(other, "sparse_categorical_crossentropy", keras.optimizers.SGD(0.1), **more)
    batch = (X, Y) if how == "classes" else (X, Y, of_rows)
    for data in tf.data.Dataset.from_tensors(batch).repeat(3):
        one.reset_metrics()
        assert float(step(*data)) == one.train_on_batch(X, Y, sample_weight=of_rows)
    for a, b in zip(one.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("kind", ["ragged", "sparse"])
def test_ragged_and_sparse_inputs_reach_the_module_as_they_are(kind):
    class Mean(tf.Module):
        def __init__(self):
            super().__init__()
            self.factor = tf.Variable([1.0])

        def __call__(self, x):
            assert isinstance(x, tf.RaggedTensor if kind == "ragged" else tf.SparseTensor)
            total = tf.reduce_sum(x, axis=1) if kind == "ragged" else tf.sparse.reduce_sum(x, axis=1)
            return tf.reshape(total, (-1, 1)) * self.factor

    rows = tf.ragged.constant([[1.0], [2.0, 3.0]]) if kind == "ragged" else tf.sparse.from_dense([[1.0, 0], [2.0, 3.0]])
    module = Mean()
    step = grouped_train_step(module, "mse", keras.optimizers.SGD(0.01))
    assert float(step(rows, tf.constant([[1.0], [0.0]]))) == 12.5
    assert float(module.factor[0]) == pytest.approx(0.75)


@pytest.mark.slow
def test_a_loaded_hub_module_is_trained_with_its_statistics_and_regularization_losses(encoder, encoder_folder):
    loaded = tf.saved_model.load(str(encoder_folder))
    targets = np.ones((24, 8), "float32")
    encoder.compile(keras.optimizers.SGD(0.1), "mse", jit_compile=False)
    step = grouped_train_step(loaded, "mse", keras.optimizers.SGD(0.1))
    for _ in range(3):
        encoder.train_on_batch(X, targets)
        step(X, targets)
    for layer, name in ((encoder.get_layer("stem"), "stem"), (encoder.get_layer("body"), "body")):
        np.testing.assert_allclose(getattr(loaded, name).kernel.numpy(), layer.kernel.numpy(), rtol=1e-5, atol=1e-6)
    statistics = encoder.get_layer("bn").moving_mean.numpy()
    np.testing.assert_allclose(loaded.bn.moving_mean.numpy(), statistics, rtol=1e-5, atol=1e-6)
    assert np.abs(statistics).max() > 0


def test_the_gradients_come_back_in_the_structure_of_the_variables_and_none_where_the_loss_does_not_depend():
    used, unused, tensor = keras.Variable([2.0]), tf.Variable([1.0]), tf.constant([3.0])

    def forward():
        return tf.reduce_sum(used.value**2 * tensor), "other"

    loss, other, gradients = loss_and_gradients(forward, {"a": [used, unused], "b": tensor})
    assert (float(loss), other) == (12.0, "other")
    assert float(gradients["a"][0][0]) == 12.0
    assert gradients["a"][1] is None
    assert float(gradients["b"][0]) == 4.0


def test_only_the_gradients_are_scaled_for_an_optimizer_that_scales_the_loss():
    variable = keras.Variable([2.0])
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1), initial_scale=8.0)
    optimizer.build([variable])

    def forward():
        return tf.reduce_sum(variable.value**2), None

    loss, _, (gradient,) = loss_and_gradients(forward, [variable], optimizer=optimizer)
    assert float(loss) == 4.0
    assert float(gradient[0]) == 8.0 * 4.0


def test_a_compiled_function_can_be_kept_until_the_model_is_compiled_anew_or_frozen():
    model = keras_network()
    model.compile("sgd", "mse")
    before = compile_state(model)
    assert compile_state(model) == before
    model.layers[0].trainable = False
    assert compile_state(model) != before
    model.layers[0].trainable = True
    assert compile_state(model) == before
    model.compile(model.optimizer, "mse")
    assert compile_state(model) != before


def test_what_cannot_be_called_is_refused():
    with pytest.raises(TrainingError, match=r"^A step calls the module on its inputs. The `Module` cannot be called"):
        grouped_train_step(tf.Module(), "mse", keras.optimizers.SGD())


def test_a_step_with_nothing_to_train_is_refused():
    module = Network()
    (body, _) = finetune.resolve_groups(
        module, [finetune.Selector("body", prefixes=("body",), frozen=True), finetune.Selector("head", rest=True)]
    )
    with pytest.raises(GroupError, match=r"^A step trains at least one variable"):
        grouped_train_step(module, "mse", keras.optimizers.SGD(), variables=body)


def test_a_misspelt_loss_is_reported_with_the_nearest_one():
    with pytest.raises(TrainingError, match=r"Received `huberr`\. Did you mean `huber`"):
        grouped_train_step(Network(), "huberr", keras.optimizers.SGD())
