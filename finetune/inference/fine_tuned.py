"""A run, loaded: raw rows in, answers out."""

import importlib
import shlex
import zipfile
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import keras
import numpy as np

from finetune.errors import DataError, FinetuneError, reason
from finetune.files.zip_archives import zip_archive
from finetune.inference.answers import Answer, answers
from finetune.inference.checkpoint_choice import choose_weights
from finetune.inference.checkpoint_model import model_of_recipe, put_weights
from finetune.inference.prepared_inputs import Prepare, prepares
from finetune.inference.raw_rows import ROWS, TABLE_ROWS, RawRows, raw_rows_of, read_raw_rows
from finetune.inference.record import RunRecord, open_record
from finetune.keras_private import fresh_names
from finetune.kernels.native_kernels import with_kernels
from finetune.machine_failures import raise_machine_failure
from finetune.models.builders import load_keras_file
from finetune.models.output_names import by_output_name, of_output, output_names
from finetune.recipe.code_consent import names_graph

if TYPE_CHECKING:
    from finetune.inference.evaluation import Evaluation
    from finetune.inference.exports.export import Export

_SMALL = ("features", "tokens", "string")  # kinds of inputs
_AHEAD = 4  # chunks that are prepared while the model runs


@dataclass(frozen=True)
class Prediction:
    """What a model says of a row.

    Attributes:
        place: Where the row is: a file, a line of a table, or its number.
        answer: `label`, `probability` and `top`, or `labels` and `probabilities`, or `value`; by the name of the output
            where there are several; empty for a row that cannot be read.
        problem: Why the row cannot be read; usually empty.
    """

    place: str
    answer: Answer
    problem: str = ""


class FineTuned:
    """A fine-tuned model with what its run knows of inputs and classes.

    Attributes:
        record: What the run folder says.
        model: The model, a `keras.Model` that takes prepared inputs.
        weights: Which weights it has, as a sentence without a point; empty for those of the end of the run.
    """

    def __init__(self, record: RunRecord, model: keras.Model, weights: str = ""):
        self.record, self.model, self.weights = record, model, weights
        self._prepare: Prepare | None = None

    @property
    def prepare(self) -> Prepare:
        """The function that makes inputs of the model from raw rows."""
        if self._prepare is None:
            self._prepare = prepares(self.record, self.model)
        return self._prepare

    @property
    def _chunk(self) -> int:
        return TABLE_ROWS if all(each.kind in _SMALL for each in self.record.inputs) else ROWS

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes or labels of the first output by their numbers; empty where it gives numbers."""
        first = self.record.outputs[0]
        return first.names if first.kind != "numbers" else ()

    def predict(self, rows: Any, *, top: int = 3, threshold: float | None = None) -> list[Answer]:
        """Returns an answer for each row.

        Args:
            rows: Raw rows: `Path`s of files or folders, texts, a dict of columns, a data frame, dicts of a row each,
                pictures of Pillow or as arrays of whole values from 0 to 255, or prepared arrays where the run was
                trained on arrays.
            top: How many classes are listed, >= 1.
            threshold: Probability from which a row has a label; by default what the run chose, or 0.5.

        Raises:
            DataError: Rows do not fit the model; says where they are.
        """
        chunks = raw_rows_of(rows, size=self._chunk, read=self.read)
        return [each.answer for each in self.predictions(chunks, top=top, threshold=threshold)]

    def evaluate(
        self,
        data: str | Path | None = None,
        *,
        split: str = "test",
        metrics: Sequence[str] = (),
        allow_code: Sequence[str] = (),
    ) -> "Evaluation":
        """Evaluates the model.

        Args:
            data: A table, a folder of class folders or an `.npz` file with targets; by default the data of the recipe.
            split: `test`, `validation` or `train`: which rows of the run's own data.
            metrics: Names of metrics as Keras has them; by default those of the recipe. They are for each output.
            allow_code: Code that the recipe names and that may run.

        Raises:
            FinetuneError: The data of the run have changed or are gone, or rows do not fit the model.
        """
        from finetune.inference.evaluation import evaluate_on

        return evaluate_on(self, data, split=split, metrics=metrics, allow_code=allow_code)

    def export(
        self,
        format: str,
        out: str | Path,
        *,
        quantize: str | None = None,
        data: Sequence[str | Path] = (),
        allow_code: Sequence[str] = (),
    ) -> "Export":
        """Exports the model with its preprocessing, and compares the export with it in a new process.

        Args:
            format: `savedmodel`, `hub`, `keras`, `litert`, `onnx` or `safetensors`.
            out: The folder to write. Must not exist, or be empty.
            quantize: For `litert`: `int8` or `float16`.
            data: Raw rows to compare on: files, folders or tables; by default the first of the test split.
            allow_code: Code that the recipe names and that may run, to make its rows.

        Raises:
            FinetuneError: The place is taken, the network cannot be converted, or its answers differ; nothing is
                written then.
        """
        from finetune.inference.exports.export import export

        return export(self, format, out, quantize=quantize, data=data, allow_code=allow_code)

    def read(
        self,
        inputs: Sequence[str | Path],
        *,
        size: int | None = None,
        lines: TextIO | None = None,
        without_rows: list[str] | None = None,
    ) -> Iterator[RawRows]:
        """Reads raw rows.

        Args:
            inputs: Files, folders, or `-`.
            size: Rows of a chunk at most, >= 1; by default 32 images, sounds or arrays, or 512 other rows.
            lines: What `-` reads.
            without_rows: Gets the names of those that hold none, when all has been read.
        """
        form = self.record.text_form
        return read_raw_rows(inputs, size=size or self._chunk, form=form, lines=lines, without_rows=without_rows)

    def predictions(
        self, chunks: Iterable[RawRows], *, top: int = 3, threshold: float | None = None, skip: bool = False
    ) -> Iterator[Prediction]:
        """Yields what the model says of each row, in their order, while further rows are prepared in other threads.

        Args:
            chunks: Raw rows.
            top: How many classes are listed, >= 1.
            threshold: Probability from which a row has a label.
            skip: Whether a row that cannot be read has a prediction that says so; otherwise it is an error.

        Raises:
            DataError: A row cannot be read and `skip` is false, or rows do not fit the model.
        """
        for rows, inputs, problems in self._prepared(iter(chunks), skip):
            kept = [place for number, place in enumerate(rows.places) if number not in problems]
            found = iter(self._answers(inputs, top, threshold) if kept else ())
            for number, place in enumerate(rows.places):
                problem = problems.get(number, "")
                yield Prediction(place, {} if problem else next(found), problem)

    def _answers(self, inputs: Any, top: int, threshold: float | None) -> list[Answer]:
        try:
            with with_kernels(self.record.kernels):
                outputs = by_output_name(self.model, self.model.predict_on_batch(inputs))
        except Exception as error:  # TensorFlow's of many classes
            raise_machine_failure(error, "The model")
            raise DataError(f"The model must take the rows. It does not: {reason(error)}.") from error
        records = self.record.outputs
        given = {each.name: np.asarray(of_output(outputs, each.name)) for each in records}
        columns = [list(answers(each, given[each.name], top=top, threshold=threshold)) for each in records]
        names = [each.name for each in records]
        if names == [""]:
            return columns[0]
        return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]

    def _prepared(self, chunks: Iterator[RawRows], skip: bool) -> Iterator[tuple[RawRows, Any, dict[int, str]]]:
        """Prepares chunks in threads, some ahead: decoding goes on while the model runs."""
        with ThreadPoolExecutor(2) as pool:
            waiting: deque[tuple[RawRows, Future[Any]]] = deque()
            try:
                for rows in chunks:
                    waiting.append((rows, pool.submit(self._prepare_chunk, rows, skip)))
                    if len(waiting) > _AHEAD:
                        first, future = waiting.popleft()
                        yield (first, *future.result())
                while waiting:
                    first, future = waiting.popleft()
                    yield (first, *future.result())
            finally:
                for _, future in waiting:
                    future.cancel()

    def _prepare_chunk(self, rows: RawRows, skip: bool) -> tuple[Any, dict[int, str]]:
        """Returns the inputs of the rows that can be read, and what is wrong with the others, by their numbers."""
        try:
            return self.prepare(rows), {}
        except Exception as error:  # decoders raise errors of many classes; below, each row says what is wrong
            raise_machine_failure(error, "Preparing rows")
            if len(rows) == 1 and not skip:
                raise _of_row(error, rows.places[0]) from error
        problems: dict[int, str] = {}
        for number in range(len(rows)):
            try:
                self.prepare(rows.row(number))
            except Exception as error:
                raise_machine_failure(error, "Preparing rows")
                problem = _of_row(error, rows.places[number])
                if not skip:
                    raise problem from error
                problems[number] = str(problem)
        kept = [number for number in range(len(rows)) if number not in problems]
        try:
            return (self.prepare(rows.select(kept)) if kept else None), problems
        except Exception as error:  # each row is fine by itself, such as arrays of other shapes
            raise_machine_failure(error, "Preparing rows")
            raise _of_row(error, f"{rows.places[kept[0]]}` to `{rows.places[kept[-1]]}") from error


def _of_row(error: BaseException, place: str) -> DataError:
    """Returns the error of a row in words of the user's."""
    if isinstance(error, DataError):
        return error
    return DataError(f"`{place}` cannot be read: {reason(error)}.")


def load(folder: str | Path, *, checkpoint: str | None = None, allow_code: Sequence[str] = ()) -> FineTuned:
    """Loads a run: its model, its classes, and how raw rows become inputs.

    Args:
        folder: The run folder, which may have been moved since.
        checkpoint: Weights of a checkpoint in place of those at the end, also of a run that is not finished, or trained
            at this moment: `best` (with `train.keep: best`), `last`, or the name of a file in `checkpoints`.
        allow_code: Code that may run, where the model has some: `hub:RUN` or `hub:HANDLE` for the graph of a SavedModel
            in it, and the package of a builder whose layer classes it has.

    Raises:
        FinetuneError: It is no run or not finished, the model cannot be loaded, it has code that is not allowed, or
            there is no such checkpoint.
    """
    record = open_record(folder, checkpoint)
    chosen = choose_weights(record.folder, checkpoint) if checkpoint else None
    if chosen and not record.model_file.is_file():
        model = model_of_recipe(record.folder, allow_code=allow_code)
    else:
        model = _saved_model(record, allow_code)
    if chosen:
        put_weights(model, chosen)
    return FineTuned(_with_every_output(record, model), model, f"{chosen.said}, of `{chosen.file}`" if chosen else "")


def _saved_model(record: RunRecord, allow_code: Sequence[str]) -> keras.Model:
    """Loads `model.keras` of a run."""
    source, folder = record.recipe.get("model") or {}, record.folder
    module = str(source.get("builder") or "").partition(":")[0]
    if module and module.partition(".")[0] in (*allow_code, "finetune"):
        with suppress(ImportError):  # its classes may not be needed; otherwise Keras says which are missing
            importlib.import_module(module)
    has_graph = _has_graph(record.model_file)
    if has_graph:
        importlib.import_module("finetune.models.hub")  # registers the layer that holds the graph
        written = str(source.get("hub") or folder)
        if not (names_graph(allow_code, written, written) or names_graph(allow_code, str(folder), str(folder))):
            raise FinetuneError(
                f"The graph of a SavedModel is code, which runs with your rights. `{record.model_file}` holds that of "
                f"`{written}`. If you trust the run, add `--allow-code {shlex.quote(f'hub:{folder}')}`."
            )
    with fresh_names():
        return load_keras_file(record.model_file, safe_mode=not has_graph)


def _with_every_output(record: RunRecord, model: keras.Model) -> RunRecord:
    """Returns the record with a loss for each output, where the recipe has a single one for all of several."""
    names, outputs = output_names(model), record.outputs
    if len(names) == 1 or [each.name for each in outputs] != [""]:
        return record
    train = record.recipe["train"]
    return replace(record, recipe={**record.recipe, "train": {**train, "loss": dict.fromkeys(names, train["loss"])}})


def _has_graph(path: Path) -> bool:
    """Returns whether a `.keras` file holds the graph of a SavedModel, which safe mode refuses."""
    try:
        with zip_archive(path) as archive:
            return b'"finetune>HubLayer"' in archive.read("config.json")
    except (OSError, KeyError, zipfile.BadZipFile):
        return False  # loading says what is wrong
