"""Text of presets: token ids as the preset's own preprocessor gives them, from a recipe without a tokenizer."""

import keras
import numpy as np
import pytest

from finetune.build.data import build_examples, precision
from finetune.build.layout import build_layout
from finetune.build.model import build_network
from finetune.errors import FinetuneError, RecipeError
from finetune.models.preset_text import preset_text
from finetune.recipe.loader import load_recipe

pytestmark = pytest.mark.filterwarnings("ignore")  # KerasHub's imports warn
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "film", "##s"]


@pytest.fixture(scope="module")
def preset(tmp_path_factory):
    """A folder with a tiny BERT and its preprocessor, and another with the backbone alone."""
    import keras_hub

    folder = tmp_path_factory.mktemp("preset")
    tokenizer = keras_hub.models.BertTokenizer(vocabulary=VOCABULARY, lowercase=True)
    sizes = {"num_layers": 1, "num_heads": 2, "hidden_dim": 8, "intermediate_dim": 8, "max_sequence_length": 8}
    backbone = keras_hub.models.BertBackbone(vocabulary_size=9, **sizes)
    preprocessor = keras_hub.models.BertTextClassifierPreprocessor(tokenizer, sequence_length=6)
    keras_hub.models.BertTextClassifier(backbone, 2, preprocessor=preprocessor).save_to_preset(str(folder / "bert"))
    backbone.save_to_preset(str(folder / "bare"))
    return folder


@pytest.fixture
def reviews(preset, tmp_path):
    """A recipe for the preset and a table of reviews."""
    lines = ["text,kind", *["good films,yes", "bad film,no", "good good good good film,yes", "bad,no"] * 5]
    (tmp_path / "reviews.csv").write_text("\n".join(lines))
    (tmp_path / "r.yaml").write_text(
        f"model: {{preset: {preset / 'bert'}, head: {{classes: auto, pooling: first}}, output_key: sequence_output}}\n"
        "data: {table: reviews.csv, inputs: text, target: kind}\n"
        "groups: [{name: all, rest: true, optimizer: adam, learning_rate: 1.0e-3}]\ntrain: {epochs: 1}\n"
    )
    return tmp_path / "r.yaml"


def encoded(text, *rows):
    ids, types, lengths, cut = text.encode(rows)
    ends = np.cumsum(lengths)[:-1]
    return [part.tolist() for part in np.split(ids, ends)], [part.tolist() for part in np.split(types, ends)], cut


def test_ids_have_the_start_and_end_tokens_and_the_length_of_the_preset(preset):
    text = preset_text(str(preset / "bert"))
    ids, types, cut = encoded(text, ("Good films",), ("good good good good film",))
    assert ids == [[2, 5, 7, 8, 3], [2, 5, 5, 5, 5, 3]]
    assert cut.tolist() == [False, True]
    assert sum(map(sum, types)) == 0
    assert (text.length, text.vocabulary, text.pad_id) == (6, 9, 0)
    assert encoded(preset_text(str(preset / "bert"), 4), ("bad",))[0] == [[2, 6, 3]]


def test_a_pair_has_types_and_its_longer_text_is_cut(preset):
    ids, types, cut = encoded(preset_text(str(preset / "bert"), 7, 2), ("good good good", "bad"), ("bad", "film"))
    assert ids == [[2, 5, 5, 5, 3, 6, 3], [2, 6, 3, 7, 3]]
    assert types == [[0, 0, 0, 0, 0, 1, 1], [0, 0, 0, 1, 1]]
    assert cut.tolist() == [False, False]
    assert encoded(preset_text(str(preset / "bert"), 6, 2), ("good good good", "bad"))[2].tolist() == [True]


def test_the_settings_of_another_vocabulary_or_length_have_another_digest(preset):
    first, second = (preset_text(str(preset / "bert"), length).digest for length in (4, 5))
    assert first != second
    assert first == preset_text(str(preset / "bert"), 4).digest


def test_a_length_of_special_tokens_alone_is_refused(preset):
    with pytest.raises(FinetuneError, match=r"`length` is 2, and the preset `.*bert` adds 2 special tokens. Set at le"):
        preset_text(str(preset / "bert"), 2)


def test_a_preset_without_a_preprocessor_is_refused_with_what_to_write(preset):
    with pytest.raises(FinetuneError, match=r"`.*bare` has none for text: .*Name a tokenizer: `tokenizer: \{file"):
        preset_text(str(preset / "bare"))


def test_a_recipe_of_pairs_gives_the_preset_the_types_of_the_tokens(reviews):
    lines = ["a,b,kind", *["good films,bad,yes", "bad film,good good,no"] * 10]
    (reviews.parent / "pairs.csv").write_text("\n".join(lines))
    keys = [f"data.table={reviews.parent / 'pairs.csv'}", "data.inputs=[a, b]", "data.tokenizer.length=8"]
    loaded = load_recipe(reviews, overrides=keys)
    with precision(loaded):
        layout = build_layout(loaded)
    x, _ = layout.examples.train.first(1)
    assert set(x) == {"token_ids", "segment_ids"}
    assert x["segment_ids"].shape == (1, 8)
    assert int(x["segment_ids"].numpy().sum()) in (2, 3)
    assert layout.examples.source["inputs"]["token_ids"]["a + b"]["longest"] == 7
    assert np.isfinite(layout.model.evaluate(layout.examples.test.batches(4), verbose=0, return_dict=True)["loss"])


def test_a_recipe_of_a_preset_needs_no_tokenizer(reviews):
    loaded = load_recipe(reviews)
    with precision(loaded):
        layout = build_layout(loaded)
    assert layout.examples.train.first(1)[0].shape == (1, 6)
    assert layout.examples.source["inputs"][""]["text"]["cut"] == 5
    assert layout.recipe.train.loss.name == "sparse_categorical_crossentropy"
    report = layout.model.evaluate(layout.examples.test.batches(4), verbose=0, return_dict=True)
    assert np.isfinite(report["loss"])


def test_a_length_may_be_written_and_is_bounded_by_the_positions_of_the_network(reviews):
    loaded = load_recipe(reviews, overrides=["data.tokenizer.length=5"])
    with precision(loaded):
        assert build_examples(loaded, build_network(loaded)).train.first(1)[0].shape == (1, 5)
    keras.backend.clear_session()
    loaded = load_recipe(reviews, overrides=["data.tokenizer.length=40"])
    with pytest.raises(RecipeError) as caught, precision(loaded):
        build_layout(loaded)
    assert "takes 8 tokens, and the rows have 40. Set `data.tokenizer.length: 8`" in str(caught.value)


def test_other_networks_name_the_file_of_a_tokenizer(recipe):
    with pytest.raises(RecipeError, match=r"`data\.tokenizer\.file` is missing\. Only a KerasHub preset"):
        load_recipe(recipe, overrides=["data={table: a.csv, inputs: t, target: k, tokenizer: {length: 5}}"])
