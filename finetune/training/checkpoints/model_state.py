"""Everything that the next step of a model depends on, beside its batch, as arrays and a JSON document.

Weights, moving statistics and seeds of the model; slots, accumulators, averages, counters and loss scale of its
optimizer, with what the rates follow and since when; the metrics of the epoch; the random state of Python, NumPy, Keras
and TensorFlow.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from finetune.errors import TrainingError
from finetune.optimizers.grouped import GroupedOptimizer
from finetune.optimizers.unwrap_optimizer import unwrap
from finetune.training.checkpoints.slot_names import slot_table, weight_names
from finetune.training.snapshot import holder, random_state, set_random_state


def model_state(model: Any, *, slots: bool = True) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Returns the arrays of a compiled model, and what is no array.

    Args:
        model: The model.
        slots: Whether the slots of the groups of a `GroupedOptimizer` are among the arrays. Counters, averages and
            accumulated gradients always are.
    """
    arrays, optimizer = {}, unwrap(model.optimizer)
    names = _names(model, optimizer)
    left_out = {array_name("optimizer", n) for n, row in enumerate(names.get("slots", ())) if row and row[0]}
    for part, variables in parts_of(model).items():
        of_part = {array_name(part, place): variable for place, variable in enumerate(variables)}
        arrays |= {name: np.array(v.numpy()) for name, v in of_part.items() if slots or name not in left_out}
    document = {
        "paths": {part: [path_of(variable) for variable in variables] for part, variables in parts_of(model).items()},
        "optimizer": optimizer.saved_state.document() if isinstance(optimizer, GroupedOptimizer) else None,
        **names,
        **({} if slots else {"slots_left_out": True}),
        "random": _packed(random_state()),
    }
    return arrays, document


def metrics_state(model: Any) -> dict[str, np.ndarray]:
    """Returns the arrays of the metrics alone."""
    variables = parts_of(model)["metrics"]
    return {array_name("metrics", place): np.array(variable.numpy()) for place, variable in enumerate(variables)}


def restore_metrics(model: Any, arrays: Mapping[str, np.ndarray]) -> None:
    """Gives the metrics what `metrics_state` returned, which may have been before all of them were built."""
    for place, variable in enumerate(parts_of(model)["metrics"]):
        if (name := array_name("metrics", place)) in arrays:
            variable.assign(arrays[name])


def restore_model(model: Any, arrays: Mapping[str, np.ndarray], document: Mapping[str, Any], *, source: str) -> None:
    """Puts a model, its optimizer, its metrics and the random state back. Metrics that are not built yet are left out.

    Args:
        model: Compiled, with a built optimizer.
        arrays: As `model_state` returned them.
        document: Likewise.
        source: The file, for the message.

    Raises:
        TrainingError: The state is of another model or optimizer; nothing is changed then.
        GroupError: The state is of other groups.
    """
    parts = parts_of(model)
    if len(parts["metrics"]) < len(document["paths"]["metrics"]):  # Keras has not built all of them yet
        del parts["metrics"]
    for part, variables in parts.items():
        _check(part, variables, arrays, document["paths"].get(part, []), source)
    optimizer = unwrap(model.optimizer)
    if isinstance(optimizer, GroupedOptimizer):
        optimizer.saved_state.check(document["optimizer"])
        optimizer.saved_state.restore(document["optimizer"])  # before the variables, some of which it sets, too
    for part, variables in parts.items():
        for place, variable in enumerate(variables):
            variable.assign(arrays[array_name(part, place)])
    set_packed_random_state(document["random"])


def set_packed_random_state(packed: Mapping[str, Any]) -> None:
    """Puts the random state back that `model_state` returned as `random`."""
    set_random_state(_unpacked(packed))


def parts_of(model: Any) -> dict[str, list[Any]]:
    """Returns the variables of a compiled model by what they belong to, each once."""
    seen: set[int] = set()
    parts: dict[str, list[Any]] = {}
    for part, variables in (
        ("metrics", model.metrics_variables),
        ("model", model.variables),
        ("optimizer", model.optimizer.variables),
    ):
        parts[part] = [variable for variable in variables if id(holder(variable)) not in seen]
        seen |= {id(holder(variable)) for variable in variables}
    return parts


def _names(model: Any, optimizer: Any) -> dict[str, Any]:
    """Returns what each weight and each slot is, for a training with other groups."""
    parts, names = parts_of(model), weight_names(model)
    table = slot_table(optimizer, names, parts["optimizer"]) if isinstance(optimizer, GroupedOptimizer) else {}
    return {"names": [names[id(holder(variable))] for variable in parts["model"]], **table}


def array_name(part: str, place: int) -> str:
    """Returns the name of the array of the variable at a place of a part."""
    return f"{part}/{place:05d}"


def path_of(variable: Any) -> str:
    """Returns the path of a variable, which several may share."""
    return str(getattr(variable, "path", variable.name))


def _check(part: str, variables: Sequence[Any], arrays: Mapping[str, Any], paths: Sequence[str], source: str) -> None:
    here = [(tuple(variable.shape), keras.backend.standardize_dtype(variable.dtype)) for variable in variables]
    saved = [arrays[array_name(part, place)] for place in range(len(paths))]
    there = [(array.shape, array.dtype.name) for array in saved]
    if here == there:
        return
    if len(here) != len(there):
        difference = f"{len(there)} variables, and here are {len(here)}"
    else:
        place = next(place for place, pair in enumerate(zip(here, there, strict=True)) if pair[0] != pair[1])
        difference = f"`{paths[place]}` of {_kind(there[place])}, which is here of {_kind(here[place])}"
    raise TrainingError(
        f"A checkpoint goes on with the training that wrote it. `{source}` holds, of the {part}, {difference}. Build "
        "and compile the same model with the same groups and optimizers, or train into another folder."
    )


def _kind(kind: tuple[Any, str]) -> str:
    return f"shape {tuple(kind[0])}, {kind[1]}"


def _packed(state: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the random state as JSON has it."""
    kind, keys, *rest = state["numpy"]
    kept = None if state["keras"] is None else state["keras"].tolist()
    return {**state, "numpy": [kind, keys.tolist(), *rest], "keras": kept}


def _unpacked(packed: Mapping[str, Any]) -> dict[str, Any]:
    kind, keys, *rest = packed["numpy"]
    state = {**packed, "numpy": (kind, np.array(keys, np.uint32), *rest)}
    for generator in ("python", "tensorflow"):
        if state[generator] is not None:
            version, words, gauss = state[generator]
            state[generator] = (version, tuple(words), gauss)
    return state
