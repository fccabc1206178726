"""A whole recipe: its sections together, and what one section says about another."""

import pytest
from pydantic import ValidationError

from finetune.errors import RecipeError
from finetune.recipe.loader import load_recipe
from finetune.recipe.schema import PATH_FIELDS, Recipe
from finetune.recipe.text import dump

PHASES = [{"train": ["head"], "epochs": 4}, {"train": "all", "epochs": 6}]


def test_a_recipe_is_frozen(valid):
    with pytest.raises(ValidationError, match="frozen"):
        Recipe.model_validate(valid).seed = 3


def test_model_and_data_come_from_exactly_one_source(complaint):
    sources = "`builder`, `keras_file`, `application`, `preset`, `hub`"
    assert complaint("model", to={}) == [f"`model` needs exactly one of {sources}. All are missing."]
    both = {"builder": "finetune.examples.digits:uci_digits", "npz": "a.npz"}
    sources = "`builder`, `npz`, `images`, `table`, `tfrecord`, `audio`, `keras_dataset`, `tfds`"
    assert complaint("data", to=both) == [f"`data` needs exactly one of {sources}. Received: `builder`, `npz`."]


@pytest.mark.parametrize(("seed", "message"), [(-1, "must be 0 or more"), (2**32, "must be less than")])
def test_a_seed_fits_into_32_bits(complaint, seed, message):
    [said] = complaint("seed", to=seed)
    assert said.startswith(f"`seed` {message}")


def test_the_epochs_of_a_run_without_phases_are_required_and_reported_with_other_errors(complaint):
    assert complaint("train", "epochs", to=...) == ["`train.epochs` is missing. Add it under `train`."]
    assert complaint("train", to={"los": "mse"}) == [
        "`train.epochs` is missing. Add it under `train`.",
        "`train.los` is not a known key. Did you mean `loss`?",
    ]


def test_phases_give_the_epochs_and_a_different_number_in_train_is_an_error(valid, complaint):
    valid["train"] = {"loss": "mse"}
    assert Recipe.model_validate({**valid, "phases": PHASES}).train.epochs is None
    assert complaint("phases", to=PHASES[1:]) == [
        "`train.epochs` is 10, and `phases` last 6 epochs together. Remove it: the phases say how long."
    ]


def test_phases_name_groups_of_the_recipe_that_can_be_trained(complaint):
    [said] = complaint("phases", to=[{"train": ["hed"], "epochs": 10}])
    assert said == "`phases.0.train.0` does not name a group. Received: `hed`. Did you mean `head`?"
    [said] = complaint("phases", to=[{"train": ["stem", "head"], "epochs": 10}])
    assert said.startswith("`phases.0.train.0` names `stem`, which is frozen in all phases.")


def test_a_strategy_of_phases_must_fit_into_the_epochs_of_the_run(complaint):
    [said] = complaint("phases", to={"strategy": "lp_ft", "probe_epochs": 10})
    assert said == (
        "`phases` needs 10 epochs before its last phase, and `train.epochs` is 10. Increase that, or give the "
        "strategy `epochs`."
    )


@pytest.mark.parametrize(
    ("phases", "how", "at"),
    [
        ([{"train": "all", "epochs": 10, "rates": {"head": 1e-3}}], "auto", ("phases", 0)),
        ({"strategy": "freeze_then_all", "epochs": 3, "peak": 1e-3}, "search", ("phases", "peak")),
    ],
)
def test_rates_to_be_measured_or_searched_do_not_go_with_phases_that_set_rates(valid, phases, how, at):
    chosen = {**valid, "phases": phases, "train": {"loss": "mse", "learning_rate": how}}
    with pytest.raises(ValidationError) as caught:
        Recipe.model_validate(chosen)
    [error] = caught.value.errors()
    assert error["ctx"]["at"] == at
    assert error["ctx"]["predicate"].startswith(f"sets rates, which `train.learning_rate: {how}` does not change.")
    if not isinstance(phases, list):
        Recipe.model_validate({**chosen, "phases": {**phases, "peak": None}})


def test_recipes_are_equal_when_they_hold_the_same_values(valid):
    recipe = Recipe.model_validate(valid)
    assert recipe == Recipe.model_validate(valid)
    assert recipe != Recipe.model_validate({**valid, "seed": 1})
    assert recipe != valid


def test_every_path_of_a_recipe_is_known_by_its_section_and_its_key_in_the_file():
    assert {("data", "npz"), ("restore", "from"), ("restore", "verify"), ("model", "keras_file")} <= set(PATH_FIELDS)


def test_the_order_of_creation_needs_a_model_that_code_builds(valid, tmp_path):
    valid["groups"][0] = {"name": "body", "variables": "0:2", "order": "creation", "frozen": True}
    Recipe.model_validate(valid)
    valid["model"] = {"keras_file": "m.keras"}
    (tmp_path / "recipe.yaml").write_text(dump(valid))
    with pytest.raises(RecipeError) as caught:
        load_recipe(tmp_path / "recipe.yaml")
    assert str(caught.value).endswith(
        "recipe.yaml:10:10: `groups.body.order` needs a model that code builds, and `model` is a `keras_file`, which does "
        "not hold the order in which the variables were made. Name the weights by `prefixes`."
    )


@pytest.mark.parametrize("key", ["until", "reduce_on_plateau"])
def test_an_end_of_the_run_goes_with_no_phases(key, valid):
    train = {"epochs": 10, "loss": "mse", key: {"patience": 1}}
    with pytest.raises(ValidationError) as caught:
        Recipe.model_validate({**valid, "phases": PHASES, "train": train})
    [error] = caught.value.errors()
    assert error["ctx"]["at"] == ("train", key)
    assert error["ctx"]["predicate"].startswith("is of a run without `phases`. Move it into the phases")


def test_a_recipe_of_a_newer_format_is_refused_and_one_without_a_number_is_read(tiny_files):
    assert load_recipe(tiny_files / "tiny.yaml").format == 1
    with pytest.raises(RecipeError) as error:
        load_recipe(tiny_files / "tiny.yaml", overrides=["format=2"])
    assert str(error.value) == (
        "--set format: `format` is of a newer version of finetune: this one reads format 1. Update it. Received: `2`."
    )
    with pytest.raises(RecipeError, match="`format` must be a whole number from 1 to 1"):
        load_recipe(tiny_files / "tiny.yaml", overrides=["format=old"])
