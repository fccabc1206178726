"""`GroupMonitor`: what happens in each layer group while it trains, every so many steps."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from finetune.errors import TrainingError, WriteError
from finetune.groups.selectors import LayerGroup
from finetune.optimizers.grouped import GroupedOptimizer
from finetune.optimizers.unwrap_optimizer import unwrap
from finetune.results.run_folder import write_csv
from finetune.sequences import one_or_more
from finetune.training.failed_writes import FailedWrites
from finetune.training.fast.steps_per_call import calls_of, steps_done
from finetune.training.group_advice import advice_on_groups
from finetune.training.measured_step import MeasuringCall, StepMeasurer, StepNorms

QUANTITIES = ("learning_rate", "gradient_norm", "update_ratio", "drift")
_COUNTS = ("step", "epoch", "phase")
EVERY_STEPS = 200
_LOOKED_AT = 10  # rows, for advice


class GroupMonitor(keras.callbacks.Callback):
    """Measures, every so many steps, how fast each layer group is trained and how far it has moved.

    For each group that is trained: the rate that the step used, the norm of its gradients (not clipped, of this batch
    alone), the norm of the update relative to that of the weights, and the drift: the norm of what training has added
    since the callback was made, relative to the weights then. The steps are made by the same compiled function as
    without this callback, with the same bits; a measured step runs one more forward and backward pass.

    Make it when the pretrained weights are in the model: it takes a copy of them, as large as what is trained, into
    the memory of the host. Put it behind a `FastLoop`. Steps are counted on through several `fit`s, as phases are.

    Args:
        groups: The layer groups, input to output.
        every_steps: Steps between two measurements, >= 1; with accumulated gradients the next multiple of their number.
        path: A CSV file that gets the rows after every epoch: `step`, `epoch`, `phase`, `loss`, and for each group
            `learning_rate/<group>`, `gradient_norm/<group>`, `update_ratio/<group>` and `drift/<group>`. A cell is
            empty where the group is frozen, or where there is no such number.
        report: Called with a sentence where something cannot be measured or written.

    Attributes:
        columns: The names of the columns.
        table: The rows so far, shape `(rows, columns)`; NaN for an empty cell.
        advice: Sentences on groups that do not move, or move 100 times as much as all others; each is reported once.

    Raises:
        TrainingError: `every_steps` is not a positive whole number.

    Examples:
        >>> import numpy as np
        >>> from finetune import Selector, resolve_groups
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8, name="body"), keras.layers.Dense(2)])
        >>> body, head = groups = resolve_groups(model, [Selector("body", ("body",)), Selector("head", rest=True)])
        >>> sgd = keras.optimizers.SGD
        >>> model.compile(GroupedOptimizer({"body": (sgd(1e-3), body), "head": (sgd(1e-2), head)}), "mse")
        >>> monitor = GroupMonitor(groups, every_steps=2)
        >>> history = model.fit(np.ones((8, 4)), np.ones((8, 2)), batch_size=2, verbose=0, callbacks=[monitor])
        >>> [row["step"] for row in monitor.rows]
        [2, 4]
        >>> round(monitor.rows[0]["learning_rate/head"], 6), monitor.rows[1]["drift/body"] > 0
        (0.01, True)
    """

    not_resumed = ("columns", "_measurers", "_start")

    def __init__(
        self,
        groups: LayerGroup | Sequence[LayerGroup],
        *,
        every_steps: int = EVERY_STEPS,
        path: str | Path | None = None,
        report: Callable[[str], None] = lambda sentence: None,
    ):
        super().__init__()
        if type(every_steps) is not int or every_steps < 1:
            raise TrainingError(
                "Steps are measured every so many steps, a whole number of at least 1. Received "
                f"`every_steps={every_steps!r}`."
            )
        self.groups, self.every_steps, self.report = one_or_more(groups), every_steps, report
        self.path = None if path is None else Path(path)
        of_groups = [f"{quantity}/{group.name}" for quantity in QUANTITIES for group in self.groups]
        self.columns = (*_COUNTS, "loss", *of_groups)
        self.table = np.empty((0, len(self.columns)))
        self._columns_of_table = list(self.columns)
        self.said: list[str] = []
        self.advice: dict[str, str] = {}
        # In a frozen group only normalization layers may be trained, whose weights are vectors.
        self._start = {
            id(leaf.variable): tf.constant(leaf.variable.numpy())
            for group in self.groups
            for leaf in group.trainable
            if not group.frozen or len(leaf.variable.shape) <= 1
        }
        self._measurers: dict[Any, StepMeasurer] = {}
        self._failed_writes = FailedWrites(self._say)
        self._steps_before, self._first, self._done = 0, 0, 0

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The rows so far; `None` for an empty cell."""
        return self.rows_since(0)

    def rows_since(self, start: int) -> list[dict[str, Any]]:
        """Returns the rows from a number on, counted from 0."""
        self._align()
        return [
            {
                name: None if math.isnan(value) else int(value) if name in _COUNTS else float(f"{value:.6g}")
                for name, value in zip(self.columns, row, strict=True)
            }
            for row in self.table[start:]
        ]

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._epoch, self._done = epoch, 0

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self._first, model = batch, self._model_of_fit
        calls = calls_of(model)
        if calls is None and model.steps_per_execution > 1:
            self._say(
                "warning: the layer groups are not measured, since Keras' own loop makes "
                f"{model.steps_per_execution} steps in a call. Compile with `steps_per_execution=1`"
            )
            return
        in_call = range(batch + 1, batch + 1 + (calls.steps_per_call if calls else 1))
        if any(map(self._is_due, in_call)):
            model.train_function = MeasuringCall(model, batch, self._is_due, self._measurer, self._note)

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self._done = steps_done(self.model, first=self._first, last=batch)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._steps_before, self._done = self._steps_before + self._done, 0
        advice = advice_on_groups(self.rows_since(-_LOOKED_AT), [group.name for group in self.groups])
        for key in [key for key in advice if key not in self.advice]:
            self.report(f"warning: {advice[key]}")
        self.advice |= advice
        with self._failed_writes.of(WriteError):
            self.write(durable=False)

    def rows_of_epoch(self, epoch: int) -> list[dict[str, Any]]:
        """Returns the rows of an epoch, counted from 0."""
        first = int(np.searchsorted(self.table[:, 1], epoch + 1))
        return [row for row in self.rows_since(first) if row["epoch"] == epoch + 1]

    def write(self, *, durable: bool = True) -> None:
        """Writes the rows, if there are any, to `path`.

        Args:
            durable: As for `finetune.results.run_folder.replacing`.

        Raises:
            WriteError: The file cannot be written.
        """
        if self.path and len(self.table):
            write_csv(self.path, self.rows, durable=durable)

    # -- Within -------------------------------------------------------------------------------------------------------

    @property
    def _model_of_fit(self) -> Any:
        return self.model  # annotated as optional by Keras; while training runs it is there

    def _align(self) -> None:
        """Gives a table that a checkpoint has brought the columns of these groups, which may be others."""
        if self._columns_of_table != list(self.columns):
            places = {name: place for place, name in enumerate(self._columns_of_table)}
            empty = np.full(len(self.table), math.nan)
            columns = [self.table[:, places[name]] if name in places else empty for name in self.columns]
            self.table, self._columns_of_table = np.stack(columns, axis=1), list(self.columns)

    def _say(self, sentence: str) -> None:
        if sentence not in self.said:
            self.said.append(sentence)
            self.report(sentence)

    def _is_due(self, step: int) -> bool:
        """Returns whether a step of this epoch, from 1, is measured: one that updates the weights."""
        batches = unwrap(self._model_of_fit.optimizer).gradient_accumulation_steps or 1
        return (self._steps_before + step) % (-(-self.every_steps // batches) * batches) == 0

    def _measurer(self, function: Callable[..., Any]) -> StepMeasurer:
        # For each set of groups that is trained, and each set of schedules, there is one train function.
        if function not in self._measurers:
            self._measurers[function] = StepMeasurer(self._model_of_fit, self.groups, self._start, function)
        return self._measurers[function]

    def _note(self, norms: StepNorms) -> None:
        optimizer: Any = unwrap(self._model_of_fit.optimizer)
        phase = optimizer.saved_state.phase if isinstance(optimizer, GroupedOptimizer) else None
        values = {
            "step": self._steps_before + norms.step,
            "epoch": self._epoch + 1,
            "phase": phase.number if phase else math.nan,
            "loss": norms.loss,
            **{f"{key}/{group}": value for key in QUANTITIES for group, value in getattr(norms, key).items()},
        }
        row = [values.get(column, math.nan) for column in self.columns]
        self._align()
        self.table = np.concatenate([self.table, [[value if math.isfinite(value) else math.nan for value in row]]])
        if why := self._measurers[self._model_of_fit.train_function].no_gradients:
            self._say(f"note: the norms of gradients are not measured: {why}")
