"""One training step for what is no Keras model: a `tf.Module`, or what `hub.load` returned, in a loop of one's own."""

from collections.abc import Callable, Iterable
from typing import Any

import keras
import tensorflow as tf

from finetune.errors import GroupError, TrainingError, did_you_mean
from finetune.groups.layer_tree import layer_tree
from finetune.groups.selectors import LayerGroup
from finetune.models.modules import takes_training
from finetune.optimizers.grouped import GroupedOptimizer
from finetune.variables import tf_variable


def grouped_train_step(
    module: Any,
    loss: Any,
    optimizer: keras.optimizers.Optimizer,
    *,
    variables: Iterable[Any] | None = None,
    jit_compile: bool = False,
) -> Callable[[Any, Any], tf.Tensor]:
    """Makes a function that trains a module on one batch, as Keras' `train_on_batch` does for a model.

    One tape, one compiled function, whatever the number of groups. The module is called with `training=True` if it
    takes that; its regularization losses are added.

    Args:
        module: A `tf.Module`, a Keras layer or model, or what `hub.load` or `tf.saved_model.load` returned.
        loss: A loss of Keras by name or as an object, or a function of targets and outputs that returns a tensor, of
            which the mean is taken.
        optimizer: A `GroupedOptimizer`, or any optimizer of Keras.
        variables: What to train, as variables or layer groups; groups that are frozen are left out. By default what a
            `GroupedOptimizer` has in its groups, for another optimizer all that was created trainable.
        jit_compile: Whether to compile with XLA.

    Returns:
        A function of inputs and targets that updates the variables and returns the loss before the update.

    Raises:
        TrainingError: If the module cannot be called.
        GroupError: If there is nothing to train, or a variable belongs to no group of the optimizer.

    Example:
        >>> module = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        >>> step = grouped_train_step(module, "mse", keras.optimizers.SGD(0.1))
        >>> losses = [float(step(tf.ones((8, 4)), tf.zeros((8, 2)))) for _ in range(3)]
        >>> losses[0] > losses[1] > losses[2]
        True
    """
    if not callable(module):
        raise TrainingError(
            f"A step calls the module on its inputs. The `{type(module).__name__}` cannot be called. Give it a "
            "`__call__`, or use `finetune.HubLayer` for a SavedModel that has signatures only."
        )
    trained = _trained(module, optimizer, variables)
    optimizer.build(trained)
    measure = _loss_function(loss)
    call = module.__call__ if not isinstance(module, keras.Layer) else module.call
    options = {"training": True} if takes_training(call) else {}

    @tf.function(jit_compile=jit_compile, reduce_retracing=True, autograph=False)
    def step(inputs: Any, targets: Any) -> tf.Tensor:
        with tf.GradientTape() as tape:
            value = measure(targets, module(inputs, **options)) + _extra_losses(module)
            scaled = optimizer.scale_loss(value)
        optimizer.apply(tape.gradient(scaled, [tf_variable(variable) for variable in trained]), trained)
        return value

    return step


def _trained(module: Any, optimizer: Any, variables: Iterable[Any] | None) -> list[Any]:
    if variables is not None:
        given = [variables] if isinstance(variables, LayerGroup) else list(variables)
        found = [variable for one in given for variable in _variables_in(one)]
    elif isinstance(optimizer, GroupedOptimizer):
        found = optimizer.group_variables
    else:
        found = [leaf.variable for leaf in layer_tree(module).trainable]
    if not found:
        raise GroupError("A step trains at least one variable, and all groups it was given are frozen. Leave one out.")
    return found


def _variables_in(one: Any) -> list[Any]:
    if isinstance(one, LayerGroup):
        return [] if one.frozen else one.variables
    return [one]


class _MeanOf(keras.losses.Loss):
    """Reduces a function's values over a batch as Keras does."""

    def __init__(self, function: Callable[[Any, Any], Any]):
        super().__init__(name="loss")
        self.function = function

    def call(self, y_true: Any, y_pred: Any) -> Any:
        return self.function(y_true, y_pred)


def _loss_function(loss: Any) -> Callable[[Any, Any], Any]:
    if isinstance(loss, keras.losses.Loss):
        return loss
    if not isinstance(loss, str):
        return _MeanOf(loss)
    try:
        function: Any = keras.losses.get(loss)
    except ValueError:
        raise TrainingError(
            f"A loss is one that Keras knows, or a function. Received `{loss}`.{did_you_mean(loss, dir(keras.losses))}"
        ) from None
    kinds = {name.lower(): kind for name, kind in vars(keras.losses).items() if isinstance(kind, type)}
    return kinds[function.__name__.replace("_", "")]()


def _extra_losses(module: Any) -> Any:
    if isinstance(module, keras.Layer):
        return sum(module.losses)
    return sum(one() for one in getattr(module, "regularization_losses", None) or ())
