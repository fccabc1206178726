"""What a `FineTuner` is made of and called with: the model, its groups, and arguments as other libraries name them."""

from collections.abc import Iterable, Mapping
from typing import Any

import keras
import tensorflow as tf

from finetune.errors import DataError, GroupError, did_you_mean, quote
from finetune.groups.selectors import LayerGroup, resolve_groups

# How other libraries call what has another name here.
_CALLED = {
    **dict.fromkeys(("rate", "lr", "lr_max", "base_lr", "rates", "learning_rates"), "learning_rate"),
    **dict.fromkeys(("n_epoch", "epoch", "n_epochs"), "epochs"),
    **dict.fromkeys(("freeze_epochs",), "frozen_epochs"),
    **dict.fromkeys(("lr_mult",), "ratio"),
    **dict.fromkeys(("phases", "phase", "strategies"), "strategy"),
}

# What fastai's `Learner` and Keras' `Model` have under another name.
_METHODS = {
    "lr_find": "`lr_range()`",
    "fit_one_cycle": '`fit(3, 1e-3, schedule="one_cycle")`',
    "fit_flat_cos": '`fit(3, 1e-3, schedule="cosine_decay")`',
    "freeze": '`fit(1, train="head")`, with the name of the last group',
    "freeze_to": '`fit(1, train=["body", "head"])`, with the names of the groups to train',
    "unfreeze": "what `fit` does by itself: all groups are trained, but those that `train=` leaves out",
    "get_preds": "`predict(x)`",
    "validate": "`evaluate()`",
    "export": '`save("model.keras")`',
    "layer_groups": "`groups`",
    "opt": "`model.optimizer`",
    "optimizer": "`model.optimizer`",
    "compile": "`FineTuner(model, data, optimizer=..., loss=..., metrics=...)`, which compiles the model",
    "summary": "`model.summary()`, or `print(tuner.plan(3))`",
    "recorder": "what `fit` returns, with `.history` and `.plot()`",
    "history": "what `fit` returns, with `.history` and `.plot()`",
    "plot": "what `fit` and `lr_range` return, with `.plot()`",
}


def missing_attribute(name: str, known: Iterable[str]) -> str:
    """Returns what an `AttributeError` of a `FineTuner` says: what is called so elsewhere, or the nearest name.

    Args:
        name: The attribute that it lacks.
        known: Those that it has.
    """
    if name in _METHODS:
        return f"A `FineTuner` has no `{name}`. It is {_METHODS[name]}."
    public = [each for each in known if not each.startswith("_")]
    return f"A `FineTuner` has no `{name}`." + (did_you_mean(name, public) or f" It has {quote(public, limit=20)}.")


def check_and_build(model: Any, x: Any) -> None:
    """Checks that inputs come in batches, and gives a model that has no weights yet those for them.

    Raises:
        GroupError: It is no Keras model.
        DataError: A dataset yields single rows.
    """
    if not isinstance(model, keras.Model):
        raise GroupError(
            f"A `FineTuner` takes a Keras model. Received a `{type(model).__name__}`. Load a file with "
            "`keras.models.load_model`; `finetune.HubLayer` makes a layer of a SavedModel."
        )
    spec = getattr(x, "element_spec", x)
    spec = spec[0] if isinstance(spec, tuple) and spec is not x else spec
    parts = keras.tree.flatten(spec)
    if not all(hasattr(part, "shape") for part in parts):
        return  # of a generator or a `PyDataset`, and of strings in lists
    if not model.built:
        model.build(keras.tree.map_structure(lambda part: (None, *part.shape[1:]), spec))
    shape: Any = getattr(model, "input_shape", None)
    is_dataset = isinstance(parts[0], tf.TensorSpec) and isinstance(shape, tuple)
    if is_dataset and len(parts) == 1 and parts[0].shape.rank == len(shape) - 1:
        raise DataError(
            f"A dataset yields batches, and the network takes `{shape}`. Received elements of shape "
            f"`{tuple(parts[0].shape)}`. Write `dataset.batch(32)`."
        )


def groups_of(model: keras.Model, groups: str | Iterable[Any] | None, by: str | None) -> tuple[LayerGroup, ...]:
    """Returns the layer groups of a model.

    Args:
        model: The model.
        groups: `block` or `layer`, selectors, layer groups, or one of these.
        by: Another name of `groups`.

    Raises:
        GroupError: Both are passed, or the groups do not fit the model.
    """
    if groups is not None and by is not None:
        raise GroupError(
            f"`by` is another name of `groups`. Received `{groups!r}` and `{by!r}`. Remove one of the two."
        )
    written: Any = groups if groups is not None else by or "block"
    if isinstance(written, str):
        return resolve_groups(model, by=written)
    members = tuple(written) if isinstance(written, Iterable) else (written,)
    if members and all(isinstance(member, LayerGroup) for member in members):
        return members
    return resolve_groups(model, members)


def check_arguments(fit: Mapping[str, Any]) -> None:
    """Names the argument that another library calls otherwise.

    Raises:
        GroupError: There is one.
    """
    for name in fit:
        if name in _CALLED:
            raise GroupError(
                f"A `FineTuner` takes no argument `{name}`. Received {quote(fit)}. It is called `{_CALLED[name]}`."
            )
