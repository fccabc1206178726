"""The private hooks of Keras and TensorFlow do what `finetune/keras_private.py` says, and are used nowhere else.

After an upgrade of Keras or TensorFlow this file says by name what moved.
"""

import ast
import functools
import importlib
import inspect
import os
import pkgutil
import platform
import random
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf

import finetune
from finetune import keras_private as private
from finetune.kernels.native_kernels import FUNCTIONS
from finetune.recipe.data import KERAS_DATASETS

PACKAGE = Path(finetune.__file__).parent
HOOKS = {name: hook for name, hook in vars(private).items() if inspect.isfunction(hook) and not name.startswith("_")}
CHECKS: dict[str, Callable[[], None]] = {}


def checks(hook: Callable[..., Any]) -> Callable[[Callable[[], None]], Callable[[], None]]:
    """Registers a function as the check of a hook."""

    def register(check: Callable[[], None]) -> Callable[[], None]:
        CHECKS[hook.__name__] = check
        return check

    return register


@pytest.mark.parametrize("name", HOOKS)
def test_a_hook_does_on_the_installed_keras_and_tensorflow_what_its_docstring_says(name: str):
    assert name in CHECKS, f"`keras_private.{name}` has no check: write one below with `@checks(private.{name})`"
    CHECKS[name]()


@pytest.mark.parametrize("name", HOOKS)
def test_a_hook_says_in_its_docstring_which_private_name_it_uses(name: str):
    """The names in the code of the function, other than those of keras_private.py itself, are in the docstring."""
    tree = ast.parse(inspect.getsource(HOOKS[name])).body[0]
    used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and re.match("_[a-z]", node.attr)}
    missing = {attribute for attribute in used if attribute not in (HOOKS[name].__doc__ or "")}
    assert not missing


# -- Several folders --------------------------------------------------------------------------------------------------


def built(optimizer: Any, *values: list[float]) -> tuple[Any, list[Any]]:
    variables = [keras.Variable(value) for value in values or ([1.0],)]
    optimizer.build(variables)
    return optimizer, variables


@checks(private.untracked)
def untracked():
    for thing, listed in ((keras.layers.Layer(), "weights"), (keras.optimizers.SGD(0.1), "variables")):
        number = len(getattr(thing, listed))
        with private.untracked():
            thing.first = keras.Variable([1.0])
        assert len(getattr(thing, listed)) == number
        thing.second = keras.Variable([1.0])
        assert len(getattr(thing, listed)) == number + 1, "outside of the block Keras tracks"


@checks(private.without_tracking)
def without_tracking():
    class Layer(keras.layers.Layer):
        @private.without_tracking
        def keep(self, variable: Any) -> Any:
            self.extra = variable
            return variable

    layer, variable = Layer(), keras.Variable([1.0])
    assert layer.keep(variable) is variable
    assert layer.weights == []


# -- data/ ------------------------------------------------------------------------------------------------------------


@checks(private.read_record)
def _():
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.tfrecord"
        with tf.io.TFRecordWriter(str(path)) as writer:
            writer.write(b"first")
            writer.write(b"second")
        assert private.read_record(str(path), 16 + len(b"first")) == b"second"
        damaged = bytearray(path.read_bytes())
        damaged[14] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(tf.errors.DataLossError):
            private.read_record(str(path), 0)


@checks(private.local_datasets)
def _():
    with tempfile.TemporaryDirectory() as folder:
        path, rows = Path(folder) / "own.npz", np.zeros((2, 28, 28), np.uint8)
        np.savez(path, x_train=rows, y_train=[1, 2], x_test=rows, y_test=[3, 4])
        with private.local_datasets("mnist", lambda name: str(path)):
            (_, y), _ = keras.datasets.mnist.load_data()
        assert y.tolist() == [1, 2]
        for name in KERAS_DATASETS:
            module = importlib.import_module(f"keras.src.datasets.{name}")
            assert module.get_file is keras.utils.get_file


# -- groups/ ----------------------------------------------------------------------------------------------------------


@checks(private.is_trackable)
def is_trackable():
    assert all(map(private.is_trackable, (tf.Module(), keras.layers.Dense(1), keras.optimizers.SGD())))
    assert not any(map(private.is_trackable, (1, [], tf.constant(1.0))))


@checks(private.creation_number)
def check_creation_number():
    made = [tf.Variable(1.0, name="b_9"), keras.Variable([2.0], name="c").value, tf.Variable(1.0)]
    numbers = [private.creation_number(variable) for variable in made]
    assert numbers[0] < numbers[1] < numbers[2]


@checks(private.layer_variables)
def layer_variables():
    layer = keras.layers.BatchNormalization()
    layer.build((None, 2))
    layer.trainable = False
    trained, others = private.layer_variables(layer)
    assert [v.name for v in trained] == ["gamma", "beta"]
    assert [v.name for v in others] == ["moving_mean", "moving_variance"]
    assert not any(v.trainable for v in trained), "the variables of a frozen layer are not trainable themselves"


@checks(private.was_made_frozen)
def check_was_made_frozen():
    made_frozen, open_layer = keras.layers.Dense(2, trainable=False), keras.layers.Dense(2)
    open_layer.trainable = False
    assert private.was_made_frozen(made_frozen) is True
    assert private.was_made_frozen(open_layer) is False
    assert private.was_made_frozen(keras.layers.Dense.from_config(open_layer.get_config())) is True
    assert private.was_made_frozen(keras.layers.Dense(2, kernel_initializer=keras.initializers.Zeros())) is None


@checks(private.sublayers)
def sublayers():
    inner = keras.Sequential([keras.Input((2,)), dense := keras.layers.Dense(2)])
    outer = keras.Sequential([keras.Input((2,)), inner])
    direct = private.sublayers(outer, recursive=False)
    assert inner in direct
    assert dense not in direct
    assert outer not in direct
    assert {inner, dense} <= set(private.sublayers(outer))
    assert private.sublayers(outer, include_self=True)[0] is outer


# -- models/ ----------------------------------------------------------------------------------------------------------


@checks(private.before_variables)
def _():
    seen: list[tuple[str, tuple[int, ...], str]] = []

    def note(variable: Any) -> None:
        assert not hasattr(variable, "_value") or variable._value is None, "memory is taken already"
        seen.append((variable.path, tuple(variable.shape), variable.dtype))

    def refuse(variable: Any) -> None:
        raise MemoryError(variable.path)

    class Subclassed(keras.Model):
        def __init__(self):
            super().__init__(name="sub")
            self.dense = keras.layers.Dense(3, name="dense")

        def call(self, x):
            return self.dense(x)

    with private.before_variables(note):
        keras.layers.Dense(2, name="d", dtype="bfloat16").build((None, 4))
        Subclassed()(keras.Input((5,)))
    assert seen == [
        ("d/kernel", (4, 2), "bfloat16"),
        ("d/bias", (2,), "bfloat16"),
        ("sub/dense/kernel", (5, 3), "float32"),
        ("sub/dense/bias", (3,), "float32"),
    ]
    with private.before_variables(refuse), pytest.raises(MemoryError, match="d/kernel"):
        keras.layers.Dense(2, name="d").build((None, 4))
    keras.layers.Dense(2, name="d").build((None, 4))
    assert len(seen) == 4, "nothing is called behind the block"


@checks(private.fresh_names)
def fresh_names():
    layers = [keras.layers.Dense(1, name=None) for _ in range(3)]
    number = int(layers[-1].name.rpartition("_")[2])
    with private.fresh_names():
        assert [keras.layers.Dense(1).name for _ in range(2)] == ["dense", "dense_1"]
        assert keras.metrics.AUC().name == "auc"
    assert keras.layers.Dense(1).name == f"dense_{number + 1}"
    with private.fresh_names():
        several = [keras.layers.Dense(1).name for _ in range(number + 5)]
    assert keras.layers.Dense(1).name not in several


@checks(private.source_of)
def source_of():
    inputs = keras.Input((4,))
    dense = keras.layers.Dense(3)
    _, two = keras.ops.split(dense(inputs), [1], axis=1)
    operation, index, made_from = private.source_of(two)
    assert (type(operation).__name__, index) == ("Split", 1)
    layer, index, made_from = private.source_of(made_from[0])
    assert layer is dense
    assert (index, made_from[0] is inputs) == (0, True)


@checks(private.is_safe_mode)
def is_safe_mode():
    from keras.src.saving.serialization_lib import SafeModeScope

    assert private.is_safe_mode() is False
    for safe in (True, False):
        with SafeModeScope(safe):
            assert private.is_safe_mode() is safe


@checks(private.parse_saved_model)
def parse_saved_model():
    with tempfile.TemporaryDirectory() as folder:
        module = tf.Module()
        module.v = tf.Variable(1.0, name="v")
        tf.saved_model.save(module, folder)
        assert private.parse_saved_model(folder).meta_graphs[0].object_graph_def.nodes[1].variable.name == "v"


@checks(private.is_registered_operation)
def is_registered_operation():
    assert all(map(private.is_registered_operation, ("MatMul", "ReadFile", "_Arg")))
    assert not any(map(private.is_registered_operation, ("NoSuchOp", "_NoSuchOp", "keyword", "")))


@checks(private.is_stateful_operation)
def is_stateful_operation():
    assert all(map(private.is_stateful_operation, ("WriteFile", "VarHandleOp", "RandomUniform", "NoSuchOp")))
    assert not any(map(private.is_stateful_operation, ("MatMul", "Reshape")))


@checks(private.has_registered_gradient)
def has_registered_gradient():
    assert private.has_registered_gradient("MatMul")
    assert not private.has_registered_gradient("ResizeArea")
    tf.RegisterGradient("GradientOfTheContract")(lambda op, upstream: upstream)
    assert private.has_registered_gradient("GradientOfTheContract")


@checks(private.has_gradient)
def has_gradient():
    @tf.function(autograph=False)
    def nodes(x: Any) -> Any:
        tf.raw_ops.ResizeArea(images=x, size=[2, 2])
        tf.raw_ops.PreventGradient(input=x, message="")
        tf.strings.lower("A")  # has no gradient and needs none
        tf.raw_ops.IsFinite(x=x)
        tf.function(lambda y: y)(x)
        return tf.nn.relu(x)

    graph = nodes.get_concrete_function(tf.TensorSpec((1, 4, 4, 1))).graph.as_graph_def()
    wrong = [node.op for node in graph.node if not private.has_gradient(node)]
    assert wrong == ["ResizeArea", "PreventGradient"]
    assert {"StringLower", "IsFinite", "PartitionedCall", "Relu"} <= {node.op for node in graph.node}


@checks(private.without_arguments)
def without_arguments():
    class Fails(keras.layers.Layer):
        def call(self, x):
            error = ValueError("wrong")
            raise private.without_arguments(error) if self.name == "plain" else error

    for name, message in (("plain", "^wrong$"), ("other", "Arguments received by Fails.call")):
        with pytest.raises(ValueError, match=message):
            Fails(name=name)(tf.ones(1))


@checks(private.is_recorded)
def is_recorded():
    x, other = tf.ones(1), tf.ones(1)
    assert not private.is_recorded([])
    with tf.GradientTape() as tape:
        tape.watch(x)
        assert private.is_recorded([])
        assert private.is_recorded([other, 2.0 * x])
        assert not private.is_recorded([other])
        with tape.stop_recording():
            assert not private.is_recorded([])


# -- optimizers/ ------------------------------------------------------------------------------------------------------


@checks(private.model_that_is_loaded)
def model_that_is_loaded():
    seen = []

    @keras.saving.register_keras_serializable("contract")
    class Watcher(keras.optimizers.SGD):
        @classmethod
        def from_config(cls, config, custom_objects=None):
            seen.append(private.model_that_is_loaded())
            return super().from_config(config, custom_objects)

    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile(Watcher(), "mse")
    with tempfile.TemporaryDirectory() as folder:
        model.save(f"{folder}/model.keras")
        loaded = keras.models.load_model(f"{folder}/model.keras")
    copy = keras.models.clone_model(model)
    Watcher.from_config(model.optimizer.get_config())
    assert seen[0] is loaded
    assert seen[1] is copy
    assert seen[2] is None
    assert private.model_that_is_loaded() is None


@checks(private.step_counter)
def step_counter():
    optimizer, (v,) = built(keras.optimizers.SGD(0.1, gradient_accumulation_steps=2))
    optimizer.apply([tf.ones(1)], [v])
    optimizer.apply([tf.ones(1)], [v])
    assert int(private.step_counter(optimizer)) == 2
    assert int(optimizer.iterations) == 1


@checks(private.set_step_counter)
def set_step_counter():
    shared = private.step_counter(keras.optimizers.SGD(0.1))
    child = keras.optimizers.Adam(0.1)
    first = private.step_counter(child)
    private.set_step_counter(child, shared)
    assert child.iterations is shared
    assert [v is first for v in child.variables] == [True, False], "the new counter is not listed"


@checks(private.held_rate)
def held_rate():
    schedule = keras.optimizers.schedules.ExponentialDecay(0.1, 1, 0.5)
    assert isinstance(private.held_rate(keras.optimizers.SGD(0.1)), keras.Variable)
    assert private.held_rate(keras.optimizers.SGD(schedule)) is schedule
    optimizer = keras.optimizers.SGD(0.1)
    assert private.held_rate(optimizer) is optimizer.learning_rate, "a variable is what the public name returns, too"


@checks(private.set_held_rate)
def set_held_rate():
    class Held:
        written = None

        def __call__(self):
            return tf.constant(0.5)

        def assign(self, value):
            self.written = value

    optimizer, held = keras.optimizers.SGD(0.1), Held()
    private.set_held_rate(optimizer, held)
    assert float(optimizer.learning_rate) == 0.5, "the getter calls what is held"
    optimizer.learning_rate = 0.25
    assert held.written == 0.25, "the setter assigns to what is held"
    assert private.held_rate(optimizer) is held


@checks(private.floor_of_plateau)
def floor_of_plateau():
    """Through a real callback: the setter asks who writes, also inside a `LossScaleOptimizer`."""
    floors = []

    class Asking(keras.optimizers.SGD):
        @property
        def learning_rate(self) -> Any:
            return keras.optimizers.SGD.learning_rate.fget(self)

        @learning_rate.setter
        def learning_rate(self, value: Any) -> None:
            floors.append(private.floor_of_plateau())

    for wrap in (lambda optimizer: optimizer, keras.optimizers.LossScaleOptimizer):
        model = keras.Sequential()
        model.compile(wrap(Asking(1.0)), "mse")
        callback = keras.callbacks.ReduceLROnPlateau("loss", 0.5, patience=1, min_delta=9, min_lr=0.125)
        callback.set_model(model)
        callback.on_train_begin()
        for epoch in range(2):
            callback.on_epoch_end(epoch, {"loss": 1.0})
        model.optimizer.learning_rate = 0.5
    assert floors == [0.125, 0.0] * 2


@checks(private.graph_of_step)
def check_graph_of_step():
    seen = []

    class Noting(keras.optimizers.SGD):
        def apply(self, grads, trainable_variables=None):
            seen.append((private.graph_of_step(), tf.compat.v1.get_default_graph()))
            return super().apply(grads, trainable_variables)

    variable = keras.Variable([1.0])
    for optimizer in (Noting(0.1), keras.optimizers.LossScaleOptimizer(Noting(0.1))):
        optimizer.build([variable])
        function = tf.function(lambda apply=optimizer.apply: apply([variable * 1.0], [variable]), autograph=False)
        graph = function.get_concrete_function().graph
        assert seen[-1][0] is graph
    assert seen[0][1] is seen[0][0]  # no scaling: the function itself
    assert seen[-1][1] is not seen[-1][0]  # a branch


@checks(private.skip_reduction)
def skip_reduction():
    asked = []

    class Reducing(keras.optimizers.SGD):
        def _all_reduce_sum_gradients(self, grads_and_vars):
            asked.append(len(grads_and_vars))
            return super()._all_reduce_sum_gradients(grads_and_vars)

    optimizer, (v,) = built(Reducing(0.5))
    optimizer.apply([tf.ones(1)], [v])
    assert asked == [1], "Keras reduces in this method"
    private.skip_reduction(optimizer)
    optimizer.apply([tf.ones(1)], [v])
    assert asked == [1]
    assert v.numpy() == [0.0], "and updates as before"


@checks(private.uses_weight_decay)
def uses_weight_decay():
    optimizer, (decayed, excluded) = built_without_decay()
    assert private.uses_weight_decay(optimizer, decayed) is True
    assert private.uses_weight_decay(optimizer, excluded) is False


@checks(private.excluded_from_weight_decay)
def excluded_from_weight_decay():
    assert private.excluded_from_weight_decay(keras.optimizers.SGD(0.1)) == set()
    optimizer, (decayed, excluded) = built_without_decay()
    assert private.excluded_from_weight_decay(optimizer) == {optimizer._var_key(excluded)}
    private.excluded_from_weight_decay(optimizer).add(optimizer._var_key(decayed))
    assert private.uses_weight_decay(optimizer, decayed) is False, "the set is the optimizer's"


def built_without_decay() -> tuple[Any, list[Any]]:
    optimizer, variables = keras.optimizers.SGD(0.1, weight_decay=0.1), [keras.Variable([1.0]) for _ in range(2)]
    optimizer.exclude_from_weight_decay(var_list=variables[1:])
    optimizer.build(variables)
    return optimizer, variables


@checks(private.apply_weight_decay)
def apply_weight_decay():
    optimizer, (v,) = built(keras.optimizers.SGD(lambda: 0.5, weight_decay=0.5))
    private.apply_weight_decay(optimizer, [v])
    assert v.numpy() == [0.75]


@checks(private.clip_gradients)
def clip_gradients():
    clipped = private.clip_gradients(keras.optimizers.SGD(0.1, clipvalue=0.5), [tf.constant([2.0, -0.25])])
    assert [gradient.numpy().tolist() for gradient in clipped] == [[0.5, -0.25]]


@checks(private.run_update_rule)
def run_update_rule():
    optimizer, (v,) = built(keras.optimizers.SGD(0.1, weight_decay=0.5, clipvalue=0.1))
    private.run_update_rule(optimizer, [tf.ones(1)], [v], 0.5)
    assert v.numpy() == [0.5], "with the rate passed to it, and without decay or clipping"
    assert int(optimizer.iterations) == 0, "the update rule alone does not count"


@checks(private.adam_moments)
def adam_moments():
    optimizer, (first, second) = built(keras.optimizers.Adam(0.1, beta_1=0.5, beta_2=0.75), [1.0], [1.0])
    optimizer.apply([tf.ones(1), 2 * tf.ones(1)], [first, second])
    assert [float(moment.numpy()[0]) for moment in private.adam_moments(optimizer, second)] == [1.0, 1.0]
    assert [float(moment.numpy()[0]) for moment in private.adam_moments(optimizer, first)] == [0.5, 0.25]


@checks(private.add_to_variables)
def add_to_variables():
    optimizer, extra = keras.optimizers.SGD(0.1), keras.Variable([1.0])
    private.add_to_variables(optimizer, extra)
    assert optimizer.variables[-1] is extra


@checks(private.known_variables)
def known_variables():
    optimizer, variables = built(keras.optimizers.SGD(0.1), [1.0], [2.0])
    assert [v is w for v, w in zip(private.known_variables(optimizer), variables, strict=True)] == [True, True]


@checks(private.variable_positions)
def variable_positions():
    optimizer, variables = built(keras.optimizers.SGD(0.1), [1.0], [2.0])
    assert private.variable_positions(optimizer) == {optimizer._var_key(v): i for i, v in enumerate(variables)}


@checks(private.moving_averages)
def moving_averages():
    variables = [keras.Variable(1.0), keras.Variable(2.0)]
    optimizer = keras.optimizers.SGD(use_ema=True)
    assert private.moving_averages(optimizer) == []
    optimizer.build(variables)
    assert [average.shape for average in private.moving_averages(optimizer)] == [(), ()]
    assert private.moving_averages(keras.optimizers.SGD()) == []


@checks(private.accumulated_gradients)
def accumulated_gradients():
    optimizer = keras.optimizers.SGD(gradient_accumulation_steps=2)
    assert private.accumulated_gradients(optimizer) == []
    optimizer.build([keras.Variable(1.0)])
    [accumulator] = private.accumulated_gradients(optimizer)
    assert any(accumulator is variable for variable in optimizer.variables)


@checks(private.replace_known_variables)
def replace_known_variables():
    optimizer, (old,) = built(keras.optimizers.SGD(0.5, momentum=0.5))
    optimizer.apply([tf.ones(1)], [old])
    new = keras.Variable([1.0])
    private.replace_known_variables(optimizer, [new], {optimizer._var_key(new): 0})
    assert private.known_variables(optimizer)[0] is new
    optimizer.apply([tf.ones(1)], [new])
    assert new.numpy() == [0.25], "1 - 0.5 * (0.5 * momentum + 1), with the momentum of the first step"
    tf.train.Checkpoint(optimizer=optimizer).write(f"ram://{id(optimizer)}")


@checks(private.stored_value)
def stored_value():
    inner = tf.Variable([1.0])
    assert private.stored_value(keras.Variable(inner, dtype="float32")) is inner
    assert private.stored_value(inner) is None


@checks(private.set_stored_value)
def set_stored_value():
    class Held:
        dtype, written = "float32", None

        def __tf_tensor__(self, dtype=None, name=None):
            return tf.constant(0.5)

        def assign(self, value):
            self.written = float(value)

    variable, held = keras.Variable(1.0), Held()
    private.set_stored_value(variable, held)
    variable.assign(0.25)
    assert held.written == 0.25
    assert float(tf.convert_to_tensor(variable)) == 0.5


@checks(private.trackable_base)
def trackable_base():
    class View(private.trackable_base()):
        def __init__(self):
            self.shown = tf.Variable(1.0)

    view = View()
    assert tf.train.TrackableView.children(view) == {}, "its attributes are no dependencies"
    assert tf.train.Checkpoint(view=view)


@checks(private.is_compiled_by_xla)
def is_compiled_by_xla():
    seen = []

    def trace():
        seen.append(private.is_compiled_by_xla())
        return tf.constant(1.0)

    tf.function(trace, jit_compile=True)()
    tf.function(trace)()
    assert seen == [True, False]


# -- kernels/ ---------------------------------------------------------------------------------------------------------


@checks(private.is_symbolic)
def is_symbolic():
    seen = []

    class Layer(keras.layers.Layer):
        def call(self, x):
            seen.append(private.is_symbolic())
            return x

    keras.Sequential([keras.Input((1,)), Layer()]).predict(np.ones((1, 1)), verbose=0)
    assert seen == [True, False]


@checks(private.uses_onednn)
def uses_onednn():
    expected = os.environ.get("TF_ENABLE_ONEDNN_OPTS", "1") == "1" and platform.machine() in ("x86_64", "AMD64")
    assert private.uses_onednn() is expected


@checks(private.backend_function)
def backend_function():
    x = tf.constant([-1.0, 2.0])
    for name in FUNCTIONS:
        assert private.backend_function(name).__name__ == name.partition(".")[2]
    np.testing.assert_array_equal(private.backend_function("nn.gelu")(x, approximate=False), keras.ops.gelu(x, False))


@checks(private.set_backend_function)
def set_backend_function():
    own = private.backend_function("nn.gelu")
    try:
        private.set_backend_function("nn.gelu", lambda x, approximate=True: x + 1.0)
        for gelu in (keras.ops.gelu, keras.activations.gelu, keras.layers.Activation("gelu")):
            assert float(gelu(tf.constant(2.0))) == 3.0
    finally:
        private.set_backend_function("nn.gelu", own)


# -- pretrained/ ------------------------------------------------------------------------------------------------------


@checks(private.is_saveable)
def is_saveable():
    assert all(map(private.is_saveable, (keras.layers.Dense(1), keras.optimizers.SGD(), keras.metrics.Mean())))
    assert not private.is_saveable([])


@checks(private.saved_children)
def saved_children():
    class Model(keras.Model):
        def __init__(self):
            super().__init__()
            self.first, self.many = keras.layers.Dense(1), [keras.layers.Dense(1)]

    model = Model()
    children = dict(private.saved_children(model))
    assert children["first"] is model.first
    assert children["many"] is model.many


# -- training/ --------------------------------------------------------------------------------------------------------


@checks(private.eager_generator)
def eager_generator():
    tf.random.set_seed(7)
    generator = private.eager_generator()
    assert isinstance(generator, random.Random)
    state = generator.getstate()
    tf.random.uniform(())
    assert generator.getstate() != state, "an eager operation draws its seed from it"
    generator.setstate(state)
    assert private.eager_generator().getstate() == state


@checks(private.seed_generator)
def seed_generator():
    keras.utils.set_random_seed(7)
    keras.random.uniform(())
    state = private.seed_generator().state.numpy()
    drawn = float(keras.random.uniform(()))
    private.seed_generator().state.assign(state)
    assert float(keras.random.uniform(())) == drawn


@checks(private.data_adapter)
def data_adapter():
    x, y = np.arange(6.0).reshape(3, 2), np.array([0, 1, 0])
    made = private.data_adapter(x, y, batch_size=2, shuffle=False, class_weight={0: 1.0, 1: 3.0}).get_tf_dataset()
    assert [[part.numpy().tolist() for part in batch[1:]] for batch in made] == [[[0, 1], [1, 3]], [[0], [1]]]
    dataset = tf.data.Dataset.from_tensors((x, y))
    assert private.data_adapter(dataset).get_tf_dataset() is dataset


@checks(private.split_for_validation)
def split_for_validation():
    x, y, nothing = private.split_for_validation((np.arange(5), {"a": np.arange(5)}, None), 0.4)
    assert (list(x), list(y["a"]), nothing) == ([0, 1, 2], [0, 1, 2], None)


@checks(private.with_class_weights)
def with_class_weights():
    for y in (tf.constant([1, 0]), tf.constant([[0.0, 1.0], [1.0, 0.0]]), tf.constant([[1], [0]])):
        x, same, weights = private.with_class_weights(("x", y, None), {1: 4.0})
        assert (x, weights.numpy().tolist()) == ("x", [4.0, 1.0])
        assert same is y


@checks(private.loss_of_outputs)
def loss_of_outputs():
    loss = private.loss_of_outputs({"a": "mse", "b": "mae"}, ["a", "b"])
    targets, outputs = {"a": tf.zeros((2, 1)), "b": tf.zeros((2, 1))}, {"a": tf.ones((2, 1)) * 2, "b": tf.ones((2, 1))}
    assert float(loss(targets, outputs)) == 5.0
    assert float(loss(targets, outputs, {"a": tf.constant([0.0, 1.0]), "b": tf.zeros(2)})) == 2.0


# -- training/phases/ -------------------------------------------------------------------------------------------------


@checks(private.take_initial_epoch)
def take_initial_epoch():
    with tempfile.TemporaryDirectory() as folder:
        model, callback = compiled(), keras.callbacks.BackupAndRestore(folder)
        callback.set_model(model)
        callback.on_epoch_end(2)
        assert private.take_initial_epoch(model, callback) == 0
        callback.on_train_begin()
        assert private.take_initial_epoch(model, callback) == 3
        assert callback._current_epoch == 3
        assert private.take_initial_epoch(model, callback) == 0, "a later `fit` begins where its arguments say"


@checks(private.set_initial_epoch)
def set_initial_epoch():
    model, begun = compiled(), []

    class Begin(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            private.set_initial_epoch(self.model, 2)

        def on_epoch_begin(self, epoch, logs=None):
            begun.append(epoch)

    x, y = np.ones((2, 2)), np.ones((2, 1))
    model.fit(x, y, epochs=4, verbose=0, callbacks=[Begin()])
    assert begun == [2, 3]
    private.set_initial_epoch(model, None)
    assert len(model.fit(x, y, epochs=1, verbose=0).epoch) == 1


@checks(private.weights_in_memory)
def weights_in_memory():
    model = compiled()
    model.fit(np.ones((2, 2)), np.ones((2, 1)), verbose=0)
    with tempfile.TemporaryDirectory() as folder:
        model.save_weights(f"{folder}/a.weights.h5")
        Path(folder, "b.weights.h5").write_bytes(private.weights_in_memory(model))
        with h5py.File(f"{folder}/a.weights.h5") as a, h5py.File(f"{folder}/b.weights.h5") as b:
            names: list[list[str]] = [[], []]
            a.visit(names[0].append)
            b.visit(names[1].append)
            assert names[0] == names[1]
            assert all(np.array_equal(a[n][()], b[n][()]) for n in names[0] if isinstance(a[n], h5py.Dataset))


@checks(private.save_model_to)
def save_model_to():
    model = compiled()
    with tempfile.TemporaryDirectory() as folder:
        little = mock.patch.object(keras.src.saving.saving_lib, "is_memory_sufficient", return_value=False)
        no_file = mock.patch.object(tempfile, "NamedTemporaryFile", side_effect=AssertionError("HDF5 gets a file"))
        with little, no_file, Path(folder, "a.keras").open("wb") as file:
            private.save_model_to(model, file)
        again = keras.models.load_model(f"{folder}/a.keras")
        assert np.array_equal(again.get_weights()[0], model.get_weights()[0])
        with open("/dev/full", "wb", buffering=0) as full, pytest.raises(OSError, match="No space left"):
            private.save_model_to(model, full)


@checks(private.compile_arguments)
def compile_arguments():
    model = compiled()
    arguments = private.compile_arguments(model)
    assert arguments["optimizer"] is model.optimizer
    assert (arguments["loss"], arguments["metrics"]) == ("mse", ["mae"])
    assert set(arguments) == set(model.get_compile_config())
    assert private.compile_arguments(keras.Sequential()) == {}


@checks(private.function_arguments)
def function_arguments():
    assert private.function_arguments(keras.losses.Huber(delta=0.5))["delta"] == 0.5
    assert private.function_arguments(keras.metrics.CosineSimilarity(axis=0))["axis"] == 0
    assert private.function_arguments(keras.metrics.AUC()) == {}


# -- training/fast/ ---------------------------------------------------------------------------------------------------


def compiled() -> keras.Model:
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, kernel_initializer="ones")])
    model.compile("sgd", "mse", metrics=["mae"])
    return model


@checks(private.takes_training)
def takes_training():
    class Without(keras.Model):
        def call(self, inputs):
            return inputs

    assert private.takes_training(compiled())
    assert not private.takes_training(Without())


@checks(private.compute_loss)
def compute_loss():
    class OldSignature(keras.Model):
        def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None):
            return tf.constant(3.0)

    x, y = tf.ones((1, 2)), tf.zeros((1, 1))
    arguments = {"x": x, "y": y, "y_pred": tf.constant([[2.0]]), "sample_weight": None, "training": True}
    assert float(private.compute_loss(compiled(), **arguments)) == 4.0
    assert float(private.compute_loss(OldSignature(), **arguments)) == 3.0


@checks(private.compiled_loss)
def compiled_loss():
    loss = private.compiled_loss(compiled())
    assert not loss.built
    loss.build(tf.zeros((1, 1)), tf.zeros((1, 1)))
    assert loss.built
    without = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    assert private.compiled_loss(without) is None
    without.compile("sgd")
    assert private.compiled_loss(without) is None


@checks(private.loss_tracker)
def loss_tracker():
    model = compiled()
    private.loss_tracker(model).update_state(3.0, sample_weight=1)
    assert {m.name: float(m.result()) for m in model.metrics if m.name == "loss"} == {"loss": 3.0}


@checks(private.call_at_overflow)
def call_at_overflow():
    calls: list[int] = []
    weight = keras.Variable([1.0])
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(1.0), initial_scale=8.0)
    optimizer.build([weight])
    private.call_at_overflow(optimizer, lambda: calls.append(1))
    for gradient in (float("nan"), 8.0):
        optimizer.apply([tf.constant([gradient])], [weight])
    assert (calls, float(optimizer.dynamic_scale), float(weight[0])) == ([1], 4.0, -1.0)
    private.call_at_overflow(optimizer, None)
    optimizer.apply([tf.constant([float("inf")])], [weight])
    assert (calls, float(optimizer.dynamic_scale)) == ([1], 2.0)


@checks(private.captures)
def captures():
    read, written, unused = (tf.Variable([1.0]) for _ in range(3))
    seen: dict[int, bool] = {}

    @tf.function(autograph=False)
    def step(x: Any) -> Any:
        tf.cond(tf.reduce_all(x < 3.0), lambda: written.assign(x), lambda: x)
        result = read + x
        seen.update({i: private.captures(x.graph, v) for i, v in enumerate((read, written, unused))})
        return result

    def again(x: Any) -> Any:
        return (tf.cond(tf.reduce_all(x < 9.0), lambda: step(x), lambda: x),)

    tf.function(lambda: tf.while_loop(lambda x: tf.reduce_all(x < 3.0), again, (tf.ones(1),)), autograph=False)()
    assert seen == {0: True, 1: True, 2: False}
    assert not private.captures(tf.compat.v1.get_default_graph(), read), "outside of functions nothing is captured"


@checks(private.writes)
def writes():
    read, written, in_branch, unused = (tf.Variable([1.0]) for _ in range(4))
    seen: dict[int, bool] = {}

    @tf.function(autograph=False)
    def step(x: Any) -> Any:
        written.assign(x)
        tf.cond(tf.reduce_all(x < 3.0), lambda: in_branch.assign(x), lambda: x)
        seen.update({i: private.writes(x.graph, v) for i, v in enumerate((read, written, in_branch, unused))})
        return read + x

    step(tf.ones(1))
    # What is read after this question was asked is not written either.
    assert seen == {0: False, 1: True, 2: True, 3: False}


@checks(private.synchronized_moments)
def synchronized_moments():
    layer, x = keras.layers.BatchNormalization(synchronized=True), tf.constant([[1.0], [3.0]])
    with private.synchronized_moments(lambda own, x, axes, keepdims: [2 * part for part in own(x, axes, keepdims)]):
        doubled = layer(x, training=True)
    np.testing.assert_allclose(doubled[:, 0], (x[:, 0] - 4) / np.sqrt(2.0 + layer.epsilon), rtol=1e-5)
    np.testing.assert_allclose(layer(x, training=True)[:, 0], [-1, 1], atol=1e-3)


@checks(private.sagemaker_resolver)
def sagemaker_resolver():
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("SM_HOSTS", '["algo-1", "algo-2"]')
        environment.setenv("SM_CURRENT_HOST", "algo-2")
        resolver = private.sagemaker_resolver()
        assert resolver.cluster_spec().as_dict() == {"worker": ["algo-1:2223", "algo-2:2223"]}
        assert (resolver.task_type, resolver.task_id) == ("worker", 1)


@checks(private.abort_collectives)
def abort_collectives():
    """In a process of its own, which has no collective operations afterwards."""
    program = """
import threading, tensorflow as tf
from finetune.keras_private import abort_collectives
try:
    threading.Timer(1.0, abort_collectives, ["worker 1 is gone"]).start()
    tf.raw_ops.CollectiveReduceV2(
        input=tf.ones(2), group_size=2, group_key=1, instance_key=1, ordering_token=[], merge_op="Add", final_op="Id"
    )
except tf.errors.UnavailableError as error:
    print(error)
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert "worker 1 is gone" in ended.stdout, ended.stderr


@checks(private.custom_gradients)
def custom_gradients():
    @tf.custom_gradient
    def doubled(x: Any) -> Any:
        return 2.0 * x, lambda upstream: upstream

    calls = []

    @tf.function(autograph=False)
    def step(x: Any, y: Any) -> Any:
        result = doubled(x + 1.0) + tf.identity_n([y])[0]
        calls.extend(private.custom_gradients(x.graph))
        return result

    step(tf.ones(1), tf.ones(1))
    assert len(calls) == 1, "an ordinary `identity_n` is not among them"
    results, arguments = calls[0]
    assert [[tensor.op.type for tensor in side] for side in (results, arguments)] == [["Mul"], ["AddV2"]]


# -- training/features/ -----------------------------------------------------------------------------------------------


@checks(private.mask_of)
def mask_of():
    assert private.mask_of(tf.ones((1, 2))) is None
    masked = keras.layers.Embedding(3, 2, mask_zero=True)(tf.constant([[1, 0]]))
    assert private.mask_of(masked).numpy().tolist() == [[True, False]]


@checks(private.set_mask)
def set_mask():
    x = tf.constant([[[2.0], [4.0]]])
    private.set_mask(x, tf.constant([[True, False]]))
    assert float(keras.layers.GlobalAveragePooling1D()(x)[0, 0]) == 2.0, "a layer sees the mask"


@checks(private.runs_its_graph)
def runs_its_graph():
    class Overriding(keras.Model):
        def call(self, inputs, training=None, mask=None):
            return inputs

    x = keras.Input((2,))
    y = keras.layers.Dense(1)(x)
    assert private.runs_its_graph(keras.Model(x, y))
    assert not private.runs_its_graph(Overriding(x, y))
    assert not private.runs_its_graph(keras.layers.Dense(1))


@checks(private.with_training)
def with_training():
    drop = keras.layers.Dropout(0.5, seed=1)
    x = tf.ones((1, 100))
    assert float(tf.reduce_min(private.with_training(drop, True)(x))) == 0.0
    assert float(tf.reduce_min(private.with_training(drop, False)(x))) == 1.0
    recorded = {"training": None}  # among the arguments of a call that a functional model has recorded
    assert float(tf.reduce_min(private.with_training(drop, True)(x, **recorded))) == 0.0
    assert private.with_training(keras.layers.Flatten(), True)(x).shape == (1, 100), "its `call` has no `training`"
    inside = keras.layers.TimeDistributed(drop)
    assert float(tf.reduce_min(private.with_training(inside, True)(x[..., None]))) == 0.0, "the layer inside has"
    addition = (keras.Input((2,)) + 1)._keras_history.operation
    assert private.with_training(addition, True)(x[:, :2], 1).shape == (1, 2), "an operation is called without"


@checks(private.nodes_by_depth)
def nodes_by_depth():
    x = keras.Input((2,))
    layer = keras.layers.Dense(2)
    function = keras.Function(x, layer(layer(x)))
    depths = private.nodes_by_depth(function)
    order = [node.operation for depth in sorted(depths, reverse=True) for node in depths[depth] if not node.is_input]
    assert order == [layer, layer]
    (first,) = depths[1]
    assert first.input_tensors[0] is x
    assert len(first.outputs) == 1


# -- training/lr_range/ -----------------------------------------------------------------------------------------------


@checks(private.build_for_training)
def build_for_training():
    model = compiled()
    weights = model.get_weights()
    private.build_for_training(model, (tf.TensorSpec((None, 2)), tf.TensorSpec((None, 1))))
    assert private.compiled_loss(model).built
    assert "mae" in model.get_metrics_result()
    np.testing.assert_equal(model.get_weights(), weights)


@checks(private.set_strategy)
def model_lets_go_of_its_strategy():
    strategy = tf.distribute.OneDeviceStrategy("CPU:0")
    with strategy.scope():
        model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    assert model.distribute_strategy is strategy
    private.set_strategy(model, None)
    assert model.distribute_strategy is tf.distribute.get_strategy()


@checks(private.functions_replaced)
def losses_and_seeds_go_through_what_is_in_their_place():
    seen = []

    def note(name, own, *args, **kwargs):
        seen.append(name)
        return own(*args, **kwargs)

    names = ("reduce_values", "apply_mask", "scale_loss_for_distribution", "unscale_loss_for_distribution")
    replaced = {
        "losses": {name: functools.partial(note, name) for name in names},
        **{name: functools.partial(note, name) for name in ("moments", "add_loss", "own_losses")},
        "next_seed": lambda seed: seed + 1,
    }
    norm = keras.layers.BatchNormalization(synchronized=True)
    model = keras.Sequential([keras.Input((1,)), norm, keras.layers.Dense(1, activity_regularizer="l2")])
    model.compile("sgd", "mse")
    x, seeds = np.ones((2, 1)), keras.random.SeedGenerator(5)
    with private.functions_replaced(**replaced, applies=lambda: True):
        model.fit(x, x, verbose=0)
        assert seeds.next().numpy().tolist() == [6, 1]
    assert {*names, "moments", "add_loss", "own_losses"} <= {*seen}
    seen.clear()
    with private.functions_replaced(**replaced, applies=lambda: False):
        model.evaluate(x, x, verbose=0)
        assert seeds.next().numpy().tolist() == [5, 1]
    assert not seen


# -- What is overridden, and that nothing else is used ----------------------------------------------------------------


# Hooks that no module uses any more would be dead code, checked for ever.
def test_every_hook_is_used_in_the_package():
    source = "\n".join(path.read_text() for path in PACKAGE.rglob("*.py") if path.name != "keras_private.py")
    assert {name for name in HOOKS if not re.search(rf"\b{name}\b", source)} == set()


def built_in_full(base: type) -> Any:
    """Returns an object of Keras' own class that has all attributes a subclass may read."""
    if base is keras.optimizers.Optimizer:
        return built(keras.optimizers.Adam(0.1, use_ema=True, gradient_accumulation_steps=2))[0]
    return base()


@pytest.mark.parametrize(
    ("base", "name"), [(base, name) for base, names in private.OVERRIDDEN.items() for name in names]
)
def test_keras_still_has_what_our_subclasses_override_or_read(base: type, name: str):
    assert hasattr(built_in_full(base), name), f"`{base.__name__}.{name}` is gone"


def modules() -> Iterator[Any]:
    for module in pkgutil.walk_packages([str(PACKAGE)], "finetune."):
        if module.name != "finetune.__main__":
            yield importlib.import_module(module.name)


def is_foreign(cls: type) -> bool:
    return cls.__module__.partition(".")[0] in ("keras", "tensorflow")


def test_every_private_method_that_a_class_overrides_is_listed():
    listed = {name for names in private.OVERRIDDEN.values() for name in names}
    overridden = set()
    for module in modules():
        for cls in vars(module).values():
            if inspect.isclass(cls) and cls.__module__ == module.__name__:
                inherited = {name for base in cls.__mro__ if is_foreign(base) for name in vars(base)}
                # Python's `abc` gives every class its own `_abc_impl`.
                own = [name for name in vars(cls) if re.match("_[a-z]", name) and name != "_abc_impl"]
                overridden |= {f"{cls.__name__}.{name}" for name in own if name in inherited}
    unlisted = sorted(name for name in overridden if name.partition(".")[2] not in listed)
    assert not unlisted, f"add these to `keras_private.OVERRIDDEN`: {unlisted}"


def foreign_names() -> set[str]:
    """Returns the private names of the objects of Keras and TensorFlow that the package handles."""
    x = keras.Input((2,))
    functional = keras.Model(x, keras.layers.Dense(1)(x))
    functional.compile(built_in_full(keras.optimizers.Optimizer), "mse")
    objects = (
        functional,
        functional.optimizer,
        keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD()),
        functional.layers[1],
        keras.layers.BatchNormalization(),
        keras.Variable([1.0]),
        tf.Variable([1.0]),
        tf.Module(),
        keras.callbacks.Callback(),
        keras.metrics.Mean(),
        tf.constant(1.0),
        keras.KerasTensor((1,)),
        tf.function(lambda: 1),
        keras.random.SeedGenerator(1),
    )
    return {name for thing in objects for name in dir(thing) if re.match("_[a-z]", name)}


def defined_names(trees: list[ast.AST]) -> set[str]:
    """Returns the private names that the package itself defines: functions, classes, constants, attributes of `self`."""
    names: set[str] = set()
    for node in (node for tree in trees for node in ast.walk(tree)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and is_self(node.value):
            names.add(node.attr)
    return names


def test_nothing_is_listed_that_no_class_overrides_or_reads():
    used = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                used.add(node.name)
            elif isinstance(node, ast.Attribute) and is_self(node.value):
                used.add(node.attr)
    assert {name for names in private.OVERRIDDEN.values() for name in names} <= used


def is_self(node: ast.AST) -> bool:
    is_super = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "super"
    return is_super or (isinstance(node, ast.Name) and node.id in ("self", "cls"))


PRIVATE_MODULES = re.compile(r"keras\.src|tensorflow\.python|tf\.__internal__|_getframe|__internal__")

# Own names that Keras or TensorFlow happen to have, too; and the one private name of the standard library.
OURS = {"_exit", "_name", "_model"}


def uses(tree: ast.AST, own: set[str], foreign: set[str], overridden: set[str]) -> Iterator[tuple[int, str]]:
    """Yields the lines in which a module uses something private that is not its own."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and PRIVATE_MODULES.search(node.module or ""):
            yield node.lineno, f"from {node.module}"
        elif isinstance(node, ast.Import):
            yield from ((node.lineno, a.name) for a in node.names if PRIVATE_MODULES.search(a.name))
        elif isinstance(node, ast.Attribute) and PRIVATE_MODULES.search(node.attr):
            yield node.lineno, node.attr
        elif isinstance(node, ast.Attribute) and re.match("_[a-z]", node.attr):
            name = node.attr
            if not (
                name in own or name in overridden if is_self(node.value) else name in own - foreign or name in OURS
            ):
                yield node.lineno, f"{ast.unparse(node.value)}.{name}"
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id.endswith("attr"):
            for argument in node.args[1:2]:
                name = argument.value if isinstance(argument, ast.Constant) else None
                if isinstance(name, str) and re.match("_[a-z]", name) and (name in foreign or name not in own):
                    yield node.lineno, f'{node.func.id}(..., "{name}")'


def private_uses() -> dict[str, list[str]]:
    sources = {path: path.read_text() for path in sorted(PACKAGE.rglob("*.py")) if path.name != "keras_private.py"}
    trees: dict[Path, ast.AST] = {path: ast.parse(source) for path, source in sources.items()}
    own, foreign = defined_names(list(trees.values())), foreign_names()
    overridden = {name for names in private.OVERRIDDEN.values() for name in names}
    found: dict[str, list[str]] = {}
    for path, tree in trees.items():
        for line, use in uses(tree, own, foreign, overridden):
            found.setdefault(str(path.relative_to(PACKAGE)), []).append(f"{line}: {use}")
    return found


def test_no_other_module_uses_a_private_name_of_keras_or_tensorflow():
    found = private_uses()
    lines = [f"  {path}:{line}" for path, lines in found.items() for line in lines]
    assert not lines, "\n".join(["move these to finetune/keras_private.py:", *lines])


def test_the_search_for_private_names_sees_every_way_of_using_them():
    tree = ast.parse(
        "from keras.src.utils import tracking\n"
        "import tensorflow.python.eager\n"
        "base = tf.__internal__.tracking.Trackable\n"
        "sys._getframe(1)\n"
        "optimizer._iterations = 1\n"
        "getattr(optimizer, '_learning_rate')\n"
        "self._tracker\n"
        "self._own\n"
        "self._var_key\n"
        "other._own\n"
    )
    lines = [line for line, _ in uses(tree, {"_own"}, {"_iterations", "_learning_rate", "_tracker"}, {"_var_key"})]
    assert sorted(lines) == [1, 2, 3, 4, 5, 6, 7]
