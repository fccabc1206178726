"""The pages of `docs/`: their programs run, their links lead somewhere, and every public name has its place."""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

import finetune
from finetune.recipe.loader import load_recipe

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted((ROOT / "docs").glob("*.md"))
PROGRAMS = {
    page.stem: re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.S | re.M) for page in PAGES
}


def run_blocks(page, **names):
    names["__name__"] = page
    for block in PROGRAMS[page]:
        exec(compile(block, f"{page}.md", "exec"), names)
    return names


def parts_of_recipes(page):
    """Returns what a page writes as code that begins with a part of a recipe and has no dots to fill in."""
    codes = re.findall(r"`((?:groups|phases|train|data|learning_rate|optimizer|head|restore): [^`]+)`", page)
    return sorted({code for code in codes if "..." not in code})


@pytest.mark.parametrize(
    "code",
    [
        code
        for page in ("coming_from", "tf1")
        for code in parts_of_recipes((ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8"))
    ],
)
def test_what_other_systems_have_is_a_valid_part_of_a_recipe(code, tmp_path):
    [(key, value)] = yaml.safe_load(code).items()
    group = {"name": "all", "rest": True, "optimizer": "adam", "learning_rate": 1e-3}
    recipe = {
        "model": {"keras_file": "m.keras"},
        "data": {"images": "photos"},
        "restore": {"from": "model.ckpt-1000"},
        "groups": [group],
        "train": {"epochs": 20},
    }
    if "tokenizer" in str(value) or "table" in str(value):
        recipe["data"] = {"table": "a.csv", "inputs": "text", "target": "y"}
    if key == "phases":
        recipe["groups"] = [group | {"name": "body", "rest": False, "prefixes": ["conv"]}, group | {"name": "head"}]
    if key == "phases" and ("epochs" in str(value) or "steps" in str(value)):
        recipe["train"] = {}
    place = {"learning_rate": recipe["groups"][0], "optimizer": recipe["groups"][0], "head": recipe["model"]}.get(
        key, recipe
    )
    merged = isinstance(value, dict) and isinstance(place.get(key), dict) and "images" not in value
    place[key] = place[key] | value if merged else value
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    load_recipe(tmp_path / "recipe.yaml")


@pytest.fixture
def trained():
    """What the fragments of some pages go on with: a compiled model, its groups and rows."""
    import keras

    x, y = np.random.default_rng(0).normal(size=(3840, 8)).astype("float32"), np.arange(3840) % 3
    dense = keras.layers.Dense
    model = keras.Sequential([keras.Input((8,)), dense(4, name="body"), dense(3, activation="softmax", name="head")])
    groups = finetune.resolve_groups(model, by="layer")
    optimizer = finetune.GroupedOptimizer({group.name: (keras.optimizers.Adam(), group) for group in groups})
    model.compile(optimizer, "sparse_categorical_crossentropy")
    early_stopping = keras.callbacks.EarlyStopping("loss", min_delta=100.0)
    return {
        "keras": keras,
        "finetune": finetune,
        "model": model,
        "groups": groups,
        "x": x,
        "y": y,
        "early_stopping": early_stopping,
    }


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")
@pytest.mark.parametrize("page", ["tutorial", "distribution", "python", "hub", "tf1"])
def test_the_programs_of_a_page_run_as_they_are(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run_blocks(page)


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")
def test_the_three_lines_of_python_run_where_the_recipes_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("recipes").symlink_to(ROOT / "recipes")
    assert run_blocks("fine_tuner")["history"].history["loss"]


@pytest.mark.parametrize("page", ["monitoring", "resume"])
def test_the_fragments_of_a_page_run_after_a_model_was_compiled(page, trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run_blocks(page, **trained)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")
def test_what_is_done_with_a_run_is_done_with_one_of_photos(tmp_path, monkeypatch):
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(["cat", "dog"] * 8):
        folder = tmp_path / "more-photos" / name
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), (40 + 10 * number, 90, 200)).save(folder / f"{number}.jpg")
    Image.new("RGB", (16, 16)).save("cat.jpg")
    (tmp_path / "pets.yaml").write_text(
        "model: {builder: finetune.examples.networks:cnn, head: {classes: auto}}\n"
        "data: {images: more-photos, size: [16, 16], split: {test: 0.25}}\n"
        "groups: [{name: all, rest: true, optimizer: adam, learning_rate: 1.0e-3}]\n"
        "train: {epochs: 1, batch_size: 4}\n"
    )
    finetune.run("pets.yaml", "runs/pets")
    monkeypatch.setitem(PROGRAMS, "after", PROGRAMS["after"][::-1])  # the second makes the export that the first serves
    assert run_blocks("after")["answer"] is not None


def test_every_program_is_run():
    tried = {"tutorial", "tf1", "distribution", "python", "fine_tuner", "hub", "monitoring", "resume", "after"}
    assert {page for page, blocks in PROGRAMS.items() if blocks} == tried


def test_every_public_name_has_a_place_in_the_reference():
    named = re.findall(r"^::: finetune\.([\w.]+)\.(\w+)$", (ROOT / "docs" / "reference.md").read_text(), re.M)
    assert sorted(name for _, name in named) == sorted(set(finetune.__all__))
    for module, name in named:
        assert hasattr(importlib.import_module(f"finetune.{module}"), name), name


def test_the_pages_are_built_and_every_link_leads_somewhere(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "site" / "tutorial" / "index.html").is_file()


def test_a_link_out_of_the_pages_becomes_a_path_and_must_lead_somewhere():
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        hooks = importlib.import_module("docs_hooks")
    finally:
        sys.path.remove(str(ROOT / "scripts"))

    class Page:
        class file:  # noqa: N801 - as mkdocs has it
            src_path = "data.md"

    assert (
        hooks.on_page_markdown("see [`recipes/wine.yaml`](../recipes/wine.yaml).", Page) == "see `recipes/wine.yaml`."
    )
    assert (
        hooks.on_page_markdown("see [the recipe](../recipes/wine.yaml).", Page)
        == "see the recipe (`recipes/wine.yaml`)."
    )
    with pytest.raises(FileNotFoundError, match=r"data\.md: `\.\./recipes/none\.yaml` does not exist\."):
        hooks.on_page_markdown("[none](../recipes/none.yaml)", Page)
