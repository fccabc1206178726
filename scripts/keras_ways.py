"""The ways in which a model is trained, held to Keras' own single optimizer bit for bit."""

from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from finetune.groups.selectors import resolve_groups
from finetune.optimizers.grouped import GroupedOptimizer
from finetune.training.fast.fast_loop import FastLoop
from finetune.training.phases.phase import Phase
from finetune.training.phases.train_phases import train_phases

WAYS = ("fit", "fast", "phases")  # beside `keras`, to which they are held


@dataclass(frozen=True)
class Trained:
    """What came of a training.

    Attributes:
        values: All variables of the model by path.
        losses: The loss of every epoch.
        trainable: The paths of what is trained, keys of `values`.
        reason: Why the fast loop left the steps to Keras; `None` if it did not, or was not asked.
        moved: How many weights were in buffers.
    """

    values: dict[str, np.ndarray]
    losses: list[float]
    trainable: tuple[str, ...]
    reason: str | None = None
    moved: int = 0


def train(model: Any, data: Any, way: str, rule: Any = keras.optimizers.Adam, **options: Any) -> Trained:
    """Trains a model for an epoch, and sets all its variables back afterwards.

    Args:
        model: A built model.
        data: Batches.
        way: `keras`, by one optimizer in `fit`; or one of `WAYS`, with a group for every layer.
        rule: The class of the optimizers.
        options: For `compile`; without a `loss` it is the mean squared error.
    """
    start = [v.numpy() for v in model.variables]
    groups = () if way == "keras" else resolve_groups(model, by="layer")
    optimizer: Any = GroupedOptimizer({g.name: (rule(0.01), g) for g in groups}) if groups else rule(0.01)
    fast = way in ("fast", "phases")
    model.compile(
        optimizer, **{"loss": "mse", "jit_compile": False, "steps_per_execution": 2 if fast else 1, **options}
    )
    model.optimizer.build(model.trainable_variables)  # otherwise the step is traced a second time
    keras.utils.set_random_seed(1)  # `AugMix` draws from Python's generator while it is traced
    loop, history = FastLoop(), keras.callbacks.History()
    if way == "phases":
        train_phases(model, groups, [Phase("all", epochs=1)], data, shuffle=False, callbacks=[loop, history])
    else:
        model.fit(data, shuffle=False, verbose=0, callbacks=[history, *([loop] if fast else [])])
    function = vars(model).pop("_finetune_function", None)
    paths = {id(v): f"{i} {v.path}" for i, v in enumerate(model.variables)}
    values = {paths[id(v)]: v.numpy() for v in model.variables}
    trainable = tuple(paths[id(v)] for v in model.trainable_variables)
    for variable, value in zip(model.variables, start, strict=True):
        variable.assign(value)
    moved = 0 if function is None else len(function.moved)
    return Trained(values, history.history["loss"], trainable, loop.reason if fast else None, moved)


def differences(some: Trained, others: Trained, tolerance: float = 0.0) -> list[str]:
    """Returns the variables, and the loss, in which two trainings differ, each with the largest difference.

    Args:
        some: A training.
        others: Another one, of the same model.
        tolerance: The largest difference that counts for nothing, relative to the largest value.
    """
    pairs = {path: (value, others.values[path]) for path, value in some.values.items()}
    pairs["loss"] = (np.array(some.losses), np.array(others.losses))
    different = []
    for path, both in pairs.items():
        value, other = (np.asarray(each, "float64") for each in both)  # exact
        if np.array_equal(value, other, equal_nan=True):
            continue
        gap = float(np.max(np.abs(value - other), initial=0.0))
        if not gap <= tolerance * max(1.0, float(np.max(np.abs(other), initial=0.0))):
            different.append(f"{path} differs by {gap:.3g}")
    return different
