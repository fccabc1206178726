"""One training step: the forward and backward pass, and a whole step for a network that is not a Keras model.

`loss_and_gradients` is the pass of everything in the package that does not leave it to Keras' own `train_step`: the
fast loop, the step of a bare module below, and the measurement of gradient norms. The LR range test calls the model's
own `train_step`, because it must show what `fit` would do, whatever the model's class does in it.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import keras
import tensorflow as tf

from finetune import keras_private
from finetune.distribution.step_on_replicas import (
    WHOLE_BATCH,
    PartOfBatch,
    WholeBatch,
    moving_variables,
    run_on_replicas,
)
from finetune.distribution.strategy import strategy_of_variables
from finetune.errors import GroupError, TrainingError, did_you_mean, reason
from finetune.groups.layer_tree import layer_tree
from finetune.groups.selectors import LayerGroup
from finetune.models.saved_module import takes_training
from finetune.optimizers.grouped import GroupedOptimizer
from finetune.optimizers.replicas import gradients_summed, scope_from_outside
from finetune.optimizers.unwrap_optimizer import unwrap
from finetune.variables import tf_variable


def loss_and_gradients(
    forward: Callable[[], tuple[Any, Any]],
    variables: Any,
    *,
    optimizer: Any = None,
) -> tuple[Any, Any, Any]:
    """Runs a forward pass and differentiates its loss; one tape, whatever the number of layer groups.

    Args:
        forward: Called without arguments; returns the scalar loss and whatever else the caller needs of the pass.
        variables: What to differentiate for: Keras variables, `tf.Variable`s or tensors, in any nested structure.
        optimizer: Scales the loss before it is differentiated, as a `LossScaleOptimizer` must under `mixed_float16`,
            and unscales the gradients when it applies them. `None` to get the gradients of the loss as it is.

    Returns:
        The loss (not scaled), what else `forward` returned, and the gradients in the structure of `variables`; `None`
        for a variable that the loss does not depend on.

    Raises:
        TrainingError: TensorFlow cannot differentiate an operation.
    """
    # A tape records `tf.Variable`s; a Keras variable holds one.
    sources = tf.nest.map_structure(tf_variable, variables)
    # By itself a tape records what is computed from any variable, frozen ones included: the frozen part would be
    # computed as one that is differentiated, and not as its features are when they are cached.
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        # Before the forward pass: a tape records nothing of what it does not watch yet. A variable that TensorFlow was
        # told not to train gets no gradient, as in Keras.
        tape.watch([source for source in tf.nest.flatten(sources) if getattr(source, "trainable", True)])
        loss, other = forward()
        scaled = loss if optimizer is None else optimizer.scale_loss(loss)
    try:
        return loss, other, tape.gradient(scaled, sources)
    except LookupError as error:
        what = reason(error).partition(". In general")[0]
        raise TrainingError(
            "A step differentiates the loss, for which TensorFlow needs the gradient of each operation between a "
            f"trained weight and the loss. It has none for one of them: {what}. Put `tf.stop_gradient` behind it and "
            "train what comes after it, or take another operation; a SavedModel with `tf.custom_gradient` must be "
            "saved with `options=tf.saved_model.SaveOptions(experimental_custom_gradients=True)`."
        ) from error


def apply_sums(
    optimizer: Any, gradients: list[Any], variables: Sequence[Any], part: WholeBatch | PartOfBatch = WHOLE_BATCH
) -> None:
    """Lets an optimizer make its step with the gradients of a batch.

    Args:
        optimizer: Any Keras optimizer. In a replica it sums by itself, but a `LossScaleOptimizer` looks before for
            numbers that are not finite, in the gradients of the first replica alone: so a `GroupedOptimizer` gets sums.
        gradients: Of the part of the batch, one for each variable.
        variables: What is trained.
        part: What of the batch this replica has.
    """
    if part is WHOLE_BATCH or not isinstance(unwrap(optimizer), GroupedOptimizer):
        optimizer.apply_gradients(zip(gradients, variables, strict=True))
        return
    sums = part.sums(gradients)
    with gradients_summed():
        optimizer.apply_gradients(zip(sums, variables, strict=True))


def compile_state(model: Any) -> tuple[Any, ...]:
    """Returns what a training function of a compiled model depends on: while this is equal, the function can be kept.

    `compile` makes a new optimizer or a new compiled loss, freezing changes the trainable variables, and a group may be
    given a schedule in place of a number, also by a file that is loaded.
    """
    optimizer = unwrap(model.optimizer)
    is_grouped = isinstance(optimizer, GroupedOptimizer)
    traced = (optimizer.saved_state.compiled, optimizer.finite_gradients) if is_grouped else ()
    return (model.optimizer, keras_private.compiled_loss(model), traced, *(id(v) for v in model.trainable_variables))


def grouped_train_step(
    module: Any,
    loss: Any,
    optimizer: keras.optimizers.Optimizer,
    *,
    variables: Iterable[Any] | None = None,
    class_weight: Mapping[int, float] | None = None,
    jit_compile: bool = False,
) -> Callable[..., tf.Tensor]:
    """Makes a function that trains a module on one batch, as Keras' `train_on_batch` does for a model.

    It is for custom training loops around a `tf.Module`, or around what `hub.load` returned: one compiled function,
    whatever the number of groups. The module is called with `training=True` if it takes that argument; its
    regularization losses are added. Where its variables were made in the scope of a `tf.distribute` strategy, the step
    is made on all replicas of this process, each with its part of the batch: call the function as it is, and not by
    `strategy.run`.

    Args:
        module: A `tf.Module`, a Keras layer or model, or what `hub.load` or `tf.saved_model.load` returned.
        loss: A Keras loss by name or as an object, or a function of targets and outputs that returns a tensor, whose
            mean is taken. For several outputs a list or dict of these, as for `compile`; the losses are added.
        optimizer: A `GroupedOptimizer`, or any Keras optimizer.
        variables: What to train, as variables or layer groups; frozen groups are left out. By default the variables in
            the groups of a `GroupedOptimizer`; for another optimizer all variables that were created trainable.
        class_weight: Weight of each class, for a single output, as for `fit`.
        jit_compile: Whether to compile with XLA.

    Returns:
        A function of inputs, targets and, optionally, weights of the rows (for several outputs as many, in the
        structure of the targets) that updates the variables and returns the loss before the update. So a batch of a
        dataset is trained on by `step(*batch)`.

    Raises:
        TrainingError: The module cannot be called, or the loss is not a name that Keras knows.
        GroupError: There is nothing to train, or a variable belongs to no group of the optimizer.

    Examples:
        >>> module = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        >>> step = grouped_train_step(module, "mse", keras.optimizers.SGD(0.1))
        >>> losses = [float(step(tf.ones((8, 4)), tf.zeros((8, 2)))) for _ in range(3)]
        >>> losses[0] > losses[1] > losses[2]
        True
    """
    if not callable(module):
        raise TrainingError(
            f"A step calls the module on its inputs. The `{type(module).__name__}` cannot be called. Give it a "
            "`__call__`, or use `finetune.HubLayer` for a SavedModel that has only signatures."
        )
    # The order of the variables is part of the result: the global norm of the gradients is a sum in this order.
    trained = _trained_variables(module, optimizer, variables)
    # Outside of the compiled function: a `tf.function` may create variables only in its first trace.
    strategy = strategy_of_variables(trained)
    with nullcontext() if strategy is None else scope_from_outside(strategy):
        optimizer.build(trained)
    loss_function = _loss_function(loss, module)
    # A Keras layer is asked for the arguments of its `call`, since `__call__` takes any.
    call = module.__call__ if not isinstance(module, keras.Layer) else module.call
    options = {"training": True} if takes_training(call) else {}

    def step_of(data: Any, part: WholeBatch | PartOfBatch) -> tf.Tensor:
        inputs, targets, sample_weight = data

        def forward() -> tuple[Any, None]:
            of_batch = loss_function(targets, module(inputs, **options), sample_weight)
            return of_batch + part.share(_regularization(module)), None

        value, _, gradients = loss_and_gradients(forward, trained, optimizer=optimizer)
        apply_sums(optimizer, gradients, trained, part)
        return part.total(value)

    @tf.function(jit_compile=jit_compile, reduce_retracing=True, autograph=False)
    def step(inputs: Any, targets: Any, sample_weight: Any = None) -> tf.Tensor:
        data = inputs, targets, sample_weight
        if class_weight:
            data = keras_private.with_class_weights(data, class_weight)
        if strategy is None:
            return step_of(data, WHOLE_BATCH)
        moving = moving_variables(module) if isinstance(module, keras.Layer) else ()
        return run_on_replicas(strategy, step_of, data, moving=moving)

    return step


def _trained_variables(module: Any, optimizer: Any, variables: Iterable[Any] | None) -> list[Any]:
    if isinstance(variables, LayerGroup):
        variables = [variables]
    if variables is not None:
        trained = []
        for item in variables:
            if not isinstance(item, LayerGroup):
                trained.append(item)
            elif not item.frozen:
                trained += item.variables
    elif isinstance(optimizer, GroupedOptimizer):
        trained = optimizer.group_variables
    else:
        trained = [leaf.variable for leaf in layer_tree(module).trainable]
    if not trained:
        raise GroupError(
            "A step trains at least one variable. Received only frozen groups, or a module without trainable "
            "variables. Pass the groups or variables to train as `variables`."
        )
    return trained


class _MeanOf(keras.losses.Loss):
    """Reduces the values of a function over the batch as the losses of Keras do."""

    def __init__(self, function: Callable[[Any, Any], Any]):
        super().__init__(name="loss")
        self.function = function

    def call(self, y_true: Any, y_pred: Any) -> Any:
        return self.function(y_true, y_pred)


def _loss_function(loss: Any, module: Any) -> Callable[..., Any]:
    if keras.tree.is_nested(loss):
        return keras_private.loss_of_outputs(loss, getattr(module, "output_names", None))
    if isinstance(loss, keras.losses.Loss):
        return loss
    if not isinstance(loss, str):
        return _MeanOf(loss)
    try:
        function: Any = keras.losses.get(loss)
    except ValueError:
        raise TrainingError(
            "`loss` is the name of a Keras loss, a Keras loss object, or a function. "
            f"Received `{loss}`.{did_you_mean(loss, dir(keras.losses))}"
        ) from None
    # `get` returns the function, which gives a value for every row. The class of the same name reduces them to a mean.
    # `sparse_categorical_crossentropy` is the function of `SparseCategoricalCrossentropy`.
    classes = {name.lower(): kind for name, kind in vars(keras.losses).items() if isinstance(kind, type)}
    return classes[function.__name__.replace("_", "")]()


def _regularization(module: Any) -> Any:
    if isinstance(module, keras.Layer):
        return sum(module.losses)
    # What `tf.saved_model.load` returns holds each loss as a function without arguments.
    return sum(loss() for loss in getattr(module, "regularization_losses", None) or ())
