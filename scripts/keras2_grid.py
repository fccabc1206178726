#!/usr/bin/env python3
"""Writes networks with Keras 2 (tf_keras), reads them back into Keras 3, and says where restoring them fails.

The grid: every layer of Keras 2 that has weights and still exists in Keras 3, under a name of the user's and under one
of Keras' own, and every network of `keras.applications` that both have, each in six formats. A network counts as
restored if it computes what the network of Keras 2 computes (layers), or if each of its weights is the one of Keras 2
at the same place (applications, whose outputs with random weights say little).

    python scripts/keras2_grid.py                      # layers; a few minutes
    python scripts/keras2_grid.py --applications all   # hours for all; it goes on where it was stopped
    python scripts/keras2_grid.py --applications DenseNet121 MobileNetV3Small --formats h5 weights.h5

Results are appended to `--out`, a line of JSON for each cell; cells that are in it are not repeated.
"""

import argparse
import inspect
import json
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from finetune.startup import start_tensorflow

start_tensorflow()  # without the messages that importing it prints otherwise

import keras  # noqa: E402 - see above
import numpy as np  # noqa: E402
import tf_keras  # noqa: E402

import finetune  # noqa: E402

FORMATS = ("h5", "model.h5", "weights.h5", "keras", "checkpoint", "saved_model")
Make = Callable[..., Any]  # from `keras` or `tf_keras`, and `name=` or nothing, to a layer or a model

# Shape of an example, and the layer; `k` is `keras` or `tf_keras`. A second entry of a class varies an argument that
# changes which weights there are. SpectralNormalization of tf_keras cannot be built beside Keras 3.
LAYERS: dict[str, tuple[tuple[int, ...], Make]] = {
    "AdditiveAttention": ((5, 4), lambda k, **n: _of_list(k.layers.AdditiveAttention(**n))),
    "Attention": ((5, 4), lambda k, **n: _of_list(k.layers.Attention(use_scale=True, **n))),
    "BatchNormalization": ((4,), lambda k, **n: k.layers.BatchNormalization(**n)),
    "Bidirectional": ((5, 4), lambda k, **n: k.layers.Bidirectional(k.layers.LSTM(3), **n)),
    "Bidirectional of GRU": ((5, 4), lambda k, **n: k.layers.Bidirectional(k.layers.GRU(3), merge_mode="sum", **n)),
    "Conv1D": ((8, 3), lambda k, **n: k.layers.Conv1D(2, 3, **n)),
    "Conv1DTranspose": ((8, 3), lambda k, **n: k.layers.Conv1DTranspose(2, 3, **n)),
    "Conv2D": ((6, 6, 3), lambda k, **n: k.layers.Conv2D(2, 3, use_bias=False, **n)),
    "Conv2DTranspose": ((6, 6, 3), lambda k, **n: k.layers.Conv2DTranspose(2, 3, **n)),
    "Conv3D": ((4, 4, 4, 2), lambda k, **n: k.layers.Conv3D(2, 2, **n)),
    "Conv3DTranspose": ((4, 4, 4, 2), lambda k, **n: k.layers.Conv3DTranspose(2, 2, **n)),
    "ConvLSTM1D": ((3, 6, 2), lambda k, **n: k.layers.ConvLSTM1D(2, 3, recurrent_activation="sigmoid", **n)),
    "ConvLSTM2D": ((3, 5, 5, 2), lambda k, **n: k.layers.ConvLSTM2D(2, 3, recurrent_activation="sigmoid", **n)),
    "ConvLSTM3D": ((3, 4, 4, 4, 2), lambda k, **n: k.layers.ConvLSTM3D(2, 3, recurrent_activation="sigmoid", **n)),
    "Dense": ((4,), lambda k, **n: k.layers.Dense(3, **n)),
    "DepthwiseConv1D": ((8, 3), lambda k, **n: k.layers.DepthwiseConv1D(3, **n)),
    "DepthwiseConv2D": ((6, 6, 3), lambda k, **n: k.layers.DepthwiseConv2D(3, **n)),
    "EinsumDense": ((5, 4), lambda k, **n: k.layers.EinsumDense("abc,cd->abd", (5, 6), bias_axes="d", **n)),
    "Embedding": ((5,), lambda k, **n: k.layers.Embedding(7, 3, **n)),
    "GRU": ((5, 4), lambda k, **n: k.layers.GRU(3, **n)),
    "GRU of the first kind": ((5, 4), lambda k, **n: k.layers.GRU(3, reset_after=False, **n)),
    "GRUCell": ((5, 4), lambda k, **n: k.layers.RNN(k.layers.GRUCell(3), **n)),
    "GroupNormalization": ((6, 4), lambda k, **n: k.layers.GroupNormalization(2, **n)),
    "LSTM": ((5, 4), lambda k, **n: k.layers.LSTM(3, **n)),
    "LSTMCell": ((5, 4), lambda k, **n: k.layers.RNN(k.layers.LSTMCell(3), **n)),
    "LayerNormalization": ((4,), lambda k, **n: k.layers.LayerNormalization(**n)),
    "MultiHeadAttention": ((5, 4), lambda k, **n: _of_two(k.layers.MultiHeadAttention(2, 3, dropout=0.1, **n))),
    "MultiHeadAttention without bias": (
        (5, 4),
        lambda k, **n: _of_two(k.layers.MultiHeadAttention(2, 3, use_bias=False, value_dim=2, **n)),
    ),
    "Normalization": ((4,), lambda k, **n: k.layers.Normalization(**n)),
    "PReLU": ((4,), lambda k, **n: k.layers.PReLU(**n)),
    "SeparableConv1D": ((8, 3), lambda k, **n: k.layers.SeparableConv1D(2, 3, **n)),
    "SeparableConv2D": ((6, 6, 3), lambda k, **n: k.layers.SeparableConv2D(2, 3, **n)),
    "SimpleRNN": ((5, 4), lambda k, **n: k.layers.SimpleRNN(3, **n)),
    "SimpleRNNCell": ((5, 4), lambda k, **n: k.layers.RNN(k.layers.SimpleRNNCell(3), **n)),
    "StackedRNNCells": ((5, 4), lambda k, **n: k.layers.RNN([k.layers.LSTMCell(3), k.layers.GRUCell(2)], **n)),
    "TimeDistributed": ((5, 4), lambda k, **n: k.layers.TimeDistributed(k.layers.Dense(3), **n)),
    "TimeDistributed of a model": ((5, 4), lambda k, **n: k.layers.TimeDistributed(_inner_sequential(k), **n)),
    "a Sequential inside": ((4,), lambda k, **n: _inner_sequential(k, **n)),
    "a model inside": ((5, 4), lambda k, **n: _inner_model(k, **n)),
}


def _of_two(layer: Any) -> Make:
    return lambda x: layer(x, x)


def _of_list(layer: Any) -> Make:
    return lambda x: layer([x, x])


def _inner_sequential(k: Any, **named: Any) -> Any:
    parts = [k.layers.Dense(3), k.layers.BatchNormalization(), k.layers.PReLU(), k.layers.Dense(2)]
    return k.Sequential([k.Input((4,)), *parts], **named)


def _inner_model(k: Any, **named: Any) -> Any:
    x = k.Input((5, 4))
    attended = k.layers.MultiHeadAttention(2, 3)(x, x)
    return k.Model(x, k.layers.Dense(2)(k.layers.LayerNormalization()(k.layers.Add()([x, attended]))), **named)


def network(k: Any, name: str, layer_name: str) -> Any:
    """Builds a small network around a layer of the grid.

    Args:
        k: `keras` or `tf_keras`.
        name: A key of `LAYERS`.
        layer_name: The layer's name; empty leaves the choice to Keras.
    """
    shape, make = LAYERS[name]
    layer = make(k, **({"name": layer_name} if layer_name else {}))
    inputs = k.Input(shape, dtype="int32" if name == "Embedding" else "float32")
    x = layer(inputs)
    return k.Model(inputs, k.layers.Dense(3)(k.layers.Flatten()(x)))


def applications() -> dict[str, tuple[Any, Any]]:
    """Returns the constructors of the networks that both have, by name: of Keras 3, of Keras 2."""

    def constructors(module: Any) -> dict[str, Any]:
        return {name: value for name, value in vars(module).items() if inspect.isfunction(value) and name[0].isupper()}

    ours, theirs = constructors(keras.applications), constructors(tf_keras.applications)
    return {name: (ours[name], theirs[name]) for name in sorted(ours.keys() & theirs.keys())}


def scramble(model: Any) -> None:
    """Gives every weight random values, positive for variances."""
    rng = np.random.default_rng(0)
    for weight in model.weights:
        values = rng.uniform(0.1, 1, weight.shape)
        weight.assign(values.astype("int64") if "int" in str(weight.dtype) else values)


def save(model: Any, kind: str, folder: Path) -> Path:
    """Saves a model of Keras 2 in a format of the grid, and returns the path."""
    path = folder / ("m" if kind in ("checkpoint", "saved_model") else f"m.{kind}")
    if kind in ("h5", "weights.h5", "checkpoint"):
        model.save_weights(str(path))
    else:
        model.save(str(path), **({"save_format": "tf"} if kind == "saved_model" else {}))
    return path


@lru_cache(maxsize=1)  # building them takes most of the time of a cell, and the next is of another format
def _networks_of_layer(name: str, layer_name: str, layer: tuple[tuple[int, ...], Make]) -> tuple[Any, Any, Any, Any]:
    """Returns the network of Keras 2, with random weights, that of Keras 3, a batch, and what the first computes."""
    theirs, ours = network(tf_keras, name, layer_name), network(keras, name, layer_name)
    scramble(theirs)
    shape, rng = (2, *layer[0]), np.random.default_rng(1)
    x = rng.integers(0, 7, shape) if name == "Embedding" else rng.normal(size=shape).astype("float32")
    return theirs, ours, x, np.asarray(theirs(x))


@lru_cache(maxsize=1)
def _networks_of_application(name: str) -> tuple[Any, Any]:
    make, make_theirs = applications()[name]
    theirs = make_theirs(weights=None)
    scramble(theirs)
    return make(weights=None), theirs


def _clear(model: Any) -> None:
    """Sets all weights to 0, so that those of the cell before count for nothing."""
    for weight in model.weights:
        weight.assign(np.zeros(weight.shape))


def layer_cell(name: str, layer_name: str, kind: str) -> str:
    """Returns what is wrong with a layer in a format; empty if it computes what it computed in Keras 2."""
    theirs, ours, x, expected = _networks_of_layer(name, layer_name, LAYERS[name])
    _clear(ours)
    with tempfile.TemporaryDirectory() as folder:
        path = save(theirs, kind, Path(folder))
        try:
            finetune.restore(ours, path)
        except finetune.FinetuneError as error:
            return f"refused{_by_keras(network(keras, name, layer_name), path)}: {error}"
    computed = np.asarray(ours(x))
    return (
        ""
        if np.allclose(computed, expected, atol=1e-4, rtol=1e-4)
        else f"differs by {np.abs(computed - expected).max()}"
    )


def application_cell(name: str, kind: str) -> str:
    """Returns what is wrong with a network in a format; empty if every weight is at its place."""
    ours, theirs = _networks_of_application(name)
    _clear(ours)
    with tempfile.TemporaryDirectory() as folder:
        path = save(theirs, kind, Path(folder))
        try:
            finetune.restore(ours, path)
        except finetune.FinetuneError as error:
            return f"refused{_by_keras(applications()[name][0](weights=None), path)}: {error}"
    expected = [weight.numpy() for layer in theirs.layers for weight in layer.weights]
    restored = [weight.numpy() for layer in ours.layers for weight in layer.weights]
    wrong = [i for i, (a, b) in enumerate(zip(expected, restored, strict=True)) if not np.array_equal(a, b)]
    return f"{len(wrong)} of {len(expected)} weights are at another place, first number {wrong[0]}" if wrong else ""


def _by_keras(model: Any, path: Path) -> str:
    try:
        model.load_weights(str(path))
    except Exception:  # whatever Keras raises, it does not load the file either
        return ""
    return " (Keras loads it)"


def cells(options: argparse.Namespace) -> Iterator[tuple[str, Callable[[], str]]]:
    """Yields the name of each cell that was asked for, and the function that computes it."""
    for name in options.layers:
        for layer_name in ("", "body"):
            for kind in options.formats:
                yield (
                    f"{name} {layer_name or 'unnamed'} {kind}",
                    lambda n=name, ln=layer_name, k=kind: layer_cell(n, ln, k),
                )
    for name in options.applications:
        for kind in options.formats:
            yield f"{name} {kind}", lambda n=name, k=kind: application_cell(n, k)


def main() -> None:
    """Computes the cells that are not in the file of results yet, and prints what fails."""
    options = parse_options()
    done = (
        {row["cell"]: row["wrong"] for row in map(json.loads, options.out.read_text().splitlines())}
        if options.out.exists()
        else {}
    )
    warnings.simplefilter("ignore")  # Keras 2 warns about each format but one
    with options.out.open("a") as file:
        for name, compute in cells(options):
            if name not in done:
                keras.backend.clear_session()
                tf_keras.backend.clear_session()
                done[name] = compute()
                file.write(json.dumps({"cell": name, "wrong": done[name]}) + "\n")
                file.flush()
            print(f"{name}: {done[name] or 'restored'}", flush=True)
    failed = sum(bool(done[name]) for name, _ in cells(options))
    print(f"{failed} failed")
    raise SystemExit(bool(failed))


def parse_options() -> argparse.Namespace:
    """Returns the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", nargs="*", default=list(LAYERS), help="keys of the table of layers (default: all)")
    parser.add_argument("--applications", nargs="*", default=[], help="networks of keras.applications, or `all`")
    parser.add_argument("--formats", nargs="+", default=list(FORMATS), choices=FORMATS)
    parser.add_argument("--out", type=Path, default=Path("keras2_grid.jsonl"), help="the file of results")
    options = parser.parse_args()
    if options.applications == ["all"]:
        options.applications = list(applications())
    return options


if __name__ == "__main__":
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
    main()
