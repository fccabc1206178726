"""The frozen part costs nothing: it is run once per example, its output is kept, and only the rest is trained on it.

`find_cut` says where, `cached_features` runs what lies in front, and its result gives the batches and the function
that takes the model's place in the training step. The model itself keeps its optimizer, its metrics and its callbacks,
and is evaluated and saved as a whole.

On a processor the last bit of an example's features depends on how many examples are computed at once (MiniLM: 16 or
40 the same, 7 or 1 not), and on neither its place among them nor the others. All features are computed in batches of
the training's size, the last one filled up. Training is then the same bit for bit while its batches are full, and for
what is left over at the end of an epoch the same within the last bit or two of a float32.
"""

import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from math import prod
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from finetune.data.batches import Rows, as_rows, lean_options, steps_per_epoch, training_batches
from finetune.errors import TrainingError, quote
from finetune.groups.layer_tree import layer_tree
from finetune.results.formatting import size_text
from finetune.training.features.cut import Cut, Front, NoCut, Rest
from finetune.training.features.keys import feature_keys
from finetune.training.features.store import FeatureStore, Kept, choose_place, of_mask

MODES = ("auto", "off", "memory", "disk")
_PROBED_ROWS = 4


@dataclass(frozen=True, eq=False)
class Features:
    """What crosses a cut, for every example.

    Attributes:
        cut: The cut.
        rest: Runs what lies behind it: `rest(features, training=True)` stands for `model(x, training=True)`.
        values: What crosses the cut, as rows; with several passes one after the other.
        masks: The masks that go with them.
        passes: How many passes are kept.
        nbytes: Bytes kept.
        place: `memory` or `disk`.
        seconds: How long it took to make them; 0 if they were there.
    """

    cut: Cut
    rest: Rest
    values: dict[str, Rows]
    masks: dict[str, Rows]
    passes: int
    nbytes: int
    place: str
    seconds: float

    def batches(self, y: Any, **options: Any) -> tf.data.Dataset:
        """Returns batches `(features, y)` in the order in which `training_batches` gives `(x, y)`.

        Args:
            y: The targets.
            options: `batch_size`, `shuffle`, `seed`, `first_epoch` and `sample_weight`, as for `training_batches`.
        """
        return training_batches((self.values, self.masks), y, passes=self.passes, **options)


@dataclass(frozen=True)
class _Sample:
    """One value on the first batch: its type, and its shape for one row."""

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
    also: Sequence[Cut | NoCut] = (),
    store: FeatureStore | None = None,
    memory: int | None = None,
    tell: Callable[[str], None] = lambda sentence: None,
    on_batch: Callable[[int, int], None] = lambda done, total: None,
) -> Features | NoCut:
    """Runs what lies in front of a cut for all examples and keeps what crosses it.

    Whatever stands in the way, the size, a full disk, a layer that gives other outputs the second time, turns it off
    with the reason; the model can then be trained as it is.

    Args:
        cut: What `find_cut` returned.
        x: Inputs of all training rows, as for `training_batches`.
        batch_size: Rows to run at once; that of the training, so that all is computed as it would be there.
        mode: `auto` takes memory if the features fit into a quarter of what is available, else the store's folder if
            the disk has room, else nothing; `memory` and `disk` allow one of both; `off`.
        epochs: How many epochs the features are for, if known. For one `auto` does nothing: it would gain nothing.
        passes: How many passes to keep where layers in front of the cut draw random numbers.
        also: Cuts of later phases, whose features are kept in the same run if there is room.
        store: What keeps the arrays and is asked for them first. All that is not wanted here is let go of.
        memory: Bytes of memory available; by default as the system tells.
        tell: Told the size and the place beforehand, as a sentence.
        on_batch: Told the batches done and all there are.

    Raises:
        TrainingError: `mode` is unknown or `passes` below 1.
    """
    if mode not in MODES or passes < 1:
        raise TrainingError(
            f"`cache` is one of {quote(MODES)}, `cache_passes` at least 1. Received `{mode}`, {passes}."
        )
    if mode == "off":
        return NoCut("`cache` is `off`")
    if isinstance(cut, NoCut):
        return cut
    store, later = store or FeatureStore(), [one for one in also if isinstance(one, Cut)]
    passes = passes if cut.random else 1
    if mode == "auto" and epochs == 1 and not later:
        return NoCut("there is one epoch, which reads every feature once")
    work = _Work(cut, x, batch_size, passes, store, on_batch)
    try:
        return work.features(mode, later, memory, tell)
    except _OffError as off:
        return NoCut(str(off))
    except (MemoryError, tf.errors.ResourceExhaustedError):
        return NoCut("the features do not fit into memory")
    except OSError as error:
        return NoCut(f"writing the features to `{store.folder}` failed: {error.strerror or error}")


class _OffError(Exception):
    """Why there are no features after all."""


class _Work:
    """Makes the features of one cut, and those of later cuts in the same run."""

    def __init__(self, cut: Cut, x: Any, batch_size: int, passes: int, store: FeatureStore, on_batch: Any):
        self.cut, self.passes, self.store, self.on_batch = cut, passes, store, on_batch
        self.inputs = cut.graph.inputs_of(x)
        rows = {number: as_rows(array) for number, array in self.inputs.items()}
        self.rows, self.input_rows = rows[0].length, rows
        self.batch_size = min(batch_size, self.rows)
        self.steps = steps_per_epoch(self.rows, self.batch_size)
        self.batches = _full_batches([rows[number] for number in sorted(rows)], self.rows, self.batch_size)

    def features(self, mode: str, later: Sequence[Cut], memory: int | None, tell: Any) -> Features:
        begun = time.monotonic()
        steps = _all_steps([self.cut, *later])
        keys = self._keys(steps)
        own = list(self.cut.computed)
        more = sorted({number for one in later for number in one.computed} - set(own))
        self.store.forget_others([key for number in own + more for key in (keys[number], of_mask(keys[number]))])
        missing = [number for number in own if not self.store.has(keys[number])]
        if missing:
            extra = [number for number in more if not self.store.has(keys[number])]
            run, values, masks = self._probe(steps, missing + extra)
            place, why = choose_place(self._nbytes(missing, values, masks), mode, self.store.folder, memory)
            if place == "off":
                raise _OffError(why)
            nbytes = self._nbytes(missing + extra, values, masks)
            if choose_place(nbytes, mode, self.store.folder, memory)[0] == place:
                missing += extra
            elif extra:
                run = _compiled(Front(self.cut, missing, steps), self.batches.element_spec)
            tell(self._sentence(self._nbytes(missing, values, masks), place))
            self._run(run, missing, keys, values, masks, place)
        return self._features(keys, time.monotonic() - begun if missing else 0.0)

    def _nbytes(self, numbers: Sequence[int], values: dict[int, _Sample], masks: dict[int, _Sample]) -> int:
        each = sum(one[number].nbytes for number in numbers for one in (values, masks) if number in one)
        return self.passes * self.rows * each

    def _keys(self, steps: Sequence[Any]) -> dict[int, str]:
        found = feature_keys(steps, self.inputs, inference=self.cut.inference, passes=self.passes)
        once = uuid.uuid4().hex
        return found or {number: f"once-{once}-{number}" for step in steps for number in step.writes}

    def _probe(self, steps: Sequence[Any], wanted: Sequence[int]) -> Any:
        """Runs a few rows, and again in another order, and looks at what comes.

        Returns:
            The compiled function, and a sample of each value and of each mask by number.
        """
        front = Front(self.cut, wanted, steps)
        run = _compiled(front, self.batches.element_spec)
        rows = tf.nest.map_structure(lambda one: one[:_PROBED_ROWS], next(iter(self.batches)))
        statistics = _statistics(front)
        before = [weight.numpy() for weight in statistics]
        first, masks = run(rows)
        if adding := [step.name for step in front.steps if getattr(step.operation, "losses", None)]:
            raise _OffError(f"{quote(adding)} adds to the loss")
        _check_rows(first, rows[0].shape[0])
        if not self.cut.random:
            _check_same(run, rows, first)
        if any((a != b.numpy()).any() for a, b in zip(before, statistics, strict=True)):
            raise _OffError("the frozen part moves its own statistics when it is run")
        return run, _samples(first), _samples(masks)

    def _sentence(self, nbytes: int, place: str) -> str:
        often = f" in {self.passes} passes" if self.passes > 1 else ""
        where = f"in `{self.store.folder}`" if place == "disk" else "in memory"
        return f"the frozen part is run once{often}: {self.cut}; {size_text(nbytes)} of features are kept {where}"

    def _run(
        self,
        run: Callable[[Any], Any],
        wanted: Sequence[int],
        keys: dict[int, str],
        values: dict[int, _Sample],
        masks: dict[int, _Sample],
        place: str,
    ) -> None:
        total = self.passes * self.steps
        with ExitStack() as stack:

            def writer(key: str, sample: _Sample, masked: bool = False) -> Callable[[np.ndarray], None]:
                shape = (self.passes * self.rows, *sample.shape)
                return stack.enter_context(self.store.writing(key, sample.dtype, shape, place, masked=masked))

            # The block that is entered last ends first: a value counts for nothing before its mask is there.
            to = [(0, n, writer(keys[n], values[n], n in masks)) for n in wanted]
            to += [(1, n, writer(of_mask(keys[n]), masks[n])) for n in wanted if n in masks]
            for done, batch in enumerate(self.batches.repeat(self.passes)):
                found, left = run(batch), self.rows - done % self.steps * self.batch_size
                for which, number, write in to:
                    write(found[which][str(number)].numpy()[:left])
                self.on_batch(done + 1, total)

    def _features(self, keys: dict[int, str], seconds: float) -> Features:
        kept = {str(number): self._kept(keys[number]) for number in self.cut.computed}
        masked = [number for number in self.cut.computed if kept[str(number)].masked]
        masks = {str(number): self._kept(of_mask(keys[number])) for number in masked}
        inputs = {str(n): _repeated(self.input_rows[n], self.passes) for n in self.cut.crossing if n in self.input_rows}
        every = [*kept.values(), *masks.values()]
        return Features(
            cut=self.cut,
            rest=Rest(self.cut),
            values={**inputs, **{number: one.rows for number, one in kept.items()}},
            masks={number: one.rows for number, one in masks.items()},
            passes=self.passes,
            nbytes=sum(one.nbytes for one in every),
            place=every[0].place,
            seconds=seconds,
        )

    def _kept(self, key: str) -> Kept:
        found = self.store.find(key)
        if found is None:
            raise _OffError("the features were lost")
        return found


def _full_batches(inputs: Sequence[Rows], rows: int, batch_size: int) -> tf.data.Dataset:
    """Returns all rows in order, in batches of one size; the last is filled up with the first rows."""

    def batch(step: Any) -> tuple[tf.Tensor, ...]:
        indices = tf.math.floormod(step * batch_size + tf.range(batch_size, dtype=tf.int64), rows)
        return tuple(one.take(indices) for one in inputs)

    return tf.data.Dataset.range(steps_per_epoch(rows, batch_size)).map(batch).with_options(lean_options()).prefetch(2)


def _all_steps(cuts: Sequence[Cut]) -> list[Any]:
    """Returns the steps in front of any of the cuts: all belong to one model, whose values have the same numbers."""
    by_reads = {step.writes: step for one in cuts for step in one.steps}
    return [by_reads[step.writes] for step in cuts[0].graph.steps if step.writes in by_reads]


def _compiled(front: Front, spec: Any) -> Callable[[Any], Any]:
    def run(x: Any) -> Any:
        return front(x, training=True)

    # As in training, the graph does not know the size of a batch: what is done with it must not depend on that.
    signature = tuple(tf.TensorSpec([None, *one.shape[1:]], one.dtype) for one in spec)
    return tf.function(run, input_signature=[signature], autograph=False).get_concrete_function()


def _statistics(front: Front) -> list[Any]:
    """Returns the weights in front of the cut that were not made to be trained."""
    layers = [step.operation for step in front.steps if isinstance(step.operation, keras.layers.Layer)]
    ahead = {id(weight) for layer in layers for weight in layer.weights}
    leaves = layer_tree(front.model).leaves
    return [leaf.variable for leaf in leaves if not leaf.trainable and id(leaf.variable) in ahead]


def _check_rows(values: dict[str, Any], rows: int) -> None:
    for value in values.values():
        if not isinstance(value, tf.Tensor) or value.dtype == tf.string:
            raise _OffError("what crosses the cut is no plain tensor of numbers")
        if value.shape.rank < 1 or value.shape[0] != rows:
            raise _OffError("what crosses the cut has no row for every example")


def _check_same(run: Callable[[Any], Any], rows: Any, first: dict[str, tf.Tensor]) -> None:
    turned, _ = run(tf.nest.map_structure(lambda one: tf.reverse(one, [0]), rows))
    if all(_same(first[number], tf.reverse(turned[number], [0])) for number in first):
        return
    again, _ = run(rows)
    if any(not _same(first[number], again[number]) for number in first):
        raise _OffError("the frozen part gives other outputs when it is run again on the same examples")
    if any(not _close(first[number], tf.reverse(turned[number], [0])) for number in first):
        raise _OffError("the frozen part gives an example other outputs when others stand beside it")


def _samples(values: dict[str, tf.Tensor]) -> dict[int, _Sample]:
    return {int(number): _Sample(value.dtype, value.numpy().shape[1:]) for number, value in values.items()}


def _same(a: tf.Tensor, b: tf.Tensor) -> bool:
    return a.numpy().tobytes() == b.numpy().tobytes()


def _close(a: tf.Tensor, b: tf.Tensor) -> bool:
    one, other = (tf.cast(tensor, tf.float64).numpy() for tensor in (a, b))
    tolerance = 1e-2 * max(float(np.abs(one).max(initial=0)), 1e-6)
    return np.allclose(one, other, rtol=0, atol=tolerance, equal_nan=True)


def _repeated(rows: Rows, passes: int) -> Rows:
    return Rows(passes * rows.length, lambda indices: rows.take(tf.math.floormod(indices, rows.length)))
