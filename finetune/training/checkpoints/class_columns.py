"""The weights with a column for each class, carried by the names of the classes where these are others than before.

A network ends in a layer whose weights have the classes as their last axis: the columns of a kernel and the values of a
bias. Where a training goes on with data of more, fewer or other classes, or of the same in another order, each class
that is still there keeps its column, and so do the slots of the optimizer; the column of a new class is that of the
fresh network, and its slots are fresh.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from finetune.errors import TrainingError, quote
from finetune.groups.layer_tree import layer_tree
from finetune.keras_private import source_of
from finetune.models.output_names import output_names
from finetune.training.snapshot import holder


@dataclass(frozen=True)
class ClassChange:
    """The classes of an output before and now.

    Attributes:
        output: The name of the output; empty for the only one.
        before: The names of the classes in the order of their numbers.
        now: Likewise.
    """

    output: str
    before: tuple[str, ...]
    now: tuple[str, ...]

    def __str__(self) -> str:
        new = [name for name in self.now if name not in self.before]
        gone = [name for name in self.before if name not in self.now]
        same = len(self.now) - len(new)
        parts = [f"{same} as before"]
        parts += [f"new: {quote(new)} (their weights are fresh, and their slots begin anew)"] if new else []
        parts += [f"no longer there: {quote(gone)}"] if gone else []
        moved = [name for name in self.now if name in self.before]
        if moved != [name for name in self.before if name in self.now]:
            parts.append("in another order")
        renamed = (
            ". A class that was only renamed counts as new: to keep its column, keep its name (`data.class_names`)"
            if new and gone
            else ""
        )
        return f"classes{f' of `{self.output}`' if self.output else ''}: {', '.join(parts)}{renamed}"

    def places(self, before: int, now: int) -> list[int | None]:
        """Returns, for each column now, which it was before; `None` for a new one.

        Columns beyond those that have a name keep their places.

        Args:
            before: How many columns there were, >= 1.
            now: How many there are, >= 1.
        """
        pairs = [(before, self.before), (now, self.now)]
        if any(columns == 1 < len(names) for columns, names in pairs) and (before != now or self.before != self.now):
            return [None] * now  # a single column tells two classes apart, and belongs to neither
        number = {name: place for place, name in enumerate(self.before)}
        names = self.now[:now]
        places = [number.get(name) for name in names] + list(range(len(names), now))
        unnamed = range(len(self.before), before)
        return [
            place if place is not None and (place in unnamed or n < len(names)) and place < before else None
            for n, place in enumerate(places)
        ]


def class_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[ClassChange, ...]:
    """Returns the outputs whose classes, or columns of numbers, are others than before.

    Args:
        before: What `data.json` said of the targets.
        now: What it says.
    """
    old, new = _names_by_output(before), _names_by_output(now)
    return tuple(
        ClassChange(output, old[output], names)
        for output, names in new.items()
        if old.get(output) and names and old[output] != names
    )


def _names_by_output(described: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    of_outputs: Mapping[str, Any] = described.get("outputs") or {"": described}
    return {
        output: tuple(facts.get("class_names") or facts.get("numbers") or ()) for output, facts in of_outputs.items()
    }


def columns_of_classes(
    model: keras.Model, changes: Sequence[ClassChange], saved: Mapping[str, np.ndarray]
) -> dict[str, ClassChange]:
    """Returns the weights that have a column for each class, by their names in the layer tree.

    Where the layers do not show it, as in a subclassed network, they are the weights whose last axis had as many
    places as there were classes, and has as many now as there are.

    Args:
        model: The network.
        changes: The outputs whose classes have changed.
        saved: The former weights, by their names.

    Raises:
        TrainingError: It is not known which weights they are, so that a class might go on with those of another.
    """
    names = {id(holder(leaf.variable)): leaf.name for leaf in layer_tree(model).leaves}
    found: dict[str, ClassChange] = {}
    is_graph = isinstance(model, keras.Function | keras.Sequential) and bool(model.outputs)
    tensors = keras.tree.flatten(model.outputs) if is_graph else []
    by_output = dict(zip(output_names(model), tensors, strict=False))
    for change in changes:
        layers = list(_last_layers(by_output[change.output])) if change.output in by_output else []
        of_layers = {names[id(holder(v))]: change for layer in layers for v in layer.weights if id(holder(v)) in names}
        if not of_layers and len(changes) == 1:
            shapes = {leaf.name: tuple(leaf.variable.shape) for leaf in layer_tree(model).leaves}
            of_layers = {
                name: change
                for name, shape in shapes.items()
                if name in saved and _grew(saved[name].shape, shape, change)
            }
        if not of_layers:
            raise TrainingError(
                f"Each class keeps its weights by its name. The {change}, and the layers of the network do not show "
                "which of its weights belong to which class. Keep the classes and their order (`data.class_names`), or "
                "begin another run with `restore.from`, whose `exclude` names the last layer."
            )
        found |= of_layers
    return found


def _grew(before: tuple[int, ...], now: tuple[int, ...], change: ClassChange) -> bool:
    """Whether the last axis alone, of as many places as there are classes, has another length."""
    lengths = (before[-1:], now[-1:])
    return before[:-1] == now[:-1] and before != now and lengths == ((len(change.before),), (len(change.now),))


def _last_layers(tensor: Any) -> Iterator[Any]:
    """Yields the layer whose kernel makes a tensor, after those behind it that only scale each value."""
    operation, index, inputs = source_of(tensor)
    if isinstance(operation, keras.Function | keras.Sequential) and operation.outputs:
        yield from _last_layers(keras.tree.flatten(operation.outputs)[index])
        return
    weights = getattr(operation, "weights", ())
    if weights:
        yield operation
    if len(inputs) == 1 and all(len(weight.shape) < 2 for weight in weights):
        yield from _last_layers(inputs[0])


def rearranged(array: np.ndarray, fresh: np.ndarray, change: ClassChange, *, halves: bool = False) -> np.ndarray | None:
    """Returns an array in which each class has the column it had before; `None` where there is none to keep.

    Args:
        array: As it was, with the classes as the last axis.
        fresh: As it is in the fresh network, from which new classes have their columns.
        change: The classes.
        halves: Whether a single column `w`, of the second of two classes, becomes two, `-w / 2` and `w / 2`: their
            softmax is what the sigmoid of `w` was.
    """
    if array.ndim != fresh.ndim or not array.ndim or array.shape[:-1] != fresh.shape[:-1]:
        return None
    if halves and array.shape[-1] == 1 and len(change.before) == 2 and fresh.shape[-1] > 1:
        array = np.concatenate([-array / 2, array / 2], axis=-1)
    places = change.places(array.shape[-1], fresh.shape[-1])
    if all(place is None for place in places):
        return None
    columns = [fresh[..., n] if place is None else array[..., place] for n, place in enumerate(places)]
    return np.stack(columns, axis=-1).astype(array.dtype)
