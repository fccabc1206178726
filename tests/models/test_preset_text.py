"""Text of presets: token ids as the preset's own preprocessor gives them, from a recipe without a tokenizer."""

import keras
import numpy as np
import pytest

from finetune.build.data import build_examples, precision
from finetune.build.layout import build_layout
from finetune.build.model import build_network
from finetune.errors import FinetuneError, RecipeError
from finetune.models.preset_text import preset_token_ids
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


def test_ids_have_the_start_and_end_tokens_the_length_and_the_padding_of_the_preset(preset):
    ids, about = preset_token_ids(str(preset / "bert"), ["Good films", "good good good good film"])
    assert ids.tolist() == [[2, 5, 7, 8, 3, 0], [2, 5, 5, 5, 5, 3]]
    assert (about["length"], about["cut"], about["longest"], about["vocabulary"]) == (6, 1, 6, 9)
    assert preset_token_ids(str(preset / "bert"), ["bad"], 4)[0].tolist() == [[2, 6, 3, 0]]


def test_a_preset_without_a_preprocessor_is_refused_with_what_to_write(preset):
    with pytest.raises(FinetuneError, match=r"`.*bare` has none for text: .*Name a tokenizer: `tokenizer: \{file"):
        preset_token_ids(str(preset / "bare"), ["good"])


def test_a_recipe_of_a_preset_needs_no_tokenizer(reviews):
    loaded = load_recipe(reviews)
    with precision(loaded):
        layout = build_layout(loaded)
    assert layout.examples.x_train.shape[1] == 6
    assert layout.examples.source["inputs"][""]["text"]["cut"] == 5
    assert layout.recipe.train.loss.name == "sparse_categorical_crossentropy"
    report = layout.model.evaluate(layout.examples.test.batches(4), verbose=0, return_dict=True)
    assert np.isfinite(report["loss"])


def test_a_length_may_be_written_and_is_bounded_by_the_positions_of_the_network(reviews):
    loaded = load_recipe(reviews, overrides=["data.tokenizer.length=5"])
    with precision(loaded):
        assert build_examples(loaded, build_network(loaded)).x_train.shape[1] == 5
    keras.backend.clear_session()
    loaded = load_recipe(reviews, overrides=["data.tokenizer.length=40"])
    with pytest.raises(RecipeError) as caught, precision(loaded):
        build_layout(loaded)
    assert "takes 8 tokens, and the rows have 40. Set `data.tokenizer.length: 8`" in str(caught.value)


def test_other_networks_name_the_file_of_a_tokenizer(recipe):
    with pytest.raises(RecipeError, match=r"`data\.tokenizer\.file` is missing\. Only a KerasHub preset"):
        load_recipe(recipe, overrides=["data={table: a.csv, inputs: t, target: k, tokenizer: {length: 5}}"])
