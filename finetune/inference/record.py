"""What a run folder says about the inputs and the outputs of its model, read without TensorFlow.

`data.json` says how columns and files became inputs, and which classes there are; `recipe.yaml` says which columns each
input is made of, and the loss. Files that an input needs, such as the tokenizer, lie in `data/` of the folder, so that
a folder that is moved to another machine works there.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.data.loss_families import family_of
from finetune.data.separators import TextForm
from finetune.errors import DataError, FinetuneError, did_you_mean, quote
from finetune.files.patterns import is_pattern, matching_files
from finetune.inference.checkpoint_choice import unfinished
from finetune.plain_shapes import fault
from finetune.results.run_documents import RECIPE, fault_in_fitted, read_of_run, read_recipe_of_run
from finetune.results.run_folder import DATA_FOLDER, PRESET_FOLDER, check_holds_run, is_finished

FORMATS = ("jsonl", "csv")  # of predictions
_FILES = {"images": "image", "audio": "audio"}  # kinds of sources whose rows are files, and the kind of their input


@dataclass(frozen=True)
class InputRecord:
    """How an input of the model is made of raw values.

    Attributes:
        name: Name of the input; empty for the only one.
        kind: `image`, `audio`, `tokens`, `string`, `features` (numbers and categories), or `array` for values that go
            in as they are.
        columns: The columns it is made of; a single empty name where rows are files.
        fitted: What was fitted to the training rows: by the name of the column for `features`, else settings such as
            `size`, `sample_rate` or `tokenizer`.
    """

    name: str
    kind: str
    columns: tuple[str, ...]
    fitted: Mapping[str, Any]


@dataclass(frozen=True)
class OutputRecord:
    """What an output of the model means.

    Attributes:
        name: Name of the output; empty for the only one.
        kind: `classes` (a row has a single class), `labels` (it may have several) or `numbers`.
        names: Names of the classes or labels by their numbers, or of the columns of numbers; may be empty.
        columns: The target columns; empty where the data have none.
        loss: Name of the loss.
        logits: Whether the model gives logits, not probabilities.
        thresholds: Probability from which a row has a label, by the name of the label; 0.5 for those not named.
    """

    name: str
    kind: str
    names: tuple[str, ...]
    columns: tuple[str, ...]
    loss: str
    logits: bool
    thresholds: Mapping[str, float]


@dataclass(frozen=True)
class RunRecord:
    """A run.

    Attributes:
        folder: The run folder.
        recipe: Its recipe, as plain data.
        data: Its `data.json`.
        result: Its `result.json`; empty where it is not finished.
    """

    folder: Path
    recipe: Mapping[str, Any]
    data: Mapping[str, Any]
    result: Mapping[str, Any]

    @property
    def model_file(self) -> Path:
        """The saved model."""
        return self.folder / "model.keras"

    @property
    def source(self) -> Mapping[str, Any]:
        """Where the rows came from and how they were read."""
        return self.data.get("source") or {}

    @property
    def kernels(self) -> str:
        """How layers compute: `native` or `exact`, as in every run of before there was a choice."""
        return (self.recipe.get("train") or {}).get("kernels", "exact")

    @property
    def missing(self) -> Sequence[str] | None:
        """What stands for a missing value in a table; `None` for the default words."""
        return self._data_key("missing")

    @property
    def text_form(self) -> TextForm:
        """How values are written in tables that are text."""
        found = str(self.source.get("delimiter", ""))
        return TextForm(
            self._data_key("quotes") is not False,
            self._data_key("delimiter") or "auto",
            found,
            tuple(self.source.get("decimal_commas", ())),
        )

    def _data_key(self, name: str) -> Any:
        return (self.recipe.get("data") or {}).get(name)

    @property
    def inputs(self) -> tuple[InputRecord, ...]:
        """The inputs that are made of raw values; what follows from token ids, such as a mask, is not among them."""
        kind = self.source.get("kind")
        if kind in _FILES:
            return (InputRecord("", _FILES[kind], ("",), self.source),)
        if kind != "table":
            return (InputRecord("", "array", ("",), {}),)
        written = self._data_key("inputs") or {}
        return tuple(
            _column_input(name, written.get(name) or written.get("") or (), about)
            for name, about in (self.source.get("inputs") or {}).items()
        )

    @property
    def outputs(self) -> tuple[OutputRecord, ...]:
        """The outputs of the model, in the order of the losses."""
        losses = (self.recipe.get("train") or {}).get("loss")
        by_name = losses if isinstance(losses, Mapping) and "name" not in losses else {"": losses}
        return tuple(self._output(name, loss) for name, loss in by_name.items())

    def _output(self, name: str, loss: Any) -> OutputRecord:
        about = self.source.get("target") or {}
        about = about if isinstance(about, Mapping) else {"columns": about}  # of an older version
        about = about.get(name, {}) if name else about
        facts = self.data.get("outputs", {}).get(name, {}) if name else self.data
        loss_name = str(loss["name"] if isinstance(loss, Mapping) else loss)
        logits = isinstance(loss, Mapping) and bool(loss.get("from_logits"))
        names = facts.get("class_names") or about.get("class_names") or ()
        kind = {"one_hot": "classes"}.get(str(about.get("kind")), about.get("kind"))
        if kind is None:
            family = family_of(loss_name)
            many = family == "binary" and len(names) > 2
            kind = "labels" if many else "classes" if names or family in ("sparse", "one_hot", "binary") else "numbers"
        columns = tuple(about.get("columns", ()))
        thresholds = (self.result.get("thresholds") or {}).get(name, {})
        return OutputRecord(name, kind, tuple(map(str, names)) or columns, columns, loss_name, logits, thresholds)

    def kept_file(self, path: str | Path) -> Path:
        """Returns where a file lies that an input is made with: in the run folder, or else where the recipe has it."""
        kept = self.folder / DATA_FOLDER / Path(path).name
        return kept if kept.is_file() else Path(path)

    def kept_preset(self, preset: str) -> str:
        """Returns the preset whose preprocessor makes token ids: what the run folder has of it, or else its name."""
        kept = self.folder / DATA_FOLDER / PRESET_FOLDER
        return str(kept) if kept.is_dir() else preset


def check_prediction(
    inputs: Sequence[str], out: Path | None, format: str | None, on_error: str, *, overwrite: bool = False
) -> None:
    """Checks what a command line asks of `predict`, as far as that goes without reading rows.

    Args:
        inputs: Files, folders, or `-`.
        out: The file to write, or `None`.
        format: `jsonl` or `csv`, or `None`.
        on_error: `stop` or `skip`.
        overwrite: Whether `out` may exist.

    Raises:
        FinetuneError: An option has no such value, or a file does not exist or is in the way.
    """
    for value, known, option in ((format, FORMATS, "--format"), (on_error, ("stop", "skip"), "--on-error")):
        if value is not None and value not in known:
            raise FinetuneError(
                f"`{option}` is one of {quote(known)}. Received: `{value}`.{did_you_mean(value, known)}"
            )
    if out and out.is_dir():
        raise FinetuneError(f"`--out` is a file. `{out}` is a folder. Name a file in it: `{out / 'answers.jsonl'}`.")
    if out and out.exists() and not overwrite:
        raise FinetuneError(
            f"Predictions do not overwrite files. `{out}` exists. Choose another, or add `--overwrite`."
        )
    check_exist(inputs)


def check_exist(inputs: Sequence[str | Path]) -> None:
    """Checks that files and folders exist, and some for each pattern; `-` is standard input.

    Raises:
        DataError: One does not.
    """
    for path in (Path(each) for each in inputs if str(each) != "-"):
        if is_pattern(path):
            matching_files([path], "files")
        elif not path.exists():
            others = sorted(other.name for other in path.parent.glob("*")) if path.parent.is_dir() else []
            raise DataError(
                f"Rows are read from files and folders that exist, or from standard input, `-`. `{path}` does not "
                f"exist.{did_you_mean(path.name, others)}"
            )


def _column_input(name: str, columns: Sequence[str], about: Mapping[str, Any]) -> InputRecord:
    kinds = {each.get("kind"): each for each in about.values()}
    if "text" in kinds:
        fitted = kinds["text"]
        return InputRecord(name, "tokens" if "tokenizer" in fitted else "string", tuple(columns), fitted)
    for kind in ("image", "audio"):
        if kind in kinds:
            return InputRecord(name, kind, tuple(columns), kinds[kind])
    return InputRecord(name, "features", tuple(about), about)


def open_record(folder: str | Path, checkpoint: str | None = None) -> RunRecord:
    """Reads what a run folder says of its data.

    Args:
        folder: A run folder.
        checkpoint: Which weights are wanted, where they are not those of the end; then the run may be unfinished.

    Raises:
        FinetuneError: It is no run folder, the run is not finished, or its files cannot be read.
    """
    folder = Path(folder)
    check_holds_run(folder, "A run folder is what `finetune run` writes.")
    if checkpoint is None and not (is_finished(folder) and (folder / "model.keras").is_file()):
        raise FinetuneError(unfinished(folder))
    if not (folder / "data.json").is_file():
        raise FinetuneError(
            f"A run folder says in `data.json` how its rows were read. There is none in `{folder}`. Copy the whole "
            "folder again."
        )
    data, result = (read_of_run(folder / name) for name in ("data.json", "result.json"))
    recipe = read_recipe_of_run(folder / "recipe.yaml")
    wrong = {"recipe.yaml": fault(recipe, RECIPE), "data.json": fault_in_fitted(data)}
    for name, why in wrong.items():
        if why:
            raise FinetuneError(
                f"Rows are read and answers are named as the run has noted it. `{folder / name}` does not say how: "
                f"{why}. Copy the whole folder again."
            )
    return RunRecord(folder, recipe, data, result)
