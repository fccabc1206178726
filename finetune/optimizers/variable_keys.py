"""The place of a variable in a model, by which a loaded optimizer finds its variables again."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf

from finetune.errors import GroupError, quote
from finetune.variables import variable_path


@dataclass(frozen=True)
class VariableKey:
    """A variable's place in its model, as an optimizer's config keeps it.

    Paths change when a model is loaded (`seq/a/kernel` becomes `a/kernel`) and are not unique. So a variable is found
    by the end of its path where the layers have kept their names, and otherwise by its position.

    Attributes:
        position: Among the model's trainable variables; -1 while it is not known.
        name: Of the variable, without its layer: `kernel`.
        path: With the names of the layers around it: `seq/a/kernel`.
        shape: Of the variable.
        dtype: Its name, such as `float32`.
        trainable: Whether the variable was trainable when the config was made.
        weight_decay: Whether its group's optimizer decays it, if it decays at all.
        frozen_alone: Whether it was frozen by itself, and not with its layer, which Keras' files do not hold.
    """

    position: int
    name: str
    path: str
    shape: tuple[int, ...]
    dtype: str
    trainable: bool
    weight_decay: bool
    frozen_alone: bool = False

    @classmethod
    def of(cls, variable: Any, weight_decay: bool, frozen_alone: bool = False) -> "VariableKey":
        """Returns the key of a variable, whose position is not known.

        Args:
            variable: A `keras.Variable` or `tf.Variable`.
            weight_decay: As in the attributes.
            frozen_alone: As in the attributes.
        """
        path, name = (text.split(":")[0] for text in (variable_path(variable), variable.name))
        shape, dtype = tuple(variable.shape), tf.as_dtype(variable.dtype).name
        return cls(-1, name, path, shape, dtype, bool(variable.trainable), weight_decay, frozen_alone)

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> "VariableKey":
        """Returns the key that a config holds as a dict of the attributes."""
        return cls(**{**config, "shape": tuple(config["shape"])})

    def placeholder(self) -> keras.Variable:
        """Makes a variable of the same path and shape, for which slots can be made before the model's own is known."""
        *scopes, name = self.path.split("/")
        with ExitStack() as stack:
            for scope in scopes:
                stack.enter_context(keras.name_scope(scope))
            return keras.Variable(initializer="zeros", shape=self.shape, dtype=self.dtype, name=name)

    @property
    def traits(self) -> tuple[str, tuple[int, ...]]:
        """What the variable at the same position of another model must share: name and shape."""
        return self.name, self.shape

    @property
    def path_end(self) -> tuple[str, tuple[int, ...]]:
        """What remains of a path in a loaded model, its last two parts, and the shape."""
        return "/".join(self.path.split("/")[-2:]), self.shape


def match_keys(variables: Sequence[Any], free: Sequence[VariableKey]) -> list[tuple[VariableKey, Any]]:
    """Pairs each variable with the key it belongs to: by the ends of the paths, otherwise by position.

    The variables may be all of the model's, or only those that are not frozen at the moment.

    Args:
        variables: In the model's order.
        free: Keys that have no variable yet.

    Raises:
        GroupError: If the variables fit neither way.
    """
    free = sorted(free, key=lambda key: key.position)
    # By path first: positions agree also where layers were exchanged, and would give slots to the wrong variables.
    sought = [VariableKey.of(variable, True) for variable in variables]
    matched = _match_by_path(sought, free) or _match_by_position(sought, free)
    if matched is None:
        missing = (
            f"{len(free)} variables of the groups are not matched yet: "
            f"{quote([f'{key.path} {key.shape}' for key in free])}. If the variables without a group were frozen "
            "one by one when the model was saved: Keras' files hold only whether a layer is trainable. Load the model "
            "with `compile=False`, set `variable.trainable = False` again, and compile it anew."
            if free
            else "All variables of the groups are matched already."
        )
        raise GroupError(
            f"An optimizer updates the variables that it was made for. {len(variables)} variables belong to no group: "
            f"{', '.join(label(v) for v in variables[:5])}. {missing} Make a new optimizer whose groups cover them."
        )
    return list(zip(matched, variables, strict=True))


def extra_variables(variables: Sequence[Any], free: Sequence[VariableKey]) -> list[Any]:
    """Returns the variables of a loaded model that its optimizer did not know, where every key has its variable.

    Keras' files lose `trainable = False` of variables, of layers that a layer makes itself, and of layers whose config
    does not hold it. Then a model comes with more variables to train than it was saved with.

    Args:
        variables: Those of the model that train, without those that have their key already.
        free: Keys that have no variable yet.

    Returns:
        None, where there are not more variables than keys, or where it is not certain which of them are extra.
    """
    if len(variables) <= len(free):
        return []
    paths = [(variable_path(variable).split(":")[0], tuple(variable.shape)) for variable in variables]
    extra = dict(enumerate(variables))
    for key in free:
        # A path may lose or get the name of its model: `seq/a/kernel`, `a/kernel`.
        alike = [n for n, (path, shape) in enumerate(paths) if shape == key.shape and _is_end(path, key.path)]
        if len(alike) == 1:
            extra.pop(alike[0], None)
        elif alike or key.trainable:
            return []
    return list(extra.values())


def _is_end(path: str, other: str) -> bool:
    return f"/{path}".endswith(f"/{other}") or f"/{other}".endswith(f"/{path}")


def _parts(keys: Sequence[VariableKey]) -> tuple[list[VariableKey], ...]:
    """Returns what a model may bring at once: all, or what was trainable when the config was made, or the frozen."""
    return list(keys), [key for key in keys if key.trainable], [key for key in keys if not key.trainable]


def _match_by_position(sought: Sequence[VariableKey], free: Sequence[VariableKey]) -> list[VariableKey] | None:
    traits = [key.traits for key in sought]
    return next((part for part in _parts(free) if [key.traits for key in part] == traits), None)


def _match_by_path(sought: Sequence[VariableKey], free: Sequence[VariableKey]) -> list[VariableKey] | None:
    alike: dict[Any, list[VariableKey]] = defaultdict(list)
    for key in free:
        alike[key.path_end].append(key)
    ends = [key.path_end for key in sought]
    # Several variables may share a path's end, as two branches with a layer `conv1` each: those are taken in order.
    in_turn = {}
    for end, number in Counter(ends).items():
        part = next((part for part in _parts(alike[end]) if len(part) == number), None)
        if part is None:
            return None
        in_turn[end] = iter(part)
    return [next(in_turn[end]) for end in ends]


def label(variable: Any) -> str:
    """Returns the variable's path or name with its shape, for messages."""
    return f"`{variable_path(variable)}` {tuple(variable.shape)}"
