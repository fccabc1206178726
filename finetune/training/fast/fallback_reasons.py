"""Which models keep Keras' own training loop, and why."""

from typing import Any

import keras
import tensorflow as tf

from finetune.distribution.strategy import is_adopted, replicas_of


def reason_against(model: Any) -> str | None:
    """Returns why the fast loop cannot make the steps of a compiled model; `None` if it can.

    The fast loop repeats what Keras' `train_step` does. So it leaves alone what Keras would not do with `train_step`
    (XLA, eager steps, replicas), and classes that have replaced a part of it.
    """
    # `fit` builds such a model in its first step, after this is asked.
    if not model.built:
        return "it is not built yet"
    for name in ("train_step", "make_train_function", "compute_metrics", "get_metrics_result"):
        # In its class, or assigned to the model itself.
        if getattr(getattr(model, name), "__func__", None) is not getattr(keras.Model, name):
            return f"`{type(model).__name__}` has its own `{name}`"
    if model.run_eagerly or tf.config.functions_run_eagerly():
        return "it runs eagerly"
    if not model.trainable_variables:
        return "it has no trainable weights"
    # XLA cannot compile an iterator, so its steps are compiled one by one. `auto` is False on a CPU.
    if model.jit_compile is True:
        return "XLA compiles its step"
    # Keras has divided the batches of such a model already; `finetune.distribution` does so itself.
    if (replicas_of(model) > 1 and not is_adopted(model)) or tf.distribute.has_strategy():
        return "it has several replicas"
    return None
