import json
import os
import re
import tomllib
from pathlib import Path

import pytest
from rich.console import Console

import finetune
from finetune.build.layout import fit_options
from finetune.commands.check import check
from finetune.commands.fetch import fetch
from finetune.commands.lr_range import with_measured_rates
from finetune.commands.shipped_recipes import copy_recipes, shipped_folder, shipped_recipes
from finetune.errors import FinetuneError
from finetune.recipe.loader import load_recipe
from finetune.training.fit import train

ROOT = Path(__file__).resolve().parent.parent.parent


def files_in(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_every_recipe_says_what_it_shows():
    every = shipped_recipes()
    assert [each.name for each in every] == sorted(path.stem for path in (ROOT / "recipes").glob("*.yaml"))
    assert [each.name for each in every if len(each.shows) < 20 or each.shows.endswith(":")] == []
    digits = next(each for each in every if each.name == "digits")
    assert (digits.needs, digits.takes) == ((), "20 seconds and 0.8 GB of memory on 2 cores")


def test_a_copy_has_all_that_the_recipe_names_where_that_comes_from_and_a_schema(tmp_path):
    written = copy_recipes(["digits", "recipes/wine.yaml"], tmp_path / "mine")
    assert written == [tmp_path / "mine" / "digits.yaml", tmp_path / "mine" / "wine.yaml"]
    assert files_in(tmp_path / "mine") == [
        "digits.yaml",
        "recipe.schema.json",
        "tables/README.md",
        "tables/wine.csv",
        "weights/README.md",
        "weights/mnist_cnn.weights.h5",
        "wine.yaml",
    ]
    for name in ("digits", "wine"):
        assert load_recipe(tmp_path / "mine" / f"{name}.yaml") == load_recipe(shipped_folder() / f"{name}.yaml")


def test_folders_of_images_and_the_parts_of_a_checkpoint_are_copied_and_files_that_a_table_names(tmp_path):
    copy_recipes(["digits_table"], tmp_path / "a")
    copied = [name for name in files_in(tmp_path / "a") if name.endswith(".png")]
    lines = (tmp_path / "a" / "digits" / "digits.csv").read_text().splitlines()[1:]
    assert copied == sorted(f"digits/{line.split(',')[0]}" for line in lines)
    assert len(copied) == 300
    copy_recipes(["digits_slim"], tmp_path / "b")
    assert [name for name in files_in(tmp_path / "b") if "slim_cnn" in name] == [
        "weights/slim_cnn.ckpt.data-00000-of-00001",
        "weights/slim_cnn.ckpt.index",
    ]
    for name, folder in (("digits_table", "a"), ("digits_slim", "b")):
        assert load_recipe(tmp_path / folder / f"{name}.yaml") == load_recipe(shipped_folder() / f"{name}.yaml")


def trained(path, folder, overrides, allow_code=()):
    """Trains a recipe as a run does, without what comes after: saving, opening again, predictions and plots."""
    layout = finetune.plan(path, overrides=overrides, allow_code=allow_code)
    if layout.rates_to_measure:
        layout, _ = with_measured_rates(layout, Console(quiet=True))
    training = layout.model, layout.groups, layout.phases, layout.examples, fit_options(layout)
    folder.mkdir()
    return train(*training, folder=folder, console=Console(quiet=True))  # a loss that is no number is an error


SHORT = ["train.log_every_steps=off", "train.kernels=exact", "train.steps_per_execution=1"]


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")
@pytest.mark.parametrize(
    "path",
    [shipped_folder() / f"{each.name}.yaml" for each in shipped_recipes() if not each.needs],
    ids=lambda path: path.stem,
)
def test_every_recipe_that_needs_nothing_fetched_trains_a_few_steps(path, tmp_path):
    epochs, phases = (4, ["phases=gradual_unfreezing"]) if path.stem == "digits_gradual" else (1, [])
    limit = [] if path.stem == "digits" else ["data.limit=60"]
    records = trained(path, tmp_path / "run", [*SHORT, f"train.epochs={epochs}", *phases, *limit])
    assert sum(record.epochs for record in records) == epochs
    assert all(record.frozen_unchanged for record in records)


def test_a_recipe_that_lacks_files_begins_with_the_command_that_fetches_them_and_so_does_its_error(tmp_path):
    needing = [each for each in shipped_recipes() if each.needs]
    assert len(needing) >= 6
    copy_recipes([each.name for each in needing], tmp_path)
    for each in needing:
        with pytest.raises(FinetuneError) as error:
            check(tmp_path / f"{each.name}.yaml", allow_code=[f"hub:{name}" for name in each.needs])
        commands = re.findall(
            rf"`finetune fetch (\w+) --out {re.escape(os.path.relpath(tmp_path))}` fetches it", str(error.value)
        )
        assert set(commands) == set(each.needs)


# A single one of MiniLM's six layers: the steps of all of them are the same, and take six times as long to trace.
SHALLOW = [
    "data.limit=24",
    "data.tokenizer.length=16",
    "model.arguments.num_layers=1",
    f"restore.allow_unused=[embeddings.position_ids, pooler, {', '.join(f'encoder.layer.{n}' for n in range(1, 6))}]",
]
ONE_GROUP = "groups=[{name: all, rest: true, optimizer: adam, learning_rate: 1.0e-4}]"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")
@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("chords", ["data.limit=12", "phases=[{train: all, steps: 1}]"]),
        ("drawings", ["data.limit=30", "model.input_shape=[32, 32, 3]", "phases=[{train: all, steps: 1}]"]),
        ("movie_pairs", [*SHALLOW, "model.arguments.pairs=true", ONE_GROUP, "train.epochs=1"]),
        ("movie_preset", ["data.limit=12", "data.tokenizer.length=16", "train.epochs=1"]),
        ("text_kinds", [*SHALLOW, "phases=null", "train.epochs=1"]),
    ],
)
def test_a_recipe_with_fetched_networks_and_data_trains_a_few_steps(name, overrides, tmp_path):
    copy_recipes([name], tmp_path)
    fetch(next(each.needs for each in shipped_recipes() if each.name == name), tmp_path, report=lambda line: None)
    if name == "movie_preset":  # which has as many layers as its file says
        config = tmp_path / "minilm" / "config.json"
        config.write_text(config.read_text().replace('"num_hidden_layers": 6', '"num_hidden_layers": 1'))
    [record] = trained(tmp_path / f"{name}.yaml", tmp_path / "run", [*SHORT, *overrides], ["hub:basic_pitch"])
    assert record.steps


def test_what_a_recipe_extends_is_copied_and_each_begins_with_a_line_that_leads_to_the_schema(tmp_path):
    copy_recipes(["movie_pairs"], tmp_path)
    recipes = sorted(tmp_path.rglob("*.yaml"))
    assert [path.relative_to(tmp_path).as_posix() for path in recipes] == [
        "movie_pairs.yaml",
        "movie_sentences.yaml",
        "parts/minilm.yaml",
    ]
    for path in recipes:
        first = path.read_text().splitlines()[0]
        schema = path.parent / first.removeprefix("# yaml-language-server: $schema=")
        assert json.loads(schema.read_text())["title"] == "A recipe of finetune"


def test_the_commands_in_a_copy_name_it_where_it_lies(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    copy_recipes(["wine"], Path("tried"))
    assert "#   finetune run  tried/wine.yaml  " in Path("tried/wine.yaml").read_text()
    copy_recipes(["wine"], Path())
    assert "#   finetune run  wine.yaml  " in Path("wine.yaml").read_text()


def test_a_changed_file_is_not_overwritten_unless_that_is_asked_for(tmp_path):
    copy_recipes(["wine"], tmp_path)
    (tmp_path / "wine.yaml").write_text("mine")
    with pytest.raises(FinetuneError, match="An existing file is not overwritten"):
        copy_recipes(["wine"], tmp_path)
    assert (tmp_path / "wine.yaml").read_text() == "mine"
    copy_recipes(["wine"], tmp_path, overwrite=True)
    assert (tmp_path / "wine.yaml").read_text() != "mine"


def test_nothing_is_written_where_a_single_file_may_not_be(tmp_path):
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "wine.csv").write_text("mine")
    with pytest.raises(FinetuneError, match=r"wine\.csv` exists"):
        copy_recipes(["wine"], tmp_path)
    assert files_in(tmp_path) == ["tables/wine.csv"]


def test_an_unknown_name_and_a_file_for_a_folder_are_refused(tmp_path):
    with pytest.raises(FinetuneError) as error:
        copy_recipes(["digts"], tmp_path)
    assert (
        str(error.value)
        == "No recipe of the package is called `digts`. Did you mean `digits` or `digits_slim` or `drawings`?"
    )
    (tmp_path / "file").touch()
    with pytest.raises(FinetuneError) as error:
        copy_recipes(["wine"], tmp_path / "file")
    assert str(error.value) == (
        f"Recipes are copied into a folder. `--out {tmp_path / 'file'}` is a file. Name a folder."
    )


def test_the_wheel_has_the_recipes_where_an_installed_package_looks_for_them():
    from finetune.commands import shipped_recipes as module

    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel["only-include"] == ["finetune", "recipes"]
    assert wheel["sources"] == {"recipes": module._INSTALLED.relative_to(ROOT).as_posix()}
