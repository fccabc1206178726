"""Proof that what was frozen is bit-identical: checksums before and after, one record for each stretch of training.

The stretches of a run are its phases, and the run as a whole: from before the first step until the model is saved.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from finetune.checksum import checksum
from finetune.errors import TrainingError, quote
from finetune.groups.layer_tree import Leaf


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
class FrozenProof:
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

    def check(self) -> None:
        """Checks all records.

        Raises:
            TrainingError: A frozen tensor changed. The message is about the latest such stretch, which is the whole run
                where a tensor was frozen all the time.
        """
        for record in reversed(self.records):
            if record.changed:
                raise TrainingError(
                    f"Frozen tensors must stay bit-identical. {len(record.changed)} of {record.tensors} changed in "
                    f"{record.stretch}: {quote(record.changed)}. If no callback of yours assigns to them, please "
                    "report this as a bug. Do not trust the trained model."
                )


def checksums(leaves: Iterable[Leaf]) -> dict[str, str]:
    """Returns the checksum of every tensor by its name."""
    return {leaf.name: checksum(leaf.variable) for leaf in leaves}
