"""A tracker that is unknown or not installed is named, with its place, before anything is built."""

from importlib.util import find_spec

import pytest

from finetune.errors import RecipeError
from finetune.recipe.loader import load_recipe
from finetune.recipe.text import dump
from finetune.recipe.tracker_names import KNOWN, tracker_problems


@pytest.fixture
def problems(valid, tmp_path):
    def sentences(trackers):
        text = dump({**valid, "train": {**valid["train"], "trackers": trackers}})
        (tmp_path / "r.yaml").write_text(text)
        return [problem.replace(f"{tmp_path}/", "") for problem in tracker_problems(load_recipe(tmp_path / "r.yaml"))]

    return sentences


def test_a_misspelt_tracker_is_told_with_its_place_and_the_nearest(problems):
    misspelt, written = problems(["wandd", {"name": "tensorboard", "project": "pets"}])
    place, _, text = misspelt.partition(": ")
    assert place.startswith("r.yaml:")
    assert text == "`train.trackers: wandd` is not a known tracker. Did you mean `wandb`?"
    assert written.endswith(
        "`train.trackers: tensorboard` need not be named: its files are always written, into `tensorboard/` of the "
        "run folder. Remove it."
    )


@pytest.mark.parametrize("name", KNOWN)
def test_a_tracker_that_is_not_installed_is_told_with_what_to_install(problems, name):
    told = [text.partition(": ")[2] for text in problems(name)]
    missing = (
        f"`train.trackers: {name}` is not installed. Install it with `pip install 'discriminative-finetune[{name}]'`, "
        "or remove it."
    )
    assert told == ([] if find_spec(name) else [missing])


def test_a_tracker_is_named_once(problems):
    with pytest.raises(RecipeError, match=r"`train.trackers` names `wandb` twice\. Remove one of the two"):
        problems(["wandb", {"name": "wandb", "project": "pets"}])
