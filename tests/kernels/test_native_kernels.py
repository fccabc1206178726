"""Blocks of native kernels: where kernels run, where Keras' own `call` does, and that nothing remains of a block."""

import inspect
import pickle
import threading

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from finetune import keras_private
from finetune.errors import TrainingError
from finetune.kernels.native_kernels import (
    FUNCTIONS,
    KERNELS,
    active_kernels,
    kernels_of,
    layers_with_kernels,
    model_with_kernels,
    native_kernels,
    traced_natively,
    with_kernels,
)

Norm = layers.BatchNormalization
IMAGES = np.random.default_rng(0).normal(size=(4, 6, 6, 3)).astype("float32")


def network():
    return keras.Sequential([keras.Input((6, 6, 3)), layers.Conv2D(4, 3), Norm(), layers.ReLU()])


def traced(model, x=IMAGES, **options):
    """Runs a model in a function of its own."""
    return tf.function(lambda x: model(x, training=True, **options), autograph=False)(x)


def test_the_classes_have_their_own_call_before_and_after_a_block_also_after_an_error():
    before = {kind: vars(kind).get("call") for kind in KERNELS}
    with native_kernels(), native_kernels():
        assert all(vars(kind)["call"] is not before[kind] for kind in KERNELS)
        assert inspect.signature(Norm().call) == inspect.signature(before[Norm].__get__(Norm()))
    with pytest.raises(ZeroDivisionError), native_kernels():
        _ = 1 / 0
    assert {kind: vars(kind).get("call") for kind in KERNELS} == before


def test_a_function_traced_in_a_block_runs_kernels_and_one_traced_outside_does_not():
    model = network()
    run = tf.function(lambda x: model(x, training=True), autograph=False)
    kinds = [{op.type for op in run.get_concrete_function(IMAGES).graph.get_operations()}]
    with native_kernels() as native:
        assert native.counts(model) == {}
        run(IMAGES)  # traced before
        assert native.counts(model) == {}
        fresh = tf.function(lambda x: model(x, training=True), autograph=False)
        kinds.append({op.type for op in fresh.get_concrete_function(IMAGES).graph.get_operations()})
        assert native.counts(model) == {"BatchNormalization": 1}
        assert native.counts(network()) == {}
    assert ["FusedBatchNormV3" in each for each in kinds] == [False, True]


def test_eager_symbolic_and_xla_calls_and_those_of_replicas_are_those_of_keras():
    strategy = tf.distribute.MirroredStrategy(["CPU:0"])
    with native_kernels() as native:
        model = network()  # called with symbolic tensors
        keras.ops.convert_to_numpy(model(IMAGES, training=True))
        tf.function(lambda x: model(x, training=True), jit_compile=True, autograph=False)(IMAGES)
        strategy.run(tf.function(lambda: model(IMAGES, training=True), autograph=False))  # in a thread for each replica
        assert native.layers == {}


def test_a_subclass_and_a_layer_with_a_call_of_its_own_keep_it():
    class Doubled(Norm):
        def call(self, inputs, training=None, mask=None):
            return 2.0 * super().call(inputs, training=training, mask=mask)

    class Same(Norm):
        pass

    replaced = Norm()
    replaced.call = lambda inputs, training=None, mask=None: inputs + 1.0
    for layer in (Doubled(), Same(), replaced):
        with native_kernels() as native:
            outputs = traced(layer)
        assert native.counts(layer) == {}
        np.testing.assert_array_equal(outputs, traced(layer))


def test_layers_inside_layers_wrappers_and_shared_layers_run_kernels():
    class Block(layers.Layer):
        def __init__(self):
            super().__init__()
            self.norms = [Norm(), {"inner": Norm()}]

        def call(self, x, training=None):
            return self.norms[1]["inner"](self.norms[0](x, training=training), training=training)

    shared = Norm()
    inputs = keras.Input((6, 6, 3))
    y = shared(shared(Block()(inputs)))
    y = layers.TimeDistributed(Norm())(y)
    model = keras.Model(inputs, keras.Sequential([Norm()])(y))
    with native_kernels() as native:
        traced(model)
    assert native.counts(model) == {"BatchNormalization": 5}


def test_a_block_holds_in_its_own_thread_alone():
    model, counted = network(), {}
    inside, done = threading.Event(), threading.Event()

    def other():
        inside.wait()
        with with_kernels("exact") as native:
            traced(model)
            counted["exact"] = native.counts(model)
        with native_kernels() as native:
            traced(model)
            counted["native"] = native.counts(model)
        done.set()

    thread = threading.Thread(target=other)
    thread.start()
    with native_kernels() as native:
        inside.set()
        done.wait()
        assert native.counts(model) == {}
        traced(model)
        assert native.counts(model) == {"BatchNormalization": 1}
    thread.join()
    assert counted == {"exact": {}, "native": {"BatchNormalization": 1}}


def test_nothing_of_a_model_changes_in_a_block(tmp_path):
    model = network()
    config, attributes = model.get_config(), {name: set(vars(layer)) for layer in model.layers for name in [layer.name]}
    with native_kernels():
        traced(model)
        assert model.get_config() == config
        assert {layer.name: set(vars(layer)) for layer in model.layers} == attributes
        model.save(tmp_path / "in.keras")
        copied = pickle.loads(pickle.dumps(model))
    for other in (copied, keras.models.load_model(tmp_path / "in.keras")):
        np.testing.assert_array_equal(other.predict(IMAGES, verbose=0), model.predict(IMAGES, verbose=0))


def test_a_function_that_is_traced_later_can_be_traced_in_a_block():
    model = network()
    with with_kernels("native") as native:
        pass
    run = traced_natively(tf.function(lambda x: model(x, training=True), autograph=False), native)
    run(IMAGES)
    assert native.counts(model) == {"BatchNormalization": 1}
    assert kernels_of(run) == "native"


def test_kernels_are_exact_or_native():
    with pytest.raises(TrainingError) as caught:
        with_kernels("nativ")
    assert str(caught.value) == (
        "Layers compute with `exact` kernels, which are those of Keras, or with `native` kernels of TensorFlow. "
        "Received `kernels='nativ'`. Did you mean `native`?"
    )
    with with_kernels("exact") as native:
        assert native.counts(network()) == {}


def test_an_error_in_a_layer_reads_as_in_keras():
    messages = []
    layer = Norm()
    layer.build((None, 3))
    x, mask = tf.ones((2, 3)), tf.ones((2, 3, 4), tf.bool)
    for kernels in ("exact", "native"):
        with with_kernels(kernels), pytest.raises(ValueError, match="one dimension less") as caught:
            tf.function(lambda: layer(x, mask=mask), autograph=False)()
        messages.append(str(caught.value))
    assert messages[0] == messages[1]


def test_what_keras_had_traced_of_a_model_is_traced_anew_with_other_kernels():
    model = network()
    exact = model.predict(IMAGES, verbose=0)
    with model_with_kernels(model, "native") as native:
        assert active_kernels() == "native"
        model.predict(IMAGES, verbose=0)
        assert native.counts(model) == {"BatchNormalization": 1}
    assert (model.predict_function, active_kernels()) == (None, "exact")
    np.testing.assert_array_equal(model.predict(IMAGES, verbose=0), exact)
    with model_with_kernels(model, "exact") as native:
        assert model.predict_function is not None
        assert kernels_of(model.predict_function) == "exact"


def test_the_layers_with_a_kernel_are_those_of_the_table_alone():
    class Same(Norm):
        pass

    assert layers_with_kernels(keras.Sequential([Norm(), Norm(), Same(), layers.Flatten()])) == {
        "BatchNormalization": 2
    }


def test_functions_of_the_backend_are_those_of_keras_before_and_after_a_block_also_after_an_error():
    before = {name: keras_private.backend_function(name) for name in FUNCTIONS}
    with native_kernels(), native_kernels():
        assert all(keras_private.backend_function(name) is not own for name, own in before.items())
        assert inspect.signature(keras_private.backend_function("nn.gelu")) == inspect.signature(before["nn.gelu"])
    with pytest.raises(ZeroDivisionError), native_kernels():
        _ = 1 / 0
    assert {name: keras_private.backend_function(name) for name in FUNCTIONS} == before


def test_layers_of_any_class_run_kernels_of_functions_where_graphs_of_this_thread_are_traced():
    class Activated(layers.Layer):
        def call(self, x):
            return keras.activations.gelu(x)

    x = np.ones((2, 3), "float32")
    with native_kernels() as native:
        Activated()(x)  # eager
        tf.function(Activated(), jit_compile=True, autograph=False)(x)
        elsewhere = threading.Thread(target=lambda: tf.function(Activated(), autograph=False)(x))
        elsewhere.start()
        elsewhere.join()
        assert native.functions == set()
        traced_natively(tf.function(Activated(), autograph=False), native)(x)
        assert native.functions == {"nn.gelu"}
