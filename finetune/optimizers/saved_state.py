"""What a grouped optimizer keeps beside numbers in variables, saved as one small JSON document in every format.

What each group's rate follows (the schedule it was made with, that of a phase, a warm-up) and since which step, the
numbers that hold the ratios, the step at which each group started, and the phase. The document lies in `.keras` and
`.weights.h5` beside the optimizer's variables, as bytes, and in a `tf.train.Checkpoint` as the string of a
`PythonState`; `pickle.dumps(model)` is a `.keras` file. A file without it, of an older version, still loads.
"""

import gc
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from finetune.errors import GroupError, quote
from finetune.keras_private import set_held_rate, step_counter
from finetune.optimizers.clocks import Clocks
from finetune.optimizers.group import Group
from finetune.optimizers.group_rates import GroupRates
from finetune.optimizers.saved import fitting_values, not_loaded
from finetune.optimizers.saved_shape import fault_in_state
from finetune.optimizers.unwrap_optimizer import unwrap
from finetune.plain_shapes import parse

_ENTRY = "document"  # beside the entries `0`, `1`, ... of Keras


@dataclass(frozen=True)
class PhasePosition:
    """Where in a run a phase began.

    Attributes:
        number: Of the phase, from 1.
        epoch: Epochs begun in the phases before.
        step: Steps made in the phases before.
    """

    number: int
    epoch: int
    step: int


class SavedState(tf.train.experimental.PythonState):
    """Describes the rates and clocks of an optimizer, and takes them over from a description.

    Args:
        optimizer: The parent.
        groups: All groups, input to output.
        rates: Their rates.
        clocks: The steps at which they started.

    Attributes:
        phase: The latest phase, if there was one.
        traced: Whether a step was traced, with the present rates as constants in it.
    """

    def __init__(self, optimizer: Any, groups: Sequence[Group], rates: GroupRates, clocks: Clocks):
        self._optimizer, self._groups, self._rates, self._clocks = optimizer, tuple(groups), rates, clocks
        self.phase: PhasePosition | None = None
        self.traced = False

    @property
    def compiled(self) -> tuple[Any, ...]:
        """What a traced step has of rates and clocks as constants."""
        return self._rates.compiled, self._clocks.compiled

    def document(self) -> dict[str, Any]:
        """Returns the state as JSON has it."""
        starts = self._clocks.starts.numpy()
        groups = {
            group.name: {**self._rates.describe(index), "start": int(starts[index])}
            for index, group in enumerate(self._groups)
        }
        return {"version": 1, "groups": groups, "phase": asdict(self.phase) if self.phase else None}

    def check(self, document: dict[str, Any] | None) -> None:
        """Checks that a document is of an optimizer with the same groups; `None` is of an older file.

        Raises:
            GroupError: It is not.
        """
        if wrong := fault_in_state(document):
            raise GroupError(not_loaded(f"In the file, {wrong}."))
        if document is None:
            return
        saved, here = document["groups"], self.document()["groups"]
        if list(saved) != list(here):
            difference = f"The file is of the groups {quote(saved)}, this optimizer has {quote(here)}."
        else:
            names = [name for name in here if saved[name]["made_with"] != here[name]["made_with"]]
            if not names:
                return
            difference = (
                f"In the file the optimizers of {quote(names)} are made with a "
                f"{saved[names[0]]['made_with']} as the learning rate, here with a {here[names[0]]['made_with']}."
            )
        raise GroupError(not_loaded(difference))

    def restore(self, document: dict[str, Any] | None) -> None:
        """Takes over a document that fits; `None`, of an older file, changes nothing.

        Models that were trained before get a new train function where the old one has other rates compiled into it.
        """
        if document is None:
            return
        before = self.compiled
        for index, (name, saved) in enumerate(document["groups"].items()):
            held = self._rates.take(index, saved, step_counter(self._optimizer), name)
            set_held_rate(self._groups[index].optimizer, held)
        self._clocks.starts.assign([saved["start"] for saved in document["groups"].values()])
        self._clocks.count_from_starts()
        self.phase = PhasePosition(**document["phase"]) if document["phase"] else None
        if self.traced and self.compiled != before:
            _renew_train_functions(self._optimizer)
            self.traced = False

    def carry(self, document: dict[str, Any], starts: Mapping[str, int]) -> None:
        """Takes over of another optimizer what holds for this: the phase, the clocks, and what was written to rates.

        The rates follow what they follow here. What was written to all of them together (`scale`), as on a plateau, and
        the share that a group had of its rate are carried; a schedule or warm-up that counts from a step goes on.

        Args:
            document: That of the other.
            starts: The step at which each group of this optimizer started.
        """
        saved = document["groups"]
        scale = next(iter(saved.values()))["scale"] if saved else 1.0
        for index, group in enumerate(self._groups):
            self._rates.carry(index, saved.get(group.name), scale)
        self._clocks.starts.assign([starts[group.name] for group in self._groups])
        self._clocks.count_from_starts()
        self.phase = PhasePosition(**document["phase"]) if document["phase"] else None

    def write(self, store: Any) -> None:
        """Writes the document into a store of Keras."""
        store[_ENTRY] = np.frombuffer(self.serialize().encode(), np.uint8)

    def assign(self, store: Any) -> None:
        """Sets all variables of the optimizer from a store of Keras, or none of them.

        Raises:
            GroupError: If the store does not hold exactly these.
        """
        variables = self._optimizer.variables
        # All values are checked before the first is assigned, so that an error leaves the state as it was.
        values = fitting_values(store, variables, [group.name for group in self._groups])
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)
        self._clocks.count_from_starts()

    def load(self, store: Any) -> None:
        """Sets variables and document from a store of Keras, or nothing, with a warning, if it does not fit."""
        # Keras' stores have `keys` without being dicts.
        saved = np.asarray(store[_ENTRY]).tobytes() if _ENTRY in store.keys() else b"null"  # noqa: SIM118
        document = _parsed(saved)
        try:
            self.check(document)
            self.assign(store)
        except GroupError as error:  # as Keras, which loads the weights of the model and warns
            warnings.warn(str(error), stacklevel=3)
        else:
            self.restore(document)

    # What `tf.train.Checkpoint` calls.

    def serialize(self) -> str:
        """Returns the document as text."""
        return json.dumps(self.document())

    def deserialize(self, string_value: Any) -> None:
        """Takes over a document from text, or nothing of it, with a warning, if it is of other groups."""
        document = _parsed(string_value)
        try:
            self.check(document)
        except GroupError as error:
            warnings.warn(str(error), stacklevel=2)
        else:
            self.restore(document)


def _parsed(text: Any) -> Any:
    """Returns what a text of JSON says; a list, which no state is, where it is none."""
    try:
        return parse(text)
    except ValueError:
        return []


def _renew_train_functions(optimizer: Any) -> None:
    """Makes the train functions anew of all models that are compiled with an optimizer."""
    # An optimizer does not know its models, and Keras has no hook between loading a file and the next step. A search
    # takes a tenth of a second, and only follows where a file changes the kind of a rate in the middle of a training.
    # `type`, since `isinstance` would ask proxies for their class, which may load what is behind them.
    models: list[Any] = [value for value in gc.get_objects() if issubclass(type(value), keras.Model)]
    trained = [model for model in models if unwrap(vars(model).get("optimizer")) is optimizer and model.train_function]
    for model in trained:
        model.make_train_function(force=True)
    if not trained:
        warnings.warn(
            "A traced step has the kind of each rate compiled into it: a number, a schedule or a warm-up. A state was "
            "loaded in which they differ, and no compiled model uses this optimizer. Make the `tf.function` of your "
            "training step anew; one that was traced before goes on with the rates that it was traced with.",
            stacklevel=3,
        )
