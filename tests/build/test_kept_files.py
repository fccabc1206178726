"""A run folder holds what its inputs are made with, so that it works where the recipe's files do not exist."""

import shutil

import keras
import pytest

from finetune.build.kept_files import keep_files
from finetune.commands.run import run
from finetune.inference.fine_tuned import load
from finetune.recipe.loader import load_recipe

# NumPy 2 warns when Keras copies a TensorFlow variable to save it.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

RECIPE = """
seed: 1
model: {keras_file: text.keras}
data: {table: reviews.csv, inputs: text, target: kind, tokenizer: {file: vocab.txt, length: 8},
       class_names_file: kinds.txt}
groups: [{name: all, rest: true, optimizer: adam, learning_rate: 0.05}]
train: {epochs: 12, batch_size: 4, loss: sparse_categorical_crossentropy, metrics: [accuracy]}
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    pytest.importorskip("tokenizers")
    place = tmp_path / "recipes"
    place.mkdir()
    monkeypatch.chdir(place)
    lines = [f"{'good' if n % 3 else 'bad'} film {'yes' * (n % 2)},{'up' if n % 3 else 'down'}" for n in range(24)]
    (place / "reviews.csv").write_text("\n".join(["text,kind", *lines]))
    (place / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\ngood\nfilm\nbad\nwhy\nyes\n")
    (place / "kinds.txt").write_text("up\ndown\n")
    (place / "text.yaml").write_text(RECIPE)
    ids = keras.Input((None,), dtype="int32")
    x = keras.layers.GlobalAveragePooling1D()(keras.layers.Embedding(10, 4)(ids))
    keras.Model(ids, keras.layers.Dense(2, "softmax")(x)).save(place / "text.keras")
    return place


def test_a_run_folder_that_was_moved_predicts_the_same_without_the_files_of_its_recipe(place, tmp_path):
    folder = run("text.yaml", "first").folder
    assert {path.name for path in (folder / "data").iterdir()} == {"vocab.txt", "kinds.txt"}
    rows = ["good film", "bad film", "why"]
    before = load(folder).predict(rows)
    moved = tmp_path / "elsewhere" / "moved"
    shutil.copytree(folder, moved)
    shutil.rmtree(place)
    place.mkdir()  # the working folder of the process
    after = load(moved)
    assert after.predict(rows) == before
    assert after.classes == ("up", "down")
    assert [answer["label"] for answer in before[:2]] == ["up", "down"]


def test_the_preprocessor_of_a_preset_is_kept_without_its_weights(place, tmp_path):
    preset = place / "preset"
    for name in ("config.json", "tokenizer.json", "assets/tokenizer/vocabulary.txt", "model.weights.h5"):
        (preset / name).parent.mkdir(parents=True, exist_ok=True)
        (preset / name).write_text(name)
    recipe = load_recipe("text.yaml", overrides=["model={preset: ./preset}"])
    keep_files(recipe, tmp_path / "run")
    kept = tmp_path / "run" / "data" / "preset"
    names = {str(path.relative_to(kept)) for path in kept.rglob("*") if path.is_file()}
    assert names == {"config.json", "tokenizer.json", "assets/tokenizer/vocabulary.txt"}
    assert (kept / "config.json").read_text() == "config.json"
