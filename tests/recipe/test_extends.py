"""Files are read or refused with a reason, and merged into the files they extend."""

import os
import time
from pathlib import Path

import pytest

from finetune.errors import RecipeError
from finetune.recipe.loader import load_recipe

TEXT = """\
model: {builder: "finetune.examples.digits:small_cnn"}
data: {npz: data/digits.npz}
restore:
  from: weights.h5
  exclude: [head]
groups:
  - {name: stem, prefixes: [conv1], frozen: true}
  - name: head
    rest: true
    optimizer: adamw
    learning_rate: 1e-4
train:
  epochs: 10
  loss: mse
"""


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def write(text=TEXT, path="recipe.yaml"):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text, encoding="utf-8")
    return path


def said(*overrides, path="recipe.yaml"):
    """The lines that loading complains with."""
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, overrides=overrides)
    return str(caught.value).splitlines()


# -- Files ------------------------------------------------------------------------------------------------------------


def test_a_file_that_is_not_there_is_reported_with_the_nearest():
    write(path="recipes/digits.yaml")
    assert said(path="recipes/digit.yaml") == [
        "The recipe `recipes/digit.yaml` does not exist. Did you mean `digits.yaml`?"
    ]
    assert said(path="recipes/x") == [
        "The recipe `recipes/x` does not exist. The folder `recipes` holds `digits.yaml`."
    ]
    assert said(path="digits.yaml") == ["The recipe `digits.yaml` does not exist. Did you mean `recipes/digits.yaml`?"]
    assert said(path="recipe/x.yaml") == ["The recipe `recipe/x.yaml` does not exist. There is no folder `recipe`."]
    assert said(path="recipes") == [
        "A recipe is a file. Received the folder `recipes`. The folder `recipes` holds `digits.yaml`."
    ]


def test_a_file_that_is_not_text_is_reported():
    Path("a.yaml").write_bytes(b"seed: 1\nmodel: \xff")
    assert said(path="a.yaml") == ["`a.yaml` is not UTF-8 text: byte 0xff in line 2. Save it as UTF-8."]
    Path("a.yaml").write_bytes(TEXT.encode("utf-16"))
    assert "is not UTF-8 text" in said(path="a.yaml")[0]
    Path("a.yaml").write_bytes(b"#" * 1_000_001)
    assert "A recipe must not be larger than 1,000,000 bytes." in said(path="a.yaml")[0]
    assert "The recipe `a\\x00.yaml` " in said(path="a\0.yaml")[0]
    assert "cannot be read" in said(path="a" * 5000)[0]
    os.mkfifo("pipe")
    assert said(path="pipe") == ["A recipe is a file. Received `pipe`, which is a device or a pipe."]


def test_a_byte_order_mark_does_not_matter():
    write("\ufeff" + TEXT)
    assert load_recipe("recipe.yaml").train.epochs == 10


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "recipe.yaml:1:1: empty. A recipe has at least `model`, `data`, `groups` and `train`."),
        ("- a", "recipe.yaml:1:1: a recipe must be a mapping with `model`, `data`, `groups` and `train`."),
        ("\n  word", "recipe.yaml:2:3: a recipe must be a mapping with `model`, `data`, `groups` and `train`."),
    ],
)
def test_a_file_that_holds_no_mapping_is_reported(text, message):
    write(text)
    assert said() == [message]


# -- extends ----------------------------------------------------------------------------------------------------------


def test_a_file_is_merged_into_what_it_extends():
    write()
    write("extends: recipe.yaml\ntrain: {epochs: 3}\n", "child.yaml")
    recipe = load_recipe("child.yaml")
    assert (recipe.train.epochs, recipe.train.loss.name) == (3, "mse")
    write("extends: [recipe.yaml, child.yaml]\nseed: 5\n", "both.yaml")
    assert (load_recipe("both.yaml").train.epochs, load_recipe("both.yaml").seed) == (3, 5)


def test_a_list_of_groups_replaces_the_other_as_a_whole():
    write()
    write("extends: recipe.yaml\ngroups: [{name: all, rest: true, optimizer: sgd, learning_rate: 1}]", "child.yaml")
    assert [group.name for group in load_recipe("child.yaml").groups] == ["all"]


def test_null_removes_what_was_inherited():
    write()
    write("extends: recipe.yaml\nrestore: null\ndata: {npz: null, builder: 'a:b'}", "child.yaml")
    assert load_recipe("child.yaml").restore is None
    assert load_recipe("child.yaml").data.npz is None


def test_a_problem_is_reported_in_the_file_that_has_it():
    write(TEXT.replace("10", "ten"), "base/recipe.yaml")
    write("extends: base/recipe.yaml\ntrain: {lss: 1}\n", "child.yaml")
    assert said(path="child.yaml") == [
        'base/recipe.yaml:13:11: `train.epochs` must be a whole number. Received: `"ten"`.',
        "child.yaml:2:9: `train.lss` is not a known key. Did you mean `loss`?",
    ]


def test_circles_and_missing_bases_are_reported_where_they_are_written():
    write("extends: b.yaml\n", "a.yaml")
    write("seed: 1\nextends: [a.yaml]\n", "b.yaml")
    assert said(path="a.yaml") == [
        "b.yaml:2:11: `extends` forms a cycle: `a.yaml` -> `b.yaml` -> `a.yaml`. Remove one of them."
    ]
    write("extends: c.yaml\n", "c.yaml")
    assert said(path="c.yaml") == ["c.yaml:1:10: `extends` forms a cycle: `c.yaml` -> `c.yaml`. Remove one of them."]
    write("extends: [recipes, 3]\n", "d.yaml")
    write()
    assert said(path="d.yaml") == [
        "d.yaml:1:11: `extends`: The recipe `recipes` does not exist. Did you mean `recipe.yaml`?",
        "d.yaml:1:20: `extends` must be a path or a list of paths, relative to this file.",
    ]


def test_a_long_chain_and_a_wide_web_of_files_end():
    write(path="0.yaml")
    for index in range(1, 40):
        write(f"extends: [{index - 1}.yaml, {index - 1}.yaml]", f"{index}.yaml")
    assert load_recipe("20.yaml").train.epochs == 10
    assert said(path="39.yaml")[0].endswith("`extends` goes through more than 20 files. Merge some of them.")


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("api_key: hunter2\nnested: {password: hunter2}\n", "1:1"),
        ("- hunter2\n", "1:1"),
        ("hunter2", "1:1"),
        ("", "1:1"),
        ("root:x:0:0:hunter2:/bin/sh\nhunter2: x\n", "2:8"),
        ("a: !hunter2 b\n", "1:1"),
        ("a: *hunter2\n", "1:4"),
        ("hunter2: 1\nhunter2: 2\n", "1:1"),
    ],
)
def test_nothing_is_shown_of_a_file_that_is_extended_and_is_no_recipe(text, place):
    write(text, "other.txt")
    write("extends: other.txt\nseed: 1\n", "child.yaml")
    (line,) = said(path="child.yaml")
    assert line.startswith(f"other.txt:{place}: a recipe can extend recipes alone, and this file ")
    assert "hunter2" not in line
    assert line.endswith(" Check `extends`.")
    assert "has none of the keys `seed`, `model`" in line or "is not valid YAML here" in line


def test_thousands_of_unknown_keys_are_reported_in_a_moment():
    for keys in ("\n".join(f"k{i}: 1" for i in range(9_000)), "\n".join(f"k{i}: 1" for i in range(90_000))):
        write(TEXT + keys + "\n")
        begin = time.process_time()
        lines = said()
        assert time.process_time() - begin < 4  # seconds; half of one on a quiet machine
        assert len(lines) <= 6
    assert lines == ["recipe.yaml:9994:8: more than 20000 values before this. No recipe needs that."]
