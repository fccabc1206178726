"""The JSON schema of a recipe, checked with the package that editors' plugins are compared with."""

import re
from pathlib import Path

import jsonschema
import pytest

from finetune.recipe.json_schema import recipe_schema
from finetune.recipe.keys import blocks
from finetune.recipe.text import Place, parse

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(scope="module")
def faults():
    """Returns the messages for the YAML text of a recipe."""
    schema = recipe_schema()
    jsonschema.Draft7Validator.check_schema(schema)
    validator = jsonschema.Draft7Validator(schema)

    def faults_in(text, *, is_part=False):
        data = parse(text, lambda line, column: Place("x", line, column), []).plain()
        data = {"extends": "whole.yaml"} | data if is_part else data
        return [f"{'.'.join(map(str, error.path))}: {error.message}" for error in validator.iter_errors(data)]

    return faults_in


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").rglob("*.yaml")), ids=lambda path: path.stem)
def test_the_recipes_of_the_project_are_valid(faults, path):
    assert faults(path.read_text(encoding="utf-8"), is_part=path.parent.name == "parts") == []


@pytest.mark.parametrize("page", ["README.md", *(f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md"))])
def test_the_recipes_of_the_documentation_are_valid(faults, page):
    texts = re.findall(r"^ *```yaml\n(.*?)^ *```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    keys = tuple(recipe_schema()["properties"])
    parts = [text for text in texts if text.lstrip("# \n").startswith(keys)]
    assert [(text, faults(text, is_part=True)) for text in parts if faults(text, is_part=True)] == []


@pytest.mark.parametrize(
    "text",
    [
        "report: off",
        "train: {batch_size: null, cache: off, steps_per_execution: auto, loss: {a: mse, b: {name: huber, delta: 1}}}",
        "phases: lp_ft",
        "phases: {strategy: gradual_unfreezing, epochs: 3}",
        "phases: [{train: head, epochs: 1, rates: {head: {schedule: constant, initial: 1}}, batch_norm: {a: freeze}}]",
        "groups: {by: block, spread: [1e-6, 1e-3], optimizer: AdamW, learning_rate: {schedule: cosine_decay}}",
        "groups: [{name: a, variables: ['0:4', 5], optimizer: {name: sgd, momentum: 0.9}, learning_rate: 1}]",
        "data: {inputs: rest, target: {a: b, c: [d]}, missing: [-1, no], class_weight: {cat: 1}, split: {column: part}}",
        "data: {tfrecord: [a, b], features: {a: int64, b: {decode: image}}, augment: RandomFlip}",
        "data: {tfrecord: {train: a, test: [b]}, as: [x, y], augment: [{layer: random_flip, mode: vertical}]}",
        "model: {application: mobilenet_v2, weights: none, head: {classes: auto, units: 3}}",
        "restore: {exclude: head, transform: [{names: a, split: [1, 2], to: [b, c]}]}",
        "extends: [a.yaml, b.yaml]",
    ],
)
def test_what_check_accepts_is_valid(faults, text):
    assert faults(text, is_part=True) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("train: {epoch: 3}", "train: Additional properties are not allowed ('epoch' was unexpected)"),
        ("train: {epochs: 0}", "train.epochs: 0 is not valid under any of the given schemas"),
        ("groups: [{rest: true}]", "groups: [{'rest': True}] is not valid under any of the given schemas"),
        ("groups: [{name: a, learning_rate: {schedule: cosine_decay, typo: 2}}]", "groups: "),
        ("phases: [{trian: head}]", "phases: "),
        ("phases: {strategy: lp_ft, epoch: 3}", "phases: "),
        ("model: {head: {class: 3}}", "model.head: "),
        ("data: {split: {test: 1.5}}", "data.split: "),
        ("data: {resize: padded}", "data.resize: "),
        ("restore: {transform: [{transpose: [1, 0]}]}", "restore: "),
    ],
)
def test_misspelt_keys_and_values_out_of_bounds_are_marked(faults, text, expected):
    assert any(fault.startswith(expected) for fault in faults(text, is_part=True))


def test_a_recipe_that_extends_no_other_must_be_whole(faults):
    assert faults("model: {builder: a}") == [f": '{key}' is a required property" for key in ("data", "groups", "train")]


def test_every_key_has_the_hover_text_that_keys_prints():
    schema = recipe_schema()
    texts = {
        (key, text["description"].partition(" Default: ")[0])
        for part in (schema, *schema["definitions"].values())
        for key, text in part["properties"].items()
    }
    named = {("arguments", key.meaning) for block in blocks() for key in block.keys if key.name == "arguments"}
    assert {(key.name, key.meaning) for block in blocks() for key in block.keys} - named <= texts
    train = schema["definitions"]["Train"]["properties"]
    assert train["jit_compile"]["description"] == "Whether the step is compiled with XLA. Default: `false`."
    assert schema["properties"]["train"]["allOf"] == [{"$ref": "#/definitions/Train"}]
