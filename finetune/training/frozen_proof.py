"""Proof that what was frozen is bit-identical: checksums before and after, one record for each stretch of training.

The stretches of a run are its phases, and the run as a whole: from before the first step until the model is saved.
`FrozenProof` is the same proof as a Keras callback, whose stretches are calls of `fit`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import keras

from finetune.checksum import checksum
from finetune.errors import TrainingError, quote
from finetune.groups.layer_tree import Leaf
from finetune.groups.selectors import LayerGroup
from finetune.training.freezing import phase_state


@dataclass(frozen=True)
class FrozenRecord:
    """What became of the frozen tensors in one stretch of training.

    Attributes:
        stretch: `the run`, `phase 1`.
        tensors: How many tensors had to stay bit-identical, moving statistics included.
        changed: Names of those that did not; empty if all is well.
    """

    stretch: str
    tensors: int
    changed: tuple[str, ...] = ()


@dataclass
class FrozenRecords:
    """Takes checksums of frozen tensors, and keeps a record of every stretch of training.

    Attributes:
        records: The stretches that have ended, in the order of their ends.
    """

    records: list[FrozenRecord] = field(default_factory=list)
    _last: dict[str, str] = field(default_factory=dict)  # the latest checksum of every tensor

    @property
    def holds(self) -> bool:
        """Whether no frozen tensor changed so far."""
        return not any(record.changed for record in self.records)

    def begin(self, leaves: Sequence[Leaf]) -> dict[str, str]:
        """Returns the checksum of every tensor that must not change from now on, by name.

        A tensor that was frozen in the stretch before has the checksum of its end, and is not read again: nothing may
        change it in between either.
        """
        known = {leaf.name: self._last[leaf.name] for leaf in leaves if leaf.name in self._last}
        before = known | checksums(leaf for leaf in leaves if leaf.name not in known)
        self._last = before
        return before

    def end(self, stretch: str, leaves: Sequence[Leaf], before: dict[str, str]) -> FrozenRecord:
        """Compares the tensors with what `begin` returned, and records the result.

        Args:
            stretch: What the record and its message call the stretch.
            leaves: The tensors that `begin` was given.
            before: What `begin` returned.
        """
        self._last = checksums(leaves)
        changed = tuple(name for name, value in before.items() if self._last[name] != value)
        record = FrozenRecord(stretch, len(before), changed)
        self.records.append(record)
        return record

    def to_json(self) -> dict[str, Any]:
        """Returns records and latest checksums, for a checkpoint."""
        return asdict(self)

    def take(self, data: dict[str, Any]) -> None:
        """Goes on where `to_json` was called."""
        self.records = [FrozenRecord(**{**record, "changed": tuple(record["changed"])}) for record in data["records"]]
        self._last = dict(data["_last"])

    def check(self) -> None:
        """Checks all records.

        Raises:
            TrainingError: A frozen tensor changed. The message is about the latest such stretch, which is the whole run
                where a tensor was frozen all the time.
        """
        if error := self.failure():
            raise error

    def failure(self) -> TrainingError | None:
        """Returns the error that `check` raises; `None` where no frozen tensor changed."""
        for record in reversed(self.records):
            if record.changed:
                return TrainingError(
                    f"Frozen tensors must stay bit-identical. {len(record.changed)} of {record.tensors} changed in "
                    f"{record.stretch}: {quote(record.changed)}. If no callback assigns to them, look for a layer that "
                    "does so in its `call`, as `SpectralNormalization`; phases call the frozen part in inference mode. "
                    "Do not trust the trained model."
                )
        return None


class FrozenProof(keras.callbacks.Callback):
    """Proves, for any `fit`, that what the layer groups freeze is bit-identical afterwards; else `fit` raises an error.

    Freezing keeps the optimizer from a weight, but not a layer that assigns to its weights in its `call`, nor a
    callback. What is frozen are the weights of frozen groups, moving statistics included, and what other code froze
    before the groups were resolved.

    The callback also notices a step that trains something else than the model says. Keras compiles the step in the
    first `fit`, and ignores what is set to `trainable` afterwards until `compile` is called.

    Args:
        groups: All layer groups of the model, as `freeze` got them.

    Attributes:
        records: A record of each `fit`, in their order.

    Raises:
        TrainingError: In `fit`: a frozen tensor changed, the model trains weights of a frozen group, or `trainable` was
            changed after the step was compiled.

    Examples:
        >>> import numpy as np
        >>> from finetune import Selector, freeze, resolve_groups
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8, name="body"), keras.layers.Dense(2)])
        >>> selectors = [Selector("body", prefixes="body", frozen=True), Selector("head", rest=True)]
        >>> groups = resolve_groups(model, selectors)
        >>> freeze(model, groups)
        >>> model.compile("sgd", "mse")
        >>> proof = FrozenProof(groups)
        >>> history = model.fit(np.ones((8, 4)), np.ones((8, 2)), verbose=0, callbacks=[proof])
        >>> proof.records
        [FrozenRecord(stretch='fit 1', tensors=2, changed=())]
    """

    def __init__(self, groups: Sequence[LayerGroup]):
        super().__init__()
        self.groups = tuple(groups)
        self._records = FrozenRecords()
        self._frozen: tuple[Leaf, ...] = ()
        self._before: dict[str, str] = {}
        self._step_checked = False

    @property
    def records(self) -> list[FrozenRecord]:
        """A record of each `fit`."""
        return self._records.records

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        model: Any = self.model
        self._frozen = phase_state(model, self.groups).frozen
        trained = {id(variable) for variable in model.trainable_variables}
        wrong = [leaf.name for leaf in self._frozen if id(leaf.variable) in trained]
        if wrong:
            raise TrainingError(
                f"What the layer groups freeze must be frozen in the model. `{model.name}` trains {quote(wrong)}. Call "
                "`finetune.freeze(model, groups)` and then `model.compile`, before `fit`."
            )
        # Not from the end of the `fit` before: between two of them, weights may be restored.
        self._before, self._step_checked = checksums(self._frozen), False

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        if not self._step_checked:  # here, since another callback may have installed the train function
            self._step_checked = True
            self._check_step()

    def _check_step(self) -> None:
        """Checks that a step that was compiled in an earlier `fit` trains what is trainable now."""
        model: Any = self.model
        trained = {id(variable): variable.path for variable in model.trainable_variables}
        function, before = vars(model).get("_finetune_proven_step", (None, trained))
        if function is not None and function is model.train_function and before.keys() != trained.keys():
            names = [(before | trained)[key] for key in before.keys() ^ trained.keys()]
            raise TrainingError(
                "Keras compiles the training step in the first `fit` after `compile`, and ignores later changes of "
                f"`trainable`. Since then, it was changed for {quote(sorted(names))}. Call `model.compile` again, then "
                "`fit`."
            )
        # `__dict__` and not an attribute: Keras would track the function and save its variables with the model.
        model.__dict__["_finetune_proven_step"] = (model.train_function, trained)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        self._records.end(f"fit {len(self.records) + 1}", self._frozen, self._before)
        self._records.check()


def checksums(leaves: Iterable[Leaf]) -> dict[str, str]:
    """Returns the checksum of every tensor by its name."""
    return {leaf.name: checksum(leaf.variable) for leaf in leaves}
