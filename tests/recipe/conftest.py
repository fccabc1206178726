"""A valid recipe as plain data, and two ways to change a value in it: read the result, or get its errors."""

import copy

import pytest

from finetune.errors import RecipeError
from finetune.recipe.loader import load_recipe
from finetune.recipe.schema import Recipe
from finetune.recipe.text import dump

VALID = {
    "model": {"builder": "finetune.examples.digits:small_cnn", "arguments": {"num_classes": 10}},
    "data": {"npz": "digits.npz"},
    "restore": {"from": "weights.h5"},
    "groups": [
        {"name": "stem", "prefixes": ["conv1"], "frozen": True},
        {"name": "head", "rest": True, "optimizer": "adamw", "learning_rate": 1e-4},
    ],
    "train": {"epochs": 10, "loss": "mse"},
}


def changed(*path, to):
    """Returns the valid recipe with one value changed; a `to` of `...` removes the key."""
    data = copy.deepcopy(VALID)
    place = data
    for key in path[:-1]:
        place = place[key]
    if to is ...:
        del place[path[-1]]
    else:
        place[path[-1]] = to
    return data


@pytest.fixture
def valid():
    """A valid recipe as plain data, which a test may change."""
    return copy.deepcopy(VALID)


@pytest.fixture
def read():
    """Reads the valid recipe with one value changed."""
    return lambda *path, to: Recipe.model_validate(changed(*path, to=to))


@pytest.fixture
def complaint(tmp_path):
    """Returns the errors of the valid recipe with one value changed, without places."""

    def messages(*path, to):
        file = tmp_path / "recipe.yaml"
        file.write_text(dump(changed(*path, to=to)))
        with pytest.raises(RecipeError) as caught:
            load_recipe(file)
        return [line.split(": ", 1)[1] for line in str(caught.value).splitlines()]

    return messages
