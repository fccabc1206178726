import re
from io import StringIO
from pathlib import Path

import keras
import numpy as np
import pytest
from rich.console import Console
from tokenizers import Tokenizer, models, pre_tokenizers

from finetune.commands.check import check, check_deep
from finetune.errors import FinetuneError, RecipeError


def test_a_good_recipe_passes_without_a_word(recipe, capsys):
    assert check(recipe) is None
    assert capsys.readouterr() == ("", "")


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
