"""Compares the outputs of a restored network with reference outputs: those of a network that is known to be right.

Weights with a wrong axis or order have the right shapes, load without an error and ruin the network. Only its outputs
show that. A reference is an npz file with a few inputs and the outputs that belong to them; `finetune reference` writes
one, and `verify` of `restore` reads it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from finetune.errors import FinetuneError, RestoreError, did_you_mean, quote, reason
from finetune.files.npy_headers import check_arrays
from finetune.machine_failures import raise_machine_failure
from finetune.pretrained.formats.detect import is_zip

# Room for the order in which other libraries and machines sum float32, and far below what a wrong layout changes.
RTOL, ATOL = 1e-4, 1e-5
_PARTS = ("input", "output")


@dataclass(frozen=True)
class Reference:
    """Inputs and the outputs that belong to them.

    Attributes:
        path: The file.
        inputs: Arrays by the name of the model's input; under an empty name for a model with one input.
        outputs: Arrays by the name of a layer or of one of several outputs; a single output under an empty name.
    """

    path: str
    inputs: Mapping[str, np.ndarray]
    outputs: Mapping[str, np.ndarray]


def read_reference(path: str | Path) -> Reference:
    """Reads an npz file with `input` (or `input/<name>`) and `output` (or `output/<layer>`).

    Raises:
        RestoreError: There is no such file, it is not an npz file, or it lacks inputs or outputs.
    """
    arrays = _arrays(Path(path))
    if {name.partition("/")[0] for name in arrays} != set(_PARTS):
        raise RestoreError(
            "A file of reference outputs is an npz with `input` (or `input/<name>` of each) and `output` (or "
            f"`output/<layer>`). `{path}` holds {quote(arrays) or 'nothing'}. Write one with `finetune reference`."
        )
    inputs, outputs = (
        {name[len(part) + 1 :]: array for name, array in arrays.items() if name.partition("/")[0] == part}
        for part in _PARTS
    )
    return Reference(str(path), inputs, outputs)


def _arrays(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise RestoreError(
            f"A file of reference outputs must exist. There is no `{path}`. Write it with `finetune reference`."
        )
    try:
        if not is_zip(path):
            raise ValueError("it is not an npz file")
        check_arrays(path)
        # `allow_pickle=False`: reading a pickle runs the code in it.
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except FinetuneError:
        raise
    except Exception as error:  # over damaged files NumPy and zipfile raise anything
        raise_machine_failure(error, f"Reading `{path}`")
        raise RestoreError(
            f"A file of reference outputs is an npz with plain arrays. `{path}` cannot be read: {reason(error)}. "
            "Write it with `finetune reference`."
        ) from error


def as_arrays(inputs: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the arrays that `numpy.savez` must write for `read_reference`, by name.

    >>> list(as_arrays({"": np.zeros(2)}, {"": np.ones(2), "body": np.ones(3)}))
    ['input', 'output', 'output/body']
    """
    parts = {"input": inputs, "output": outputs}
    return {f"{part}/{name}".rstrip("/"): array for part in _PARTS for name, array in parts[part].items()}


def outputs_of(model: Any, inputs: Mapping[str, np.ndarray], layers: Sequence[str] = ()) -> dict[str, np.ndarray]:
    """Computes the outputs of a network in inference mode.

    Args:
        model: A Keras model, or anything that takes a batch when it is called.
        inputs: Arrays of any shape that the model takes, by name as in `Reference`.
        layers: Names of layers or of outputs, an empty name for the model's only output; by default all its outputs.

    Returns:
        The outputs by name.

    Raises:
        RestoreError: The model takes other inputs, or has no such layer or output.
    """
    # Names of layers first: which model to build depends on the layers whose outputs are asked for.
    call = _caller(model, [name for name in layers if name])
    batch: Any = inputs[""] if list(inputs) == [""] else dict(inputs)
    # A functional model made with a list of one input takes a list.
    if isinstance(model, keras.Function) and isinstance(model.input, list) and not isinstance(batch, dict):
        batch = [batch]
    try:
        outputs = call(batch)
    except RestoreError:
        raise
    except Exception as error:  # the model's own code runs, and may raise anything
        raise_machine_failure(error, "Running the model on reference inputs")
        received = " and ".join(f"`input{'/' * bool(name)}{name}` of shape {x.shape}" for name, x in inputs.items())
        raise RestoreError(
            f"Reference inputs must be inputs of the model. It does not take {received}: {reason(error)}."
        ) from error
    of_model = outputs.pop("")
    # A model with several outputs returns a dict of them, by name.
    of_model = {str(name): value for name, value in of_model.items()} if isinstance(of_model, dict) else {"": of_model}
    outputs, layers = outputs | of_model, layers or list(of_model)
    unknown = [name for name in layers if name not in outputs]
    if unknown:
        known = [*filter(None, outputs), *(layer.name for layer in getattr(model, "layers", []))]
        raise RestoreError(
            f"Reference outputs are outputs of the model or of its layers, by name. It has no {quote(unknown)}."
            f"{did_you_mean(unknown[0], known) or f' There are {quote(known)}.'}"
        )
    return {name: np.asarray(outputs[name]) for name in layers}


def _caller(model: Any, layers: Sequence[str]) -> Callable[[Any], dict[str, Any]]:
    """Returns a function from a batch to the model's outputs (under an empty name) and those of the layers."""
    if not isinstance(model, keras.Model):
        return lambda batch: {"": model(batch)}
    known = [layer.name for layer in model.layers]
    inner = [name for name in layers if name in known]
    if not inner:
        return lambda batch: {"": model(batch, training=False)}
    if not isinstance(model, keras.Function | keras.Sequential):
        raise RestoreError(
            "Outputs of inner layers can only be taken from functional and Sequential models. "
            f"`{model.name}` is a `{type(model).__name__}`. Take the model's own output."
        )
    # `input` and `output` of a functional model keep their structure; a Sequential model has them in lists.
    is_functional = isinstance(model, keras.Function)
    start, end = (model.input, model.output) if is_functional else (model.inputs[0], model.outputs[0])
    ends: Any = {"": end} | {name: model.get_layer(name).output for name in inner}
    return lambda batch: keras.Model(start, ends)(batch, training=False)


def compare_outputs(model: Any, reference: Reference, *, rtol: float = RTOL, atol: float = ATOL) -> float:
    """Compares the outputs of a network with a reference: `|actual - expected| <= atol + rtol * |expected|`.

    Args:
        model: The network.
        reference: Its inputs and the expected outputs.
        rtol: Allowed difference as a share of the expected value, >= 0.
        atol: Allowed difference on top of that, >= 0.

    Returns:
        The largest absolute difference.

    Raises:
        RestoreError: An output differs in shape, or by more than is allowed; NaN always differs.
    """
    layers = list(reference.outputs)
    actual = outputs_of(model, reference.inputs, layers)
    problems = [_problem(name, actual[name], reference.outputs[name], rtol=rtol, atol=atol) for name in layers]
    if any(problems):
        raise RestoreError(
            f"The restored model must compute the outputs in `{reference.path}`. {' '.join(filter(None, problems))} "
            "All weights have the right shapes, so look for a wrong axis or order in `transform`, weights that "
            "`rename` swapped, or inputs that were preprocessed in another way."
        )
    return max(float(_difference(actual[name], reference.outputs[name]).max(initial=0)) for name in layers)


def _problem(name: str, actual: np.ndarray, expected: np.ndarray, *, rtol: float, atol: float) -> str:
    output = f"`output/{name}`" if name else "`output`"
    if actual.shape != expected.shape:
        return f"{output} has shape {actual.shape} instead of {expected.shape}."
    difference = _difference(actual, expected)
    differs = ~(difference <= atol + rtol * np.abs(expected.astype("float64")))  # `~(<=)`: a NaN differs, too
    if not differs.any():
        return ""
    return (
        f"{output} differs by up to {difference.max():.3g}, and {differs.sum():,} of its {actual.size:,} values "
        f"by more than {atol:g} + {rtol:g} x the value."
    )


def _difference(actual: np.ndarray, expected: np.ndarray) -> np.ndarray:
    # In float64, so that the difference of two float16 does not overflow and integers do not wrap around.
    return np.abs(actual.astype("float64") - expected.astype("float64"))
