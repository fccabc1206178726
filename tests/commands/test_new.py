"""Recipes that are written for data of every kind: what is in them, and that they run as they are."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import finetune
from finetune.commands.new import new_recipe
from finetune.commands.new_choices import Wishes
from finetune.errors import FinetuneError
from finetune.recipe.loader import load_recipe
from finetune.training import searched_rates

GOOD, BAD = ("lovely", "great", "warm"), ("dull", "awful", "weak")


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def write(name, head, rows):
    Path(name).write_text("\n".join([head, *(",".join(map(str, row)) for row in rows)]) + "\n")
    return Path(name)


def houses():
    return write(
        "houses.csv", "id,rooms,town,price", [(n, n % 5 + 1, "ABC"[n % 3], 1000.5 * (n % 5)) for n in range(60)]
    )


def reviews():
    texts = [(f"the film was {(GOOD if n % 2 else BAD)[n % 3]} and {n % 7} long", "ny"[n % 2]) for n in range(60)]
    return write("reviews.csv", "text,label", texts)


def photos():
    for number, (name, colour) in enumerate({"red": (250, 0, 0), "blue": (0, 0, 250)}.items()):
        for n in range(10 + 40 * number):
            path = Path("photos", name, f"{n}.png")
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (16, 16), colour).save(path)
    return Path("photos")


def new(data, *, ask=None, overwrite=False, out="recipe.yaml", **wishes):
    return new_recipe(Path(out), Wishes(data, **wishes), ask=ask, overwrite=overwrite)


def refusal(data, **more):
    with pytest.raises(FinetuneError) as error:
        new(data, **more)
    return str(error.value)


def test_a_table_becomes_a_recipe_that_says_what_each_key_does():
    said = new(houses())
    assert said[:2] == [
        "data: a table of 60 rows and 4 columns",
        "predicted: `price`, a number, from all other columns, without `id`",
    ]
    assert said[-5:] == [
        "written: recipe.yaml, and beside it `recipe.schema.json`",
        f"  {'finetune data recipe.yaml':<48} what was understood of the data?",
        f"  {'finetune plan recipe.yaml':<48} what will happen to every weight?",
        f"  {'finetune check --deep recipe.yaml':<48} can every row be read, and how long will it take?",
        f"  {'finetune run recipe.yaml':<48} train it",
    ]
    recipe = load_recipe("recipe.yaml", allow_code=[])
    assert (recipe.data.target, recipe.data.exclude) == ({"": ("price",)}, ("id",))
    assert recipe.model.head.standardize
    lines = Path("recipe.yaml").read_text().splitlines()
    assert lines[0] == "# yaml-language-server: $schema=recipe.schema.json"
    assert Path("recipe.schema.json").is_file()
    knobs = [line for line in lines if line.startswith("  ") and ":" in line and "learning_rate" not in line]
    assert [line for line in knobs if "  # " not in line and "optimizer" not in line and "name: all" not in line] == []


# What a run does beside training: it is tested elsewhere.
SHORT = ["report=off", "train.log_every_steps=off", "train.evaluate_before=false", "train.kernels=exact"]


def test_a_recipe_trains_to_an_end():
    new(reviews())
    assert load_recipe("recipe.yaml").data.tokenizer.file == "recipe.tokenizer.json"
    assert finetune.run("recipe.yaml", "run", overrides=[*SHORT, "train.epochs=8"]).metrics["accuracy"] > 0.8
    new(photos(), out="photos.yaml")
    assert finetune.run("photos.yaml", "run2", overrides=[*SHORT, "train.epochs=8"]).metrics["accuracy"] > 0.8


def test_a_pretrained_network_is_fine_tuned_at_searched_rates(tiny, monkeypatch):
    monkeypatch.setattr(searched_rates, "FACTORS", (3.0,))
    tiny().save("tiny.keras")
    x = np.random.default_rng(0).normal(size=(60, 6)).astype("float32")
    np.savez("rows.npz", x=x, y=(x[:, 0] > 0).astype(int))
    said = new(Path("rows.npz"), model="tiny.keras")
    assert said[0] == "data: arrays of 60 rows of shape (6,)"
    recipe = load_recipe("recipe.yaml")
    assert ([group.name for group in recipe.groups], recipe.model.head.after) == (["body", "head"], "body")
    result = finetune.run("recipe.yaml", "run", overrides=[*SHORT, "train.epochs=1"])
    assert np.isfinite(result.metrics["loss"])
    assert finetune.plan("run/recipe.yaml").peaks == pytest.approx({"body": 9e-3, "head": 9e-3})


def test_classes_with_few_rows_are_weighted_and_files_in_a_table_have_a_type():
    new(photos())
    assert load_recipe("recipe.yaml").data.class_weight == "balanced"
    write("files.csv", "file,kind", [(f"photos/red/{n}.png", "ab"[n % 2]) for n in range(10)])
    new(Path("files.csv"), out="files.yaml")
    recipe = load_recipe("files.yaml")
    assert (recipe.data.types, recipe.data.inputs) == ({"file": "image"}, {"": ("file",)})
    assert recipe.data.class_weight is None


def test_a_column_of_train_and_test_is_the_split_and_never_what_is_predicted():
    photos()
    files = [(f"photos/red/{n}.png", n % 4, "test" if n % 3 else "train") for n in range(10)]
    said = new(write("files.csv", "file,digit,part", files))
    assert said[1:3] == [
        "predicted: `digit`, a class, from `file`",
        "split: `part` says which rows train and which test",
    ]
    recipe = load_recipe("recipe.yaml")
    assert (recipe.data.split.column, recipe.data.target, recipe.data.size) == ("part", {"": ("digit",)}, (16, 16))
    assert recipe.data.split.validation == 0.1
    assert not [line for line in said if "not used" in line]
    new(Path("files.csv"), model="finetune.examples.digits:small_cnn", overwrite=True)
    assert load_recipe("recipe.yaml").train.learning_rate == "search"  # by these
    new(Path("files.csv"), target="part", overwrite=True)  # unless that is asked for
    assert load_recipe("recipe.yaml").data.split.column is None


def test_marks_for_missing_numbers_are_written_down_and_what_is_not_looked_at_is_told():
    rows = [
        (f"€ {n}.50", "-" if n == 7 else "#N/A" if n == 8 else n / 4, "" if n in (3, 5) else "ab"[n % 2])
        for n in range(40)
    ]
    said = new(write("orders.csv", "paid,weight,kind", rows))
    assert said[1:6] == [
        "predicted: `kind`, a class, from all other columns, without `paid`",
        "note: `-` in `weight` is taken for a missing number (`data.missing`)",
        "note: `#N/A` in `weight` is taken for a missing number (`data.missing`)",
        "note: `paid` (such as `€ 0.50`): most rows have a value of their own. Dates are text, and so are numbers with "
        "units, signs of a currency or separators of thousands, and columns with words among numbers: write plain numbers "
        "where the network is to see them",
        "note: every row needs a target, and `kind` has none in 2 of 40 rows: remove these rows, or fill them in, before "
        "the recipe runs",
    ]
    assert load_recipe("recipe.yaml").data.missing[-3:] == ("None", "-", "#N/A")
    words = [(f"{n}", "large" if n == 7 else n % 10 / 4, "ab"[n % 2]) for n in range(40)]
    new(write("sizes.csv", "paid,size,kind", words), target="kind", overwrite=True)  # `large` is no missing number
    assert load_recipe("recipe.yaml").data.missing is None


def test_a_column_of_numbers_that_is_left_out_for_a_few_words_is_told_with_these():
    rows = [(f"{n / 4} mm" if n in (7, 30) else n / 4, n % 7, "ab"[n % 2]) for n in range(40)]
    said = new(write("sizes.csv", "size,week,kind", rows))
    assert said[1:3] == [
        "predicted: `kind`, a class, from all other columns, without `size`",
        "note: `size` is left out, since it has other text than numbers: `1.75 mm`, `7.5 mm` in 2 rows, at `sizes.csv:9`, "
        "`sizes.csv:32`. Correct that, or empty these cells where it stands for a missing number, and call this command "
        "again with `--overwrite`",
    ]
    assert not [line for line in said if "value of their own" in line]


def test_the_recipe_names_the_data_from_where_it_lies():
    new(houses(), out="deep/recipe.yaml")
    assert load_recipe("deep/recipe.yaml").data.table == "../houses.csv"


def test_the_data_are_asked_for_on_a_terminal_alone():
    path = houses()
    assert refusal(None) == "A recipe is written for data. Name them: `finetune new --data PATH`."
    new(None, ask=lambda question, answers, default: default or str(path))
    assert load_recipe("recipe.yaml").data.table == "houses.csv"


def test_a_task_that_the_values_do_not_suggest_is_a_type():
    write("a.csv", "u,stars", [(n / 7, n % 5) for n in range(30)])
    new(Path("a.csv"), target="stars")
    assert load_recipe("recipe.yaml").data.types == {}
    new(Path("a.csv"), target="stars", task="number", overwrite=True)
    recipe = load_recipe("recipe.yaml")
    assert (recipe.data.types, recipe.model.head.standardize) == ({"stars": "number"}, True)
    assert refusal(Path("a.csv"), task="numbers", overwrite=True) == (
        "`--task` is one of `classes`, `labels`, `number`. Received: `numbers`. Did you mean `number`?"
    )
    assert refusal(Path("a.csv"), task="regression", overwrite=True).endswith("`regression`. Did you mean `number`?")


def test_nothing_is_overwritten_unasked_and_nothing_is_left_of_a_recipe_that_is_not_valid():
    path = reviews()
    for name in ("recipe.yaml", "recipe.tokenizer.json"):
        Path(name).write_text("mine")
        assert refusal(path).startswith(f"An existing file is not overwritten. `{name}` exists.")
        assert Path(name).read_text() == "mine"
        Path(name).unlink()
    assert "no module `mynets` to import" in refusal(houses(), model="mynets:build")
    assert [each.name for each in Path().glob("recipe.y*")] == []
    assert refusal(path, out="recipe.txt") == (
        "A recipe is a YAML file. Received `--out recipe.txt`. End its name in `.yaml`."
    )
