"""What is announced when a phase begins, and what is recorded when it ends."""

from dataclasses import asdict, dataclass
from typing import Any

from finetune.results.tables import several_names
from finetune.training.freezing import PhaseState
from finetune.training.phases.phase import Phase


@dataclass(frozen=True)
class PhaseStart:
    """A phase that begins. Its string is the line that a run prints.

    Attributes:
        number: From 1, of `count`.
        count: How many phases there are.
        phase: The phase.
        train: Names of the groups that are trained.
        parameters: Numbers that are trained, of `total`.
        total: Numbers in the model.
        epoch: Epochs begun in the phases before.
        state: What happens to every weight.
    """

    number: int
    count: int
    phase: Phase
    train: tuple[str, ...]
    parameters: int
    total: int
    epoch: int
    state: PhaseState

    def __str__(self) -> str:
        # Either is given, never both; see `check_phases`.
        length = f"{self.phase.epochs} epoch" if self.phase.epochs else f"{self.phase.steps} step"
        plural = "" if (self.phase.epochs or self.phase.steps) == 1 else "s"
        return (
            f"phase {self.number}/{self.count}: train {several_names(self.train)} "
            f"({self.parameters:,} of {self.total:,} parameters), {length}{plural}"
        )


@dataclass(frozen=True)
class PhaseRecord:
    """A phase that has ended.

    Attributes:
        number: From 1.
        train: Names of the groups that were trained.
        epochs: Epochs begun.
        epochs_left: Epochs that were planned and not needed.
        steps: Steps made.
        parameters: Numbers that were trained.
        frozen_tensors: How many tensors had to stay bit-identical, fixed moving statistics included.
        frozen_changed: Names of those that did not; empty if all is well.
        seconds: Wall time.
        keras_loop: Why Keras' own loop made the steps, and not the fast one; `None` if it did not.
    """

    number: int
    train: tuple[str, ...]
    epochs: int
    epochs_left: int
    steps: int
    parameters: int
    frozen_tensors: int
    frozen_changed: tuple[str, ...]
    seconds: float
    keras_loop: str | None = None

    @property
    def frozen_unchanged(self) -> bool:
        """Whether every frozen tensor is bit-identical to before the phase."""
        return not self.frozen_changed

    def to_json(self) -> dict[str, Any]:
        """Returns the phase as `result.json` holds it."""
        # `asdict` has no properties, and readers of the file should not have to know that an empty list is good.
        return {**asdict(self), "frozen_unchanged": self.frozen_unchanged}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "PhaseRecord":
        """Returns the record that `to_json` wrote."""
        fields: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in data.items()
        }
        del fields["frozen_unchanged"]
        return cls(**fields)
