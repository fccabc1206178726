"""Recipes with their defaults written out."""

from pathlib import Path

import pytest

from finetune.recipe.filled import filled_text, with_defaults
from finetune.recipe.loader import load_recipe

ROOT = Path(__file__).resolve().parent.parent.parent
SHIPPED = sorted((ROOT / "recipes").glob("*.yaml"))
RECIPE = """\
# Two groups.
#   finetune run a.yaml
model: {builder: finetune.examples.networks:mlp, head: {classes: auto}}  # small
data:
  table: tables/rows.csv   # relative to this file
  # every column but the id
  inputs: rest
  exclude: [
    id,  # a number
    # and
    name
  ]
  target: "kind#1"  # not `kind`
groups:
  - {name: body, prefixes: hidden_0, frozen: true}  # as it is
  # the new layer
  - name: head
    rest: true
    optimizer: adam
    learning_rate: {schedule: cosine_decay, initial: 1e-3, decay_fraction: 1}  # falls
phases: lp_ft
train: {epochs: 4}
report: off
# the end
"""


def filled(folder, text=RECIPE, *, to=None, name="a.yaml"):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return filled_text(path, to or path.parent)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_filled_recipe_of_the_project_says_the_same(path, tmp_path):
    (tmp_path / "filled.yaml").write_text(filled_text(path, tmp_path))
    was, now = load_recipe(path), load_recipe(tmp_path / "filled.yaml")
    assert now.groups == was.groups
    assert (now.train, now.report, now.phases, now.seed) == (was.train, was.report, was.phases, was.seed)
    assert now.data.split == was.data.split
    assert with_defaults(was)[0] == was


def test_filling_a_filled_recipe_changes_nothing(tmp_path):
    text = filled(tmp_path)
    assert [line for line in filled(tmp_path, text).splitlines() if line] == [
        line for line in text.splitlines() if line
    ]


def test_every_comment_stays_at_its_key(tmp_path):
    lines = filled(tmp_path).splitlines()
    assert lines[:3] == ["# Two groups.", "#   finetune run a.yaml", "model:  # small"]
    assert "  table: tables/rows.csv  # relative to this file" in lines
    assert lines[lines.index("  inputs: rest") - 1] == "  # every column but the id"
    exclude = lines.index("  exclude: [id, name]")
    assert lines[exclude - 2 : exclude] == ["  # a number", "  # and"]
    assert "  target: kind#1  # not `kind`" in lines
    assert "  - name: body  # as it is" in lines
    assert lines[lines.index("  - name: head") - 1] == "  # the new layer"
    assert "    learning_rate:  # falls" in lines
    assert lines[-1] == "# the end"


def test_each_default_is_written_with_its_meaning_behind_what_was_written(tmp_path):
    lines = filled(tmp_path).splitlines()
    train = lines[lines.index("train:") :]
    assert train[1:3] == ["  epochs: 4", "  # by default:"]
    assert "  batch_size: 32  # Rows in a batch, >= 1." in train
    assert "  mixed_precision: false  # The type in which layers compute; `false` computes in float32." in train
    schedule = lines[lines.index("    learning_rate:  # falls") :]
    assert schedule[2:5] == ["      initial: 0.001", "      decay_fraction: 1", "      # by default:"]


def test_what_is_short_for_a_mapping_is_written_as_one(tmp_path):
    lines = filled(tmp_path).splitlines()
    phases = lines[lines.index("phases:") :]
    assert phases[1] == "  strategy: lp_ft"
    report = lines[lines.index("report:") :]
    assert report[1] == "  page: false"


def test_keys_that_do_not_belong_to_the_source_of_a_recipe_are_not_written(tmp_path):
    text = filled(tmp_path)
    assert "include_top" not in text  # of applications
    assert "decay_bias_and_norm" in text
    frozen = text[text.index("name: body") : text.index("name: head")]
    assert "decay_bias_and_norm" not in frozen


def test_files_that_a_recipe_extends_are_written_into_it_with_their_comments(tmp_path):
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "base.yaml").write_text(RECIPE)
    text = filled(tmp_path, "# mine\nextends: parts/base.yaml  # the rest\ntrain: {epochs: 9}  # longer\n")
    assert text.startswith("# mine\n")
    assert "extends" not in text
    assert "  table: parts/tables/rows.csv  # relative to this file" in text
    assert "train:  # longer\n  epochs: 9\n" in text
    assert "Two groups" not in text


def test_paths_are_relative_to_the_folder_of_the_text(tmp_path):
    text = filled(tmp_path, RECIPE.replace("tables/rows.csv", "/data/rows.csv"), to=tmp_path / "other")
    assert "table: /data/rows.csv" in text
    text = filled(tmp_path, to=tmp_path / "other" / "deep")
    assert "table: ../../tables/rows.csv" in text


def test_names_that_are_no_paths_stay(tmp_path):
    model = "{application: MobileNetV2, weights: imagenet, input_shape: [96, 96, 3], head: {classes: 2}}"
    text = RECIPE.replace("{builder: finetune.examples.networks:mlp, head: {classes: auto}}", model)
    assert "weights: imagenet\n" in filled(tmp_path, text, to=tmp_path / "other")
    assert "weights: none\n" in filled(tmp_path, text.replace("imagenet", "none"), to=tmp_path / "other")


def test_the_schema_that_a_comment_names_for_editors_is_found_from_the_new_folder(tmp_path):
    text = "# yaml-language-server: $schema=recipe.schema.json\n" + RECIPE
    first = filled(tmp_path, text, to=tmp_path / "other").splitlines()[0]
    assert first == "# yaml-language-server: $schema=../recipe.schema.json"
    remote = text.replace("recipe.schema.json", "https://example.org/s.json")
    assert filled(tmp_path, remote, to=tmp_path / "other").startswith("# yaml-language-server: $schema=https://example")


def test_phases_with_rates_and_until_are_filled_to_their_depth(tmp_path):
    phases = "[{train: head, epochs: 1, rates: {head: {schedule: constant, initial: 1e-3}}, until: {patience: 2}}]"
    text = RECIPE.replace("phases: lp_ft", f"phases: {phases}").replace("train: {epochs: 4}", "train: {batch_size: 8}")
    lines = filled(tmp_path, text).splitlines()
    start = lines.index("  - train: head")
    assert lines[start + 1 : start + 6] == [
        "    epochs: 1",
        "    rates:",
        "      head:",
        "        schedule: constant",
        "        initial: 0.001",
    ]
    assert any(line.startswith("      monitor: val_loss  # ") for line in lines)
