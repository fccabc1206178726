"""To how many tokens batches are filled up: decided by what padding does to the outputs of the network."""

import keras
import numpy as np
import pytest
from keras import layers

TEXTS = ["good film", "bad", "good good film film", "film " * 30]
RECIPE = """\
seed: 3
model: {keras_file: net.keras}
data: {table: reviews.csv, inputs: text, target: kind, tokenizer: {file: vocab.txt, length: 40}}
groups: [{name: all, rest: true, optimizer: adam, learning_rate: 1.0e-3}]
train: {epochs: 2, batch_size: 4, shuffle: false, loss: sparse_categorical_crossentropy, metrics: [accuracy]}
"""


@pytest.fixture
def reviews(tmp_path):
    """A recipe for `net.keras` and 40 reviews, of which every fourth has 32 tokens and the others at most 6."""
    lines = ["text,kind", *[f"{TEXTS[n % 4]},{'xy'[n % 2]}" for n in range(40)]]
    (tmp_path / "reviews.csv").write_text("\n".join(lines))
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\ngood\nfilm\nbad\n")
    (tmp_path / "reviews.yaml").write_text(RECIPE)
    return tmp_path / "reviews.yaml"


def save(recipe, *middle, mask_zero=True, length=None, last=None):
    keras.utils.set_random_seed(1)
    ids = keras.Input((length,), dtype="int32", name="ids")
    x = layers.Embedding(8, 4, mask_zero=mask_zero, name="embedding")(ids)
    for layer in middle:
        x = layer(x)
    keras.Model(ids, (last or layers.Dense(2, activation="softmax"))(x), name="net").save(recipe.parent / "net.keras")


def widths(layout):
    return {x.shape[1] for x, _ in layout.examples.train.batches(1)}


def test_where_outputs_ignore_padding_batches_are_as_short_as_their_texts(reviews, lay_out):
    save(reviews, layers.GlobalAveragePooling1D())
    layout = lay_out(reviews)
    assert widths(layout) == {16, 32}
    assert layout.examples.source["padding"] == "buckets"
    assert widths(lay_out(reviews, "data.tokenizer.padding=longest")) == {3, 4, 6, 32}
    assert widths(lay_out(reviews, "data.tokenizer.padding=length")) == {40}


def test_training_is_the_same_as_at_the_full_length(reviews, lay_out):
    save(reviews, layers.GlobalAveragePooling1D())
    weights, scores = [], []
    for padding in ("auto", "longest", "length"):
        layout = lay_out(reviews, f"data.tokenizer.padding={padding}")
        layout.model.fit(layout.examples.train.batches(4), verbose=0, shuffle=False)
        weights.append(np.concatenate([weight.numpy().ravel() for weight in layout.model.weights]))
        scores.append(layout.model.evaluate(layout.examples.test.batches(3), verbose=0)[0])
    for other in (0, 1):
        np.testing.assert_allclose(weights[other], weights[2], rtol=1e-5, atol=1e-7)
        assert scores[other] == pytest.approx(scores[2], rel=1e-5)


def test_where_outputs_depend_on_padding_all_batches_have_the_full_length(reviews, lay_out):
    save(reviews, layers.GlobalAveragePooling1D(), mask_zero=False)
    layout = lay_out(reviews)
    assert widths(layout) == {40}
    assert layout.examples.source["padding"].startswith("length: the outputs of `net` depend on the padding, by up to")


def test_buckets_that_are_written_are_used_and_the_dependence_is_said(reviews, lay_out):
    save(reviews, layers.GlobalAveragePooling1D(), mask_zero=False)
    layout = lay_out(reviews, "data.tokenizer.padding=buckets")
    assert widths(layout) == {16, 32}
    assert "`data.tokenizer.padding: buckets`), and the outputs of `net` depend on" in " ".join(layout.plan.advice)


@pytest.mark.parametrize(
    ("middle", "length", "said"),
    [
        ([layers.Flatten()], 40, "and `net` takes 40 tokens for each row. Write `padding: length`, or remove it."),
        ([], None, "and the outputs of `net` are as long as its inputs"),
    ],
)
def test_a_network_of_a_fixed_length_gets_it_and_cannot_have_another(reviews, lay_out, problem, middle, length, said):
    save(reviews, *middle, length=length, mask_zero=not middle)
    if middle:
        assert widths(lay_out(reviews)) == {40}
    said_of_buckets = problem(reviews, "data.tokenizer.padding=buckets")
    assert said in said_of_buckets
    assert "`data.tokenizer.padding: buckets` makes batches of different lengths" in said_of_buckets


def test_outputs_that_are_the_same_for_all_texts_tell_nothing(reviews, lay_out):
    save(
        reviews, layers.GlobalAveragePooling1D(), last=layers.Dense(2, activation="softmax", kernel_initializer="zeros")
    )
    layout = lay_out(reviews)
    assert widths(layout) == {40}
    assert "are still the same for all texts" in layout.examples.source["padding"]


def test_more_tokens_than_positions_are_refused(reviews, problem):
    ids = keras.Input((None,), dtype="int32", name="ids")
    places = keras.ops.cumsum(keras.ops.ones_like(ids), axis=1) - 1
    x = layers.Embedding(8, 4)(ids) + layers.Embedding(20, 4)(places)
    keras.Model(ids, layers.Dense(2)(layers.GlobalAveragePooling1D()(x)), name="net").save(reviews.parent / "net.keras")
    said = problem(reviews)
    assert "`net` takes 20 tokens, and the rows have 40. Set `data.tokenizer.length: 20`" in said
    assert "`data.tokenizer.length`: A row has" in said


def test_a_warning_about_the_texts_is_advice_of_the_plan(reviews, lay_out):
    save(reviews, layers.GlobalAveragePooling1D())
    (reviews.parent / "vocab.txt").write_text("a\n[UNK]\n[CLS]\n[SEP]\n[MASK]\ngood\nfilm\nbad\n")
    assert "rows are filled up with the id 0, which is the token `a`" in " ".join(lay_out(reviews).plan.advice)
    assert lay_out(reviews, "data.tokenizer.pad_token='[MASK]'").examples.train.first(2)[0].numpy()[1, 5] == 4


def test_data_without_texts_are_as_they_were(tiny_files, lay_out):
    assert "padding" not in lay_out(tiny_files / "tiny.yaml").examples.source


@pytest.mark.parametrize("cell", [layers.SimpleRNN, pytest.param(layers.GRU, marks=pytest.mark.grid)])
def test_features_of_a_frozen_part_are_those_of_rows_of_full_length(cell, reviews, run_in):
    save(
        reviews,
        layers.Bidirectional(cell(3, return_sequences=True), name="body"),
        layers.GlobalAveragePooling1D(),
    )
    groups = "groups=[{name: f, prefixes: [embedding, body], frozen: true}, {name: h, rest: true, optimizer: adam, learning_rate: 0.1}]"
    losses = {mode: run_in(reviews, groups, f"train.cache={mode}").metrics["loss"] for mode in ("memory", "off")}
    assert losses["memory"] == pytest.approx(losses["off"], rel=1e-4)


@pytest.fixture
def run_in(tmp_path):
    """Runs a recipe as the command line does."""
    from finetune.commands.run import run

    def of(recipe, *overrides):
        keras.backend.clear_session()
        return run(recipe, tmp_path / f"run{len(list(tmp_path.iterdir()))}", overrides=overrides)

    return of
