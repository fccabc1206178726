"""Cached features: the frozen first part of a model is run once for every example, and the tail trains on its outputs.

`find_cut` says where to cut, `cached_features` runs the front, and the resulting `Features` have the batches and the
function that takes the model's place in the training step. The model itself keeps its optimizer, metrics and callbacks,
and is evaluated and saved as a whole.

The features must have the bits that the model would compute in training. On a CPU the last bit of an example's features
depends on how many examples are computed at once (MiniLM: 16 or 40 give the same bits, 7 or 1 others), and neither on
its position among them nor on the other examples. So all features are computed in batches of the training's size, the
last one filled up. Training is then the same bit for bit while its batches are full; the smaller batch at the end of an
epoch is the same to within the last bit or two of a float32, and so are texts, whose features are computed at the full
length.
"""

import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from math import prod
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from finetune.data.batches import lean_options, steps_per_epoch, training_batches
from finetune.data.rows import Rows, as_rows
from finetune.distribution.workers import Workers
from finetune.errors import TrainingError, quote
from finetune.results.formatting import size_text
from finetune.training.features.cache_keys import feature_keys
from finetune.training.features.checked_outputs import OffError, check_rows, check_same
from finetune.training.features.cut import Cut, Front, NoCut, Tail
from finetune.training.features.padded_features import without_padding
from finetune.training.features.shares import kept_everywhere, missing_anywhere, outputs_in_order
from finetune.training.features.store import FeatureStore, Kept, choose_place, of_mask

MODES = ("auto", "off", "memory", "disk")
_PROBED_ROWS = 4  # run twice beforehand, to see whether the front computes the same twice


@dataclass(frozen=True, eq=False)
class Features:
    """What crosses a cut, for every example.

    Attributes:
        cut: The cut.
        tail: Runs what is behind the cut: `tail(features, training=True)` equals `model(x, training=True)`.
        values: What crosses the cut, by number, shape `(passes * rows, ...)`.
        masks: The masks of these values, by number.
        passes: How many passes are kept.
        nbytes: Bytes kept.
        place: `memory` or `disk`.
        seconds: How long it took to compute them; 0 if they were kept already.
        batch_seconds: How much of that a batch took, without what is compiled first.
    """

    cut: Cut
    tail: Tail
    values: dict[str, Rows]
    masks: dict[str, Rows]
    passes: int
    nbytes: int
    place: str
    seconds: float
    batch_seconds: float = 0.0

    def batches(self, y: Any, **options: Any) -> tf.data.Dataset:
        """Returns batches `(features, y)` in the order in which `training_batches` gives `(x, y)`.

        Args:
            y: The targets.
            options: `batch_size`, `shuffle`, `seed`, `first_epoch`, `first_step` and `sample_weight`, as
                for `training_batches`.
        """
        return training_batches((self.values, self.masks), y, passes=self.passes, **options)


@dataclass(frozen=True)
class _Sample:
    """Type of a value, and its shape without the axis of the rows."""

    dtype: tf.DType
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.dtype.size


def cached_features(
    cut: Cut | NoCut,
    x: Any,
    *,
    batch_size: int,
    mode: str = "auto",
    epochs: int | None = None,
    passes: int = 1,
    later: Sequence[Cut | NoCut] = (),
    store: FeatureStore | None = None,
    memory: int | None = None,
    report: Callable[[str], None] = lambda sentence: None,
    on_batch: Callable[[int, int], None] = lambda done, total: None,
    workers: Workers | None = None,
) -> Features | NoCut:
    """Runs what is in front of a cut for all examples and keeps what crosses it.

    Nothing that goes wrong is an error: if the features are too large, the disk is full, or a layer does not compute
    the same twice, the reason is returned, and the model can be trained as a whole.

    Args:
        cut: What `find_cut` returned.
        x: Inputs of all training rows, as for `training_batches`.
        batch_size: Rows to run at once; that of the training, so that the same bits are computed.
        mode: `auto` keeps the features in memory if they fit into a quarter of what is available, else in the store's
            folder if the disk has room, else not at all; `memory` and `disk` allow only that place; `off`.
        epochs: How many epochs the features are for, if known. For a single epoch `auto` does nothing: there is nothing
            to gain.
        passes: How many passes to keep, >= 1, where layers in front of the cut draw random numbers.
        later: Cuts of later phases, whose features are computed in the same run if there is room.
        store: Keeps the arrays, and is asked for them first. All arrays not needed here are removed from it.
        memory: Bytes of memory available; by default as reported by the system.
        report: Called beforehand with a sentence that names the size and the place.
        on_batch: Called after each batch with the number of batches done and of all batches.
        workers: Workers that all want the same features, of which each computes a share.

    Raises:
        TrainingError: `mode` is unknown or `passes` below 1; or one of several workers cannot keep what is computed.
    """
    if mode not in MODES or passes < 1:
        raise TrainingError(
            f"`cache` must be one of {quote(MODES)}, and `cache_passes` at least 1. Received `{mode}` and {passes}."
        )
    if mode == "off":
        return NoCut("`cache` is `off`")
    if isinstance(cut, NoCut):
        return cut
    store, later_cuts = store or FeatureStore(), [later_cut for later_cut in later if isinstance(later_cut, Cut)]
    passes = passes if cut.random else 1
    # Computing, writing and reading features once costs more than it saves.
    if mode == "auto" and epochs == 1 and not later_cuts:
        return NoCut("there is only one epoch, which reads every feature once")
    work = _Work(cut, x, batch_size, passes, store, on_batch, workers)
    try:
        return work.features(mode, later_cuts, memory, report)
    except OffError as off:
        return NoCut(str(off))
    except (MemoryError, tf.errors.ResourceExhaustedError, OSError) as error:
        reason = _why_not_kept(error, store)
        if workers:  # the others are in the middle of it, and would train on features
            raise TrainingError(
                f"All workers keep the features of the frozen part. Here {reason}. Begin all of them anew with `train: "
                "{cache: off}`, or with more room."
            ) from error
        return NoCut(reason)


def _why_not_kept(error: Exception, store: FeatureStore) -> str:
    if isinstance(error, OSError):
        return f"writing the features to `{store.folder}` failed: {error.strerror or error}"
    return "the features do not fit into memory"


@dataclass(frozen=True, eq=False)
class _Room:
    """What is computed, and where it is kept: see `_Work._room`."""

    run: Any = None
    values: dict[int, _Sample] = field(default_factory=dict)
    masks: dict[int, _Sample] = field(default_factory=dict)
    place: str = "off"
    numbers: list[int] = field(default_factory=list)
    reason: str = ""


class _Work:
    """Computes the features of a cut, and those of later cuts in the same run.

    In `features`: find what the store lacks, run a few rows to learn types and sizes and to check that they can be
    kept, choose the place, run all rows.
    """

    def __init__(
        self,
        cut: Cut,
        x: Any,
        batch_size: int,
        passes: int,
        store: FeatureStore,
        on_batch: Any,
        workers: Workers | None,
    ):
        self.cut, self.passes, self.store, self.on_batch = cut, passes, store, on_batch
        self.workers = workers
        self.batch_seconds = 0.0
        self.inputs = cut.graph.inputs_of(x)
        rows = {number: as_rows(array) for number, array in self.inputs.items()}
        self.rows, self.input_rows = rows[0].length, rows
        self.batch_size = min(batch_size, self.rows)
        self.steps = steps_per_epoch(self.rows, self.batch_size)
        inputs = [rows[number] for number in sorted(rows)]
        self.in_share = lambda share: _full_batches(inputs, self.rows, self.batch_size, share)
        self.batches = self.in_share((0, 1))

    def features(self, mode: str, later: Sequence[Cut], memory: int | None, report: Any) -> Features:
        begin = time.monotonic()
        steps = _all_steps([self.cut, *later])
        keys = feature_keys(steps, self.inputs, inference=self.cut.inference, passes=self.passes)
        if keys is None:  # nobody can say whether these features are those of another run: they get keys of this run
            unique = uuid.uuid4().hex
            keys = {number: f"once-{unique}-{number}" for step in steps for number in step.writes}
        now = list(self.cut.computed)
        afterwards = sorted({number for cut in later for number in cut.computed} - set(now))
        # Before anything is computed: the room of the old features is needed for the new ones.
        self.store.forget_others([key for number in now + afterwards for key in (keys[number], of_mask(keys[number]))])
        lacking = [number for number in now + afterwards if not self.store.has(keys[number])]
        lacking = missing_anywhere(self.workers, lacking)
        missing, extra = ([number for number in numbers if number in lacking] for numbers in (now, afterwards))
        if missing:
            room = self._room(steps, missing, extra, mode, memory)
            numbers, reason = kept_everywhere(self.workers, room.numbers, room.reason)
            if reason:
                raise OffError(reason)
            run = room.run
            if numbers != missing + extra:  # the others do not fit: compile again, without them
                run = _compiled(Front(self.cut, numbers, steps), self.batches.element_spec)
            report(self._sentence(self._nbytes(numbers, room.values, room.masks), room.place))
            self._run(run, numbers, keys, room.values, room.masks, room.place)
        return self._features(keys, time.monotonic() - begin if missing else 0.0)

    def _room(
        self, steps: Sequence[Any], missing: list[int], extra: list[int], mode: str, memory: int | None
    ) -> "_Room":
        """Runs a few rows, and says what there is room for: what is missing, and what later phases need besides."""
        try:
            run, values, masks = self._probe(steps, missing + extra)
        except (OffError, MemoryError, tf.errors.ResourceExhaustedError) as error:
            return _Room(reason=str(error) if isinstance(error, OffError) else _why_not_kept(error, self.store))

        def place_for(numbers: list[int]) -> tuple[str, str]:
            nbytes = self._nbytes(numbers, values, masks)
            return choose_place(nbytes, mode, self.store.folder, memory, self.store.reserve)

        place, reason = place_for(missing)
        # Features of later phases are a bonus: they may not push those of this phase to the disk.
        fits = place_for(missing + extra)[0] == place
        return _Room(run, values, masks, place, missing + extra if fits else missing, reason)

    def _nbytes(self, numbers: Sequence[int], values: dict[int, _Sample], masks: dict[int, _Sample]) -> int:
        per_row = sum(samples[number].nbytes for number in numbers for samples in (values, masks) if number in samples)
        return self.passes * self.rows * per_row

    def _probe(self, steps: Sequence[Any], numbers: Sequence[int]) -> Any:
        """Runs a few rows, and again in reverse order, and checks that their features can be kept.

        Returns:
            The compiled function, and a sample of each value and of each mask by number.
        """
        front = Front(self.cut, numbers, steps)
        run = _compiled(front, self.batches.element_spec)
        rows = tf.nest.map_structure(lambda part: part[:_PROBED_ROWS], next(iter(self.batches)))
        # Statistics that the front updates would differ in every epoch; they are compared after the runs below.
        statistics = _statistics(front, self.cut)
        before = [weight.numpy() for weight in statistics]
        first, masks = run(rows)
        if adding := [step.name for step in front.steps if getattr(step.operation, "losses", None)]:
            raise OffError(f"{quote(adding)} adds to the loss")  # known only after a call
        check_rows(first, rows[0].shape[0])
        # Random layers give other outputs every time, which several passes are for.
        if not self.cut.random:
            check_same(run, rows, first)
        if any((a != b.numpy()).any() for a, b in zip(before, statistics, strict=True)):
            raise OffError("the frozen part updates its statistics when it is run")
        return run, _samples(first), _samples(masks)

    def _sentence(self, nbytes: int, place: str) -> str:
        passes = f" in {self.passes} passes" if self.passes > 1 else ""
        where = f"in `{self.store.folder}`" if place == "disk" else "in memory"
        return f"the frozen part is run once{passes}: {self.cut}; {size_text(nbytes)} of features are kept {where}"

    def _run(
        self,
        run: Callable[[Any], Any],
        numbers: Sequence[int],
        keys: dict[int, str],
        values: dict[int, _Sample],
        masks: dict[int, _Sample],
        place: str,
    ) -> None:
        """Runs all rows, and writes the values with these numbers, and their masks, to the store."""
        total = self.passes * self.steps
        with ExitStack() as stack:

            def writer(key: str, sample: _Sample, masked: bool = False) -> Callable[[np.ndarray], None]:
                shape = (self.passes * self.rows, *sample.shape)
                return stack.enter_context(self.store.writing(key, sample.dtype, shape, place, masked=masked))

            # The writer that is opened last is closed first, so that a value is kept only when its mask is.
            writers = [(0, n, writer(keys[n], values[n], n in masks)) for n in numbers]
            writers += [(1, n, writer(of_mask(keys[n]), masks[n])) for n in numbers if n in masks]

            def outputs(batch: Any) -> list[np.ndarray]:
                returned = run(batch)  # values and masks
                return [returned[which][str(number)].numpy() for which, number, _ in writers]

            # Each batch that a random layer sees moves its seed, which all workers have in common.
            workers, ended = None if self.cut.random else self.workers, []
            for done, arrays in enumerate(outputs_in_order(self.in_share, total, outputs, workers)):
                remaining = self.rows - done % self.steps * self.batch_size  # the last batch is filled up
                for (_, _, write), array in zip(writers, arrays, strict=True):
                    write(array[:remaining])
                ended.append(time.monotonic())
                self.on_batch(done + 1, total)
        # The first batch starts the threads that read the rows.
        self.batch_seconds = (ended[-1] - ended[0]) / (len(ended) - 1) if len(ended) > 1 else 0.0

    def _features(self, keys: dict[int, str], seconds: float) -> Features:
        kept = {str(number): self._kept(keys[number]) for number in self.cut.computed}
        masked = [number for number in self.cut.computed if kept[str(number)].masked]
        masks = {str(number): self._kept(of_mask(keys[number])) for number in masked}
        # Inputs that cross the cut are not copied: every pass reads the same rows.
        inputs = {str(n): _repeated(self.input_rows[n], self.passes) for n in self.cut.crossing if n in self.input_rows}
        arrays = [*kept.values(), *masks.values()]
        values = {**inputs, **{number: array.rows for number, array in kept.items()}}
        rows_of_masks = {number: array.rows for number, array in masks.items()}
        values, rows_of_masks = without_padding(self.cut, self.input_rows, values, rows_of_masks, self.passes)
        return Features(
            cut=self.cut,
            tail=Tail(self.cut),
            values=values,
            masks=rows_of_masks,
            passes=self.passes,
            nbytes=sum(array.nbytes for array in arrays),
            place=arrays[0].place,
            seconds=seconds,
            batch_seconds=self.batch_seconds,
        )

    def _kept(self, key: str) -> Kept:
        kept = self.store.find(key)
        if kept is None:
            raise OffError("the features were removed while they were computed")
        return kept


def _full_batches(inputs: Sequence[Rows], rows: int, batch_size: int, share: tuple[int, int]) -> tf.data.Dataset:
    """Returns all rows in order and from the begin again, in batches of the same size; for `share` see `shares.py`.

    The last batch of the rows is filled up with the first ones.
    """

    def batch(step: Any) -> tuple[tf.Tensor, ...]:
        indices = tf.math.floormod(step * batch_size + tf.range(batch_size, dtype=tf.int64), rows)
        return tuple(rows_of_input.take(indices) for rows_of_input in inputs)

    steps = tf.data.Dataset.range(steps_per_epoch(rows, batch_size)).repeat().shard(share[1], share[0])
    return steps.map(batch).with_options(lean_options()).prefetch(2)


def _all_steps(cuts: Sequence[Cut]) -> list[Any]:
    """Returns the steps in front of any of the cuts: all belong to one model, whose values have the same numbers."""
    by_numbers = {step.writes: step for cut in cuts for step in cut.front}
    return [by_numbers[step.writes] for step in cuts[0].graph.steps if step.writes in by_numbers]


def _compiled(front: Front, spec: Any) -> Callable[[Any], Any]:
    def run(x: Any) -> Any:
        return front(x, training=True)

    # The size of a batch is left open, as in training: a graph for a fixed size may compute other bits.
    signature = tuple(tf.TensorSpec([None, *part.shape[1:]], part.dtype) for part in spec)
    return tf.function(run, input_signature=[signature], autograph=False).get_concrete_function()


def _statistics(front: Front, cut: Cut) -> list[Any]:
    """Returns the weights in front of the cut that were not created trainable."""
    layers = [step.operation for step in front.steps if isinstance(step.operation, keras.layers.Layer)]
    in_front = {id(weight) for layer in layers for weight in layer.weights}
    return [variable for variable in cut.statistics if id(variable) in in_front]


def _samples(values: dict[str, tf.Tensor]) -> dict[int, _Sample]:
    return {int(number): _Sample(value.dtype, value.numpy().shape[1:]) for number, value in values.items()}


def _repeated(rows: Rows, passes: int) -> Rows:
    return Rows(passes * rows.length, lambda indices: rows.take(tf.math.floormod(indices, rows.length)))
