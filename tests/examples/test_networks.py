"""The network for tables, and the recipe that shows it."""

import json
import re
from pathlib import Path

import keras
import pytest

import finetune
from finetune.errors import DataError
from finetune.examples.networks import cnn, mlp, sound_cnn, word_average

ROOT = Path(__file__).resolve().parents[2]


def test_the_network_takes_vectors_of_the_length_of_the_first():
    network = mlp(units=[5, 4], dropout=0.5)
    assert [layer.name for layer in network.layers] == ["hidden_0", "dropout_0", "hidden_1", "dropout_1"]
    assert network(keras.ops.ones((2, 7))).shape == (2, 4)
    assert network.input_shape[1:] == (7,)


@pytest.mark.parametrize("units", [[], [0], [2.5], 64, ["64"]])
def test_widths_that_are_none_are_refused(units):
    with pytest.raises(DataError) as caught:
        mlp(units=units)
    assert str(caught.value).startswith("`units` lists the widths of the hidden layers, such as `[64, 64]`. Received: ")


def test_a_share_that_is_none_is_refused():
    with pytest.raises(DataError) as caught:
        mlp(dropout=1)
    assert str(caught.value) == "`dropout` is the share of values to drop, from 0 to less than 1. Received: `1`."


def test_the_recipe_of_a_table_trains_without_python(tmp_path):
    result = finetune.run(ROOT / "recipes" / "wine.yaml", tmp_path / "run")
    assert result.metrics["accuracy"] > 0.9 > 0.5 > result.metrics_of_mean["accuracy"]
    described = json.loads((tmp_path / "run" / "data.json").read_text())
    assert described["class_names"] == ["barbera", "barolo", "grignolino"]
    assert described["rows_of_classes"]["train"] == [36, 45, 53]
    # Any number of rows, though it was built for the first.
    assert keras.models.load_model(tmp_path / "run" / "model.keras").input_shape == (None, 13)


def test_the_recipe_in_the_documentation_is_the_one_that_runs():
    blocks = re.findall(r"^```yaml\n(.*?)^```", (ROOT / "docs" / "data.md").read_text(), flags=re.DOTALL | re.MULTILINE)
    assert (ROOT / "recipes" / "wine.yaml").read_text() in blocks


def test_the_small_networks_take_images_sounds_and_token_ids():
    ones = keras.ops.ones
    assert cnn([4, 5])(ones((2, 9, 8, 3))).shape == (2, 3, 2, 5)
    assert sound_cnn([4, 5], window=64)(ones((2, 800))).shape[-1] == 5
    words = word_average(10, 4, [3])
    assert words(ones((2, 7), "int32")).shape == (2, 3)
    padded = keras.ops.convert_to_tensor([[1, 2, 0, 0]])
    assert keras.ops.max(keras.ops.abs(words(padded) - words(padded[:, :2]))) < 1e-6  # padding counts for nothing


def test_numbers_that_make_no_network_are_refused():
    for make, name in (
        (lambda: cnn([0]), "filters"),
        (lambda: sound_cnn([]), "filters"),
        (lambda: word_average(0), "voc"),
    ):
        with pytest.raises(DataError, match=rf"`{name}\w*` says .*at least 1\. Received: "):
            make()
    with pytest.raises(
        DataError, match=r"`window` is a power of 2 of at least 16 samples, such as 256\. Received: `100`"
    ):
        sound_cnn(window=100)


def test_the_moving_statistics_of_the_small_networks_settle_within_100_steps():
    network = cnn([4, 5])
    images = keras.random.uniform((8, 12, 12, 3), 0, 255, seed=1)
    for _ in range(100):
        trained = network(images, training=True)
    difference = keras.ops.max(keras.ops.abs(network(images) - trained))
    assert difference < 0.02 * keras.ops.max(trained)
