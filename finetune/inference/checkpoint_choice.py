"""Which weights of an unfinished run are taken: the newest of its checkpoints, the best so far, or those of a file.

Nothing is written and no lock is taken, so that a run can be looked at while it is trained. Needs no TensorFlow.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from finetune.errors import FinetuneError, LockError, did_you_mean, quote
from finetune.results.run_lock import check_unlocked
from finetune.training.checkpoints.checkpoint_file import Saved, checkpoint_files, read_checkpoint, read_newest

BEST, LAST = "best", "last"
WEIGHTS = "last.weights.h5"


@dataclass(frozen=True)
class ChosenWeights:
    """Weights of a run.

    Attributes:
        file: The file that holds them.
        said: After which step they are, as a sentence without a point.
        arrays: The weights by name; `None` for a file of Keras, which is read later.
        is_in_order: Whether names are those of a list of all weights, `0`, `1` and so on, and not of the layer tree.
    """

    file: Path
    said: str
    arrays: Mapping[str, np.ndarray] | None
    is_in_order: bool = False


def choose_weights(folder: Path, name: str) -> ChosenWeights:
    """Reads weights of a run.

    Args:
        folder: The run folder.
        name: `best`, `last`, or the name of a file in its `checkpoints`.

    Raises:
        FinetuneError: There are none of that name, or the file is damaged.
    """
    checkpoints = folder / "checkpoints"
    if name in (BEST, LAST):
        file, saved, _ = read_newest(checkpoints)
        if name == BEST:
            return _best(folder, file, saved)
    else:
        file, saved = checkpoints / name, None
        files = [path.name for path in checkpoint_files(checkpoints)]
        files += [WEIGHTS] if (checkpoints / WEIGHTS).is_file() else []
        if name not in files:
            has = f"`{checkpoints}` has {quote(files)}" if files else f"`{checkpoints}` has none"
            raise FinetuneError(
                f"`--checkpoint` is `{BEST}`, `{LAST}`, or the name of a file in `checkpoints`. Received: `{name}`. "
                f"{has}.{did_you_mean(name, [BEST, LAST, *files])}"
            )
        try:
            saved = None if name == WEIGHTS else read_checkpoint(file)
        except ValueError as error:
            raise FinetuneError(
                f"A checkpoint has the content that its name has the checksum of. `{file}` is damaged ({error}). Take "
                f"`--checkpoint {LAST}`, which passes over it."
            ) from error
    if saved is not None and file is not None:
        return ChosenWeights(file, _said(saved), _weights(saved))
    if (checkpoints / WEIGHTS).is_file():
        return ChosenWeights(checkpoints / WEIGHTS, "that were saved last", None)
    raise FinetuneError(
        f"A run writes its first checkpoint some time after it began. `{folder}` has none. {_then(folder)}."
    )


def unfinished(folder: Path) -> str:
    """Returns what is said of a run without a model, and what can be done with it.

    Args:
        folder: The run folder.
    """
    ways = [_then(folder)]
    file, saved, _ = read_newest(folder / "checkpoints")
    if saved and file:
        if best := _state_of_best(saved):
            ways.append(f"take the best weights so far, {_said_best(saved, best)}: `--checkpoint {BEST}`")
        ways.append(f"take the newest, {_said(saved)}: `--checkpoint {LAST}`")
    elif (folder / "checkpoints" / WEIGHTS).is_file():
        ways.append(f"take the weights so far, in `{folder / 'checkpoints' / WEIGHTS}`: `--checkpoint {LAST}`")
    return (
        f"A run has a model when it is finished. `{folder}` is not: `model.keras` or `result.json` is missing. "
        f"{', or '.join(ways)}."
    )


def _then(folder: Path) -> str:
    try:
        check_unlocked(folder)
    except LockError:
        return "It is being trained at this moment: wait for its end"
    return f"Finish it with `finetune resume {folder}`"


def _weights(saved: Saved) -> dict[str, np.ndarray]:
    model = saved.document["model"]
    names = model.get("names") or model["paths"]["model"]
    return {name: saved.arrays[f"model/{place:05d}"] for place, name in enumerate(names)}


def _said(saved: Saved) -> str:
    place, epochs = saved.document["position"], saved.document.get("more", {}).get("epochs")
    of = f" of {epochs}" if epochs else ""
    if place["step"]:
        return f"after step {place['step']} of epoch {place['epoch'] + 1}{of}"
    return f"after epoch {place['epoch']}{of}"


def _state_of_best(saved: Saved) -> Mapping[str, Any] | None:
    """Returns the state of the callback that keeps the best weights; `None` without one, or before an evaluation."""
    state = saved.document["callbacks"].get("KeepBest-1", {})
    return state if isinstance(state.get("best_weights"), dict) else None


def _said_best(saved: Saved, state: Mapping[str, Any]) -> str:
    until = (yaml.safe_load(saved.document["more"]["resolved"])["train"].get("until")) or {}
    monitor, (epoch, step) = until.get("monitor", "val_loss"), state["place"]["tuple"]
    value = state["best"]
    value = saved.arrays[value["array"]] if isinstance(value, dict) else value
    after = f"after step {step} of epoch {epoch}" if step else f"after epoch {epoch}"
    return f"{after}, where `{monitor}` was {float(value):.4f}"


def _best(folder: Path, file: Path | None, saved: Saved | None) -> ChosenWeights:
    state = _state_of_best(saved) if saved else None
    if file is None or saved is None or state is None:
        raise FinetuneError(
            "The best weights of a run are kept where its recipe has `train.keep: best`, from the first evaluation "
            f"on. `{folder}` has none. Take its newest: `--checkpoint {LAST}`."
        )
    listed = state["best_weights"]["list"]
    arrays = {str(place): saved.arrays[each["array"]] for place, each in enumerate(listed)}
    return ChosenWeights(file, _said_best(saved, state), arrays, is_in_order=True)
