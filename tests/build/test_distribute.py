"""From the `distribute` of a recipe to batches, rates and the sentence on the devices."""

import keras
import pytest
import tensorflow as tf

from finetune.build.distribute import build_distribution, described, synchronize_batch_norm, with_global_batch
from finetune.distribution.strategy import SINGLE, Distribution
from finetune.errors import FinetuneError, RecipeError
from finetune.recipe.loader import load_recipe

FOUR = Distribution("mirrored", tf.distribute.get_strategy(), 4, ("GPU:0", "GPU:1", "GPU:2", "GPU:3"))
THREE = Distribution("multi_worker", None, 3)
PER_REPLICA = "distribute.batch_size_is=per_replica"


def rates(recipe):
    return recipe.groups[1].learning_rate.initial, recipe.groups[2].learning_rate


def test_a_global_batch_is_the_same_on_any_number_of_devices(recipe):
    loaded = load_recipe(recipe)
    assert with_global_batch(loaded, SINGLE) == (loaded, ())
    assert with_global_batch(loaded, FOUR) == (loaded, ())


def test_rows_per_replica_are_counted_for_all_of_them_and_rates_stay_with_a_word_about_it(recipe):
    loaded = load_recipe(recipe, overrides=[PER_REPLICA])
    made, sentences = with_global_batch(loaded, FOUR)
    assert (made.train.batch_size, made.distribute.batch_size_is) == (64, "global")
    assert rates(made) == rates(loaded)
    assert sentences == (
        "a batch has 16 rows on each of 4 replicas, 64 in all. Learning rates are used as written; "
        "`distribute.scale_rates: linear` (or `sqrt`) multiplies them by 4 (or 2)",
    )
    assert with_global_batch(made, FOUR) == (made, ())


@pytest.mark.parametrize(("scale", "factor"), [("linear", 4.0), ("sqrt", 2.0)])
def test_rates_are_scaled_only_on_request(recipe, scale, factor):
    loaded = load_recipe(recipe, overrides=[PER_REPLICA, f"distribute.scale_rates={scale}"])
    made, (sentence,) = with_global_batch(loaded, FOUR)
    assert rates(made) == pytest.approx([rate * factor for rate in rates(loaded)])
    assert sentence.endswith(f"All learning rates of the groups are multiplied by {factor:g}, as `scale_rates` asks")


def test_a_single_replica_has_the_batch_and_the_rates_as_written(recipe):
    loaded = load_recipe(recipe, overrides=[PER_REPLICA, "distribute.scale_rates=linear"])
    made, sentences = with_global_batch(loaded, SINGLE)
    assert (made.train.batch_size, rates(made), sentences) == (16, rates(loaded), ())


def test_the_rates_of_a_strategy_of_groups_are_scaled_too(recipe):
    text = recipe.read_text()
    begin, end = text.index("groups:"), text.index("train:")
    recipe.write_text(text[:begin] + "groups: {by: layer, peak: 0.5, decay: 2, optimizer: adam}\n" + text[end:])
    loaded = load_recipe(recipe, overrides=[PER_REPLICA, "distribute.scale_rates=linear"])
    assert with_global_batch(loaded, FOUR)[0].groups.peak == 2.0


def test_several_processes_synchronize_batch_norm_too(recipe):
    model = keras.Sequential([keras.Input((3,)), keras.layers.BatchNormalization()])
    synchronize_batch_norm(load_recipe(recipe, overrides=["distribute.batch_norm=synchronized"]), model, THREE)
    assert model.layers[0].synchronized


def test_a_batch_with_fewer_rows_than_replicas_is_refused_at_its_place(recipe):
    with pytest.raises(RecipeError) as caught:
        with_global_batch(load_recipe(recipe, overrides=["train.batch_size=3"]), FOUR)
    assert str(caught.value) == (
        "--set train.batch_size: `train.batch_size` must be at least the number of replicas, so that each has a row. "
        "Received 3 with 4 replicas. Take larger batches, or fewer devices."
    )


def test_devices_that_are_not_there_are_refused_at_their_place(recipe):
    with pytest.raises(
        FinetuneError, match=r"^--set distribute.devices: `distribute.devices`: `devices: mirrored` needs"
    ):
        build_distribution(load_recipe(recipe, overrides=["distribute.devices=mirrored"]))


def test_the_sentence_says_what_each_replica_has_of_a_batch(tiny, recipe):
    model, loaded = tiny(), load_recipe(recipe, overrides=["distribute.batch_norm=synchronized"])
    local = (
        ". 1 BatchNormalization layer in training mode: the rows of each replica are normalized by themselves; "
        "`distribute.batch_norm: synchronized` takes all rows of the batch"
    )
    names = " (GPU:0, GPU:1, GPU:2, GPU:3)"
    whole = f"devices: mirrored, 4 replicas{names}; of the 16 rows in a batch, 4 on 4 replicas"
    assert described(FOUR, 16, model) == whole + local
    uneven = "devices: multi_worker, 3 replicas; of the 16 rows in a batch, 6 on 1 replica and 5 on 2 replicas"
    assert described(THREE, 16, model) == uneven + local
    synchronize_batch_norm(loaded, model, SINGLE)
    assert described(FOUR, 16, model) == whole + local
    synchronize_batch_norm(loaded, model, FOUR)
    assert described(FOUR, 16, model) == whole
    norm = next(layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization))
    norm.synchronized, norm.trainable = False, False
    assert described(FOUR, 16, model) == whole


@pytest.mark.parametrize("distribution", [FOUR, THREE])
def test_xla_is_refused_on_several_devices_and_a_single_one_has_it(recipe, distribution):
    loaded = load_recipe(recipe, overrides=["train.jit_compile=true"])
    assert with_global_batch(loaded, SINGLE) == (loaded, ())
    with pytest.raises(RecipeError) as caught:
        with_global_batch(loaded, distribution)
    assert str(caught.value) == (
        "--set train.jit_compile: `train.jit_compile` is for a single device, since XLA compiles a step for one, and "
        f"gradients are summed over devices within it. The recipe is trained on {distribution.replicas} replicas "
        f"(`distribute.devices: {distribution.devices}`). Remove it, or write `devices: single`."
    )
