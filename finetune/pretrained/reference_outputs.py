"""Reference outputs: what a network that is known to be right gives out for a few inputs.

A wrong axis or order in a foreign layout loads silently, with every shape right, and ruins the model. Only its outputs
tell.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from finetune.errors import RestoreError, did_you_mean, quote, reason
from finetune.pretrained.formats.detect import is_zip

RTOL, ATOL = 1e-4, 1e-5
_PARTS = ("input", "output")


@dataclass(frozen=True)
class Reference:
    """Inputs and the outputs that belong to them.

    Attributes:
        path: The file.
        inputs: By the name of the model's input; under an empty name for a model with one input.
        outputs: By the name of a layer, or of one of several outputs; under an empty name the model's own output.
    """

    path: str
    inputs: Mapping[str, np.ndarray]
    outputs: Mapping[str, np.ndarray]


def read_reference(path: str | Path) -> Reference:
    """Reads an npz file with `input` (or `input/<name>`) and `output` (or `output/<layer>`).

    Raises:
        RestoreError: There is no such file, or it holds something else.
    """
    arrays = _arrays(Path(path))
    if {name.partition("/")[0] for name in arrays} != set(_PARTS):
        raise RestoreError(
            "A file of reference outputs is an npz with `input` (or `input/<name>` of each) and `output` (or "
            f"`output/<layer>`). `{path}` holds {quote(arrays) or 'nothing'}. Write one with `finetune reference`."
        )
    inputs, outputs = ({_below(part, name): arrays[name] for name in arrays if _is_of(part, name)} for part in _PARTS)
    return Reference(str(path), inputs, outputs)


def _arrays(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise RestoreError(
            f"A file of reference outputs must exist. There is no `{path}`. Write it with `finetune reference`."
        )
    try:
        if not is_zip(path):
            raise ValueError("it is no npz file")
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except Exception as error:  # what NumPy raises over a damaged file is not to be foreseen
        raise RestoreError(
            f"A file of reference outputs is an npz with plain arrays. `{path}` cannot be read: {reason(error)}. "
            "Write it with `finetune reference`."
        ) from error


def _is_of(part: str, name: str) -> bool:
    return name.partition("/")[0] == part


def _below(part: str, name: str) -> str:
    return name[len(part) + 1 :]


def as_arrays(inputs: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns what `numpy.savez` must write for `read_reference`."""
    held = {"input": inputs, "output": outputs}
    return {f"{part}/{name}".rstrip("/"): array for part in _PARTS for name, array in held[part].items()}


def outputs_of(model: Any, inputs: Mapping[str, np.ndarray], layers: Sequence[str] = ()) -> dict[str, np.ndarray]:
    """Computes what a network gives out, without training behaviour.

    Args:
        model: A Keras model, or anything that takes a batch when it is called.
        inputs: As in `Reference`.
        layers: Names of layers, or of outputs, an empty one for the model's only output; by default all its outputs.

    Raises:
        RestoreError: The model takes other inputs, or has no such layer or output.
    """
    call = _caller(model, [name for name in layers if name])
    given: Any = inputs[""] if list(inputs) == [""] else dict(inputs)
    if isinstance(model, keras.Function) and isinstance(model.input, list) and not isinstance(given, dict):
        given = [given]
    try:
        every = call(given)
    except RestoreError:
        raise
    except Exception as error:  # the model's own code runs
        raise RestoreError(
            f"Reference inputs must go through the model. It takes no {_described(inputs)}: {reason(error)}."
        ) from error
    own = every.pop("")
    own = {str(name): value for name, value in own.items()} if isinstance(own, dict) else {"": own}
    every, layers = every | own, layers or list(own)
    unknown = [name for name in layers if name not in every]
    if unknown:
        known = [*filter(None, every), *(layer.name for layer in getattr(model, "layers", []))]
        raise RestoreError(
            f"Reference outputs are those of the model, by name, or of a layer. It has none of {quote(unknown)}."
            f"{did_you_mean(unknown[0], known) or f' There are {quote(known)}.'}"
        )
    return {name: np.asarray(every[name]) for name in layers}


def _described(inputs: Mapping[str, np.ndarray]) -> str:
    return " and ".join(f"`input{'/' * bool(name)}{name}` of shape {array.shape}" for name, array in inputs.items())


def _caller(model: Any, layers: Sequence[str]) -> Callable[[Any], dict[str, Any]]:
    if not isinstance(model, keras.Model):
        return lambda batch: {"": model(batch)}
    known = [layer.name for layer in model.layers]
    inner = [name for name in layers if name in known]
    if not inner:
        return lambda batch: {"": model(batch, training=False)}
    if not isinstance(model, keras.Function | keras.Sequential):
        raise RestoreError(
            f"The output of a layer inside can be had of functional and Sequential models. `{model.name}` is a "
            f"`{type(model).__name__}`. Take the model's own output."
        )
    is_graph = isinstance(model, keras.Function)  # a Sequential hands its input and output out in lists alone
    given, own = (model.input, model.output) if is_graph else (model.inputs[0], model.outputs[0])
    wanted: Any = {"": own} | {name: model.get_layer(name).output for name in inner}
    return lambda batch: keras.Model(given, wanted)(batch, training=False)


def agreement(model: Any, reference: Reference, *, rtol: float = RTOL, atol: float = ATOL) -> float:
    """Compares what a network gives out with a reference.

    Args:
        model: The network.
        reference: What it should give out.
        rtol: Allowed difference as a share of the expected value.
        atol: Allowed difference beside that.

    Returns:
        The largest absolute difference.

    Raises:
        RestoreError: It gives out something else.
    """
    layers = list(reference.outputs)
    got = outputs_of(model, reference.inputs, layers)
    problems = [
        problem
        for name in layers
        if (problem := _problem(name, got[name], reference.outputs[name], rtol=rtol, atol=atol))
    ]
    if problems:
        raise RestoreError(
            f"The restored model must give the outputs in `{reference.path}`. {' '.join(problems)} All shapes agree, "
            "so look for a wrong axis or order in `transform`, a weight under the wrong name, or another preprocessing."
        )
    return max(float(_difference(got[name], reference.outputs[name]).max(initial=0)) for name in layers)


def _problem(name: str, got: np.ndarray, wanted: np.ndarray, *, rtol: float, atol: float) -> str:
    about = f"`output/{name}`" if name else "`output`"
    if got.shape != wanted.shape:
        return f"{about} is of shape {got.shape} instead of {wanted.shape}."
    off = ~(_difference(got, wanted) <= atol + rtol * np.abs(wanted.astype("float64")))  # true for NaN
    if not off.any():
        return ""
    return (
        f"{about} differs by up to {_difference(got, wanted).max():.3g}, and {off.sum():,} of its {got.size:,} values "
        f"by more than {atol:g} + {rtol:g} x the value."
    )


def _difference(got: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    return np.abs(got.astype("float64") - wanted.astype("float64"))
