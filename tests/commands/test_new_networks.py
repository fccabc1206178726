from pathlib import Path

import pytest

from finetune.commands.new_networks import SMALL, choose_network, offers, placed
from finetune.data.survey import DataSurvey
from finetune.errors import FinetuneError

PHOTOS = DataSurvey("images", {}, "photos", 100, shape=(480, 20, 3))


def choose(name, kind="images", survey=PHOTOS, *, weights=None, vocabulary=0):
    return choose_network(name, kind, survey, weights=weights, folder=Path(), vocabulary=vocabulary)


def refusal(*arguments, **more):
    with pytest.raises(FinetuneError) as error:
        choose(*arguments, **more)
    return str(error.value)


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_the_small_network_fits_each_kind_of_input_and_says_that_nothing_is_pretrained():
    photos = choose(SMALL)
    assert photos.lines[0].startswith("  builder: finetune.examples.networks:cnn")
    assert photos.data[0].startswith("  size: [96, 20]")
    assert "networks:sound_cnn" in choose(SMALL, "audio").lines[0]
    assert "vocabulary: 77," in choose(SMALL, "text", vocabulary=77).lines[1]
    assert "networks:mlp" in choose(SMALL, "vector").lines[0]
    assert not any(choose(SMALL, kind).is_pretrained for kind in ("images", "audio", "text", "vector"))
    assert photos.notes == ("the network begins with random weights: nothing is pretrained",)


def test_arrays_from_0_to_1_are_not_scaled_again():
    scaled = DataSurvey("npz", {}, "arrays", 100, shape=(8, 8, 1), largest=1.0)
    assert "scale: 1.0}" in choose(SMALL, survey=scaled).lines[1]
    assert "scale: 0.00392157}" in choose(SMALL).lines[1]
    assert choose(SMALL, survey=scaled).data == ()


def test_a_network_of_keras_has_its_weights_from_keras_or_a_file_or_none():
    imagenet = choose("mobilenet_v2")
    assert imagenet.lines[0].startswith("  application: MobileNetV2")
    assert imagenet.lines[1] == "  weights: imagenet"
    assert "Keras downloads" in imagenet.notes[0]
    Path("mine.h5").touch()
    assert choose("ResNet50", weights="mine.h5").lines[1] == "  weights: mine.h5"
    fresh = choose("MobileNetV2", weights="none")
    assert (fresh.is_pretrained, fresh.notes) == (False, choose(SMALL).notes)
    assert refusal("MobileNetV2", weights="no.h5") == (
        "`--weights` are `imagenet`, `none`, or a file. There is no file `no.h5`. Download it, or check the path."
    )
    assert refusal(SMALL, weights="none").startswith("`--weights` are those of a network of `keras.applications`.")
    assert "takes images, and these data are text" in refusal("MobileNetV2", "text")


def test_files_folders_and_functions_are_known_by_what_they_are(tiny):
    tiny().save("net.keras")
    network = choose("net.keras", "vector")
    assert network.lines == ("  keras_file: net.keras  # the network and its weights",)
    assert network.head == ", after: body"  # the new head takes the place of the old one
    Path("saved").mkdir()
    Path("saved", "saved_model.pb").touch()
    assert choose("saved").allow_code == "hub:saved"
    Path("preset").mkdir()
    assert "neither a SavedModel" in refusal("preset", "text")
    Path("preset", "config.json").write_text('{"class_name": "BertBackbone"}')
    preset = choose("preset", "text")
    assert (preset.head, preset.brings_tokenizer, preset.is_language_model) == (", pooling: first", True, True)
    assert "  output_key: sequence_output" in preset.lines
    assert preset.unused == "backbone/pooled_dense"  # the network has a second output, which nothing trains
    Path("preset", "config.json").write_text('{"architectures": ["BertModel"], "model_type": "bert"}')
    assert choose("preset", "text") == preset  # a folder of Hugging Face, which KerasHub opens
    assert choose("mine.nets:build").allow_code == "mine"
    assert choose("finetune.examples.networks:cnn").allow_code == ""
    assert choose("bert_tiny_en_uncased", "text").lines[0].startswith("  preset: bert_tiny_en_uncased")
    assert choose("https://tfhub.dev/a/b/1").allow_code == "hub:https://tfhub.dev/a/b/1"


def test_what_is_no_network_is_refused_with_the_nearest_or_with_all_offers():
    assert refusal("MobilNetV2").startswith("There is no network `MobilNetV2`. Did you mean `MobileNetV2`")
    message = refusal("nonsense", "text")
    assert message.splitlines()[0] == "There is neither a network nor a file `nonsense`. `--model` may be:"
    assert message.splitlines()[1:] == [f"- {offer}" for offer in offers("text")]
    Path("x.weights.h5").touch()
    assert "write `restore: {from: FILE}` into the recipe" in refusal("x.weights.h5")


def test_paths_are_relative_where_the_recipe_is_near(tmp_path):
    assert placed(tmp_path / "a" / "b.csv", tmp_path / "c") == "../a/b.csv"
    assert placed(Path("/usr/x.csv"), tmp_path) == "/usr/x.csv"
