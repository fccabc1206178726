"""The `data` of a recipe: where the examples come from, and which of them train, test and validate."""

from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field, Strict, ValidationInfo, field_validator, model_validator

from finetune.errors import quote
from finetune.recipe.augment import AugmentLayer
from finetune.recipe.data_files import Feature, Files, Tables
from finetune.recipe.fields import (
    Arguments,
    Count,
    FilePath,
    ListOf,
    OneOrMore,
    Part,
    Text,
    choice,
    fault,
    one_of,
    pick,
)
from finetune.recipe.model import Builder
from finetune.recipe.tokenizer import TokenizerSpec

_SOURCES = ("builder", "npz", "images", "table", "tfrecord", "audio", "keras_dataset", "tfds")
_OF_IMAGES = ("images", "table", "tfrecord", "tfds", "builder")
_WITH_NAMES = ("table", "tfrecord", "tfds", "builder")  # whose rows may have parts with names
_KEYS_OF = {  # keys that only some sources have
    "arguments": ("builder",),
    "size": _OF_IMAGES,
    "resize": _OF_IMAGES,
    "value_range": (*_OF_IMAGES, "keras_dataset"),
    "on_error": ("images", "audio", "tfrecord", "tfds", "builder"),
    "keep": (*_OF_IMAGES, "audio"),
    "test_table": ("table",),
    "validation_table": ("table",),
    "inputs": _WITH_NAMES,
    "target": _WITH_NAMES,
    "exclude": ("table", "builder"),
    "sample_weight": ("table", "builder"),
    "types": ("table", "builder"),
    "missing": ("table", "builder"),
    "quotes": ("table",),
    "delimiter": ("table",),
    "decimal": ("table",),
    "tokenizer": ("table", "builder"),
    "features": ("tfrecord",),
    "sample_rate": ("audio", "table", "builder"),
    "length": ("audio", "table", "builder", "keras_dataset"),
    "path": ("keras_dataset",),
    "as_": ("tfds",),
    "splits": ("tfds",),
    "data_dir": ("tfds",),
}
REST = "rest"  # in `inputs`: all columns that are not named otherwise
KERAS_DATASETS = (
    *("mnist", "fashion_mnist", "cifar10", "cifar100"),
    *("imdb", "reuters", "boston_housing", "california_housing"),
)
Resize = Literal["pad", "crop", "stretch"]
SplitBy = Literal["random", "stratified", "group", "hash"]
Delimiter = Literal["auto", ",", ";", "|", "tab", "space"]
Decimal = Literal["auto", ".", ","]
ColumnType = Literal["number", "category", "text", "image", "audio"]


TEST_SHARE = 0.2  # of the rows, where nothing says which of them test


class SplitSpec(Part):
    """How rows are divided into those to train, test and validate on.

    Attributes:
        test: Share of the rows to test on. By default a fifth, and none where the data say which rows test.
        validation: Share of the rows to validate on: of those to train on, where the data say which rows test.
        by: `random`; `stratified`, each class in the same shares; `group`, rows with the same value of `column` in the
            same split; `hash`, by the value of `column`, or the name of the image, so that a row stays in its split
            when others are added. By default `stratified` where there are classes.
        column: A column of the table, for `group` and `hash`. Without `by` it says the split of each row: `train`,
            `test` or `validation`.
    """

    test: Annotated[float, Field(gt=0, lt=1)] | None = None
    validation: Annotated[float, Field(ge=0, lt=1)] = 0.0
    by: Annotated[SplitBy, choice(*get_args(SplitBy))] | None = None
    column: Text | None = None

    @model_validator(mode="after")
    def _check_shares(self) -> "SplitSpec":
        if self.test is not None and self.test + self.validation >= 1:
            rule = "leaves no rows to train on: `test` and `validation` together must be less than 1"
            raise fault(rule, received=round(self.test + self.validation, 6))
        if self.column and not self.by and self.test is not None:
            raise fault(
                "has nothing to do: `column` without `by` says which rows test. Remove it, or add `by: group`",
                at=("test",),
            )
        if self.column and self.by in ("random", "stratified"):
            raise fault(
                f"is for a split by `group` or `hash`, and this one is by `{self.by}`. Remove it", at=("column",)
            )
        if self.by == "group" and not self.column:
            raise fault("needs `column`, the column whose values say which rows belong together", about="mapping")
        return self


def needless_in_split(split: SplitSpec, *, validates: bool) -> tuple[tuple[str, ...], str] | None:
    """Returns what a split asks for that the data decide already: where they say which rows test, a share validates.

    Args:
        split: What is asked for.
        validates: Whether the data say, too, which rows validate.

    Returns:
        The keys below `split` that lead to it, and why it has nothing to do; `None` where all has.
    """
    why = "has nothing to do, since the data say which rows test"
    if validates:
        return (), f"{why} and validate. Remove it"
    if split.test is not None:
        return ("test",), f"{why}. Remove it"
    if split.column and not split.by:
        return ("column",), f"{why}. Remove it, or say what it is for: `by: group`"
    if not split.validation:
        return (), f"{why}. Remove it, or write the share of the training rows to validate on: `{{validation: 0.2}}`"
    return None


def _check_class_weight(value: Any) -> Any:
    if value is None or value == "balanced":
        return value
    weights = value if isinstance(value, dict) else {}
    if weights and all(type(weight) in (int, float) and 0 <= weight < float("inf") for weight in weights.values()):
        return {str(name): float(weight) for name, weight in weights.items()}
    raise fault(
        "must be `balanced`, or a number of at least 0 for each class by its name, e.g. `{cat: 2.0, dog: 1.0}`",
        received=value,
    )


def _check_columns(value: Any, info: ValidationInfo) -> Any:
    """Returns the columns of each input or output by its name; the name of a network's only one is empty."""
    by_name = value if isinstance(value, dict) else {"": value}
    columns = {name: [each] if isinstance(each, str) else each for name, each in by_name.items()}
    for names in columns.values():
        if not isinstance(names, list | tuple) or not names or not all(isinstance(n, str) and n for n in names):
            part = "input" if info.field_name == "inputs" else "output"
            rule = f"must be a column, a list of columns, or these for each {part} of the network by its name"
            raise fault(rule, received=value)
    return {str(name): tuple(names) for name, names in columns.items()}


def _check_missing(value: Any) -> Any:
    """Takes numbers and an unquoted `null` as the words that they are in a table."""
    if not isinstance(value, list | tuple):
        return value
    return ["null" if each is None else str(each) if type(each) in (int, float) else each for each in value]


def _check_delimiter(value: Any) -> Any:
    if value == "":  # what YAML makes of an unquoted `|`
        raise fault('is empty. Put the character in quotes: `"|"`')
    return pick({"\t": "tab", " ": "space"}.get(value, value) if isinstance(value, str) else value, get_args(Delimiter))


def _check_keep(value: Any) -> Any:
    modes = ("off", "memory", "disk")
    value = "off" if value is False else value  # what YAML 1.1 makes of an unquoted `off`
    return pick(value, modes)


Columns = Annotated[dict[str, tuple[str, ...]], BeforeValidator(_check_columns), Strict(False)]


class DataSource(Part):
    """Where the examples come from: exactly one of the first eight keys.

    Attributes:
        builder: A function that returns examples, as `package.module:function`.
        npz: A file with the arrays `x_train`, `y_train`, `x_test`, `y_test`, and optionally validation rows.
        images: A folder with a folder of images for each class; or with `train`, `test` and, optionally, `validation`,
            of which each has folders of classes.
        table: A CSV, TSV, other delimited, JSON, Parquet or Feather file; the first line of text names the columns. Or
            several with the same columns: a pattern such as `train-*.parquet`, or a list.
        tfrecord: Files of `tf.train.Example`s: a pattern such as `train-*.tfrecord`, a list, or these for `train`,
            `test` and, optionally, `validation`.
        audio: A folder with a folder of WAV files for each class; or with `train`, `test` and so on, as `images`.
        keras_dataset: A data set of `keras.datasets`, which Keras downloads; or, with `path`, from a local file.
        tfds: A data set of TensorFlow Datasets, as `name` or `name/config:version`.
        test_table: The file or files with the test rows; without them, `split` says which rows test.
        validation_table: The file or files with the validation rows.
        inputs: The column or columns of the input; or those of each input by its name in the network. Columns of
            numbers and categories become a vector; a column of text, or two as a pair, become token ids; a column of
            image files becomes images. `rest` are all columns that are not named otherwise.
        target: The column of the target, or several columns of numbers; or those of each output by its name in the
            network.
        exclude: Columns that `inputs: rest` leaves out, such as those that identify rows.
        sample_weight: The column of the weights of the rows in the loss, numbers of at least 0.
        types: `number`, `category`, `text`, `image` or `audio` for columns that are not what they look like, by name.
        missing: Words that stand for a missing value in a table, beside an empty cell; by default `NA`, `N/A`, `NaN`,
            `nan`, `null`, `NULL`, `None`. With `[]` these are classes and categories like others.
        quotes: Whether `"` begins a value of a CSV or TSV file that may hold separators and line breaks; with `false`
            quotes are characters like others.
        delimiter: What is between two values of a table that is text: `,`, `;`, `|`, `tab` or `space`. `auto` takes a
            tab for `.tsv`, and otherwise what splits the first rows into the same number of values, a comma first.
        decimal: Whether a `.` or a `,` begins the decimals of the numbers of such a table. `auto` takes the comma where
            values are separated by `;`, tabs or spaces, for columns whose every number has it or is whole.
        tokenizer: How text becomes token ids. Without, a network that takes text gets the text.
        arguments: Keyword arguments of the builder.
        size: Height and width of the images; by default those that the network takes.
        resize: `pad` keeps the whole image and its proportions; `crop` keeps the proportions and fills the size;
            `stretch` does not keep the proportions.
        value_range: What black and white become.
        class_names: Names of the classes in the order of their numbers; by default sorted.
        class_names_file: A text file with such a name in each line.
        features: How features of records are read, by their names; by default as they look in the first records.
        sample_rate: Samples in a second of all sounds: files of another rate are resampled.
        length: Samples of each sound, or words of each text of a `keras_dataset`: longer ones are cut at the end,
            shorter ones are filled up with 0. By default what the network takes.
        path: The local file of a `keras_dataset`; for `cifar10` and `cifar100` the archive or its folder.
        as: Names of the features that are input and target, such as `[image, label]`.
        splits: Which split of the data set trains, tests and validates, such as `{train: "train[:80%]", test: test}`.
        data_dir: The folder of prepared data sets; by default that of TensorFlow Datasets.
        split: Which rows test and validate.
        class_weight: `balanced`, or the weight of each class in the loss, by its name.
        augment: Keras layers that change the training rows, such as `[{layer: RandomFlip, mode: horizontal}]`: a row
            looks different in every epoch. Rows to test and to validate on, and the saved model, have no part in it.
        keep: Where rows that are decoded one by one, such as images in files, are kept after the first time: `memory`,
            or `disk`, a temporary file as large as all decoded rows; `off` decodes them in every epoch.
        on_error: `stop` at a row that cannot be read, or `skip` all such rows: each is then read once beforehand.
        limit: At most so many rows, taken evenly from the source before it is split.
    """

    builder: Builder | None = None
    npz: FilePath | None = None
    images: FilePath | None = None
    table: Tables | None = None
    tfrecord: Files | None = None
    audio: FilePath | None = None
    keras_dataset: Annotated[Text, choice(*KERAS_DATASETS)] | None = None
    tfds: Text | None = None
    test_table: Tables | None = None
    validation_table: Tables | None = None
    inputs: Columns = Field(default_factory=dict)
    target: Columns = Field(default_factory=dict)
    exclude: ListOf[Text] = ()
    sample_weight: Text | None = None
    types: dict[Text, Annotated[ColumnType, choice(*get_args(ColumnType))]] = Field(default_factory=dict)
    missing: Annotated[ListOf[Text] | None, BeforeValidator(_check_missing)] = None
    quotes: bool = True
    delimiter: Annotated[Delimiter, BeforeValidator(_check_delimiter)] = "auto"
    decimal: Annotated[Decimal, choice(*get_args(Decimal))] = "auto"
    tokenizer: TokenizerSpec | None = None
    arguments: Arguments = Field(default_factory=dict)
    size: Annotated[ListOf[Count], Field(min_length=2, max_length=2)] | None = None
    resize: Annotated[Resize, choice(*get_args(Resize))] = "pad"
    value_range: Annotated[ListOf[float], Field(min_length=2, max_length=2)] = (0.0, 255.0)
    class_names: ListOf[Text] = ()
    class_names_file: FilePath | None = None
    features: dict[Text, Feature] = Field(default_factory=dict)
    sample_rate: Count | None = None
    length: Count | None = None
    path: FilePath | None = None
    as_: Annotated[ListOf[Text], Field(min_length=2, max_length=2)] | None = Field(default=None, alias="as")
    splits: dict[Text, Text] = Field(default_factory=dict)
    data_dir: FilePath | None = None
    split: SplitSpec | None = None
    class_weight: Annotated[Any, BeforeValidator(_check_class_weight)] = None
    augment: OneOrMore[AugmentLayer] = ()
    keep: Annotated[Literal["off", "memory", "disk"], BeforeValidator(_check_keep)] = "off"
    on_error: Annotated[Literal["stop", "skip"], choice("stop", "skip")] = "stop"
    limit: Count | None = None

    @field_validator("tfds")
    @classmethod
    def _check_source(cls, value: Any, info: ValidationInfo) -> Any:
        return one_of(value, info, *_SOURCES[:-1])

    @model_validator(mode="after")
    def _check_keys_of_source(self) -> "DataSource":
        source = next(name for name in _SOURCES if getattr(self, name) is not None)
        for key, sources in _KEYS_OF.items():
            if getattr(self, key) != type(self).model_fields[key].get_default(call_default_factory=True):
                if source in sources:
                    continue
                said = f"is for data from {quote(sources, limit=9)}, and these are from `{source}`. Remove it"
                raise fault(said, at=(type(self).model_fields[key].alias or key,))
        if self.split and source not in _WITH_NAMES and (self.split.column or self.split.by == "group"):
            by = "by" if self.split.by == "group" else "column"
            raise fault(
                "is for rows with columns, and these data have none. Split them by `stratified`, `random` or `hash`, "
                "or name the files in a table with such a column",
                at=("split", by),
            )
        if source == "tfds" and self.as_ and (self.inputs or self.target):
            raise fault("takes at most one of `as`, `inputs` with `target`. Remove one of the two", at=("as",))
        is_named = source == "table" or (source == "tfrecord") or (source == "tfds" and not self.as_)
        what = {"table": "columns of the table", "tfrecord": "features of the records"}.get(source, "features, or `as`")
        for key in ("inputs", "target"):
            if is_named and not getattr(self, key):
                raise fault(f"is missing. Name {what}", at=(key,))
        if self.exclude and (REST,) not in self.inputs.values():
            raise fault("is for `inputs: rest`, and here all inputs are named. Remove it", at=("exclude",))
        has_test = self.test_table or (source == "tfrecord" and list(self.tfrecord or ()) != [""])
        if has_test and self.split:
            validates = self.validation_table or "validation" in (self.tfrecord or ())
            if needless := needless_in_split(self.split, validates=bool(validates)):
                raise fault(needless[1], at=("split", *needless[0]))
        if self.validation_table and not self.test_table:
            raise fault("needs a `test_table` beside it", at=("validation_table",))
        if self.class_names and self.class_names_file:
            raise fault("takes at most one of `class_names`, `class_names_file`. Remove one of the two")
        return self
