"""`data.keep` keeps decoded rows, or says why there is nothing to keep or no room."""

import keras
import pytest
import tensorflow as tf
from PIL import Image

from finetune.build.data import build_examples
from finetune.build.model import build_network
from finetune.errors import RecipeError
from finetune.recipe.loader import load_recipe


@pytest.fixture
def photos(tmp_path):
    """A recipe with images of two classes in files, each of a colour of its own."""
    for number in range(16):
        path = tmp_path / "photos" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (12, 10), (number * 15, 0, 99)).save(path)
    inputs = keras.Input((8, 8, 3))
    keras.Model(inputs, keras.layers.GlobalAveragePooling2D(name="body")(inputs)).save(tmp_path / "net.keras")
    recipe = tmp_path / "photos.yaml"
    recipe.write_text("""
model: {keras_file: net.keras, head: {classes: auto}}
data: {images: photos/, split: {test: 0.25, validation: 0.25}}
groups: [{name: head, rest: true, optimizer: adam, learning_rate: 0.1}]
train: {epochs: 1, loss: sparse_categorical_crossentropy}
""")
    return recipe


def examples_of(recipe, *overrides):
    loaded = load_recipe(recipe, overrides=overrides)
    return build_examples(loaded, build_network(loaded))


@pytest.mark.parametrize("mode", ["memory", "disk"])
def test_images_are_the_same_where_they_are_kept_also_when_their_files_are_gone(photos, mode):
    plain, kept = examples_of(photos), examples_of(photos, f"data.keep={mode}")
    for split in ("train", "test", "validation"):
        before = getattr(plain, split).first(4)[0].numpy()
        assert (getattr(kept, split).first(4)[0].numpy() == before).all()
    images = kept.x_train
    before = images.take(tf.range(len(images), dtype=tf.int64)).numpy()
    for path in photos.parent.rglob("*.png"):
        path.unlink()
    assert (images.take(tf.range(len(images), dtype=tf.int64)).numpy() == before).all()
    assert images.fingerprint == plain.x_train.fingerprint


def test_without_room_the_message_says_how_much_is_needed_and_free(photos, monkeypatch):
    monkeypatch.setattr("finetune.build.keep.available_memory", lambda: 1000)
    with pytest.raises(RecipeError) as caught:
        examples_of(photos, "data.keep=memory")
    assert str(caught.value).startswith("--set data.keep: `data.keep: memory` needs ")
    assert str(caught.value).endswith("are free in memory. Choose `disk`, or a smaller `data.size`.")


def test_rows_that_are_in_memory_already_cannot_be_kept(recipe):
    digits = "data={builder: finetune.examples.digits:uci_digits, keep: disk}"
    with pytest.raises(RecipeError, match="keeps rows that are decoded one by one, such as images in files"):
        build_examples(load_recipe(recipe, overrides=[digits]))
