"""Tables as examples: split, limited, and shaped for the inputs of the network."""

import keras
import numpy as np
import pytest
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers

from finetune.build.data import build_examples
from finetune.data.labels import count_outputs
from finetune.errors import RecipeError
from finetune.recipe.loader import dump_recipe, load_recipe


@pytest.fixture
def people(recipe):
    """Twelve people in a table with columns of every kind."""
    lines = ["age,town,text,photo,income,kind,part,family"]
    for n in range(12):
        Image.new("RGB", (4, 4), (n, 0, 0)).save(recipe.parent / f"{n}.png")
        part = "train" if n < 8 else "test" if n < 10 else "validation"
        lines.append(f"{n},{'AB'[n % 2]},word{n % 3},{n}.png,{n / 2},{'xyz'[n % 3]},{part},f{n // 3}")
    (recipe.parent / "people.csv").write_text("\n".join(lines))
    made = Tokenizer(models.WordLevel({"[PAD]": 0, "word0": 1, "word1": 2, "word2": 3}, unk_token="[PAD]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.save(str(recipe.parent / "tokenizer.json"))
    return recipe


def vector_network(width):
    return keras.Sequential([keras.Input((width,)), keras.layers.Dense(2)])


def table_of(recipe, network, *keys):
    overrides = ["data={table: people.csv}", *[f"data.{key}" for key in keys]]
    return build_examples(load_recipe(recipe, overrides=overrides), network)


def test_columns_become_a_vector_and_a_class_of_the_target(people):
    examples = table_of(people, vector_network(4), "inputs=[age, town]", "target=kind")
    assert examples.x_train.shape == (10, 4)
    assert examples.class_names == ("x", "y", "z")
    assert np.bincount(examples.y_train).max() == 4
    assert np.bincount(examples.y_test).max() == 1  # stratified
    columns = examples.source["inputs"][""]
    assert columns["town"]["categories"] == ["A", "B"]


def test_means_are_those_of_the_training_rows(people):
    examples = table_of(people, vector_network(1), "inputs=age", "target=kind", "split={column: part}")
    assert examples.source["inputs"][""]["age"]["mean"] == np.arange(8).mean()
    assert (len(examples.test), len(examples.validation)) == (2, 2)
    with pytest.raises(
        RecipeError, match=r"`part` says which rows validate, so `data\.split\.validation` has nothing to do"
    ):
        table_of(people, vector_network(1), "inputs=age", "target=kind", "split={column: part, validation: 0.5}")


def test_where_a_file_or_a_column_says_which_rows_test_a_share_of_the_others_validates(people):
    text = (people.parent / "people.csv").read_text()
    (people.parent / "test.csv").write_text("\n".join(text.splitlines()[:4]))
    keys, network = ["inputs=age", "target=kind"], vector_network(1)
    of_file = table_of(people, network, *keys, "test_table=test.csv", "split={validation: 0.25}")
    assert [len(of_file.train), len(of_file.test)] == [9, 3]
    assert np.bincount(of_file.y_validation).tolist() == [1, 1, 1]
    by_family = "split={validation: 0.25, by: group, column: family}"
    assert len(table_of(people, network, *keys, "test_table=test.csv", by_family).validation) == 3
    (people.parent / "people.csv").write_text(text.replace("validation", "train"))
    of_column = table_of(people, network, *keys, "split={column: part, validation: 0.3}")
    assert [len(of_column.train), len(of_column.test), len(of_column.validation)] == [7, 2, 3]
    values = [each.places["test"][0] for each in (of_file, of_column)]
    assert values == ["test.csv:2", "people.csv:10"]


def test_a_group_of_rows_stays_in_one_split(people):
    keys = ["inputs=age", "target=kind", "split={by: group, column: family, test: 0.25}"]
    examples = table_of(people, vector_network(1), *keys)
    assert len(examples.test) == 3


def test_other_files_hold_the_test_and_the_validation_rows(people):
    lines = (people.parent / "people.csv").read_text().splitlines()
    for name, rows in {"test": lines[1:4], "validation": lines[4:6]}.items():
        (people.parent / f"{name}.csv").write_text("\n".join([lines[0], *rows]))
    keys = ["inputs=age", "target=kind", "test_table=test.csv", "validation_table=validation.csv"]
    examples = table_of(people, vector_network(1), *keys)
    assert [len(split) for split in (examples.train, examples.test, examples.validation)] == [12, 3, 2]
    assert examples.y_test.tolist() == [0, 1, 2]


def test_a_limit_takes_rows_of_the_whole_table(people):
    overrides = ["data={table: people.csv, inputs: age, target: income, limit: 6}", "train.loss=mse"]
    examples = build_examples(load_recipe(people, overrides=overrides), vector_network(1))
    assert sorted([*examples.y_train, *examples.y_test]) == sorted(np.array([0, 2, 4, 7, 9, 11]) / 2)


def test_numbers_are_targets_of_a_loss_of_numbers(people):
    overrides = ["data={table: people.csv, inputs: age, target: income}", "train.loss=mse"]
    examples = build_examples(load_recipe(people, overrides=overrides), vector_network(1))
    assert examples.y_train.dtype == np.float32
    assert examples.class_names == ()


def test_a_column_of_text_becomes_token_ids(people):
    network = keras.Sequential([keras.Input((None,), dtype="int32"), keras.layers.Embedding(4, 2)])
    keys = ["inputs=text", "target=kind", "tokenizer={file: tokenizer.json, length: 3}"]
    examples = table_of(people, network, *keys)
    ids = examples.train.first(99)[0].numpy()
    assert ids[:, 0].tolist() == (examples.y_train + 1).tolist()
    assert ids[:, 1:].max() == 0
    assert examples.source["inputs"][""]["text"]["length"] == 3


def test_a_tokenizer_of_another_network_is_refused(people):
    network = keras.Sequential([keras.Input((None,), dtype="int32"), keras.layers.Embedding(3, 2)])
    keys = ["inputs=text", "target=kind", "tokenizer={file: tokenizer.json, length: 3}"]
    with pytest.raises(
        RecipeError, match=r"`data.tokenizer.file`: .*which has 3\. `tokenizer\.json` gives ids up to 3"
    ):
        table_of(people, network, *keys)


def test_a_network_of_token_ids_and_a_mask_gets_both_from_the_text(people):
    inputs = [keras.Input((None,), dtype="int32", name=name) for name in ("token_ids", "padding_mask")]
    network = keras.Model(inputs, inputs[0] * inputs[1])
    keys = ["inputs=text", "target=kind", "tokenizer={file: tokenizer.json, length: 3}"]
    examples = table_of(people, network, *keys)
    assert list(examples.x_train) == ["token_ids", "padding_mask"]
    assert examples.train.first(99)[0]["padding_mask"].numpy().tolist() == [[1, 0, 0]] * 10
    assert "token_ids" in examples.source["inputs"]


def test_a_network_that_takes_text_gets_text(people):
    network = keras.Sequential([keras.Input((), dtype="string"), keras.layers.TextVectorization(vocabulary=["word1"])])
    examples = table_of(people, network, "inputs=text", "target=kind")
    assert set(examples.x_train) == {"word0", "word1", "word2"}
    assert examples.train.first(2)[0].dtype == "string"


def test_several_inputs_are_named_as_in_the_network(people):
    photo, numbers = keras.Input((4, 4, 3), name="photo"), keras.Input((1,), name="numbers")
    network = keras.Model([photo, numbers], keras.layers.Flatten()(photo) * numbers)
    examples = table_of(people, network, "inputs={photo: photo, numbers: [age]}", "target=kind", "split={column: part}")
    x, _ = examples.train.first(3)
    assert x["photo"][:, 0, 0, 0].numpy().tolist() == [0, 1, 2]
    assert x["numbers"].shape == (3, 1)


def test_the_rest_of_the_columns_are_those_that_are_not_named_otherwise(people):
    keys = ["target=kind", "sample_weight=income", "split={by: group, column: family}", "exclude=[text, photo]"]
    examples = table_of(people, vector_network(8), "inputs=rest", *keys)
    assert list(examples.source["inputs"][""]) == ["age", "town", "part"]
    photo, numbers = keras.Input((4, 4, 3), name="photo"), keras.Input((2,), name="numbers")
    network = keras.Model([photo, numbers], keras.layers.Flatten()(photo))
    keys = ["inputs={photo: photo, numbers: rest}", "target=kind", "exclude=[text, town, part, family]"]
    assert list(table_of(people, network, *keys).source["inputs"]["numbers"]) == ["age", "income"]


def test_a_column_that_is_called_rest_is_a_column(people):
    table = people.parent / "people.csv"
    table.write_text(table.read_text().replace("age,town", "rest,town"))
    examples = table_of(people, vector_network(1), "inputs=rest", "target=kind")
    assert list(examples.source["inputs"][""]) == ["rest"]


def test_where_nothing_is_left_for_the_rest_it_is_said(people):
    (people.parent / "people.csv").write_text("age,kind\n1,x\n2,y\n3,x\n4,y\n")
    said = "`inputs: rest` are the columns that are not named otherwise, and all are: `age`, `kind`. Name fewer of them"
    with pytest.raises(RecipeError, match=said):
        table_of(people, vector_network(1), "inputs=rest", "target=kind", "exclude=[age]")


@pytest.mark.parametrize(
    ("keys", "place", "said"),
    [
        (["inputs=[age, twon]", "target=kind"], "inputs", "has no column `twon`"),
        (
            *(["inputs=[age, town]", "target=kind"], "inputs"),
            "as the network takes, 1. They make 4 values: 1 from the number `age`; of categories `town` 3.",
        ),
        (["inputs={a: age, b: town}", "target=kind"], "inputs", "The network has a single input, and `inputs` names"),
        (["inputs=age", "target=kind", "split={column: kind}"], "split", "also holds `x`, `y`, `z`"),
        (["inputs=age", "target=text", "class_names=[word0, word1]"], "target", "The data also hold `word2`"),
        (["inputs=age", "target=kind", "types={twon: number}"], "types.twon", "no column `twon`"),
        (["inputs=age", "target=kind", "sample_weight=twon"], "sample_weight", "no column `twon`"),
        (["inputs=rest", "target=kind", "exclude=[twon]"], "exclude", "no column `twon`"),
        (["inputs=age", "target=kind", "types={kind: image}"], "target", "`kind` is `image`. Write `number` or"),
        (["inputs=[age, text]", "target=kind", "types={text: text}"], "inputs", "`text` is `text`, which needs a `tok"),
    ],
)
def test_what_is_wrong_with_a_table_is_said_with_its_place(people, keys, place, said):
    with pytest.raises(RecipeError) as caught:
        table_of(people, vector_network(1), *keys)
    assert f"`data.{place}`: " in str(caught.value)
    assert said in str(caught.value)


def test_a_class_that_is_called_none_is_told_and_can_be_kept(people):
    table = people.parent / "people.csv"
    table.write_text(table.read_text().replace(",y,", ",None,"))
    with pytest.raises(RecipeError) as caught:
        table_of(people, vector_network(1), "inputs=age", "target=kind")
    assert "`kind` is missing in 4 of 12 rows: `people.csv:3`," in str(caught.value)
    assert "`None` counts as missing; `missing: []` keeps it as a class." in str(caught.value)
    examples = table_of(people, vector_network(1), "inputs=age", "target=kind", "missing=[]")
    assert examples.class_names == ("None", "x", "z")


def test_words_for_missing_values_are_those_of_the_recipe(people):
    table = people.parent / "people.csv"
    table.write_text(table.read_text().replace(",B,", ",unknown,").replace("\n11,", "\n-999,"))
    examples = table_of(people, vector_network(4), "inputs=[age, town]", "target=kind", "missing=[unknown, -999]")
    columns = examples.source["inputs"][""]
    assert columns["town"]["missing"] == 6
    assert columns["town"]["missing_words"] == ["unknown"]
    assert (columns["age"]["missing"], columns["age"]["missing_words"]) == (1, ["-999"])


def test_inputs_that_the_network_does_not_have_are_answered_with_the_nearest(people):
    inputs = [keras.Input((1,), name=name) for name in ("left", "right")]
    network = keras.Model(inputs, inputs[0] * inputs[1])
    with pytest.raises(RecipeError, match=r"`left`, `right`\. Received: `lefd`, `right`\. Did you mean `left`"):
        table_of(people, network, "inputs={lefd: age, right: income}", "target=kind")


def test_the_paths_of_data_are_absolute_in_a_run_folder(people):
    keys = "{table: people.csv, inputs: text, target: kind, tokenizer: {file: tokenizer.json, length: 3}}"
    written = dump_recipe(load_recipe(people, overrides=[f"data={keys}"]), absolute_paths=True)
    assert f"file: {people.parent.absolute() / 'tokenizer.json'}" in written
    assert f"table: {people.parent.absolute() / 'people.csv'}" in written


@pytest.mark.parametrize(
    ("loss", "shape", "outputs"),
    [
        ("SparseCategoricalCrossentropy", (), 3),
        ("CategoricalCrossentropy", (3,), 3),
        ("sparse_categorical_crossentropy", (), 3),
    ],
)
def test_a_loss_may_be_spelled_as_its_class(people, loss, shape, outputs):
    overrides = ["data={table: people.csv, inputs: age, target: kind}", f"train.loss={loss}"]
    examples = build_examples(load_recipe(people, overrides=overrides), vector_network(1))
    assert examples.y_train.shape[1:] == shape
    assert examples.class_names == ("x", "y", "z")
    assert count_outputs(examples, loss) == outputs


def test_columns_without_a_name_are_not_among_the_rest_and_a_warning_says_so_once(people):
    (people.parent / "people.csv").write_text(
        "\n".join([",age,kind,", *[f"{n},{n / 2},{'xy'[n % 2]}," for n in range(12)]])
    )
    (people.parent / "test.csv").write_text(",age,kind,\n0,1,x,\n1,2,y,\n")
    examples = table_of(people, vector_network(1), "inputs=rest", "target=kind", "test_table=test.csv")
    assert list(examples.source["inputs"][""]) == ["age"]
    [warning] = examples.source["warnings"]
    assert warning == (
        "`Unnamed: 0`, `Unnamed: 3` have no name in the first line, as the index that pandas or R writes; `inputs: rest` "
        "leaves them out. Write tables without the index (`to_csv(index=False)`, `row.names = FALSE`), or name the column "
        "where it is meant"
    )


def test_a_column_without_a_name_may_be_named_by_its_place(people):
    (people.parent / "people.csv").write_text(
        "\n".join([",age,kind", *[f"{n // 4},{n},{'xy'[n % 2]}" for n in range(12)]])
    )
    split = '{by: group, column: "Unnamed: 0", test: 0.4}'
    examples = table_of(people, vector_network(2), 'inputs=["Unnamed: 0", age]', "target=kind", f"split={split}")
    assert (len(examples.train), len(examples.test)) == (8, 4)


def test_how_a_table_is_written_is_kept_for_rows_to_predict(people):
    rows = [f"{n},5;{n};{'xy'[n % 2]}" for n in range(12)]
    (people.parent / "people.csv").write_text("\n".join(["price;size;kind", *rows]))
    examples = table_of(people, vector_network(2), "inputs=[price, size]", "target=kind")
    assert (examples.source["delimiter"], examples.source["decimal_commas"]) == (";", ["price"])
    assert examples.source["inputs"][""]["price"]["mean"] % 0.5 == 0
    (people.parent / "people.csv").write_text("\n".join(["price;size;kind", *rows]).replace(";", "|"))
    keys = ("inputs=price", "target=kind", 'delimiter="|"', "decimal=','")
    assert table_of(people, vector_network(1), *keys).source["decimal_commas"] == ["price"]
    usual = table_of(people, vector_network(11), "inputs=price", "target=kind")  # text: categories of the training rows
    assert "decimal_commas" not in usual.source


@pytest.mark.parametrize("key", ["quotes=false", "delimiter=;", 'decimal=","'])
def test_keys_of_delimited_text_are_refused_where_the_table_is_none(recipe, key):
    (recipe.parent / "people.jsonl").write_text('{"age": 1, "kind": "x"}\n' * 9)
    table = "data={table: people.jsonl, inputs: age, target: kind}"
    name = key.partition("=")[0]
    with pytest.raises(
        RecipeError, match=rf"`data\.{name}` is for tables of text that end in `\.csv`.*people\.jsonl` is"
    ):
        build_examples(load_recipe(recipe, overrides=[table, f"data.{key}"]), vector_network(1))


@pytest.fixture
def shards(people):
    """The people in three files, of which the last has a single row."""
    lines = (people.parent / "people.csv").read_text().splitlines()
    for number, rows in enumerate((lines[1:6], lines[6:12], lines[12:])):
        (people.parent / f"part-{number}.csv").write_text("\n".join([lines[0], *rows]))
    return people


@pytest.mark.parametrize(
    ("files", "split"),
    [
        ("part-*.csv", "{by: random}"),
        ("[part-0.csv, part-1.csv, part-2.csv]", "{by: group, column: family}"),
        ("[part-0.csv, 'part-[12].csv']", "{by: hash}"),
        ("part-?.csv", "{column: part}"),
    ],
)
def test_rows_of_several_files_are_split_and_encoded_as_those_of_one(shards, files, split):
    keys = ["inputs=[age, town]", "target=kind", f"split={split}"]
    whole = table_of(shards, vector_network(4), *keys)
    several = table_of(shards, vector_network(4), f"table={files}", *keys)
    for name in ("x_train", "y_train", "x_test", "y_test"):
        np.testing.assert_array_equal(getattr(several, name), getattr(whole, name))
    assert several.source["inputs"] == whole.source["inputs"]
    assert several.source["files"] == [str(shards.parent.absolute() / f"part-{number}.csv") for number in range(3)]
    assert "files" not in whole.source
    numbers = {
        f"people.csv:{n + 2}": f"part-{(n > 4) + (n > 10)}.csv:{[n, n - 5, n - 11][(n > 4) + (n > 10)] + 2}"
        for n in range(12)
    }
    assert list(several.places["test"]) == [numbers[place] for place in whole.places["test"]]


def test_a_pattern_that_matches_files_of_another_split_is_refused(shards):
    keys = ["inputs=age", "target=kind", "table=part-*.csv", "test_table=part-2.csv"]
    with pytest.raises(
        RecipeError,
        match=r"A file belongs to a single split\. `part-2\.csv` is among the files to `train` and those to `test`\. Write",
    ):
        table_of(shards, vector_network(1), *keys)
    keys = ["inputs=age", "target=kind", "table=part-[01].csv", "test_table=part-2.csv"]
    examples = table_of(shards, vector_network(1), *keys)
    assert [len(split) for split in (examples.train, examples.test)] == [11, 1]
    assert len(examples.source["files"]) == 3


def test_several_files_are_written_into_a_run_folder_as_the_recipe_names_them(shards):
    overrides = ["data={table: [a.csv, 'b-*.csv'], inputs: a, target: b}"]
    text = dump_recipe(load_recipe(shards, overrides=overrides), absolute_paths=True)
    assert f"{shards.parent / 'a.csv'}" in text
    assert f"{shards.parent / 'b-*.csv'}" in text
