"""The `data` of a recipe has exactly one source."""

import pytest
from pydantic import ValidationError

from finetune.recipe.data import DataSource

BUILDER = "finetune.examples.digits:uci_digits"


def predicate(**keys):
    with pytest.raises(ValidationError) as caught:
        DataSource.model_validate(keys)
    [error] = caught.value.errors()
    return error["ctx"]["predicate"]


def test_a_builder_with_arguments_or_a_file_is_a_source():
    assert DataSource.model_validate({"builder": BUILDER, "arguments": {"seed": 1}}).arguments == {"seed": 1}
    assert DataSource.model_validate({"npz": "rows.npz"}).npz == "rows.npz"


def test_two_sources_and_none_are_errors():
    assert predicate(builder=BUILDER, npz="rows.npz") == (
        "needs exactly one of `builder`, `npz`, `images`, `table`, `tfrecord`, `audio`, `keras_dataset`, `tfds`. Received: `builder`, `npz`"
    )
    assert (
        predicate()
        == "needs exactly one of `builder`, `npz`, `images`, `table`, `tfrecord`, `audio`, `keras_dataset`, `tfds`. All are missing"
    )


def test_arguments_without_a_builder_are_an_error():
    said = "is for data from `builder`, and these are from `npz`. Remove it"
    assert predicate(npz="rows.npz", arguments={"seed": 1}) == said


def test_arguments_belong_to_a_builder(complaint):
    said = ["`data.arguments` is for data from `builder`, and these are from `npz`. Remove it."]
    assert complaint("data", "arguments", to={"rows": 3}) == said


def test_images_have_a_size_a_split_and_weights_of_classes():
    keys = {"size": [96, 64], "resize": "crop", "split": {"test": 0.1, "by": "hash"}, "class_weight": {"cat": 2}}
    source = DataSource.model_validate({"images": "photos/", **keys})
    assert source.size == (96, 64)
    assert source.split
    assert (source.split.test, source.split.validation, source.split.by) == (0.1, 0.0, "hash")
    assert source.class_weight == {"cat": 2.0}


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"resize": "pda"}, 'is not a known value. Received: `"pda"`. Did you mean `pad`'),
        ({"split": {"test": 0.6, "validation": 0.5}}, "leaves no rows to train on: `test` and `validation` together"),
        ({"class_weight": "balance"}, "must be `balanced`, or a number of at least 0 for each class by its name"),
        ({"class_weight": {"cat": -1}}, "must be `balanced`, or a number of at least 0 for each class by its name"),
        ({"class_names": ["a"], "class_names_file": "b.txt"}, "takes at most one of `class_names`, `class_names_file`"),
    ],
)
def test_what_images_cannot_have_is_said(keys, said):
    assert predicate(images="photos/", **keys).startswith(said)


def test_keys_of_images_are_for_images():
    assert predicate(npz="a.npz", size=[4, 4]) == (
        "is for data from `images`, `table`, `tfrecord`, `tfds`, `builder`, and these are from `npz`. Remove it"
    )


TABLE = {"table": "people.csv", "inputs": "age", "target": "kind"}


def test_inputs_are_a_column_columns_or_those_of_each_input_by_name():
    for written, read in (
        ("age", {"": ("age",)}),
        (["age", "town"], {"": ("age", "town")}),
        ({"a": "age", "b": ["town"]}, {"a": ("age",), "b": ("town",)}),
    ):
        source = DataSource.model_validate(TABLE | {"inputs": written})
        assert source.inputs == read
        assert DataSource.model_validate(source.model_dump(by_alias=True)) == source
    assert source.target == {"": ("kind",)}
    several = DataSource.model_validate(TABLE | {"target": {"species": "kind", "size": ["a", "b"]}})
    assert several.target == {"species": ("kind",), "size": ("a", "b")}


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"inputs": None}, "is missing. Name columns of the table"),
        ({"target": None}, "is missing. Name columns of the table"),
        ({"inputs": {"a": []}}, "must be a column, a list of columns, or these for each input of the network"),
        ({"target": {"a": 3}}, "must be a column, a list of columns, or these for each output of the network"),
        ({"tokenizer": {"file": "vocab.txt"}}, "is missing. Add it under `data.tokenizer`"),
        ({"types": {"age": "numbr"}}, 'is not a known value. Received: `"numbr"`. Did you mean `number`'),
        ({"split": {"by": "group"}}, "needs `column`, the column whose values say which rows belong together"),
        (
            {"split": {"by": "random", "column": "id"}},
            "is for a split by `group` or `hash`, and this one is by `random`",
        ),
        ({"split": {"test": 0.5}, "test_table": "b.csv"}, "has nothing to do, since the data say which rows test. Rem"),
        (
            {"split": {"column": "part"}, "test_table": "b.csv"},
            "has nothing to do, since the data say which rows test.",
        ),
        (
            {"split": {"validation": 0.5}, "test_table": "b.csv", "validation_table": "c.csv"},
            "has nothing to do, since the data say which rows test and validate. Remove it",
        ),
        ({"split": {"test": 0.5, "column": "part"}}, "has nothing to do: `column` without `by` says which rows test."),
        ({"validation_table": "b.csv"}, "needs a `test_table` beside it"),
    ],
)
def test_what_a_table_cannot_have_is_said(keys, said):
    written = {key: value for key, value in (TABLE | keys).items() if value is not None}
    assert predicate(**written).startswith(said)


@pytest.mark.parametrize("split", [{"by": "group", "column": "patient"}, {"column": "patient"}])
def test_images_have_no_columns_to_split_by(split):
    said = "is for rows with columns, and these data have none. Split them by `stratified`, `random` or `hash`, or name"
    assert predicate(images="photos/", split=split).startswith(said)


def test_columns_to_leave_out_are_for_the_rest():
    assert predicate(**TABLE, exclude=["id"]).startswith("is for `inputs: rest`, and here all inputs are named")
    assert DataSource.model_validate(TABLE | {"inputs": "rest", "exclude": ["id"]}).exclude == ("id",)
    assert DataSource.model_validate(TABLE | {"inputs": {"a": "rest", "b": "c"}, "exclude": ["id"]}).exclude == ("id",)


@pytest.mark.parametrize("source", [{"npz": "a.npz"}, {"builder": BUILDER}, {"images": "photos"}, TABLE])
def test_a_limit_a_split_and_names_of_classes_are_for_every_source(source):
    keys = {"limit": 3, "split": {"test": 0.5}, "class_names": ["a", "b"], "class_weight": "balanced"}
    assert DataSource.model_validate(source | keys).limit == 3


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"tfrecord": "a"}, "is missing. Name features of the records"),
        ({"tfds": "mnist"}, "is missing. Name features, or `as`"),
        ({"tfds": "mnist", "as": ["a", "b"], "target": "c"}, "takes at most one of `as`, `inputs` with `target`"),
        ({"npz": "a", "as": ["a", "b"]}, "is for data from `tfds`, and these are from `npz`. Remove it"),
        ({"keras_dataset": "mnst"}, 'is not a known value. Received: `"mnst"`. Did you mean `mnist`?'),
        (
            {"tfrecord": {"train": "a", "test": "b"}, "inputs": "a", "target": "b", "split": {"test": 0.5}},
            "has nothing to do, since the data say which rows test. Remove it",
        ),
    ],
)
def test_what_other_sources_cannot_have_is_said(keys, said):
    assert predicate(**keys).startswith(said)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"delimiter": "tabs"}, 'is not a known value. Received: `"tabs"`. Did you mean `tab`'),
        (
            {"delimiter": ":"},
            'is not a known value. Received: `":"`. Choose from `auto`, `,`, `;`, `|`, `tab`, `space`',
        ),
        ({"delimiter": ""}, 'is empty. Put the character in quotes: `"|"`'),
        ({"decimal": ";"}, 'is not a known value. Received: `";"`. Choose from `auto`, `.`, `,`'),
    ],
)
def test_values_are_separated_and_decimals_begin_in_a_few_ways(keys, said):
    assert said in predicate(table="t.csv", inputs="a", target="b", **keys)


def test_how_a_table_is_written_is_for_tables():
    assert (
        DataSource.model_validate({"table": "t.csv", "inputs": "a", "target": "b", "delimiter": "\t"}).delimiter
        == "tab"
    )
    assert (
        DataSource.model_validate({"table": "t", "inputs": "a", "target": "b", "delimiter": " "}).delimiter == "space"
    )
    for key, value in (("delimiter", ";"), ("decimal", ",")):
        assert predicate(npz="a.npz", **{key: value}) == "is for data from `table`, and these are from `npz`. Remove it"
