import re
import wave
from io import StringIO
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from rich.console import Console
from tokenizers import Tokenizer, models, pre_tokenizers

from finetune.commands.check import check, check_deep
from finetune.errors import FinetuneError, RecipeError


def test_a_good_recipe_passes_without_a_word(recipe, capsys):
    assert check(recipe) == ()
    assert capsys.readouterr() == ("", "")


def test_a_batch_size_that_is_measured_is_told(recipe):
    (note,) = check(recipe, overrides=["train.batch_size=auto"])
    assert note.startswith(
        "`train.batch_size: auto` makes a few steps of several sizes before training, and takes the "
    )
    assert check(recipe) == ()


def test_faults_are_reported_with_their_place_and_overrides_count(recipe):
    with pytest.raises(RecipeError, match=r"^--set train\.epochs: `train\.epochs` must be a whole number"):
        check(recipe, overrides=["train.epochs=many"])
    recipe.write_text(recipe.read_text().replace("seed: 3", "seed: x"))
    with pytest.raises(RecipeError, match=r"^tiny\.yaml:1:7: `seed` must be"):
        check(recipe)
    check(recipe, overrides=["seed=3"])


def test_code_of_others_is_a_fault_unless_its_package_is_allowed(recipe, monkeypatch):
    (recipe.parent / "my_package").mkdir()
    (recipe.parent / "my_package" / "models.py").write_text("def build(): ...")
    monkeypatch.syspath_prepend(recipe.parent.absolute())
    code = ["model={builder: my_package.models:build}"]
    with pytest.raises(RecipeError, match="--allow-code my_package"):
        check(recipe, overrides=code)
    check(recipe, overrides=code, allow_code=["my_package"])


def test_what_shows_without_tensorflow_is_told_at_once(recipe):
    wrong = ["data.npz=nowhere.npz", "restore={from: nowhere.h5}", "train.loss=mean_sqared_error"]
    code = "model={builder: finetune.examples.digits:smal_cnn}"
    with pytest.raises(RecipeError) as caught:
        check(recipe, overrides=[code, *wrong])
    lines = str(caught.value).splitlines()
    assert [line.split(": ")[1] for line in lines] == [
        "`model.builder`",
        "`data.npz` does not exist",
        "`restore.from` does not exist",
        "`train.loss",
    ]
    assert [line.split(": ")[0] for line in lines] == [
        "--set model",
        "--set data.npz",
        "--set restore",
        "--set train.loss",
    ]


def test_a_taken_run_folder_is_told_by_check(recipe):
    (recipe.parent / "taken").mkdir()
    (recipe.parent / "taken" / "a.txt").write_text("mine")
    with pytest.raises(FinetuneError, match="--out taken` is not empty"):
        check(recipe, out=Path("taken"))
    check(recipe, out=Path("taken"), overwrite=True)
    check(recipe, out=Path("free"))


# -- Deep -------------------------------------------------------------------------------------------------------------


def deep(recipe, *overrides):
    said = StringIO()
    checked = check_deep(recipe, overrides=overrides, console=Console(file=said, width=200))
    return checked.problems, said.getvalue()


def test_sound_data_have_no_problems_and_their_range_is_shown(photos):
    problems, said = deep(photos, "data.split={test: 0.25}")
    assert [
        problem for problem in problems if "same inputs" not in problem and "training rows, too" not in problem
    ] == []
    assert "data: 18 rows to train on, 6 to test; 3 classes\n" in said
    assert "inputs: 0 to 250\n" in said


def test_a_rehearsal_says_what_a_run_takes_and_changes_no_file(photos):
    before = sorted(photos.parent.rglob("*"))
    _, said = deep(photos, "phases=[{train: head, epochs: 2}, {train: all, steps: 30}]", "train.epochs=null")
    lines = [line for line in said.splitlines() if line.startswith(("rehearsal", "forecast"))]
    assert lines[0].startswith("rehearsal: 12 rows went forward, backward and through the metrics, and the model was")
    for number, line in enumerate(lines[1:3], start=1):
        pattern = (
            r"an epoch of 3 steps takes [\d.]+ s \([\d.]+ s to [\d.]+ s\), [\d.]+ s of it validation; [\d.]+ s more"
        )
        assert re.match(rf"forecast, phase {number}: {pattern} in the first", line)
    assert re.match(r"forecast: [\d.]+ s for the run, and up to [\d.]+ [MG]B of memory", lines[3])
    assert sorted(photos.parent.rglob("*")) == before


def test_what_would_break_off_training_is_a_problem_and_nothing_is_forecast(photos):
    problems, said = deep(photos, "groups.head.learning_rate=3e38", "groups.head.optimizer=sgd")
    assert any(problem.startswith("A loss must be a finite number. It became") for problem in problems)
    assert "forecast" not in said


def rows_in_memory(folder):
    """Twenty rows of 8 numbers in three classes, of which the last has 2; the last row is the first again."""
    x = np.random.default_rng(0).normal(size=(20, 8)).astype("float32")
    x[19], y = x[0], np.array([0] * 9 + [1] * 8 + [2] * 2 + [0])
    return x, y


def npz_source(folder):
    x, y = rows_in_memory(folder)
    np.savez(folder / "rows.npz", x_train=x[:14], y_train=y[:14], x_test=x[14:], y_test=y[14:])
    return "{npz: rows.npz}"


def tfrecord_source(folder):
    x, y = rows_in_memory(folder)
    for name, rows in {"train": range(14), "test": range(14, 20)}.items():
        with tf.io.TFRecordWriter(str(folder / f"{name}.tfrecord")) as file:
            for row in rows:
                values = tf.train.Feature(float_list=tf.train.FloatList(value=x[row]))
                label = tf.train.Feature(int64_list=tf.train.Int64List(value=[y[row]]))
                features = tf.train.Features(feature={"x": values, "y": label})
                file.write(tf.train.Example(features=features).SerializeToString())
    return "{tfrecord: {train: train.tfrecord, test: test.tfrecord}, inputs: x, target: y}"


def table_source(folder):
    x, y = rows_in_memory(folder)
    parts = ["train"] * 14 + ["test"] * 6
    lines = [",".join([*map(str, row), "abc"[label], part]) for row, label, part in zip(x, y, parts, strict=True)]
    (folder / "rows.csv").write_text("a,b,c,d,e,f,g,h,kind,part\n" + "\n".join(lines))
    return "{table: rows.csv, inputs: [a, b, c, d, e, f, g, h], target: kind, split: {column: part}}"


def audio_source(folder):
    x, y = rows_in_memory(folder)
    for n, (row, label) in enumerate(zip(x, y, strict=True)):
        path = folder / "clips" / ("train" if n < 14 else "test") / "abc"[label] / f"{n}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        with wave.open(str(path), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(8)
            file.writeframes((row * 1000).astype("<i2").tobytes())
    return "{audio: clips}"


@pytest.mark.sample(2)
@pytest.mark.parametrize("source", [npz_source, tfrecord_source, table_source, audio_source])
def test_leaks_and_rare_classes_are_found_in_every_kind_of_source(tmp_path, source):
    keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)]).save(tmp_path / "net.keras")
    recipe = tmp_path / "r.yaml"
    recipe.write_text(f"""
model: {{keras_file: net.keras, head: {{classes: 3}}}}
data: {source(tmp_path)}
groups: [{{name: all, rest: true, optimizer: adam, learning_rate: 0.1}}]
train: {{epochs: 1, batch_size: 4}}
""")
    problems, _ = deep(recipe)
    assert any(problem.startswith("1 row of `test` among the training rows, too: `") for problem in problems)
    [rare] = [problem for problem in problems if "fewer than 5 training rows" in problem]
    assert re.match(r"(\d classes have|a class has) fewer than 5 training rows: .*`[2c]` \(0\)", rare)


def test_labels_of_pixels_that_are_read_when_needed_are_compared_with_the_classes(tmp_path):
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / "__init__.py").write_text("""
import numpy as np

def make():
    x = np.random.default_rng(0).normal(size=(12, 40, 40, 1)).astype("float32")
    y = np.zeros((12, 40, 40, 1), "int32")
    y[9, 3, 3] = 7
    return [(image, mask) for image, mask in zip(x, y)]
""")
    keras.Sequential([keras.Input((40, 40, 1)), keras.layers.Conv2D(3, 1, activation="softmax")]).save(
        tmp_path / "net.keras"
    )
    recipe = tmp_path / "r.yaml"
    recipe.write_text("""
model: {keras_file: net.keras}
data: {builder: "masks:make", split: {test: 0.25}}
groups: [{name: all, rest: true, optimizer: adam, learning_rate: 0.1}]
train: {epochs: 1, batch_size: 4, loss: sparse_categorical_crossentropy}
""")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(tmp_path)
        problems = check_deep(recipe, allow_code=["masks"], console=Console(quiet=True)).problems
    assert any(
        re.match(r"labels of `\w+` are 0 to 7, and the network gives 3 classes, `0` to `2`", p) for p in problems
    )


def test_a_file_that_ends_too_early_is_named(photos):
    path = photos.parent / "photos/red/3.png"
    noise = np.random.default_rng(0).integers(0, 255, (40, 40, 3), "uint8")
    keras.utils.save_img(path.with_suffix(".jpg"), noise, scale=False)
    path.unlink()
    path = path.with_suffix(".jpg")
    path.write_bytes(path.read_bytes()[:-300])
    problems, _ = deep(photos)
    assert any("that cannot be read: `red/3.jpg` (" in problem for problem in problems)


def test_texts_that_are_cut_and_a_tokenizer_of_another_network_are_reported(tmp_path):
    made = Tokenizer(models.WordLevel({"[PAD]": 0, "good": 1, "bad": 2, "film": 3}, unk_token="[PAD]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.save(str(tmp_path / "tokenizer.json"))
    lines = [f"{'good' if n % 2 else 'bad'} good{' film' * (n == 7)},{n % 2}" for n in range(20)]
    (tmp_path / "reviews.csv").write_text("text,label\n" + "\n".join(lines))
    keras.Sequential(
        [
            keras.Input((2,), dtype="int32"),
            keras.layers.Embedding(3, 4, name="body"),
            keras.layers.Flatten(),
            keras.layers.Dense(2, activation="softmax", name="head"),
        ]
    ).save(tmp_path / "net.keras")
    recipe = tmp_path / "reviews.yaml"
    recipe.write_text("""
model: {keras_file: net.keras}
data: {table: reviews.csv, inputs: text, target: label, tokenizer: {file: tokenizer.json, length: 2}, limit: 20}
groups: [{name: all, rest: true, optimizer: adam, learning_rate: 0.1}]
train: {epochs: 1, batch_size: 4, loss: sparse_categorical_crossentropy}
""")
    problems, _ = deep(recipe)
    assert (
        "the tokenizer of `text` has 4 tokens, and the largest embedding of the network 3. Use the tokenizer that "
        "belongs to the network"
    ) in problems
    assert "`text` is longer than 2 tokens in 1 rows and is cut there" in problems


def test_what_check_says_is_plain_data_with_places():
    from finetune.commands.check import check_as_data

    assert check_as_data([]) == {"valid": True, "problems": [], "notes": []}
    said = check_as_data(["a/b.yaml:3:14: `x` is: wrong.", "and 2 more"], ["slow"])
    assert said["problems"] == [
        {"place": {"file": "a/b.yaml", "line": 3, "column": 14}, "message": "`x` is: wrong."},
        {"place": None, "message": "and 2 more"},
    ]
    assert (said["valid"], said["notes"]) == (False, ["slow."])
