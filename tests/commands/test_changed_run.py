import csv
import json
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

import finetune
from finetune.cli.application import app
from finetune.commands.changed_run import (
    advice_on_split,
    check_changes,
    check_network,
    checkpoint_before_cooldown,
    fit_in,
    plan_of_phases,
    with_extension,
)
from finetune.commands.run import run
from finetune.errors import FinetuneError, TrainingError
from finetune.recipe.changes import Change
from finetune.recipe.loader import load_recipe
from finetune.results.hashes import check_hashes
from finetune.training.checkpoints.carried_state import CarriedPart
from finetune.training.checkpoints.checkpoint import Checkpoint
from finetune.training.checkpoints.checkpoint_file import checkpoint_files, read_checkpoint

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")
STABLE = (
    "groups.body.learning_rate={schedule: warmup_stable_decay, peak: 1.0e-2, warmup_steps: 2, decay_epochs: 1, "
    "shape: 1-sqrt}"
)
SETTINGS = ["train.checkpoint_steps=1", "train.steps_per_execution=1", "train.validation_fraction=0.2", STABLE]


class KilledError(Exception):
    """What stands for a process that is killed."""


def weights(result):
    return [variable.numpy().tobytes() for variable in (*result.model.variables, *result.model.optimizer.variables)]


def rows(folder):
    return list(csv.DictReader(Path(folder, "metrics.csv").read_text().splitlines()))


def resumed(*overrides, out="out"):
    said = StringIO()
    result = run(f"{out}/recipe.yaml", out, overrides=overrides, resume=True, console=Console(file=said, width=200))
    return result, said.getvalue()


@pytest.mark.parametrize("number", [3, pytest.param(5, marks=pytest.mark.grid)])  # within an epoch, at its end
def test_a_run_extended_in_its_constant_part_is_the_longer_run_bit_for_bit(number, recipe, recorded):
    straight = recorded(*SETTINGS, "train.epochs=4")
    recorded(*SETTINGS, "train.epochs=3").killed_at(number)
    longer, _ = resumed("train.epochs=4")
    assert weights(longer) == weights(straight.result)
    assert rows("out") == rows(straight.folder)


@pytest.mark.parametrize("average", [pytest.param("false", marks=pytest.mark.grid), "true"])
def test_a_finished_run_of_constant_rates_goes_on_as_if_it_had_been_longer(average, recipe):
    constant = [*SETTINGS, "groups.body.learning_rate=0.01", f"train.use_ema={average}"]
    straight = finetune.run(recipe, out="straight", overrides=[*constant, "train.epochs=3"])
    first = finetune.run(recipe, out="out", overrides=[*constant, "train.epochs=2"])
    longer, said = resumed("train.epochs=3")
    assert weights(longer) == weights(straight)
    assert rows("out") == rows("straight")
    assert "changed: `train.epochs`: was 2, is 3" in said
    result = json.loads(Path("out/result.json").read_text())
    assert result["extended_from"] == [{"folder": "former/1", "epochs": 2, "metrics": first.metrics}]
    assert json.loads(Path("out/former/1/result.json").read_text())["metrics"] == first.metrics
    assert Path("out/former/1/model.keras").is_file()
    assert check_hashes(Path("out")).holds
    parts = json.loads(Path("out/migration.json").read_text())["state"]
    assert {(part["name"], part["state"]) for part in parts} >= {("body", "carried"), ("head", "carried")}
    assert not any(part["state"] != "carried" for part in parts)


def test_an_extension_that_was_killed_goes_on_as_one_that_was_left_alone(recipe, recorded, monkeypatch):
    finished = recorded(*SETTINGS, "train.epochs=2").finished
    finished("straight")
    straight, _ = resumed("train.epochs=4", "train.extend=cooldown", out="straight")
    finished("out")
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "on_epoch_begin", lambda self, epoch, logs=None: (_ for _ in ()).throw(KilledError))
        with pytest.raises(TrainingError):
            resumed("train.epochs=4", "train.extend=cooldown")
    assert not Path("out/result.json").exists()
    assert not Path("out/hashes.json").exists()
    again, _ = resumed()
    assert weights(again) == weights(straight)
    assert rows("out") == rows("straight")
    assert again.extended_from == straight.extended_from
    assert float(again.model.optimizer.learning_rates["head"]) == 0.0
    assert load_recipe("out/recipe.yaml").train.extensions[0].at_steps == 6


def test_a_finished_run_is_not_trained_twice_by_accident(recipe, recorded):
    recorded(*SETTINGS, "train.epochs=2").finished()
    runner = CliRunner()
    for arguments in (["resume", "out"], ["resume", "out", "--set", "train.epochs=2"]):
        done = runner.invoke(app, arguments)
        assert (done.exit_code, "is finished, and is not trained again" in done.output) == (0, True)
    options = [text for setting in SETTINGS for text in ("--set", setting)]
    done = runner.invoke(app, ["run", "tiny.yaml", "--out", "out", "--resume", *options])
    assert "finetune resume out --set train.epochs=..." in done.output
    with pytest.raises(FinetuneError, match="Nothing is left to train: the run has ended after 2 epochs"):
        resumed("train.batch_size=8")
    with pytest.raises(FinetuneError, match="cannot end before what is made of it: 2 epochs, and the recipe says 1 ep"):
        resumed("train.epochs=1", "groups.body.learning_rate=0.01")


def test_without_a_checkpoint_a_run_is_not_extended_and_says_what_to_do(recipe, recorded):
    recorded(*SETTINGS, "train.epochs=2").finished()
    for path in checkpoint_files(Path("out/checkpoints")):
        path.unlink()
    with pytest.raises(FinetuneError) as error:
        resumed("train.epochs=4")
    assert "It kept no checkpoint to be extended from (`train.keep_checkpoints`)" in str(error.value)
    assert "`--set restore.from=out/model.keras`" in str(error.value)


@pytest.mark.sample(3)
@pytest.mark.parametrize(
    ("changes", "carried", "fresh"),
    [
        (["train.batch_size=8", "groups.head.optimizer={name: adam}", "seed=9"], {"body", "head"}, set()),
        (
            ["groups.body.optimizer=adam", "train.use_ema=true", "train.gradient_accumulation_steps=2"],
            {"head"},
            {"body", "average", "gradient_accumulator"},
        ),
        (["groups=[{name: all, rest: true, optimizer: adamw, learning_rate: 0.01}]"], set(), {"all"}),
        (
            [
                "groups=[{name: stem, prefixes: [stem, bn], frozen: true}, {name: top, prefixes: [head], optimizer: "
                "adamw, learning_rate: 0.01}, {name: middle, rest: true, optimizer: {name: momentum, momentum: 0.9}, "
                "learning_rate: 0.01}]"
            ],
            {"top", "middle"},
            set(),
        ),
        (["phases=[{train: all, epochs: 2}, {train: [head], epochs: 1}]", "train.epochs="], {"body", "head"}, set()),
    ],
)
def test_a_changed_recipe_carries_what_has_the_same_meaning(changes, carried, fresh, recipe, recorded):
    recorded(*SETTINGS, "train.epochs=2").killed_at(4)
    result, _ = resumed(*changes)
    parts = json.loads(Path("out/migration.json").read_text())["state"]
    assert {part["name"] for part in parts if part["state"] == "carried"} == {"weights", *carried}
    assert {part["name"] for part in parts if part["state"] == "fresh"} == fresh
    assert len(rows("out")) == sum(int(phase.epochs) for phase in result.phases) or not result.phases
    assert result.frozen_unchanged
    assert Path("out/result.json").is_file()


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("model.keras_file", "the network is another, and a run goes on with the weights of its own"),
        ("restore.exclude", "nothing is restored"),
    ],
)
def test_the_network_of_a_run_does_not_change(key, message, recipe):
    with pytest.raises(FinetuneError, match=message):
        check_changes(Path("out"), [Change(key, "a", "b")], load_recipe(recipe), {"plan_of_phases": []})


def test_a_checkpoint_of_an_older_version_goes_on_unchanged_alone(recipe):
    with pytest.raises(FinetuneError, match="written by an older version"):
        check_changes(Path("out"), [Change("seed", 1, 2)], load_recipe(recipe), {})


def test_phases_that_are_over_stay_as_they_were(recipe, recorded):
    phases = "phases=[{train: [head], epochs: 1}, {train: all, epochs: 2}]"
    recorded(*SETTINGS, "train.epochs=", phases).killed_at(8)
    with pytest.raises(FinetuneError, match=r"The run stands in phase 2 of 2, and the phases"):
        resumed("phases=[{train: all, epochs: 1}, {train: all, epochs: 2}]")
    result, _ = resumed("phases=[{train: [head], epochs: 1}, {train: all, epochs: 3}]")
    assert [phase.epochs for phase in result.phases] == [1, 3]


def test_an_extension_is_noted_once(recipe):
    document = {"extensions": [], "plan_of_phases": [[["head"], 2, None, 8]], "epochs": 2}
    changed = load_recipe(recipe, overrides=["train.epochs=4", "train.extend=append"])
    noted = with_extension(changed, document, steps=8)
    assert noted.train.extensions[0].model_dump() == {"by": "append", "at_steps": 8, "total_steps": 8}
    assert with_extension(noted, document, steps=8) == noted
    assert with_extension(load_recipe(recipe), document, steps=8).train.extensions == ()


def test_the_plan_of_phases_has_their_steps():
    assert plan_of_phases([finetune.Phase(epochs=2), finetune.Phase(steps=5)], [], 4) == [
        [[], 2, None, 8],
        [[], None, 5, 5],
    ]


def test_a_run_goes_on_with_other_classes_in_the_same_place_if_that_is_said(photos, monkeypatch):
    monkeypatch.chdir(photos.parent)
    settings = ["train.epochs=3", "train.keep=best", "data.split.by=hash"]
    first = finetune.run(photos, out="out", overrides=settings)
    Path("photos/green").rename("photos/violet")
    Path("photos/amber").mkdir()
    for name in ("1.png", "2.png", "3.png", "4.png", "5.png"):
        Path("photos/blue", name).rename(Path("photos/amber", name))
    with pytest.raises(FinetuneError) as error:
        resumed("train.epochs=4")
    assert "`class_names.0`: was blue, is amber" in str(error.value)
    assert "go on with those that are there now (`finetune resume out --other-data`)" in str(error.value)
    said = StringIO()
    second = run(
        "out/recipe.yaml",
        "out",
        overrides=["train.epochs=4"],
        resume=True,
        other_data=True,
        console=Console(file=said, width=400),
    )
    for sentence in (
        "changed: `data`: was as it was read, is other rows in the same place (`--other-data`)",
        "classes: 2 as before, new: `amber`, `violet` (their weights are fresh, and their slots begin anew), no longer "
        "there: `green`.",
        "the best value so far begins anew, since it is of other rows or another loss",
        "carried: 1 tensor of head/output/kernel (by the names of the classes; 2 columns fresh)",
    ):
        assert sentence in said.getvalue()
    assert "split anew" not in said.getvalue()
    assert second.model.output_shape == (None, 4)
    assert second.kept["epoch"] == 4
    assert second.metrics_before != first.metrics_before  # of other rows
    assert json.loads(Path("out/migration.json").read_text())["data"][0].startswith("classes: 2 as before")


HEADS = """
import keras
from keras import layers

def make(animals, colours):
    x = keras.Input((2,), name="x")
    body = layers.Dense(3, name="body")(x)
    animal = layers.Dense(animals, activation="softmax", name="animal")(body)
    return keras.Model(x, {"animal": animal, "colours": layers.Dense(colours, activation="sigmoid", name="colours")(body)})
"""


def test_the_classes_and_the_labels_of_several_outputs_keep_their_columns_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    Path("animal_heads.py").write_text(HEADS)
    for name, animals, colours in (("few", "ce", ("blue", "red")), ("further", "acde", ("amber", "blue", "red"))):
        rows = [
            f"{n % len(name)},{n % 5},{animals[n % len(animals)]},{'|'.join(c for k, c in enumerate(colours) if n >> k & 1) or '|'}"
            for n in range(16)
        ]
        Path(f"{name}.csv").write_text("\n".join(["a,b,animal,colours", *rows]))
    Path("heads.yaml").write_text(
        "model: {builder: 'animal_heads:make', arguments: {animals: 2, colours: 2}}\nreport: off\n"
        "data: {table: few.csv, test_table: few.csv, inputs: [a, b], target: {animal: animal, colours: colours}}\n"
        "groups: [{name: all, rest: true, optimizer: sgd, learning_rate: 1e-30}]\ntrain: {epochs: 1, batch_size: 16}\n"
    )
    first = run("heads.yaml", "out", allow_code=["animal_heads"])
    before = {v.path: v.numpy() for v in first.model.trainable_variables}
    changes = ["data.table=further.csv", "data.test_table=further.csv", "train.epochs=2"]
    changes += ["model.arguments.animals=4", "model.arguments.colours=3"]
    said = StringIO()
    console = Console(file=said, width=400)
    options = {"overrides": changes, "allow_code": ["animal_heads"], "console": console}
    now = {v.path: v.numpy() for v in run("out/recipe.yaml", "out", resume=True, **options).model.trainable_variables}
    np.testing.assert_array_equal(now["animal/kernel"][:, [1, 3]], before["animal/kernel"])
    np.testing.assert_array_equal(now["colours/kernel"][:, [1, 2]], before["colours/kernel"])
    for sentence in (
        "classes of `animal`: 2 as before, new: `a`, `d` (",
        "classes of `colours`: 2 as before, new: `amber` (",
        "numbers are normalized by the rows that are read now: `a.mean`: was 0.9375, is 2.688; ",
        "carried: 1 tensor of animal/kernel (by the names of the classes; 2 columns fresh)",
        "carried: 1 tensor of colours/kernel (by the names of the classes; 1 column fresh)",
    ):
        assert sentence in said.getvalue(), said.getvalue()


def test_rows_that_may_have_been_trained_on_are_warned_of(photos):
    changes = [Change("data.images", "a", "b")]
    sentence = advice_on_split(load_recipe(photos), changes)[0]
    assert sentence.startswith("warning: `data.images` has changed, so the rows are split anew, and rows that were tra")
    assert advice_on_split(load_recipe(photos), [Change("data.class_weight", "a", "b")]) == []
    by_hash = load_recipe(photos, overrides=["data.split.by=hash"])
    assert advice_on_split(by_hash, changes) == []
    assert advice_on_split(by_hash, [Change("seed", 1, 2)])
    assert advice_on_split(load_recipe(photos, overrides=["data.split="]), changes) == []


def test_other_arguments_of_the_network_may_change_the_classes_alone():
    changes = [Change("model.arguments.classes", 3, 4)]
    check_network(Path("out"), [CarriedPart("weights", "carried", 4)], changes)
    with pytest.raises(FinetuneError) as error:
        check_network(
            Path("out"), [CarriedPart("weights", "fresh", 2, "new, or of another shape: `body/kernel`")], changes
        )
    assert str(error.value) == (
        "A run goes on with the network it was begun with, in which only the classes may be others. With "
        "`model.arguments.classes`: was 3, is 4, 2 tensors are new, or of another shape: `body/kernel`. Undo the change, "
        "or begin another run in another folder, with `restore.from: out/model.keras`."
    )


def test_places_of_categories_stay_and_means_are_told(recipe, recorded):
    recorded(*SETTINGS, "train.epochs=2").killed_at(4)
    checkpoint = Checkpoint("out/checkpoints")
    plan = checkpoint.resumed.document["plan_of_phases"]
    columns = {"area": {"mean": 1.0}, "town": {"categories": ["Bonn", "Ulm"]}}
    checkpoint.resumed.document["data"]["source"] = {"columns": columns}
    now = {"source": {"columns": {**columns, "area": {"mean": 2.0}}}}
    changes = [Change("data.table", "a", "b")]
    assert fit_in(checkpoint, plan, changes, now) == [
        "numbers are normalized by the rows that are read now: `area.mean`: was 1, is 2"
    ]
    with pytest.raises(
        FinetuneError, match=r"each category has its place.*`columns.town.categories.0`: was Bonn, is Aac"
    ):
        fit_in(checkpoint, plan, changes, {"source": {"columns": {"town": {"categories": ["Aachen", "Bonn"]}}}})


def test_a_finished_run_whose_rates_fell_goes_on_from_before_as_the_longer_run_bit_for_bit(recipe, recorded):
    straight = recorded(*SETTINGS, "train.epochs=3")
    recorded(*SETTINGS, "train.epochs=2").finished()
    (kept,) = checkpoint_files(Path("out/checkpoints/before_cooldown"))
    assert kept.name.startswith("step-0000003-")  # of 6 steps; the last 3 fall
    longer, said = resumed("train.epochs=3")
    assert f"going on at epoch 1, after its last step from `{kept}`" in said
    assert "the rates fall from step 4 on: the run goes on from before that, as a longer run would." in said
    assert weights(longer) == weights(straight.result)
    assert rows("out") == rows(straight.folder)
    (kept,) = checkpoint_files(Path("out/checkpoints/before_cooldown"))
    assert kept.name.startswith("step-0000006-")
    assert check_hashes(Path("out")).holds
    assert checkpoint_before_cooldown(Checkpoint("out/checkpoints"), load_recipe("out/recipe.yaml")) is None
    appended = load_recipe("out/recipe.yaml", overrides=["train.epochs=4", "train.extend=append"])
    assert checkpoint_before_cooldown(Checkpoint("out/checkpoints"), appended) is None


def test_checkpoints_without_slots_are_small_and_a_run_that_goes_on_from_one_says_so(recipe, recorded):
    recorded(*SETTINGS, "train.epochs=2").killed_at(4, "whole")
    recorded(*SETTINGS, "train.epochs=2", "train.checkpoint_optimizer=false").killed_at(4)
    whole, small = (checkpoint_files(Path(out, "checkpoints"))[0] for out in ("whole", "out"))
    former, document = read_checkpoint(small).arrays, read_checkpoint(small).document["model"]
    slots = sum(bool(row and row[0]) for row in document["slots"])
    assert len(read_checkpoint(whole).arrays) - len(former) == slots > 0
    result, said = resumed()
    sentence = (
        "the run went on from step 4 with fresh slots in all optimizers, since its checkpoints hold none "
        "(`train.checkpoint_optimizer: false`): the end is not that of a run which was left alone"
    )
    assert f"warning: {sentence}" in said.replace("\n", " ")
    assert sentence in result.warnings
