"""Every private name of Keras and TensorFlow that the package reads, calls or replaces: one function for each.

A private name may change in any release, so it is used here and nowhere else. Each function says what it does, which
private name it uses, and why no public one does the same. `tests/test_keras_private.py` calls all of them on the
installed Keras and TensorFlow and names those that no longer work: run it first after an upgrade, then repair the
function here; its callers do not change.

Two uses cannot move here, because Python or Keras looks them up on the class itself: methods that a subclass overrides,
and attributes that a subclass reads through `self`. They are listed in `OVERRIDDEN`, which the same test checks.

The sections follow the folders of the package. A reader who wants to know how training works can skip this file.
"""

import contextlib
import functools
import importlib
import io
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, BinaryIO

import keras
import tensorflow as tf
from keras.src import backend as keras_backend
from keras.src.backend.common import global_state, masking, symbolic_scope
from keras.src.backend.tensorflow import nn as keras_nn
from keras.src.losses import loss as loss_module
from keras.src.models import functional
from keras.src.saving import keras_saveable, saving_lib, serialization_lib
from keras.src.trainers import compile_utils, data_adapters
from keras.src.trainers.data_adapters import array_slicing, tf_dataset_adapter
from keras.src.utils import tracking
from tensorflow.python.eager import context, record
from tensorflow.python.framework import op_def_registry, ops
from tensorflow.python.lib.io import tf_record
from tensorflow.python.ops import control_flow_util
from tensorflow.python.util import _pywrap_util_port

# The private names that subclasses of Keras' classes in this package override, or read through `self`.
OVERRIDDEN: dict[type, tuple[str, ...]] = {
    keras.optimizers.Optimizer: (
        "_accumulated_gradients",
        "_apply_weight_decay",
        "_backend_apply_gradients",
        "_backend_increment_gradient_accumulators",
        "_backend_update_step",
        "_check_variables_are_known",
        "_clip_gradients",
        "_distribution_strategy",
        "_get_variable_index",
        "_iterations",
        "_model_variables_moving_average",
        "_overwrite_model_variables_with_average_value",
        "_trackable_children",
        "_update_model_variables_moving_average",
        "_var_key",
        "_variables",
    ),
    keras.layers.Layer: ("_trackable_children",),
    # What `tf.train.Checkpoint` calls: to save, to restore, and to copy for an asynchronous checkpoint.
    tf.__internal__.tracking.Trackable: ("_copy_trackable_to_cpu", "_restore_from_tensors", "_serialize_to_tensors"),
}

# -- Used in several folders ------------------------------------------------------------------------------------------


def untracked() -> AbstractContextManager[Any]:
    """Returns a context in which assigning an attribute of a Keras object does not make Keras track the value.

    Otherwise a variable assigned to an optimizer or layer becomes one of its variables. Uses
    `keras.src.utils.tracking.DotNotTrackScope` (sic), for which Keras exports no public name.
    """
    return tracking.DotNotTrackScope()


def without_tracking(method: Callable[..., Any]) -> Any:
    """Decorates a method of a Keras object so that attributes assigned in it are not tracked; see `untracked`.

    Uses `keras.src.utils.tracking.no_automatic_dependency_tracking`, the decorator that Keras puts on its own `build`.
    """
    return tracking.no_automatic_dependency_tracking(method)


# -- data/ ------------------------------------------------------------------------------------------------------------


def read_record(path: str, offset: int) -> bytes:
    """Returns the record that begins at a place of a TFRecord file, after both of its checksums were compared.

    Uses `tf_record_random_reader`. The public `tf.data.TFRecordDataset` reads a file from its beginning alone.

    Args:
        path: The file, which must not be compressed.
        offset: Where the record begins, in bytes.

    Raises:
        tf.errors.OpError: There is no record, or it is damaged.
    """
    return tf_record.tf_record_random_reader(path).read(offset)[0]


@contextlib.contextmanager
def local_datasets(name: str, find: Callable[[str], str]) -> Iterator[None]:
    """Lets a data set of `keras.datasets` read local files in the block, in place of those that Keras downloads.

    Replaces `get_file` in `keras.src.datasets`. The public `path` of `load_data` is a name below Keras' own folder, and
    a file there that is not Keras' own is downloaded again and overwritten.

    Args:
        name: Name of the data set, such as `mnist`.
        find: Returns the local file, or folder, for the name of the file that Keras asks for.
    """
    module: Any = importlib.import_module(f"keras.src.datasets.{name}")
    before = module.get_file
    module.get_file = lambda fname, *args, **kwargs: find(fname)
    try:
        yield
    finally:
        module.get_file = before


# -- groups/ ----------------------------------------------------------------------------------------------------------


def is_trackable(value: Any) -> bool:
    """Returns whether `value` is a `tf.Module`, an object of a loaded SavedModel, or a Keras layer or optimizer.

    They have one base, `tf.__internal__.tracking.AutoTrackable`. What `tf.saved_model.load` returns has no other class
    that could be named.
    """
    return isinstance(value, tf.__internal__.tracking.AutoTrackable)


def creation_number(variable: tf.Variable) -> int:
    """Returns a number that is higher for a variable that was made later in this process.

    Reads `tf.Variable._unique_id`, which ends in TensorFlow's count of names. No public name keeps the order in which
    variables were made.
    """
    return int(variable._unique_id.rpartition("_")[2])


def layer_variables(layer: keras.layers.Layer) -> tuple[list[keras.Variable], list[keras.Variable]]:
    """Returns the variables that belong to a layer itself, not to its sublayers: those made trainable, and the others.

    Reads `Layer._trainable_variables` and `Layer._non_trainable_variables`. The public `trainable_weights` includes the
    sublayers and is empty for a frozen layer, so it cannot say what the layer would train once it is unfrozen.
    """
    return list(layer._trainable_variables), list(layer._non_trainable_variables)


def was_made_frozen(layer: keras.layers.Layer) -> bool | None:
    """Returns whether a layer was made with `trainable=False`, as from a file; `None` where that is not known.

    Reads `Operation._auto_config`, the arguments with which a layer was made, unless objects are among them. The public
    `trainable` does not say since when it is `False`.
    """
    made_with = getattr(layer, "_auto_config", None)
    return made_with and made_with.config.get("trainable", True) is False


def sublayers(layer: keras.layers.Layer, *, include_self: bool = False, recursive: bool = True) -> list[Any]:
    """Returns the layers inside a layer, in the order of its attributes.

    Uses `Layer._flatten_layers`. Only models have the public `layers`; other layers that hold layers, such as
    `Bidirectional` or a user's transformer block, have no public list of them.

    Args:
        layer: Any Keras layer or model.
        include_self: Whether the list begins with `layer`.
        recursive: Whether it includes the layers inside those layers, to any depth.
    """
    return list(layer._flatten_layers(include_self=include_self, recursive=recursive))


# -- models/ ----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def before_variables(check: Callable[[Any], None]) -> Iterator[None]:
    """Calls `check(variable)` in the block before memory is taken for a variable of Keras whose shape is known.

    Replaces `Variable._initialize_with_initializer` of the backend. The public `tf.variable_creator_scope` sees a
    function that makes the values, and no shape.

    Args:
        check: Gets the Keras variable, of which `shape`, `dtype` and `path` are known. What it raises ends the block.
    """
    kind = keras.Variable
    initialize = kind._initialize_with_initializer

    def checked(variable: Any, initializer: Any) -> None:
        check(variable)
        initialize(variable, initializer)

    kind._initialize_with_initializer = checked
    try:
        yield
    finally:
        kind._initialize_with_initializer = initialize


@contextlib.contextmanager
def fresh_names() -> Iterator[None]:
    """Names of layers and metrics made in the block start again: `dense`, `dense_1`, whatever was made before it.

    Exchanges the attribute `object_name_uids` of `keras.src.backend.common.global_state`, in which Keras counts the
    names it makes. The public `keras.utils.clear_session` forgets the counts for good, with other state of the process.
    Afterwards each count is the higher of the two, so that a layer made later can be added to a model of the block.
    """
    before: Any = global_state.get_global_attribute("object_name_uids") or {}
    inside: defaultdict[str, int] = defaultdict(int)
    global_state.set_global_attribute("object_name_uids", inside)
    try:
        yield
    finally:
        highest = {name: max(before.get(name, 0), inside[name]) for name in {*before, *inside}}
        global_state.set_global_attribute("object_name_uids", defaultdict(int, highest))


def source_of(tensor: Any) -> tuple[Any, int, list[Any]]:
    """Returns what made a `KerasTensor`: the layer or operation, which of its outputs it is, and its inputs there.

    Reads `KerasTensor._keras_history` and `Operation._inbound_nodes`. The public `model.operations` says what a model
    consists of, but not how it is connected.
    """
    history = tensor._keras_history
    node = history.operation._inbound_nodes[history.node_index]
    return history.operation, history.tensor_index, list(node.input_tensors)


def is_safe_mode() -> bool:
    """Returns whether a `.keras` file is being loaded with `safe_mode=True`.

    Uses `keras.src.saving.serialization_lib.in_safe_mode`, which returns `None` outside of loading, and for which Keras
    exports no public name. `keras.layers.TFSMLayer` uses it in the same way, since a graph is code.
    """
    return bool(serialization_lib.in_safe_mode())


def parse_saved_model(folder: str) -> Any:
    """Returns a SavedModel as a protocol buffer, by `tf.__internal__.saved_model.parse_saved_model`.

    It is what `tf.saved_model.load` itself reads: whoever looks into another file of the folder would be shown another
    graph than the one that runs.
    """
    return tf.__internal__.saved_model.parse_saved_model(folder)


def is_registered_operation(name: str) -> bool:
    """Whether TensorFlow itself has an operation, not a library that was loaded into it.

    Operations of other libraries are not in `tf.raw_ops`, and neither are internal ones such as `_Arg`, which
    `op_def_registry` has; there the libraries' are, too.
    """
    return hasattr(tf.raw_ops, name) or (name.startswith("_") and op_def_registry.get(name) is not None)


def is_stateful_operation(name: str) -> bool:
    """Whether an operation of TensorFlow has a state, so that it does more than compute outputs from inputs.

    Looks into `tensorflow.python.framework.op_def_registry`; nothing public tells.
    """
    known = op_def_registry.get(name)
    return known is None or known.is_stateful


def has_registered_gradient(name: str) -> bool:
    """Whether this process knows a gradient of a name: that of an operation, or of `tf.RegisterGradient`.

    Looks into `tensorflow.python.framework.ops.gradient_registry`.
    """
    try:
        ops.gradient_registry.lookup(name)
    except LookupError:
        return False
    return True


def has_gradient(node: Any) -> bool:
    """Whether TensorFlow can differentiate an operation, or need not, because it makes no numbers of numbers.

    Calls of functions have no registered gradient, and `PreventGradient` has one that raises.

    Args:
        node: A `NodeDef`. Its operation is described by `op_def_registry`.
    """
    known = op_def_registry.get(node.op)
    if known is None or node.op.endswith("PartitionedCall"):
        return True
    if has_registered_gradient(node.op):
        return node.op != "PreventGradient"

    def has_numbers(arguments: Any) -> bool:
        attributes = [node.attr[name] for each in arguments for name in (each.type_attr, each.type_list_attr) if name]
        kinds = [*(each.type for each in arguments), *(kind for a in attributes for kind in (a.type, *a.list.type))]
        return any(tf.as_dtype(kind).is_floating or tf.as_dtype(kind).is_complex for kind in kinds if kind)

    return not (has_numbers(known.input_arg) and has_numbers(known.output_arg))


def without_arguments(error: Exception) -> Exception:
    """Returns an error to which Keras does not add the arguments of the layer that raised it, in place of itself.

    Sets `_keras_call_info_injected`, by which Keras knows an error that it has added them to.
    """
    vars(error)["_keras_call_info_injected"] = True
    return error


def is_recorded(tensors: Sequence[Any]) -> bool:
    """Whether a `tf.GradientTape` is open, and records what is computed from some tensors if there are any.

    By `tensorflow.python.eager.record`; the public API knows only tapes that one holds.
    """
    return record.should_record_backprop(tensors) if tensors else record.could_possibly_record()


# -- optimizers/ ------------------------------------------------------------------------------------------------------


def model_that_is_loaded() -> keras.Model | None:
    """Returns the model that Keras compiles as it was when it was saved, pickled or copied, while it does so.

    Keras makes an optimizer from its config without the model. So this looks among the calls that are under way, by
    Python's `sys._getframe`, for `Trainer.compile_from_config`, which is called for nothing else.
    """
    frame = sys._getframe()
    while frame is not None:
        if frame.f_code is keras.Model.compile_from_config.__code__:
            return frame.f_locals["self"]
        frame = frame.f_back
    return None


def step_counter(optimizer: keras.optimizers.Optimizer) -> Any:
    """Returns the variable that counts the calls of `apply`: `Optimizer._iterations`.

    With gradient accumulation it counts batches, while the public `iterations` is a tensor that counts updates.
    """
    return optimizer._iterations


def set_step_counter(optimizer: keras.optimizers.Optimizer, counter: Any) -> None:
    """Makes an optimizer read its step from `counter`, which does not become one of its variables.

    Writes `Optimizer._iterations`; the public `iterations` can be set only once, before the optimizer is built.
    """
    with tracking.DotNotTrackScope():
        optimizer._iterations = counter


def held_rate(optimizer: keras.optimizers.Optimizer) -> Any:
    """Returns what the optimizer takes its learning rate from: a variable, a schedule or a callable.

    Reads `Optimizer._learning_rate`. The public `learning_rate` evaluates schedules and callables.
    """
    return optimizer._learning_rate


def set_held_rate(optimizer: keras.optimizers.Optimizer, rate: Any) -> None:
    """Makes the optimizer take its learning rate from `rate`, a schedule, variable or callable, without tracking it.

    Writes `Optimizer._learning_rate`. The setter of the public `learning_rate` assigns to the variable held so far, and
    refuses when a schedule is held.
    """
    with tracking.DotNotTrackScope():
        optimizer._learning_rate = rate


def floor_of_plateau() -> float:
    """Returns `min_lr` of the `ReduceLROnPlateau` that is just now writing a learning rate; 0 if none is.

    Looks for the callback among the callers, with Python's `sys._getframe`. The callback writes
    `optimizer.learning_rate`, one number to which it has applied `min_lr`; nothing passes `min_lr` itself on.
    """
    frame = sys._getframe(1)
    # Keras and TensorFlow pass an assignment on through several `__setattr__`, twice with a `LossScaleOptimizer`.
    for _ in range(16):
        if isinstance(callback := frame.f_locals.get("self"), keras.callbacks.ReduceLROnPlateau):
            return float(callback.min_lr)
        if frame.f_back is None:
            break
        frame = frame.f_back
    return 0.0


def graph_of_step() -> Any:
    """Returns the graph of the function that is being traced, from within `apply`.

    A `LossScaleOptimizer` calls `apply` in a branch of its own, whose graph is another one in every call; the graph
    around it is in `FuncGraph.outer_graph`, for which there is no public name. Looks for the optimizer among the
    callers, with Python's `sys._getframe`.
    """
    graph = tf.compat.v1.get_default_graph()
    frame = sys._getframe(1)
    for _ in range(32):
        if isinstance(frame.f_locals.get("self"), keras.optimizers.LossScaleOptimizer):
            around = getattr(graph, "outer_graph", None)
            return around if hasattr(around, "outer_graph") else graph  # else its condition was a constant
        if frame.f_back is None:
            break
        frame = frame.f_back
    return graph


def skip_reduction(optimizer: keras.optimizers.Optimizer) -> None:
    """Makes the optimizer take gradients as already summed over the replicas of a `tf.distribute` strategy.

    Replaces `Optimizer._all_reduce_sum_gradients` on the instance; Keras' `apply` has no argument for it.
    """
    optimizer._all_reduce_sum_gradients = list


def uses_weight_decay(optimizer: keras.optimizers.Optimizer, variable: Any) -> bool:
    """Returns whether `exclude_from_weight_decay` leaves `variable` with its decay: `Optimizer._use_weight_decay`."""
    return bool(optimizer._use_weight_decay(variable))


def excluded_from_weight_decay(optimizer: keras.optimizers.Optimizer) -> set[Any]:
    """Returns the keys of the variables that `exclude_from_weight_decay` excluded; changing the set changes them.

    Reads `Optimizer._exclude_from_weight_decay`, which exists only after the first call of the public method.
    """
    return getattr(optimizer, "_exclude_from_weight_decay", set())


def apply_weight_decay(optimizer: keras.optimizers.Optimizer, variables: Sequence[Any]) -> None:
    """Decays the weights, `w -= w * weight_decay * learning_rate`: `Optimizer._apply_weight_decay`.

    A step of the public `apply`, of which the parent optimizer runs the steps for each group.
    """
    optimizer._apply_weight_decay(variables)


def clip_gradients(optimizer: keras.optimizers.Optimizer, gradients: Sequence[Any]) -> list[Any]:
    """Returns gradients clipped as the optimizer's `clipnorm`, `clipvalue` or `global_clipnorm` says.

    Calls `Optimizer._clip_gradients`, a step of the public `apply`.
    """
    return optimizer._clip_gradients(gradients)


def run_update_rule(
    optimizer: keras.optimizers.Optimizer, gradients: Sequence[Any], variables: Sequence[Any], rate: Any
) -> None:
    """Applies the optimizer's update rule alone, with learning rate `rate`; clipping, decay and counting are not part.

    Calls `Optimizer._backend_update_step`. The public `update_step` takes a single variable and does not work in the
    replicas of a `tf.distribute` strategy.

    Args:
        optimizer: A built optimizer.
        gradients: A gradient for each variable; dense, or `tf.IndexedSlices`.
        variables: The variables, `keras.Variable` or `tf.Variable`, each known to the optimizer.
        rate: The learning rate of this step, a scalar.
    """
    optimizer._backend_update_step(gradients, variables, rate)


def adam_moments(optimizer: Any, variable: Any) -> tuple[Any, Any]:
    """Returns the first and second moment that a built Adam keeps for a variable.

    Reads `Adam._momentums` and `Adam._velocities` at the position that `Optimizer._get_variable_index` returns. The
    public `variables` lists the slots by position only, and their order depends on the optimizer's options.
    """
    index = optimizer._get_variable_index(variable)
    return optimizer._momentums[index], optimizer._velocities[index]


def add_to_variables(optimizer: keras.optimizers.Optimizer, variable: Any) -> None:
    """Adds a variable, or an object that takes its place, to `optimizer.variables`: `Optimizer._track_variable`.

    Keras does it for what `add_variable` makes; there is no public way to add a variable made elsewhere.
    """
    optimizer._track_variable(variable)


def known_variables(optimizer: keras.optimizers.Optimizer) -> list[Any]:
    """Returns the variables that a built optimizer has slots for, in order: `Optimizer._trainable_variables`."""
    return optimizer._trainable_variables


def moving_averages(optimizer: keras.optimizers.Optimizer) -> list[Any]:
    """Returns the averages of a built optimizer, in the order of `known_variables`; none without `use_ema`.

    Reads `Optimizer._model_variables_moving_average`.
    """
    return list(getattr(optimizer, "_model_variables_moving_average", ()))


def accumulated_gradients(optimizer: keras.optimizers.Optimizer) -> list[Any]:
    """Returns the accumulators of a built optimizer, in the order of `known_variables`; none without accumulation.

    Reads `Optimizer._accumulated_gradients`.
    """
    return list(getattr(optimizer, "_accumulated_gradients", ()))


def replace_known_variables(
    optimizer: keras.optimizers.Optimizer, variables: Sequence[Any], positions: dict[Any, int]
) -> None:
    """Makes a built optimizer use its slots for other variables of the same shapes.

    Writes `Optimizer._trainable_variables` and updates `_trainable_variables_indices`. Needed when an optimizer was
    restored before its model: Keras can build an optimizer only once, and only for variables that exist.

    Args:
        optimizer: A built optimizer.
        variables: All its variables in the order of its slots.
        positions: Keys (`Optimizer._var_key`) of the new variables with their positions in `variables`.
    """
    optimizer._trainable_variables_indices.update(positions)
    with tracking.DotNotTrackScope():  # `tf.train.Checkpoint` refuses a tracked list that has changed
        optimizer._trainable_variables = list(variables)


def variable_positions(optimizer: keras.optimizers.Optimizer) -> dict[Any, int]:
    """Returns the positions of a built optimizer's variables by key: `Optimizer._trainable_variables_indices`."""
    return optimizer._trainable_variables_indices


def call_at_overflow(optimizer: Any, function: Callable[[], None] | None) -> None:
    """Lets a `LossScaleOptimizer` call a function in each step that it leaves out; `None` undoes that.

    Replaces `LossScaleOptimizer._stateful_handle_non_finite_grads` in the instance, a branch of a conditional. Keras
    has no other hook there: the optimizer inside is not called in such a step.
    """
    vars(optimizer).pop("_stateful_handle_non_finite_grads", None)
    if function is not None:
        halve = optimizer._stateful_handle_non_finite_grads

        def handle() -> None:
            halve()
            function()

        vars(optimizer)["_stateful_handle_non_finite_grads"] = handle


def stored_value(variable: keras.Variable) -> Any:
    """Returns the object in which a Keras variable keeps its value: `Variable._value`, a `tf.Variable` or a view.

    The public `value` converts it: under `autocast` or in a `StatelessScope` it returns a tensor instead.
    """
    return getattr(variable, "_value", None)


def set_stored_value(variable: keras.Variable, value: Any) -> None:
    """Makes a Keras variable keep its value in another object, which has `assign`, `shape` and `dtype`.

    Writes `Variable._value`. Keras makes that object itself and has no public way to exchange it.
    """
    variable._value = value


def trackable_base() -> Any:
    """Returns the class from which an object derives that `tf.train.Checkpoint` saves: `Trackable`.

    The public bases (`tf.Module`, `tf.train.Checkpoint`) make every attribute a dependency, of which an object that
    shows a part of another variable must have none. Uses `tf.__internal__.tracking.Trackable`.
    """
    return tf.__internal__.tracking.Trackable


def is_compiled_by_xla() -> bool:
    """Returns whether the code being traced will be compiled by XLA.

    Uses `control_flow_util.GraphOrParentsInXlaContext`. TensorFlow has no public way to ask; some kernels do not exist
    in XLA, and their use must be decided while tracing.
    """
    return control_flow_util.GraphOrParentsInXlaContext(tf.compat.v1.get_default_graph())


# -- kernels/ ---------------------------------------------------------------------------------------------------------


def is_symbolic() -> bool:
    """Returns whether layers are being called for the shape and type of their outputs alone.

    Uses `keras.src.backend.common.symbolic_scope.in_symbolic_scope`, for which Keras exports no public name.
    """
    return bool(symbolic_scope.in_symbolic_scope())


def uses_onednn() -> bool:
    """Returns whether TensorFlow computes with oneDNN, as it does by default on processors of x86 alone.

    Uses `tensorflow.python.util._pywrap_util_port.IsMklEnabled`; the public API does not say.
    """
    return bool(_pywrap_util_port.IsMklEnabled())


def backend_function(name: str) -> Callable[..., Any]:
    """Returns a function of Keras' TensorFlow backend, such as `nn.gelu`, that layers call through `keras.ops`.

    Reads `keras.src.backend`. The public `keras.ops.gelu` only calls what stands there.
    """
    module, _, function = name.partition(".")
    return getattr(getattr(keras_backend, module), function)


def set_backend_function(name: str, function: Callable[..., Any]) -> None:
    """Puts a function in place of one of Keras' TensorFlow backend; see `backend_function`.

    Writes to `keras.src.backend`, where `keras.ops` looks for the function each time it is called.
    """
    module, _, attribute = name.partition(".")
    setattr(getattr(keras_backend, module), attribute, function)


# -- pretrained/ ------------------------------------------------------------------------------------------------------


def is_saveable(value: Any) -> bool:
    """Returns whether `model.save_weights` visits the object: a layer, model, optimizer, metric or loss.

    Uses `keras.src.saving.keras_saveable.KerasSaveable`, their common base.
    """
    return isinstance(value, keras_saveable.KerasSaveable)


def saved_children(saveable: Any) -> Iterator[tuple[str, Any]]:
    """Yields the attributes that `model.save_weights` visits below an object, with their names in the file.

    Uses `keras.src.saving.saving_lib._walk_saveable`. Keras has no public way to ask for the paths it saves under.
    """
    return saving_lib._walk_saveable(saveable)


# -- training/ --------------------------------------------------------------------------------------------------------


def eager_generator() -> Any:
    """Returns the `random.Random` from which TensorFlow draws seeds of eager operations; `None` before the first seed.

    Reads `tensorflow.python.eager.context.context()._rng`. `tf.random.set_seed` makes a new generator; there is no
    public way to read its state and put it back.
    """
    return getattr(context.context(), "_rng", None)


def seed_generator() -> Any:
    """Returns the `SeedGenerator` that layers without a seed draw from; `None` before the first draw.

    Reads the attribute `global_seed_generator` of `keras.src.backend.common.global_state`;
    `keras.utils.set_random_seed` makes a new one, and none of them can be read in public.
    """
    return global_state.get_global_attribute("global_seed_generator")


def data_adapter(x: Any, y: Any = None, **settings: Any) -> Any:
    """Returns the adapter that reads data as `fit` takes them; its `get_tf_dataset()` gives the batches of an epoch.

    Uses `keras.src.trainers.data_adapters.get_data_adapter`, which chooses the adapter by the type of the data. There
    is no public way to see the batches that `fit` makes of arrays, weights and `PyDataset`s.
    """
    return data_adapters.get_data_adapter(x, y, **settings)


def split_for_validation(arrays: Any, validation_split: float) -> Any:
    """Returns the part of a structure of arrays that `fit` trains on with a `validation_split`.

    Uses `keras.src.trainers.data_adapters.array_slicing.train_validation_split`, as `fit` does.
    """
    return array_slicing.train_validation_split(arrays, validation_split=validation_split)[0]


def with_class_weights(batch: Any, class_weight: Any) -> Any:
    """Returns `(x, y, sample_weight)` with the weight of every row by its class; also in a graph.

    Uses `make_class_weight_map_fn` of `keras.src.trainers.data_adapters.tf_dataset_adapter`, as `fit` does.

    Args:
        batch: `(x, y, None)`; `y` is a tensor of class numbers or of their one-hot rows.
        class_weight: Weight of each class by its number; 1 where there is none.
    """
    return tf_dataset_adapter.make_class_weight_map_fn(class_weight)(*batch)


def loss_of_outputs(loss: Any, output_names: Any) -> Any:
    """Returns the sum of the losses of several outputs, as a function of targets, outputs and weights of rows.

    Uses `keras.src.trainers.compile_utils.CompileLoss`, which `compile` makes of a structure of losses.
    """
    return compile_utils.CompileLoss(loss, output_names=output_names)


# -- training/ --------------------------------------------------------------------------------------------------------


def weights_in_memory(model: keras.Model) -> memoryview:
    """Returns the content of the `.weights.h5` file that `model.save_weights` would write.

    Uses `saving_lib.H5IOStore` and `saving_lib._save_state`, of which `save_weights` consists. It takes paths alone,
    and HDF5 crashes the process where the disk is full.
    """
    content = io.BytesIO()
    store = saving_lib.H5IOStore(content, mode="w")
    saving_lib._save_state(model, weights_store=store, assets_store=None, inner_path="", visited_saveables=set())
    store.close()
    return content.getbuffer()


def save_model_to(model: keras.Model, file: BinaryIO) -> None:
    """Writes the `.keras` file that `model.save` would write to an open file.

    Uses `saving_lib._save_model_to_fileobj`. `model.save` takes paths alone; for a large model it then lets HDF5 write
    to a file beside the path, which crashes the process where the disk is full. It makes that file in the folder of
    `file.name`, and works in memory where there is none, as here.
    """
    saving_lib._save_model_to_fileobj(model, _Nameless(file), "h5")


def compile_arguments(model: keras.Model) -> dict[str, Any]:
    """Returns the arguments that a model was compiled with, the objects themselves; empty where it was not.

    Uses `Trainer._compile_config`, of which `get_compile_config` returns what their configs say.
    """
    return dict(getattr(getattr(model, "_compile_config", None), "config", {}))


def function_arguments(value: keras.losses.Loss | keras.metrics.Metric) -> dict[str, Any]:
    """Returns the arguments of the function that a loss or metric of Keras calls; empty where it calls none.

    Uses `LossFunctionWrapper._fn_kwargs` and `MeanMetricWrapper._fn_kwargs`.
    """
    return dict(getattr(value, "_fn_kwargs", {}))


class _Nameless(io.RawIOBase):
    """A file without the attribute `name`."""

    def __init__(self, file: BinaryIO):
        self._file = file

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return self._file.seekable()

    def write(self, data: Any, /) -> int:
        return self._file.write(data)

    def tell(self) -> int:
        return self._file.tell()

    def seek(self, position: int, whence: int = 0, /) -> int:
        return self._file.seek(position, whence)

    def flush(self) -> None:
        self._file.flush()


# -- training/phases/ -------------------------------------------------------------------------------------------------


def take_initial_epoch(model: keras.Model, callback: keras.callbacks.BackupAndRestore) -> int:
    """Returns the epoch at which `BackupAndRestore` told the model to begin, 0 if it did not, and takes that back.

    Reads and clears `Trainer._initial_epoch`, which Keras never clears: every later `fit` would begin there, whatever
    its `initial_epoch` says. The callback tells the epoch to nobody else. Sets `BackupAndRestore._current_epoch`, which
    Keras leaves at 0 until an epoch ends: a backup within the first epoch would say that training begins again.
    """
    epoch = model._initial_epoch or 0
    with tracking.DotNotTrackScope():
        model._initial_epoch = None
    callback._current_epoch = epoch
    return epoch


# -- training/checkpoints/ ---------------------------------------------------------------------------------------------


def set_initial_epoch(model: keras.Model, epoch: int | None) -> None:
    """Lets the `fit` that has begun start with an epoch, counted from 0, whatever its `initial_epoch` says.

    `None` takes it back, as Keras never does. Sets `Trainer._initial_epoch`, as `BackupAndRestore` does: `fit` reads it
    after `on_train_begin`.
    """
    with tracking.DotNotTrackScope():
        model._initial_epoch = epoch


# -- training/fast/ ---------------------------------------------------------------------------------------------------


def takes_training(model: keras.Model) -> bool:
    """Returns whether Keras passes `training` to the model's `call`: `Layer._call_has_training_arg`."""
    return model._call_has_training_arg


def compute_loss(model: keras.Model, **arguments: Any) -> Any:
    """Returns the loss as Keras' `train_step` computes it: `Trainer._compute_loss`.

    It calls the public `compute_loss`, without the arguments that an older override of it does not take.
    """
    return model._compute_loss(**arguments)


def compiled_loss(model: keras.Model) -> Any:
    """Returns the object that combines the losses of all outputs; `None` for a model compiled without a loss.

    Reads `Trainer._compile_loss`; the public `loss` is what the user passed to `compile`.
    """
    return getattr(model, "_compile_loss", None)


def loss_tracker(model: keras.Model) -> Any:
    """Returns the metric that averages the loss over an epoch: `Trainer._loss_tracker`.

    It is the first of the public `metrics` only where the model was compiled with a loss.
    """
    return model._loss_tracker


def captures(graph: Any, variable: tf.Variable) -> bool:
    """Returns whether a function that is being traced uses a variable that was made outside of it.

    Reads `FuncGraph.captures`, which is also on the `graph` of a public `ConcreteFunction`, but documented nowhere. The
    public `GradientTape.watched_variables` lists what is read, not what is written.

    Args:
        graph: Of the function. What the loops and branches in it use, it uses.
        variable: A variable that was made in eager mode.
    """
    return any(outside is variable.handle for outside, _ in getattr(graph, "captures", ()))


def writes(graph: Any, variable: tf.Variable) -> bool:
    """Returns whether a function that is being traced may write a variable that was made outside of it.

    Reads `FuncGraph.captures`, as `captures` does. A function, loop or branch that is called with the variable counts
    as one that writes it.

    Args:
        graph: Of the function.
        variable: A variable that was made in eager mode.
    """
    inside = {id(inner) for outside, inner in getattr(graph, "captures", ()) if outside is variable.handle}
    reads = ("ReadVariableOp", "ResourceGather", "ResourceGatherNd", "VariableShape")
    users = (operation for operation in graph.get_operations() if operation.type not in reads) if inside else ()
    return any(id(tensor) in inside for operation in users for tensor in operation.inputs)


def sagemaker_resolver() -> Any:
    """Returns what reads the machines of a SageMaker job; TensorFlow ships it without a public name."""
    from tensorflow.python.distribute.cluster_resolver.sagemaker_cluster_resolver import SageMakerClusterResolver

    return SageMakerClusterResolver()


@contextlib.contextmanager
def synchronized_moments(function: Callable[..., Any]) -> Iterator[None]:
    """Replaces, in the block, what computes mean and variance for a `synchronized` BatchNormalization.

    Sets `_compute_moments_sync` of Keras' backend, which sums over the replicas of a strategy that it knows.

    Args:
        function: Called with Keras' function, and with its arguments: the inputs, the axes, and `keepdims`.
    """
    module: Any = importlib.import_module("keras.src.backend.tensorflow.nn")
    own = module._compute_moments_sync
    module._compute_moments_sync = functools.partial(function, own)
    try:
        yield
    finally:
        module._compute_moments_sync = own


def abort_collectives(message: str) -> None:
    """Lets the collective operations that wait for another process fail, and all that come.

    Calls `Context.abort_collective_ops`, as `MultiWorkerMirroredStrategy` does where a worker is gone; there is no
    public name for it.

    Args:
        message: Why, for the error that they raise.
    """
    present: Any = context.context()
    present.abort_collective_ops(tf.errors.UNAVAILABLE, message)


def custom_gradients(graph: Any) -> Iterator[tuple[list[Any], list[Any]]]:
    """Yields the results and the arguments of every call of a `tf.custom_gradient` function in a graph.

    Such a call ends in an operation `IdentityN` of results and arguments, whose gradient is overridden in the attribute
    `_gradient_op_type` by one whose name begins with `CustomGradient`. Only its results are used afterwards.

    Args:
        graph: A graph that is being traced; the graphs of loops and branches in it are not searched.
    """
    for operation in graph.get_operations():
        if operation.type != "IdentityN" or b"CustomGradient" not in operation.node_def.attr["_gradient_op_type"].s:
            continue
        sides: tuple[list[Any], list[Any]] = [], []
        for given, returned in zip(operation.inputs, operation.outputs, strict=True):
            sides[not returned.consumers()].append(given)
        yield sides


# -- training/features/ -----------------------------------------------------------------------------------------------


def mask_of(tensor: Any) -> Any:
    """Returns the mask that Keras attached to a tensor, or `None`: `masking.get_keras_mask`.

    Keras passes masks from layer to layer as an attribute of tensors; `compute_mask` of a whole model is not public for
    the values inside it.
    """
    return masking.get_keras_mask(tensor)


def set_mask(tensor: Any, mask: Any) -> None:
    """Attaches a mask to a tensor, as `Masking` and `Embedding(mask_zero=True)` do: `masking.set_keras_mask`."""
    masking.set_keras_mask(tensor, mask)


def runs_its_graph(layer: Any) -> bool:
    """Returns whether a layer is a functional model, and its `call` is Keras' own, which runs the graph of its layers.

    Uses `keras.src.models.functional.Functional`, the class of what `keras.Model(inputs, outputs)` returns. The public
    `keras.Function` is a base of it that has another `call`.
    """
    return isinstance(layer, functional.Functional) and type(layer).call is functional.Functional.call


def with_training(operation: Any, training: bool) -> Callable[..., Any]:
    """Returns a function that calls `operation` with `training` if it is a layer, and without if it is an operation.

    Reads `Layer._call_context_args`, the arguments that Keras passes on from a model to its layers. A layer takes them
    whether or not its `call` has them, and passes them on to the layers inside. The private `operation_fn` of Keras
    3.15 does the same; it is gone in 3.16.
    """
    if "training" not in getattr(operation, "_call_context_args", ()):
        return operation
    # Not `functools.partial`: a recorded call may have `training=None` among its arguments, which must not win.
    return lambda *args, **kwargs: operation(*args, **{**kwargs, "training": training})


def nodes_by_depth(function: keras.Function) -> dict[int, list[Any]]:
    """Returns the calls in a graph of layers by their distance from the outputs: `Function._nodes_by_depth`.

    Keras runs them by falling depth, and within a depth in the order of the list. The public `operations` lists a layer
    once, however often it is called.
    """
    return function._nodes_by_depth


# -- training/lr_range/ -----------------------------------------------------------------------------------------------


def build_for_training(model: keras.Model, batch: Any) -> None:
    """Builds the metrics and the loss of a compiled model for batches like this, without running it: `_symbolic_build`.

    Keras' `fit` builds them while it traces its first step, which is then traced a second time.

    Args:
        model: The model.
        batch: A batch of inputs and targets, or its `tf.TensorSpec`s.
    """
    model._symbolic_build(data_batch=batch)


def set_strategy(model: keras.Model, strategy: Any) -> None:
    """Sets the `tf.distribute` strategy that a model's `fit` uses: `Trainer._distribute_strategy`.

    Keras notes the strategy under whose scope a model was made, and has no way to let go of it.

    Args:
        model: The model.
        strategy: A strategy; `None` for a single device.
    """
    model._distribute_strategy = strategy


@contextlib.contextmanager
def functions_replaced(
    *,
    losses: Mapping[str, Callable[..., Any]],
    moments: Callable[..., Any],
    add_loss: Callable[..., Any],
    own_losses: Callable[..., Any],
    next_seed: Callable[[Any], Any],
    applies: Callable[[], bool],
) -> Iterator[None]:
    """Replaces, in the block, functions of Keras that look at the rows of one replica, and the seeds that are drawn.

    Sets attributes of the module `keras.src.losses.loss`, `_compute_moments_sync` of `keras.src.backend.tensorflow.nn`,
    `Layer.add_loss`, `Layer._get_own_losses` and `SeedGenerator.next`. Keras has no hook for the rows of all replicas.

    Args:
        losses: By the name of a function, what is called in its place, with the function as first argument.
        moments: Likewise, in place of what gives mean and variance for a synchronized BatchNormalization.
        add_loss: Likewise, in place of what notes a loss at a layer.
        own_losses: Likewise, in place of what returns these losses.
        next_seed: Called with each seed that is drawn, of two numbers; returns that which is used.
        applies: Whether they are replaced in the thread that calls.
    """

    def replaced(own: Callable[..., Any], other: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(own)
        def function(*args: Any, **kwargs: Any) -> Any:
            return other(own, *args, **kwargs) if applies() else own(*args, **kwargs)

        return function

    def draw(own: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return next_seed(own(*args, **kwargs))

    places: list[tuple[Any, str, Any]] = [(loss_module, name, other) for name, other in losses.items()]
    places += [(keras_nn, "_compute_moments_sync", moments), (keras.Layer, "add_loss", add_loss)]
    places += [(keras.Layer, "_get_own_losses", own_losses), (keras.random.SeedGenerator, "next", draw)]
    held = [(owner, name, getattr(owner, name)) for owner, name, _ in places]
    try:
        for (owner, name, other), (_, _, own) in zip(places, held, strict=True):
            setattr(owner, name, replaced(own, other))
        yield
    finally:
        for owner, name, own in held:
            setattr(owner, name, own)
