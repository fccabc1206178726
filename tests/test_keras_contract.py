"""What Keras does inside a step, in its callbacks and in its files, as far as the package relies on it.

`test_keras_private.py` checks each private name by itself; here is the order in which Keras uses them, and what its
public classes do that no documentation says. After an upgrade both say by name what moved.
"""

import inspect
import types

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf
from keras.src.optimizers.base_optimizer import BaseOptimizer
from keras.src.utils import tracking

# NumPy 2 warns when Keras copies a TensorFlow variable to save it.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")
Optimizer, SGD, Adam = keras.optimizers.Optimizer, keras.optimizers.SGD, keras.optimizers.Adam


def test_keras_is_of_the_minor_version_that_these_tests_describe():
    assert keras.__version__.startswith("3.15."), "read what changed in keras/src/optimizers, then move the pin"


# -- The hooks of a step ----------------------------------------------------------------------------------------------

HOOKS = {
    "build": ["variables"],
    "apply": ["grads", "trainable_variables"],
    "_check_variables_are_known": ["variables"],
    "_backend_apply_gradients": ["grads", "trainable_variables"],
    "_backend_increment_gradient_accumulators": ["grads", "acc_grads"],
    "_backend_update_step": ["grads", "trainable_variables", "learning_rate"],
    "_clip_gradients": ["grads"],
    "_apply_weight_decay": ["variables"],
    "_all_reduce_sum_gradients": ["grads_and_vars"],
    "_update_model_variables_moving_average": ["trainable_variables"],
    "_overwrite_model_variables_with_average_value": ["trainable_variables"],
    "finalize_variable_values": ["var_list"],
    "_use_weight_decay": ["variable"],
    "_get_variable_index": ["variable"],
    "_var_key": ["variable"],
    "save_own_variables": ["store"],
    "load_own_variables": ["store"],
    "set_weights": ["weights"],
}


@pytest.mark.parametrize("hook", HOOKS)
def test_a_hook_has_the_signature_that_grouped_py_overrides_or_calls(hook):
    method = getattr(Optimizer, hook, None)
    assert method is not None, f"keras.optimizers.Optimizer has no `{hook}` any more"
    assert [name for name in inspect.signature(method).parameters if name != "self"] == HOOKS[hook]


def recording(base, **settings):
    """An optimizer that notes which hooks are called, and with how many variables."""
    calls = []

    def note(hook):
        def call(self, *args):
            sized = [len(a) for a in args if isinstance(a, (list, tuple))]
            calls.append((hook, sized[-1] if sized else None))
            return getattr(base, hook)(self, *args)

        return call

    names = [name for name in HOOKS if name.startswith("_") and name not in ("_var_key", "_get_variable_index")]
    return type("Recording", (base,), {name: note(name) for name in names})(**settings), calls


def test_a_step_calls_the_hooks_in_this_order_with_the_variables_that_have_gradients():
    variables = [tf.Variable([1.0]), tf.Variable([1.0]), tf.Variable([1.0])]
    optimizer, calls = recording(SGD, learning_rate=0.1, use_ema=True, ema_overwrite_frequency=1, weight_decay=0.1)
    with pytest.warns(UserWarning, match="Gradients do not exist"):
        optimizer.apply([tf.ones(1), None, tf.ones(1)], variables)
    assert [call for call in calls if call[0] != "_use_weight_decay"] == [
        ("_check_variables_are_known", 3),
        ("_backend_apply_gradients", 2),
        ("_clip_gradients", 2),
        ("_apply_weight_decay", 2),
        ("_backend_update_step", 2),
        ("_all_reduce_sum_gradients", 2),
        ("_update_model_variables_moving_average", 3),
        ("_overwrite_model_variables_with_average_value", 3),
    ]


def test_accumulation_clips_decays_and_updates_only_at_the_last_of_its_batches():
    v = tf.Variable([1.0])
    optimizer, calls = recording(SGD, learning_rate=0.1, gradient_accumulation_steps=2)
    optimizer.apply([tf.ones(1)], [v])
    assert [name for name, _ in calls][-1] == "_backend_increment_gradient_accumulators"
    calls.clear()
    optimizer.apply([tf.ones(1)], [v])
    assert [name for name, _ in calls][2:4] == ["_clip_gradients", "_apply_weight_decay"]
    assert optimizer._iterations.numpy() == 2
    assert int(optimizer.iterations) == 1, "`iterations` must count updates, `_iterations` batches"


def test_the_loss_scale_factor_is_taken_off_before_accumulation_and_clipping():
    seen = []

    class Seeing(SGD):
        def _backend_apply_gradients(self, grads, trainable_variables):
            seen.extend(float(g[0]) for g in grads)

    Seeing(0.1, loss_scale_factor=4.0).apply([tf.constant([8.0])], [tf.Variable([1.0])])
    assert seen == [2.0]


def test_the_average_is_computed_by_the_formula_that_grouped_py_repeats():
    source = inspect.getsource(BaseOptimizer._update_model_variables_moving_average)
    for part in (
        "not_first_step = ops.not_equal(self.iterations, 0)",
        "ops.cast(not_first_step, var.dtype), self.ema_momentum",
        "ops.multiply(momentum, average)",
        "ops.multiply(ops.subtract(1, momentum), var)",
    ):
        assert part in source, f"Keras changed its moving average: `{part}` is gone. Repeat it in grouped.py."


def test_the_averages_are_in_the_order_in_which_the_optimizer_was_built():
    variables = [tf.Variable([1.0]), tf.Variable([2.0])]
    optimizer = SGD(0.1, use_ema=True)
    optimizer.build(variables)
    assert [v is w for v, w in zip(optimizer._trainable_variables, variables, strict=True)] == [True, True]
    assert len(optimizer._model_variables_moving_average) == 2
    assert [optimizer._get_variable_index(v) for v in variables] == [0, 1]
    assert optimizer._trainable_variables_indices == {optimizer._var_key(v): i for i, v in enumerate(variables)}


def test_a_variable_has_one_key_bare_or_inside_a_keras_variable():
    optimizer, v = SGD(0.1), keras.Variable([1.0])
    assert optimizer._var_key(v) == optimizer._var_key(v.value)
    assert optimizer._var_key(v) != optimizer._var_key(keras.Variable([1.0]))


# -- Rates and counters -----------------------------------------------------------------------------------------------


def test_slots_are_made_one_after_another_by_one_method_that_an_instance_may_replace():
    asked = []
    optimizer = Adam(0.1, amsgrad=True)
    optimizer.add_variable_from_reference = lambda reference_variable, name, initializer: asked.append(name)
    optimizer.build([tf.Variable([1.0])])
    assert asked == ["momentum", "velocity", "velocity_hat"]


def test_a_callable_rate_makes_no_variable_of_the_optimizer():
    assert [v.name for v in SGD(lambda: 0.1).variables] == ["iteration"]
    assert [v.name for v in SGD(0.1).variables] == ["iteration", "learning_rate"]


def test_an_optimizer_is_built_once_and_slots_are_tracked_where_attributes_are_not():
    v = tf.Variable([1.0])
    optimizer = Adam(0.1)
    with tracking.DotNotTrackScope():
        optimizer.build([v])
        optimizer.build([v])
    assert len(optimizer.variables) == 4
    assert callable(tracking.no_automatic_dependency_tracking)


# -- Who looks for `.optimizers` --------------------------------------------------------------------------------------


def test_no_other_callback_of_keras_knows_children():
    known = {"LearningRateScheduler", "ReduceLROnPlateau", "SwapEMAWeights", "TensorBoard"}
    classes = {name: c for name, c in vars(keras.callbacks).items() if inspect.isclass(c)}
    found = {name for name, c in classes.items() if '"optimizers"' in inspect.getsource(c)}
    assert found == known, (
        "another callback looks for `optimizers`, which a GroupedOptimizer does not have: check what it does without"
    )


@pytest.mark.parametrize("kind", [dict, list, types.MappingProxyType, tf.Module])
def test_saving_finds_optimizers_in_lists_and_dicts_and_not_in_read_only_mappings_and_modules(kind, tmp_path):
    class Holding(SGD):
        children = None

    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])
    model.compile(Holding(0.1), loss="mse")
    child = Adam(0.1)
    Holding.children = kind([child]) if kind is list else kind() if kind is tf.Module else kind({"child": child})
    if kind is tf.Module:
        Holding.children.child = child
    model.save_weights(tmp_path / "model.weights.h5")
    with h5py.File(tmp_path / "model.weights.h5") as file:
        assert ("children" in file["optimizer"]) == (kind in (dict, list))


def test_a_loss_scale_optimizer_passes_the_rate_through_and_holds_its_inner_optimizer_by_this_name():
    inner = SGD(0.1)
    outer = keras.optimizers.LossScaleOptimizer(inner)
    outer.learning_rate = 0.5
    assert float(inner.learning_rate) == 0.5
    assert outer.inner_optimizer is inner
    assert not hasattr(outer, "optimizers")


# -- Saving -----------------------------------------------------------------------------------------------------------


def test_a_file_without_optimizer_state_gives_an_empty_store_and_the_state_has_keys_by_position(tmp_path):
    stores = []

    class Storing(SGD):
        def load_own_variables(self, store):
            stores.append({key: np.asarray(store[key]).shape for key in store.keys()})  # noqa: SIM118

    def model():
        return keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])

    saved, loaded = model(), model()
    saved.save_weights(tmp_path / "bare.weights.h5")
    saved.compile(SGD(0.1))
    saved.save_weights(tmp_path / "state.weights.h5")
    loaded.compile(Storing(0.1))
    loaded.load_weights(tmp_path / "bare.weights.h5")
    loaded.load_weights(tmp_path / "state.weights.h5")
    assert stores == [{}, {"0": (), "1": ()}]


def test_a_loaded_model_builds_its_optimizer_on_what_is_trainable_before_it_loads_the_state(tmp_path):
    calls = []

    @keras.saving.register_keras_serializable("contract")
    class Calling(SGD):
        def build(self, variables):
            calls.append(("build", len(variables)))
            super().build(variables)

        def load_own_variables(self, store):
            calls.append(("load", len(store.keys())))

    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2), keras.layers.Dense(2)])
    model.layers[0].trainable = False
    model.compile(Calling(0.1))
    model.optimizer.build(model.trainable_variables)
    model.save(tmp_path / "model.keras")
    calls.clear()
    keras.models.load_model(tmp_path / "model.keras")
    assert calls == [("build", 2), ("load", 2)]


def test_tensorflow_follows_a_module_that_keras_does_not_save(tmp_path):
    class Holding(SGD):
        def __init__(self, rate, **kwargs):
            super().__init__(rate, **kwargs)
            self.children = tf.Module()
            self.children.by_group = {"name": Adam(0.1)}

    holder = Holding(0.1)
    holder.children.by_group["name"].build([tf.Variable([1.0])])
    path = tf.train.Checkpoint(optimizer=holder).save(str(tmp_path / "checkpoint"))
    slots = [name for name, _ in tf.train.list_variables(path) if "children/by_group/name/_variables" in name]
    assert len(slots) == 2


def test_a_scope_of_names_gives_a_variable_its_path():
    with keras.name_scope("a"), keras.name_scope("b"):
        assert keras.Variable([1.0], name="kernel").path == "a/b/kernel"


# -- The hub layer ----------------------------------------------------------------------------------------------------


def test_tensorflow_asks_a_layer_for_its_parts_and_says_what_for():
    parameters = inspect.signature(keras.layers.Layer._trackable_children).parameters
    assert parameters["save_type"].default == "checkpoint"


def test_a_keras_variable_takes_over_the_storage_of_a_tensorflow_variable():
    theirs = tf.Variable([1.0, 2.0])
    ours = keras.Variable(theirs, dtype="float32")
    ours.assign([3.0, 4.0])
    assert ours.value is theirs
    np.testing.assert_array_equal(theirs.numpy(), [3.0, 4.0])


# -- Layers in inference mode -----------------------------------------------------------------------------------------


def test_a_layer_is_called_through_its_own_attribute_with_training_by_name():
    """`training/inference.py` puts a `call` on the instance, in eager and compiled code, alone and inside a model."""
    drop = keras.layers.Dropout(0.5)
    model = keras.Sequential([keras.Input((3,)), drop])
    seen = []
    drop.call = lambda *inputs, **more: seen.append((len(inputs), more)) or inputs[0]
    drop(np.ones((2, 3)), training=True)
    model(np.ones((2, 3)), training=True)
    tf.function(lambda x: model(x, training=True))(tf.ones((2, 3)))
    assert [(number, more["training"]) for number, more in seen] == [(1, True)] * 3


def test_fit_keeps_a_train_function_that_is_there():
    """`training/phases.py` gives `fit` the function that was compiled for the phase."""
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    model.make_train_function()
    kept = model.train_function
    model.fit(np.ones((2, 3)), np.ones((2, 1)), verbose=0)
    assert model.train_function is kept
    model.make_train_function(force=True)
    assert model.train_function is not kept
