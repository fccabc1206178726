"""Places of variables in a model, by which a loaded optimizer finds its variables again."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf

from finetune.errors import GroupError, quote


@dataclass(frozen=True)
class Seat:
    """A variable's place, as an optimizer's config keeps it.

    Paths change when a model is loaded (`seq/a/kernel` becomes `a/kernel`) and are not unique. So a seat is found again
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
    def of(cls, variable: Any, weight_decay: bool) -> "Seat":
        path = getattr(variable, "path", variable.name).split(":")[0]
        dtype = tf.as_dtype(variable.dtype).name
        shape, trainable = tuple(variable.shape), bool(variable.trainable)
        return cls(-1, variable.name.split(":")[0], path, shape, dtype, trainable, weight_decay)

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> "Seat":
        return cls(**{**config, "shape": tuple(config["shape"])})

    def stand_in(self) -> keras.Variable:
        """A variable of the same path and shape that holds the seat, and the slots, until the model's own one comes."""
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


def take_seats(variables: Sequence[Any], empty: Sequence[Seat]) -> list[tuple[Seat, Any]]:
    """Finds the empty seat of each variable: all seats are filled, or a part of the model is frozen just now.

    Raises:
        GroupError: If the variables fit no seats.
    """
    empty = sorted(empty, key=lambda seat: seat.position)
    wanted = [Seat.of(variable, True) for variable in variables]
    found = _seats_by_path(wanted, empty) or _seats_by_position(wanted, empty)
    if found is None:
        raise GroupError(
            f"An optimizer updates the variables that it was made for. {len(variables)} variables belong to no group: "
            f"{', '.join(label(v) for v in variables[:5])}. {_expected(empty)} Make a new one whose groups cover them."
        )
    return list(zip(found, variables, strict=True))


def _expected(seats: Sequence[Seat]) -> str:
    if not seats:
        return "All variables of the groups are there already."
    return f"Still to come are {len(seats)}: {quote([f'{seat.path} {seat.shape}' for seat in seats])}."


def _parts(seats: Sequence[Seat]) -> Iterable[list[Seat]]:
    """What may come at once: all, or what was trainable when the optimizer was saved, or what was frozen then."""
    return list(seats), [s for s in seats if s.trainable], [s for s in seats if not s.trainable]


def _seats_by_position(wanted: Sequence[Seat], empty: Sequence[Seat]) -> list[Seat] | None:
    traits = [want.traits for want in wanted]
    return next((part for part in _parts(empty) if [seat.traits for seat in part] == traits), None)


def _seats_by_path(wanted: Sequence[Seat], empty: Sequence[Seat]) -> list[Seat] | None:
    alike: dict[Any, list[Seat]] = defaultdict(list)
    for seat in empty:
        alike[seat.path_end].append(seat)
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
    return f"`{getattr(variable, 'path', variable.name)}` {tuple(variable.shape)}"
