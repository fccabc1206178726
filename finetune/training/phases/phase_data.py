"""The data of `train_phases`: what each phase gives to `model.fit`, and the batches that Auto-RGN measures over.

`fit` is called once for every phase, and Auto-RGN looks at batches before they are trained on. Neither may cost a
batch: a generator is read on from phase to phase, and a dataset is opened once an epoch, as in a single `fit`.
"""

import inspect
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from types import GeneratorType
from typing import Any

import keras
import tensorflow as tf

from finetune import keras_private
from finetune.errors import GroupError, did_you_mean, quote
from finetune.training.fit_data import fit_batches, preprocess, preprocesses, strings_as_tensors
from finetune.training.snapshot import unchanged_random_state


def check_fit_arguments(fit: Mapping[str, Any]) -> None:
    """Checks that the arguments for `fit` are some that phases do not decide.

    Args:
        fit: The arguments by name.

    Raises:
        GroupError: Phases decide an argument, or `fit` does not have it.
    """
    if "initial_epoch" in fit:
        raise GroupError(
            "`train_phases` begins with the first epoch of the first phase. Received "
            f"`initial_epoch={fit['initial_epoch']}`. Remove it, and pass the phases that are still to be trained."
        )
    known = [name for name in inspect.signature(keras.Model.fit).parameters if name != "self"]
    unknown = [name for name in fit if name not in known]
    if unknown:
        raise GroupError(
            f"`train_phases` takes its own arguments and those of `model.fit`. Received {quote(unknown)}. `fit` takes "
            f"{quote(known, limit=20)}.{did_you_mean(unknown[0], known)}"
        )


class PhaseData:
    """What `train_phases` got as data.

    Args:
        x: Inputs, as for `model.fit`.
        y: Targets of arrays.
        fit: The other arguments of `fit`.
        measured: How many batches Auto-RGN measures over before an epoch.
        model: The model that is trained, which may make its inputs of raw rows itself.
    """

    def __init__(self, x: Any, y: Any, fit: Mapping[str, Any], measured: int, model: Any = None):
        self.x, self.y, self.fit, self.measured, self.model = x, y, fit, measured, model
        # A generator goes on from phase to phase; a dataset begins again in each.
        self.stream = Stream(lambda: x) if isinstance(x, GeneratorType) else None
        self._first: list[Any] | None = None  # batches of arrays and of a `PyDataset`, whose reading leaves no trace

    def inputs(self, *, steps: int | None, looks_ahead: bool) -> Any:
        """Returns the `x` of a phase.

        Args:
            steps: How many steps the phase makes at most; `None` if unknown.
            looks_ahead: Whether Auto-RGN looks at batches before every epoch.
        """
        if isinstance(self.x, GeneratorType):
            assert self.stream
            # Keras reads some batches in advance: no more than the phase needs, or they would be lost to the next.
            return (batch for batch in islice(self.stream.read(), steps))
        if isinstance(self.x, tf.data.Dataset) and looks_ahead:
            size = int(self.x.cardinality())
            self.stream = Stream(lambda: iter(self.x), size if size > 0 else None)
            read = tf.data.Dataset.from_generator(self.stream.read, output_signature=self.x.element_spec)
            # `from_generator` forgets the length, by which Keras plans the epoch and draws its progress bar.
            if size != tf.data.UNKNOWN_CARDINALITY:
                read = read.apply(tf.data.experimental.assert_cardinality(size))
            return read.with_options(self.x.options())
        return self.x

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        """Yields what Auto-RGN measures over in the epoch that begins: batches of inputs, targets and weights of rows.

        Of arrays and a `PyDataset` these are the first in their order, of a dataset or a generator the next ones that
        nobody has read in advance.
        """
        if self.stream:
            return iter([self._weighed(batch) for batch in self.stream.peek(self.measured)])
        if self._first is None:
            # A shuffled dataset or a `PyDataset` may draw numbers, which training must draw as if nobody had looked.
            with unchanged_random_state():
                self._first = list(self._read_first())
        return iter(self._first)

    def _read_first(self) -> Iterator[tuple[Any, ...]]:
        if isinstance(self.x, keras.utils.PyDataset):
            count = self.x.num_batches
            numbers = range(self.measured if count is None else min(count, self.measured))
            yield from (self._weighed(self.x[number]) for number in numbers)
            return
        arrays = (self.x, self.y, self.fit.get("sample_weight"))
        # The rows of the validation are not trained on, so they are not measured over either.
        if split := self.fit.get("validation_split"):
            arrays = strings_as_tensors(arrays) if preprocesses(self.model) else arrays
            arrays = keras_private.split_for_validation(arrays, split)
        x, y, weight = arrays
        settings: dict[str, Any] = {name: self.fit.get(name) for name in ("class_weight", "batch_size")}
        yield from islice(iter(fit_batches(x, y, sample_weight=weight, model=self.model, **settings)), self.measured)

    def _weighed(self, batch: Any) -> tuple[Any, ...]:
        """Returns a batch as `fit` trains on it: with weights of its rows where there are weights of classes."""
        parts: Any = keras.utils.unpack_x_y_sample_weight(tuple(batch) if isinstance(batch, list) else batch)
        x, y, weight = preprocess(self.model, parts) if preprocesses(self.model) else parts
        # Keras refuses weights of rows and of classes together, so a batch with its own stays as it is.
        if (of_classes := self.fit.get("class_weight")) and weight is None:
            return keras_private.with_class_weights((x, tf.convert_to_tensor(y), None), of_classes)
        return x, y, weight


class Stream:
    """Batches that can be looked at before they are read, of which none is read twice.

    TensorFlow reads from a thread of its own.

    Args:
        begin: Opens the data; called at the first look or read of a pass.
        size: Batches in a pass; `None`: until the data end.
    """

    def __init__(self, begin: Callable[[], Iterable[Any]], size: int | None = None):
        self._begin, self._size = begin, size
        self._lock = threading.Lock()
        self._ahead: deque[Any] = deque()  # looked at, and still to be read
        self._source: Iterator[Any] | None = None  # of the present pass
        self._left: float = 0  # batches of this pass that were not taken yet

    def peek(self, count: int) -> list[Any]:
        """Returns the next batches, fewer where the pass ends."""
        with self._lock:
            self._leave_ended()
            while len(self._ahead) < count and self._take():
                pass
            return list(islice(self._ahead, count))

    def read(self) -> Iterator[Any]:
        """Yields the batches to the end of the pass."""
        with self._lock:
            self._leave_ended()
        while True:
            with self._lock:
                if not self._ahead and not self._take():
                    return
                # Not inside the next line: whoever gets the batch may take its time, and must not hold the lock.
                batch = self._ahead.popleft()
            yield batch

    def _leave_ended(self) -> None:
        """Lets a new pass begin if nothing is left of the present one."""
        if not self._left and not self._ahead:
            self._source = None

    def _take(self) -> bool:
        """Takes a batch from the source; returns whether there was one."""
        if self._source is None:
            self._source, self._left = iter(self._begin()), self._size or float("inf")
        if self._left:
            self._left -= 1
            try:
                self._ahead.append(next(self._source))
                return True
            except StopIteration:
                self._left = 0
        return False
