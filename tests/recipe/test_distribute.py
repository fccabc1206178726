"""The `distribute` of a recipe."""

import pytest

from finetune.errors import RecipeError
from finetune.recipe.loader import dump_recipe, load_recipe


def loaded(recipe, text):
    recipe.write_text(recipe.read_text() + text)
    return load_recipe(recipe)


def test_a_recipe_without_the_key_takes_the_devices_that_are_there_and_a_global_batch(recipe):
    made = loaded(recipe, "").distribute
    assert (made.devices, made.batch_size_is, made.scale_rates, made.batch_norm) == ("auto", "global", None, "local")
    assert made.cpu_devices is None


def test_all_keys_are_read_and_survive_being_written(recipe):
    keys = "devices: mirrored, cpu_devices: 2, batch_size_is: per_replica, scale_rates: sqrt, batch_norm: synchronized"
    made = loaded(recipe, f"distribute: {{{keys}}}\n")
    recipe.write_text(dump_recipe(made))
    assert load_recipe(recipe).distribute == made.distribute
    assert made.distribute.scale_rates == "sqrt"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "{devices: mirored}",
            'tiny.yaml:12:23: `distribute.devices` is not a known value. Received: `"mirored"`. Did you mean `mirrored`?',
        ),
        (
            "{devices: single, cpu_devices: 2}",
            "tiny.yaml:12:31: `distribute.cpu_devices` is for `devices: mirrored`, and `devices` is `single`. Remove one "
            "of the two",
        ),
        (
            "{cpu_devices: 1}",
            "tiny.yaml:12:27: `distribute.cpu_devices` must be 2 or more. Received: `1`.",
        ),
        (
            "{scale_rates: linear}",
            "tiny.yaml:12:14: `distribute.scale_rates` is for `batch_size_is: per_replica`, where more replicas make "
            "larger batches. A global batch is the same on any number of devices. Remove one of the two",
        ),
        ("{device: tpu}", "`distribute.device` is not a known key. Did you mean `devices` or `cpu_devices`?"),
    ],
)
def test_a_wrong_value_is_an_error_with_its_place(recipe, text, message):
    with pytest.raises(RecipeError) as caught:
        loaded(recipe, f"distribute: {text}\n")
    assert message in str(caught.value)


def test_a_batch_that_is_measured_counts_the_rows_of_all_devices(recipe):
    recipe.write_text(recipe.read_text().replace("batch_size: 16", "batch_size: auto"))
    with pytest.raises(RecipeError) as caught:
        loaded(recipe, "distribute: {batch_size_is: per_replica}\n")
    assert str(caught.value) == (
        "tiny.yaml:12:29: `distribute.batch_size_is` needs a number in `train.batch_size`, and that is `auto`, which "
        "measures the rows of all devices. Write a number, or `global`."
    )
