"""What a training of a `FineTuner` has given: the figures of its epochs, and its rates within them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isclose
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras

from finetune.errors import counted
from finetune.groups.selectors import LayerGroup
from finetune.planning.plan import GroupSettings
from finetune.results.plots import plot_training
from finetune.training.phases.preview import rate_in_phase
from finetune.training.phases.records import PhaseRecord, PhaseStart

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_RATE = "learning_rate/"
_LOOKS = 20  # times in an epoch at which rates are looked at: they may rise and fall within it


@dataclass(frozen=True, repr=False)
class FitResult:
    """The result of `FineTuner.fit`. In a notebook `.plot()` shows it.

    Attributes:
        records: What each phase trained, and whether what it froze is bit-identical.
        rows: Loss, metrics and rates after each epoch.
        rates: Rates within the epochs, of groups whose schedule is known; `epoch` is a fraction.
        trained: Names of the groups that each phase trained, by its number.
    """

    records: tuple[PhaseRecord, ...]
    rows: tuple[Mapping[str, Any], ...]
    rates: tuple[Mapping[str, Any], ...]
    trained: Mapping[int, tuple[str, ...]]

    @property
    def history(self) -> dict[str, list[float]]:
        """The figures of each epoch by name, as in the `history` that Keras returns; `None` where there is none."""
        names = dict.fromkeys(name for row in self.rows for name in row if name not in ("epoch", "phase"))
        return {name: [row.get(name) for row in self.rows] for name in names}  # pyright: ignore[reportReturnType]

    def plot(self, path: Path | None = None) -> "Figure":
        """Draws loss, metrics and rates over the epochs; with a path it also writes `<path>.png` and `<path>.svg`."""
        every = len({int(row["epoch"] + 0.5) for row in self.rates}) == len(self.rows)  # has its rates
        return plot_training(self.rows, rates_within=self.rates if every else (), trained=self.trained, path=path)

    def __repr__(self) -> str:
        last = {name: value for name, value in (self.rows[-1] if self.rows else {}).items() if "/" not in name}
        figures = ", ".join(f"{name} {value:.4g}" for name, value in last.items() if name not in ("epoch", "phase"))
        proven = all(record.frozen_unchanged for record in self.records)
        frozen = sum(record.frozen_tensors for record in self.records)
        proof = f"; frozen tensors {'bit-identical' if proven else 'changed'}" if frozen else ""
        return f"FitResult({counted(len(self.rows), 'epoch')}: {figures}{proof})"


class EpochRows(keras.callbacks.Callback):
    """Collects the figures of each epoch over all phases, and the rates within it.

    Put it behind `LearningRateLogger`, and call `begin` with every phase.

    Args:
        groups: The layer groups.
        settings: How each of them is trained, by name.
        steps_per_epoch: Batches in an epoch; `None` if unknown: the rates within an epoch are then not known either.

    Attributes:
        rows: A row for each epoch.
        rates: Rows of rates, several for each epoch.
        trained: Names of the groups that each phase trains, by its number.
    """

    def __init__(
        self, groups: Sequence[LayerGroup], settings: Mapping[str, GroupSettings], steps_per_epoch: int | None
    ):
        super().__init__()
        self.groups, self.settings, self.steps = groups, settings, steps_per_epoch
        self.rows: list[dict[str, Any]] = []
        self.rates: list[dict[str, Any]] = []
        self.trained: dict[int, tuple[str, ...]] = {}
        self._start: PhaseStart | None = None
        self._before: tuple[str, ...] = ()  # trained in the phase before
        self._expected: dict[str, float] = {}  # rates at the end of the epoch, by the schedules

    def begin(self, start: PhaseStart) -> None:
        """Notes the phase that begins."""
        self._before = self.trained.get(start.number - 1, ())
        self._start, self.trained[start.number] = start, start.train

    def within(self, epoch: int) -> list[dict[str, Any]]:
        """Returns rates within an epoch, counted from 0; none where they follow what is measured."""
        return [row for row in self.rates if epoch <= row["epoch"] - 0.5 < epoch + 1]

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        start = self._start
        self._expected = {}
        if start is None or not self.steps or start.phase.auto_rgn or start.phase.clock != "phase":
            return
        if not any(callable(rate) for rate in start.phase.rates.values()):
            return
        first = (epoch - start.epoch) * self.steps
        functions = {
            name: rate_in_phase(start.phase, name, self.settings[name], 0, warms=name not in self._before)
            for name in start.train
        }
        for step in sorted({round(look * (self.steps - 1) / _LOOKS) for look in range(_LOOKS + 1)}):
            of_step = {f"{_RATE}{name}": rate(first + step) for name, rate in functions.items()}
            self.rates.append({"epoch": epoch + 0.5 + step / self.steps, "phase": start.number, **of_step})
        self._expected = {f"{_RATE}{name}": rate(first + self.steps) for name, rate in functions.items()}

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        number = self._start.number if self._start else 1
        values = {name: float(value) for name, value in (logs or {}).items()}
        self.rows.append({"epoch": epoch + 1, "phase": number, **values})
        # Something else, such as `ReduceLROnPlateau`, has written rates: only those that were read are true.
        if not all(isclose(values.get(name, rate), rate, rel_tol=1e-3) for name, rate in self._expected.items()):
            self.rates = [row for row in self.rates if row["epoch"] < epoch + 0.5]
