"""The usual head on any backbone, always named `head`."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import layers

from finetune.errors import FinetuneError, did_you_mean, quote

HEAD = "head"


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
) -> keras.Model:
    """Puts a head named `head` on a backbone; all its weights are below that prefix, the backbone's keep their names.

    Args:
        backbone: A functional or Sequential model with its weights.
        classes: Width of the last layer, >= 1.
        units: Widths of hidden dense layers before it.
        pooling: `average` or `max` over all axes between rows and channels, `first` (of a sequence), `flatten`, or
            `none`; by default `average` where there are such axes.
        dropout: Share of values dropped before each dense layer, in [0, 1).
        activation: Of the last layer; by default `softmax`, for a single class `sigmoid`.
        hidden_activation: Of the hidden layers.
        after: Name of the backbone's layer after which the head begins, so that an old head falls away.
        output_key: Which output to take where there are several.

    Returns:
        A functional model on the backbone's own layers.

    Raises:
        FinetuneError: If there is no single output to put it on, or the pooling, an activation or a layer does not fit.
    """
    features = _features(backbone, after, output_key)
    made = {
        "units": units,
        "classes": classes,
        "dropout": dropout,
        "activation": _activation(activation or ("softmax" if classes > 1 else "sigmoid")),
        "hidden_activation": _activation(hidden_activation),
    }
    head = _make_head(tuple(features.shape[1:]), _pooling(pooling, len(features.shape), backbone.name), made)
    try:
        return keras.Model(inputs_of(backbone), head(features), name=backbone.name)
    except ValueError as error:
        if HEAD not in [layer.name for layer in backbone.layers]:
            raise
        raise FinetuneError(
            f"The head is the only layer named `{HEAD}`. `{backbone.name}` has one already. To put the new one in its "
            f"place name the layer before it: `after: {_before(backbone)}`."
        ) from error


def _before(backbone: keras.Model) -> str:
    names = [layer.name for layer in backbone.layers]
    return names[max(names.index(HEAD) - 1, 0)]


def _features(backbone: keras.Model, after: str | None, output_key: str | None) -> Any:
    if not isinstance(backbone, keras.Function | keras.Sequential):
        raise FinetuneError(
            f"A head is put on a functional or Sequential model. `{backbone.name}` is a `{type(backbone).__name__}`, "
            "whose output is not known. Put the head on where it is built."
        )
    if after is None:
        outputs = backbone.outputs[0] if isinstance(backbone, keras.Sequential) else backbone.output
        return one_output(outputs, output_key, backbone.name)
    names = [layer.name for layer in backbone.layers]
    if after not in names:
        raise FinetuneError(
            f"A head begins after a layer of the network. `{backbone.name}` has no layer `{after}`; its last are "
            f"{quote(names[-5:])}.{did_you_mean(after, names)}"
        )
    return one_output(backbone.get_layer(after).output, output_key, after)


def inputs_of(model: Any) -> Any:
    """Returns the symbolic inputs of a functional or Sequential model, in their structure."""
    return model.inputs[0] if isinstance(model, keras.Sequential) else model.input


def one_output(outputs: Any, key: str | None, name: str) -> Any:
    """Returns the one output of a network, or of several the one with the key.

    Raises:
        FinetuneError: If there are several and no key, or no such one.
    """
    if not isinstance(outputs, dict | list | tuple):
        if key is None:
            return outputs
        raise FinetuneError(f"`output_key` is for networks with several outputs. `{name}` has one. Leave it out.")
    by_key = dict(outputs) if isinstance(outputs, dict) else {str(n): one for n, one in enumerate(outputs)}
    if key is None and len(by_key) == 1:
        return next(iter(by_key.values()))
    if key is None or key not in by_key:
        received = f"there is no `{key}`" if key else "none is chosen"
        raise FinetuneError(
            f"A recipe trains one output. `{name}` has {quote(by_key)}; {received}. Choose one with `output_key`."
            f"{did_you_mean(key, list(by_key)) if key else ''}"
        )
    return by_key[key]


def _make_head(shape: tuple[Any, ...], pooling: Any, made: dict[str, Any]) -> keras.Model:
    x = features = keras.Input(shape)
    if pooling is not None:
        x = pooling(x)
    for n, width in enumerate(made["units"]):
        x = _dropped(x, made, f"dropout_{n}")
        x = layers.Dense(width, activation=made["hidden_activation"], name=f"hidden_{n}")(x)
    x = _dropped(x, made, "dropout")
    # float32 also under a mixed policy: losses of rounded probabilities are unstable.
    x = layers.Dense(made["classes"], activation=made["activation"], dtype="float32", name="output")(x)
    return keras.Model(features, x, name=HEAD)


def _dropped(x: Any, made: dict[str, Any], name: str) -> Any:
    return layers.Dropout(made["dropout"], name=name)(x) if made["dropout"] else x


def _pooling(wanted: str | None, rank: int, name: str) -> Any:
    """Returns the pooling layer, `None` for none; `rank` counts the axis of the rows."""
    kind = wanted or ("average" if rank > 2 else "none")
    if kind == "none":
        return None
    if kind == "flatten":
        return layers.Flatten(name="pooling")
    global_pooling = {
        ("average", 3): layers.GlobalAveragePooling1D,
        ("average", 4): layers.GlobalAveragePooling2D,
        ("average", 5): layers.GlobalAveragePooling3D,
        ("max", 3): layers.GlobalMaxPooling1D,
        ("max", 4): layers.GlobalMaxPooling2D,
        ("max", 5): layers.GlobalMaxPooling3D,
    }
    if kind == "first" and rank == 3:
        return lambda x: x[:, 0]
    if (kind, rank) not in global_pooling:
        fitting = [known for known, axes in global_pooling if axes == rank]
        fitting += ["first"] if rank == 3 else ["none"] if rank == 2 else []
        raise FinetuneError(
            f"Pooling brings what the backbone gives to one vector for each row. `{name}` gives {rank} axes, rows "
            f"included, and `pooling: {kind}` is for {'3' if kind == 'first' else '3 to 5'}. Say one of "
            f"{quote([*fitting, 'flatten'])}."
        )
    return global_pooling[kind, rank](name="pooling")


def _activation(name: str) -> str:
    try:
        keras.activations.get(name)
    except (ValueError, TypeError) as error:
        known = [key for key, value in vars(keras.activations).items() if callable(value) and key.islower()]
        raise FinetuneError(
            f"An activation is one that Keras knows. Received `{name}`.{did_you_mean(name, known)} Without any say "
            "`linear`."
        ) from error
    return name
