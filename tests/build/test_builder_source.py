"""Whatever a builder of data returns becomes examples, or is refused with what builders return."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from finetune.build.builder_source import builder_examples
from finetune.build.data import build_examples
from finetune.data.examples import Examples
from finetune.errors import DataError, FinetuneError, RecipeError
from finetune.recipe.loader import load_recipe

X = np.random.default_rng(0).normal(size=(20, 6))
Y = np.arange(20) % 3
NAMES = np.array(["cat", "dog", "emu"])[Y]
OTHER = np.arange(40.0).reshape(20, 2)
PARTS = ("inputs=img", "target=label")
ITEMS = [{"img": x, "label": name, "who": number // 4} for number, (x, name) in enumerate(zip(X, NAMES, strict=True))]


def network():
    return keras.Sequential([keras.Input((6,)), keras.layers.Dense(3)])


def network_of_two():
    inputs = [keras.Input((6,), name="a"), keras.Input((2,), name="b")]
    return keras.Model(inputs, keras.layers.Dense(3)(keras.layers.Concatenate()(inputs)))


class Frame:
    """What a data frame of pandas answers."""

    def __init__(self, columns):
        self._columns = columns
        self.columns, self.iloc = list(columns), None

    def __len__(self):
        return 20

    def __getitem__(self, name):
        return self._columns[name]

    def to_dict(self, orient):
        assert orient == "list"
        return {name: list(values) for name, values in self._columns.items()}


class Batches(keras.utils.PyDataset):
    def __len__(self):
        return 5

    def __getitem__(self, index):
        rows = slice(index * 4, index * 4 + 4)
        return X[rows], Y[rows]


@pytest.fixture
def made(recipe):
    """Makes examples of what a builder returned, under a recipe with some keys."""

    def make(returned, *keys, of=network):
        overrides = ["data={builder: my.module:make}", *[key if "train." in key else f"data.{key}" for key in keys]]
        return builder_examples(load_recipe(recipe, overrides=overrides), returned, of() if of else None)

    return make


def lengths(examples):
    return [len(split) if split else 0 for split in (examples.train, examples.test, examples.validation)]


def dataset():
    return tf.data.Dataset.from_tensor_slices((X, Y))


WITH_SPLITS = {
    "load_data": lambda: ((X[:15], Y[:15]), (X[15:], Y[15:])),
    "lists": lambda: [[X[:15], Y[:15]], [X[15:], Y[15:]]],
    "names": lambda: {"x_train": X[:15], "y_train": Y[:15], "x_test": X[15:], "y_test": Y[15:]},
    "examples": lambda: Examples(tf.constant(X[:15]), Y[:15].tolist(), X[15:], Y[15:]),
    "pairs": lambda: {"train": (X[:15], Y[:15]), "test": {"x": X[15:], "y": Y[15:]}},
    "datasets": lambda: {"train": dataset().take(15), "test": dataset().skip(15).batch(2)},
    "items": lambda: {"train": list(zip(X[:15], Y[:15], strict=True)), "test": list(zip(X[15:], Y[15:], strict=True))},
}


@pytest.mark.parametrize("form", WITH_SPLITS)
def test_rows_that_come_in_splits_stay_in_them(made, form):
    examples = made(WITH_SPLITS[form]())
    assert lengths(examples) == [15, 5, 0]
    np.testing.assert_array_equal(examples.train.first(15)[0], X[:15].astype(np.float32))
    assert np.asarray(examples.y_test).tolist() == Y[15:].tolist()
    assert examples.source.get("builder", "my.module:make") == "my.module:make"


WITHOUT_SPLITS = {
    "pair": lambda: (X, Y),
    "triple": lambda: (X, Y, np.ones(20)),
    "lists": lambda: (X.tolist(), Y.tolist()),
    "dict": lambda: {"x": X, "y": Y},
    "scikit-learn": lambda: {"data": X, "target": Y, "target_names": ["cat", "dog", "emu"], "DESCR": "animals"},
    "items": lambda: list(zip(X, Y, strict=True)),
    "train alone": lambda: {"train": (X, Y)},
    "dataset": dataset,
    "dataset of batches": lambda: dataset().batch(6),
    "dataset of unknown length": lambda: dataset().filter(lambda x, y: y >= 0),
    "PyDataset": Batches,
}


@pytest.mark.parametrize("form", WITHOUT_SPLITS)
def test_rows_that_come_together_are_split_as_the_recipe_says(made, form):
    examples = made(WITHOUT_SPLITS[form](), "split={test: 0.25, validation: 0.25}")
    assert lengths(examples) == [10, 5, 5]
    rows = np.concatenate(
        [np.asarray(split.first(20)[0]) for split in (examples.train, examples.test, examples.validation)]
    )
    np.testing.assert_allclose(np.sort(rows[:, 0]), np.sort(X[:, 0]), rtol=1e-6)


def test_names_of_classes_come_from_the_rows_or_from_the_recipe(made):
    assert made((X, NAMES)).class_names == ("cat", "dog", "emu")
    assert made((X, NAMES), "class_names=[emu, dog, cat]").y_train[:3].tolist() != made((X, NAMES)).y_train[:3].tolist()
    assert made({"data": X, "target": Y, "target_names": ["a", "b", "c"]}).class_names == ("a", "b", "c")


def test_a_limit_is_taken_evenly_from_all_splits(made):
    assert lengths(made(((X, Y), (X[:10], Y[:10])), "limit=6")) == [4, 2, 0]


def test_several_inputs_are_structures(made):
    for x in ({"a": X, "b": OTHER}, (X, OTHER)):
        first = made((x, Y), of=network_of_two).train.first(2)[0]
        assert [each.shape[1] for each in tf.nest.flatten(first)] == [6, 2]


def test_parts_of_items_are_named_by_the_recipe(made):
    examples = made(ITEMS, *PARTS)
    assert examples.class_names == ("cat", "dog", "emu")
    assert lengths(examples) == [16, 4, 0]
    two = [{"a": x, "b": b, "label": y} for x, b, y in zip(X, OTHER, Y, strict=True)]
    assert list(made(two, "inputs=[a, b]", "target=label", of=network_of_two).x_train) == ["a", "b"]
    assert list(made(two, "inputs={a: a, b: b}", "target=label", of=network_of_two).x_train) == ["a", "b"]


def test_rows_of_a_group_stay_in_one_split(made):
    examples = made(ITEMS, *PARTS, "split={by: group, column: who, test: 0.2}")
    assert lengths(examples) == [16, 4, 0]
    tested = np.asarray(examples.test.first(4)[0])
    assert len({int(np.flatnonzero(np.isclose(X[:, 0], row[0]))[0]) // 4 for row in tested}) == 1


def test_data_frames_and_dicts_of_columns_are_tables(made):
    columns = {f"c{number}": X[:, number] for number in range(6)} | {"kind": NAMES}
    keys = ("inputs=[c0, c1, c2, c3, c4, c5]", "target=kind")
    for table in (Frame(columns), columns, np.rec.fromarrays(list(columns.values()), names=list(columns))):
        examples = made(table, *keys)
        assert examples.source["kind"] == "table"
        assert examples.class_names == ("cat", "dog", "emu")
        assert abs(examples.x_train.mean()) < 1e-6  # normalized
    examples = made({"train": Frame(columns), "test": Frame(columns)}, *keys)
    assert lengths(examples) == [20, 20, 0]


def test_rows_that_cannot_be_read_are_skipped_where_the_recipe_says(made):
    class Broken(list):
        def __getitem__(self, index):
            if index == 7:
                raise OSError("no 7.jpg")
            return super().__getitem__(index)

    rows = Broken(zip(X, Y, strict=True))
    with pytest.raises(DataError, match=r"item 7 is not: OSError: no 7\.jpg"):
        made(rows)
    examples = made(rows, "on_error=skip")
    assert sum(lengths(examples)) == 19
    assert examples.source["skipped"] == ["item 7"]


@pytest.mark.parametrize(
    ("returned", "keys", "said"),
    [
        (None, (), "whose items are `(x, y)` or dicts. Received: a `NoneType`."),
        (X, (), "Received: a `ndarray`."),
        ((X, Y, X, Y), (), "Received: a tuple of 4 (`ndarray`, `ndarray`, `ndarray`)."),
        (iter(ITEMS), (), "Received: a `list_iterator`. It has no items by index: make a `tf.data.Dataset.from_generator` of"),
        ({"train": (X, Y), "val": (X, Y)}, (), "of which `train` and `test` are needed. Received: `train`, `val`."),
        ({"train": (X, Y), "test": (X, Y)}, ("split={test: 0.5}",), "`data.split.test` has nothing to do, since the data say which rows test. Remove it."),
        ({"x_train": X, "y_train": Y, "x_tset": X, "y_test": Y}, (), "Did you mean `x_test` or `y_test`?"),
        ((dataset(), dataset()), (), "The builder returned a tuple of 2 without names. Return a dict"),
        (dataset().repeat(), (), "This one has no end. Remove `repeat()`; epochs are counted by `train.epochs`."),
        ((X, Y[:5]), (), "Every row has inputs and a target. The rows: `x` 20, `y` 5."),
        ((X, Y), ("size=[3, 4]",), "`data.size` is for tables, and the builder returned other data. Remove it."),
        ((X, Y), PARTS, "`data.inputs` is for tables, and rows that are dicts, and the builder returned other data."),
        (ITEMS, ("inputs=imgg", "target=label"), "Items have no part `imgg`. They have `img`, `label`, `who`. Did you mean `img`?"),
        (ITEMS, ("inputs={a: img, b: who}", "target=label"), "for each input of the network: `its only input`. Received: `a`, `b`."),
        ((X, NAMES), ("train.loss=mse",), "`mse` takes numbers, and the targets are text such as `cat`, `dog`."),
        ((X, Y), ("class_names=[a, b]",), "There are 2 names, and the targets go up to 2. Name all classes."),
        ((X, Y), ("split={column: who}",), "these have no parts with names. Received: `who`."),
        ((X * np.nan, Y), (), "`x_train` with 96 values that are not finite"),
        (Frame({"a": Y}), (), "Columns of a table are inputs or targets. It has `a`."),
    ],
)  # fmt: skip
def test_what_are_no_examples_is_refused(made, returned, keys, said):
    with pytest.raises(FinetuneError) as caught:
        made(returned, *keys)
    assert said in str(caught.value)


def test_a_mistake_is_said_with_the_place_of_the_builder(recipe):
    data = "data={builder: finetune.examples.digits:uci_digits, split: {test: 0.5}}"
    with pytest.raises(
        RecipeError, match=r"`data\.builder`: `data\.split\.test` has nothing to do, since the data say"
    ):
        build_examples(load_recipe(recipe, overrides=[data]))
