"""The optimizer inside the wrapper of mixed precision."""

from typing import Any


def unwrap(optimizer: Any) -> Any:
    """Returns the optimizer inside a `keras.optimizers.LossScaleOptimizer`; any other optimizer is returned as it is.

    `model.compile` puts that wrapper around the optimizer under `mixed_float16`. It scales the loss and passes on
    `learning_rate`, but not the attributes of a `GroupedOptimizer`, such as `learning_rates` and `group_names`.
    """
    return getattr(optimizer, "inner_optimizer", optimizer)
