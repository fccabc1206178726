"""Places of variables in a model, by which a loaded optimizer finds its variables again."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf

from finetune.errors import GroupError, quote
from finetune.variables import variable_path


@dataclass(frozen=True)
class VariableKey:
    """A variable's place, as an optimizer's config keeps it.

    Paths change when a model is loaded (`seq/a/kernel` becomes `a/kernel`) and are not unique. So a key is found again
    by the end of its path where the layers have kept their names, and else by its position among the model's trainable
    variables.
    """

    position: int
    name: str
    path: str
    shape: tuple[int, ...]
    dtype: str
    trainable: bool
    weight_decay: bool

    @classmethod
    def of(cls, variable: Any, weight_decay: bool) -> "VariableKey":
        path = variable_path(variable).split(":")[0]
        dtype = tf.as_dtype(variable.dtype).name
        shape, trainable = tuple(variable.shape), bool(variable.trainable)
        return cls(-1, variable.name.split(":")[0], path, shape, dtype, trainable, weight_decay)

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> "VariableKey":
        return cls(**{**config, "shape": tuple(config["shape"])})

    def stand_in(self) -> keras.Variable:
        """A variable of the same path and shape that has this key, and the slots, until the model's own one comes."""
        *scopes, name = self.path.split("/")
        with ExitStack() as stack:
            for scope in scopes:
                stack.enter_context(keras.name_scope(scope))
            return keras.Variable(initializer="zeros", shape=self.shape, dtype=self.dtype, name=name)

    @property
    def traits(self) -> tuple[str, tuple[int, ...]]:
        return self.name, self.shape

    @property
    def path_end(self) -> tuple[str, tuple[int, ...]]:
        return "/".join(self.path.split("/")[-2:]), self.shape


def match_keys(variables: Sequence[Any], free: Sequence[VariableKey]) -> list[tuple[VariableKey, Any]]:
    """Finds the free key of each variable: all keys are filled, or a part of the model is frozen just now.

    Raises:
        GroupError: If the variables fit no keys.
    """
    free = sorted(free, key=lambda key: key.position)
    wanted = [VariableKey.of(variable, True) for variable in variables]
    found = _match_by_path(wanted, free) or _match_by_position(wanted, free)
    if found is None:
        raise GroupError(
            f"An optimizer updates the variables that it was made for. {len(variables)} variables belong to no group: "
            f"{', '.join(label(v) for v in variables[:5])}. {_expected(free)} Make a new one whose groups cover them."
        )
    return list(zip(found, variables, strict=True))


def _expected(keys: Sequence[VariableKey]) -> str:
    if not keys:
        return "All variables of the groups are there already."
    return f"Still to come are {len(keys)}: {quote([f'{key.path} {key.shape}' for key in keys])}."


def _parts(keys: Sequence[VariableKey]) -> Iterable[list[VariableKey]]:
    """What may come at once: all, or what was trainable when the optimizer was saved, or what was frozen then."""
    return list(keys), [s for s in keys if s.trainable], [s for s in keys if not s.trainable]


def _match_by_position(wanted: Sequence[VariableKey], free: Sequence[VariableKey]) -> list[VariableKey] | None:
    traits = [want.traits for want in wanted]
    return next((part for part in _parts(free) if [key.traits for key in part] == traits), None)


def _match_by_path(wanted: Sequence[VariableKey], free: Sequence[VariableKey]) -> list[VariableKey] | None:
    alike: dict[Any, list[VariableKey]] = defaultdict(list)
    for key in free:
        alike[key.path_end].append(key)
    ends = [want.path_end for want in wanted]
    in_turn = {}
    for end, coming in Counter(ends).items():
        part = next((part for part in _parts(alike[end]) if len(part) == coming), None)
        if part is None:
            return None
        in_turn[end] = iter(part)
    return [next(in_turn[end]) for end in ends]


def label(variable: Any) -> str:
    """The variable's path (or name) and shape, for messages."""
    return f"`{variable_path(variable)}` {tuple(variable.shape)}"
