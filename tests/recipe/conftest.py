"""A valid recipe, and the shortest schedules, as plain data, and ways to change a value: read it, or get its errors."""

import copy

import pytest
from pydantic import ValidationError

from finetune.errors import RecipeError
from finetune.recipe.learning_rates import read_schedule
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


DECAY = {"initial": 1e-3, "decay_steps": 100}
SHORTEST = {
    "exponential_decay": {**DECAY, "decay_rate": 0.96},
    "natural_exponential_decay": {**DECAY, "decay_rate": 0.96},
    "inverse_time_decay": {**DECAY, "decay_rate": 0.96},
    "polynomial_decay": DECAY,
    "piecewise_constant_decay": {"boundaries": [10, 20], "values": [1.0, 0.5, 0.1]},
    "cosine_decay": DECAY,
    "cosine_decay_restarts": {"initial": 1e-3, "first_decay_steps": 10},
    "inverse_square_root": {"peak": 1e-3, "warmup_steps": 10},
    "slanted_triangular": {"peak": 1e-3},
    "one_cycle": {"peak": 1e-3},
    "warmup_stable_decay": {"peak": 1e-3},
    "constant": {"initial": 1e-3},
    "chain": {"schedules": [{"schedule": "constant", "initial": 1.0}] * 2, "boundaries": [5]},
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


def read_schedule_with(name, **changes):
    """Reads the shortest schedule of a name with some keys changed; a value of `...` removes the key."""
    fields = {key: value for key, value in (SHORTEST[name] | changes).items() if value is not ...}
    return read_schedule({"schedule": name, **fields})


@pytest.fixture
def schedule():
    """Reads the shortest schedule of a name with some keys changed."""
    return read_schedule_with


@pytest.fixture
def schedule_faults():
    """Reads a schedule that is wrong, and returns its errors."""

    def messages(name, **changes):
        with pytest.raises(ValidationError) as caught:
            read_schedule_with(name, **changes)
        return [error.get("ctx", {}).get("predicate", error["type"]) for error in caught.value.errors()]

    return messages
