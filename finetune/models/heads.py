"""The usual head on any backbone, always named `head`."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import layers

from finetune.errors import FinetuneError, did_you_mean, quote

HEAD = "head"

# Global pooling by kind and number of axes, the batch axis included.
_GLOBAL_POOLING = {
    ("average", 3): layers.GlobalAveragePooling1D,
    ("average", 4): layers.GlobalAveragePooling2D,
    ("average", 5): layers.GlobalAveragePooling3D,
    ("max", 3): layers.GlobalMaxPooling1D,
    ("max", 4): layers.GlobalMaxPooling2D,
    ("max", 5): layers.GlobalMaxPooling3D,
}


def add_head(
    backbone: keras.Model,
    *,
    classes: int,
    units: Sequence[int] = (),
    pooling: str | None = None,
    dropout: float = 0.0,
    activation: str | None = None,
    hidden_activation: str = "relu",
    after: str | None = None,
    output_key: str | None = None,
    rescaling: tuple[Any, Any] | None = None,
) -> keras.Model:
    """Puts a head on a backbone: pooling, hidden layers, and an output layer.

    The head is one layer named `head`, so all its weights have that prefix; those of the backbone keep their names.

    Args:
        backbone: A built functional or Sequential model.
        classes: Width of the output layer, >= 1.
        units: Widths of hidden dense layers before it.
        pooling: `average` or `max` over all axes between batch and channels, `first` (position of a sequence),
            `flatten` or `none`; by default `average` where there are such axes.
        dropout: Share of values dropped before each dense layer, in [0, 1).
        activation: Activation of the output layer; by default `softmax`, for a single class `sigmoid`.
        hidden_activation: Activation of the hidden layers.
        after: Name of the backbone's layer whose output the head takes; the layers behind it are dropped.
        output_key: Which output to take where there are several.
        rescaling: What the outputs are multiplied with, and what is then added: a number for each output, or for all.

    Returns:
        A functional model that shares the backbone's layers.

    Raises:
        FinetuneError: If there is no single output to take, or the pooling, an activation or `after` does not fit.
    """
    # Everything that may be wrong is checked before the first layer is made.
    features = _features(backbone, after, output_key)
    pool = _pooling(pooling, len(features.shape), backbone.name)
    activation = _check_activation(activation or ("softmax" if classes > 1 else "sigmoid"))
    hidden_activation = _check_activation(hidden_activation)

    def dropped(x: Any, name: str) -> Any:
        return layers.Dropout(dropout, name=name)(x) if dropout else x

    # The head is a model of its own, called on the features: one layer to Keras, one prefix to the layer tree.
    inputs = keras.Input(features.shape[1:])
    x = pool(inputs) if pool is not None else inputs
    for number, width in enumerate(units):
        x = dropped(x, f"dropout_{number}")
        x = layers.Dense(width, activation=hidden_activation, name=f"hidden_{number}")(x)
    x = dropped(x, "dropout")
    # float32 also under a mixed policy: the loss of probabilities rounded to 8 or 11 bits is unstable.
    x = layers.Dense(classes, activation=activation, dtype="float32", name="output")(x)
    if rescaling is not None:
        x = layers.Rescaling(*rescaling, dtype="float32", name="rescaling")(x)
    head = keras.Model(inputs, x, name=HEAD)
    try:
        return keras.Model(inputs_of(backbone), head(features), name=backbone.name)
    except ValueError as error:  # Keras refuses two layers of one name
        names = [layer.name for layer in backbone.layers]
        if HEAD not in names:
            raise
        raise FinetuneError(
            f"The head is the only layer named `{HEAD}`. `{backbone.name}` already has a layer of that name. To "
            f"replace it, name the layer before it: `after: {names[max(names.index(HEAD) - 1, 0)]}`."
        ) from error


def _features(backbone: keras.Model, after: str | None, output_key: str | None) -> Any:
    """Returns the symbolic tensor that the head takes."""
    if not isinstance(backbone, keras.Function | keras.Sequential):
        raise FinetuneError(
            f"A head can only be added to a functional or Sequential model. `{backbone.name}` is a "
            f"`{type(backbone).__name__}`, "
            "whose output is not known before it runs. Add the head in the code that builds it."
        )
    if after is None:
        # `output` keeps the structure and the keys; a Sequential model has a single output and may lack it.
        outputs = backbone.outputs[0] if isinstance(backbone, keras.Sequential) else backbone.output
        return select_output(outputs, output_key, backbone.name)
    names = [layer.name for layer in backbone.layers]
    if after not in names:
        raise FinetuneError(
            f"`after` names a layer of the network. `{backbone.name}` has no layer `{after}`; its last are "
            f"{quote(names[-5:])}.{did_you_mean(after, names)}"
        )
    return select_output(backbone.get_layer(after).output, output_key, after)


def inputs_of(model: Any) -> Any:
    """Returns the symbolic inputs of a functional or Sequential model, in their structure.

    A model's `inputs` lists them without their structure, and the `input` of a Sequential model fails once the model
    was called on other inputs too.
    """
    return model.inputs[0] if isinstance(model, keras.Sequential) else model.input


def select_output(outputs: Any, key: str | None, name: str) -> Any:
    """Returns the single output of a network, or of several outputs the one with the key.

    Args:
        outputs: What the network returns: a tensor, or a dict, list or tuple of tensors.
        key: A key of the dict, or a position in the list as text; `None` where there is a single output.
        name: What messages call the network.

    Raises:
        FinetuneError: If there are several outputs and no key, or no output has the key.
    """
    if not isinstance(outputs, dict | list | tuple):
        if key is None:
            return outputs
        raise FinetuneError(f"`output_key` is for networks with several outputs. `{name}` has one. Remove it.")
    # Sorted, since the outputs of a loaded SavedModel come in another order in each process.
    is_dict = isinstance(outputs, dict)
    by_key = dict(sorted(outputs.items())) if is_dict else {str(n): output for n, output in enumerate(outputs)}
    if key is None and len(by_key) == 1:
        return next(iter(by_key.values()))
    if key is None or key not in by_key:
        received = f"there is no `{key}`" if key else "none is selected"
        raise FinetuneError(
            f"A recipe trains one output. `{name}` has {quote(by_key)}; {received}. Select one with `output_key`."
            f"{did_you_mean(key, list(by_key)) if key else ''}"
        )
    return by_key[key]


def _pooling(kind: str | None, rank: int, name: str) -> Any:
    """Returns a function or layer that pools a tensor of `rank` axes, batch included; `None` for no pooling."""
    kind = kind or ("average" if rank > 2 else "none")
    if kind == "none":
        return None
    if kind == "flatten":
        return layers.Flatten(name="pooling")
    if kind == "first" and rank == 3:  # e.g. BERT's [CLS]; slicing needs no layer and no `Lambda`
        return lambda x: x[:, 0]
    if (kind, rank) not in _GLOBAL_POOLING:
        fitting = [known for known, axes in _GLOBAL_POOLING if axes == rank]
        fitting += ["first"] if rank == 3 else ["none"] if rank == 2 else []
        raise FinetuneError(
            f"Pooling turns the backbone's output into one vector per row. The output of `{name}` has {rank} axes, "
            f"batch included, and `pooling: {kind}` needs {'3' if kind == 'first' else '3 to 5'}. Choose one of "
            f"{quote([*fitting, 'flatten'])}."
        )
    return _GLOBAL_POOLING[kind, rank](name="pooling")


def _check_activation(name: str) -> str:
    try:
        keras.activations.get(name)
    except (ValueError, TypeError) as error:
        known = [key for key, value in vars(keras.activations).items() if callable(value) and key.islower()]
        raise FinetuneError(
            f"An activation is the name of a function in `keras.activations`. Received `{name}`."
            f"{did_you_mean(name, known)} For no activation, write `linear`."
        ) from error
    return name
