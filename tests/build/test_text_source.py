"""Columns of text as inputs of networks, from a recipe: which inputs are made, and what does not fit."""

import keras
import numpy as np
import pytest

from finetune.build.data import build_examples
from finetune.errors import RecipeError
from finetune.recipe.loader import load_recipe

VOCABULARY = "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\ngood\nfilm\nbad\nwhy\nyes\n"


@pytest.fixture
def answers(recipe):
    """A table of questions and answers, with a number and a category."""
    lines = ["question,answer,age,town,kind"]
    lines += [f"why film,{'good good good' if n % 2 else 'bad'},{n},{'AB'[n % 2]},{'xy'[n % 2]}" for n in range(12)]
    (recipe.parent / "answers.csv").write_text("\n".join(lines))
    (recipe.parent / "vocab.txt").write_text(VOCABULARY)
    return recipe


def ids_of(network_inputs, **more):
    inputs = [keras.Input((None,), dtype="int32", name=name) for name in network_inputs]
    total = sum(keras.ops.sum(keras.ops.cast(each, "float32"), axis=1, keepdims=True) for each in inputs)
    return keras.Model(inputs, keras.layers.Dense(2)(total))


def examples_of(recipe, network, *keys):
    keys = [f"data.{key}" for key in keys]
    table = "data={table: answers.csv, target: kind, tokenizer: {file: vocab.txt, length: 8}}"
    return build_examples(load_recipe(recipe, overrides=[table, *keys]), network)


def first(examples, rows=99):
    x, _ = examples.train.first(rows)
    return {name: part.numpy() for name, part in x.items()} if isinstance(x, dict) else x.numpy()


@pytest.mark.parametrize(
    "names",
    [
        ("token_ids", "padding_mask", "segment_ids"),  # KerasHub
        ("input_ids", "attention_mask", "token_type_ids"),  # Hugging Face
        ("input_word_ids", "input_mask", "input_type_ids"),  # TensorFlow Hub
    ],
)
@pytest.mark.parametrize("written", ["[question, answer]", "{IDS: [question, answer]}"])
def test_a_pair_gives_ids_a_mask_and_types_under_the_names_of_the_network(answers, names, written):
    network = ids_of(names)
    x = first(examples_of(answers, network, f"inputs={written.replace('IDS', names[0])}"))
    ids, mask, types = (x[name] for name in names)
    short = ids[:, 6] == 0
    assert ids[short][0].tolist() == [2, 8, 6, 3, 7, 3, 0, 0]
    assert mask[short][0].tolist() == [1] * 6 + [0] * 2
    assert types[short][0].tolist() == [0, 0, 0, 0, 1, 1, 0, 0]
    assert ids[~short][0].tolist() == [2, 8, 6, 3, 5, 5, 5, 3]


def test_a_single_text_has_types_of_0(answers):
    names = ("token_ids", "padding_mask", "segment_ids")
    x = first(examples_of(answers, ids_of(names), "inputs=question"))
    assert x["token_ids"][0].tolist() == [2, 8, 6, 3, 0, 0, 0, 0]
    assert x["segment_ids"].max() == 0


def test_a_network_of_ids_alone_takes_a_pair(answers):
    network = keras.Sequential([keras.Input((None,), dtype="int32"), keras.layers.Embedding(10, 2)])
    examples = examples_of(answers, network, "inputs=[question, answer]")
    assert first(examples).shape == (10, 8)
    about = examples.source["inputs"][""]["question + answer"]
    assert (about["longest"], about["cut"], about["pad_id"]) == (8, 0, 0)


def test_numbers_and_categories_beside_the_text_stay_what_they_are(answers):
    ids = keras.Input((None,), dtype="int32", name="token_ids")
    mask = keras.Input((None,), dtype="int32", name="padding_mask")
    numbers = keras.Input((4,), name="numbers")
    network = keras.Model([ids, mask, numbers], keras.layers.Dense(2)(numbers))
    x = first(examples_of(answers, network, "inputs={token_ids: answer, numbers: [age, town]}"))
    assert x["numbers"].shape == (10, 4)
    assert x["numbers"].dtype == "float32"
    assert set(x["padding_mask"].sum(axis=1)) == {3, 5}


def test_two_texts_of_two_inputs_have_lengths_of_their_own(answers):
    inputs = [keras.Input((None,), dtype="int32", name=name) for name in ("one", "two")]
    embed = keras.layers.Embedding(10, 2)
    network = keras.Model(inputs, keras.layers.Concatenate(axis=1)([embed(each) for each in inputs]))
    x = first(examples_of(answers, network, "inputs={one: question, two: answer}"))
    assert x["one"][0, :5].tolist() == [2, 8, 6, 3, 0]
    assert set(x["two"][:, 1]) == {5, 7}


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (["inputs=[question, answer, town]"], "a text, or of two as a pair. Received 3 columns"),
        (["inputs=question", "tokenizer.length=2"], "`data.tokenizer.length`: A row must have room"),
        (
            ["inputs=question", "tokenizer.file=answers.csv"],
            "`data.tokenizer.file`: The tokenizer is a `tokenizer.json`",
        ),
        (["inputs=question", "tokenizer.pad_token=PAD"], "`data.tokenizer.pad_token`: `pad_token` is a token of"),
        (
            ["inputs=question", "tokenizer.cache=answers.csv"],
            "`data.tokenizer.cache`: Token ids are kept in the folder",
        ),
    ],
)
def test_what_does_not_fit_is_answered_with_the_place_of_its_key(answers, keys, said):
    network = keras.Sequential([keras.Input((None,), dtype="int32"), keras.layers.Embedding(10, 2)])
    with pytest.raises(RecipeError) as caught:
        examples_of(answers, network, *keys)
    assert said in str(caught.value)


def test_ids_beyond_the_embedding_that_reads_them_are_refused_though_another_is_larger(answers):
    ids = keras.Input((None,), dtype="int32", name="token_ids")
    x = keras.layers.Embedding(9, 2, name="word")(ids)
    places = keras.ops.cumsum(keras.ops.ones_like(ids), axis=1)
    x += keras.layers.Embedding(500, 2, name="position")(places)
    network = keras.Sequential([keras.Model(ids, x), keras.layers.GlobalAveragePooling1D()])
    assert first(examples_of(answers, network, "inputs=question")).max() == 8
    (answers.parent / "answers.csv").write_text((answers.parent / "answers.csv").read_text() + "\nyes,bad,1,A,x")
    with pytest.raises(RecipeError, match=r"which has 9\. `vocab\.txt` gives ids up to 9\. Use the tokenizer that"):
        examples_of(answers, network, "inputs=question")


def test_a_column_without_text_is_refused_and_rows_without_are_named(answers):
    network = keras.Sequential([keras.Input((None,), dtype="int32"), keras.layers.Embedding(10, 2)])
    lines = ["text,none,kind", *[f"{'good' if n else ''},,{'xy'[n % 2]}" for n in range(6)]]
    (answers.parent / "answers.csv").write_text("\n".join(lines))
    with pytest.raises(RecipeError, match=r"`none` is empty in all 6 rows"):
        examples_of(answers, network, "inputs=none")
    examples = examples_of(answers, network, "inputs=text")
    assert examples.source["warnings"] == ["`text` is empty in 1 of 6 rows: `answers.csv:2`"]


def test_the_next_run_reads_the_ids_of_the_last(answers):
    network = keras.Sequential([keras.Input((None,), dtype="int32"), keras.layers.Embedding(10, 2)])
    keys = ["inputs=question", f"tokenizer.cache={answers.parent / 'cache'}"]
    before = examples_of(answers, network, *keys)
    after = examples_of(answers, network, *keys)
    assert "reused" not in before.source["inputs"][""]["question"]
    assert after.source["inputs"][""]["question"]["reused"]
    np.testing.assert_array_equal(first(before), first(after))
    assert before.x_train.fingerprint == after.x_train.fingerprint
    shorter = examples_of(answers, network, *keys, "tokenizer.length=4")
    assert "reused" not in shorter.source["inputs"][""]["question"]


def test_a_network_of_a_single_length_says_it_with_the_place_of_the_length(answers):
    network = keras.Sequential([keras.Input((6,), dtype="int32"), keras.layers.Embedding(10, 2)])
    with pytest.raises(RecipeError) as caught:
        examples_of(answers, network, "inputs=question")
    assert "`data.tokenizer.length`: The network takes 6 tokens for each row, and `length` is 8. Set it to 6." in str(
        caught.value
    )
    assert first(examples_of(answers, network, "inputs=question", "tokenizer.length=6")).shape[1] <= 6


def test_text_without_a_tokenizer_for_a_network_of_whole_numbers_is_no_category(answers):
    network = keras.Sequential([keras.Input((6,), dtype="int32"), keras.layers.Embedding(10, 2)])
    with pytest.raises(RecipeError, match=r"takes token ids of text\. Received the columns `answer` and no `tok"):
        examples_of(answers, network, "inputs=answer", "tokenizer=null")
