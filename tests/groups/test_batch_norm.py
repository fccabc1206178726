"""Which weights belong to BatchNormalization, and what its modes do."""

import keras

from finetune.groups.batch_norm import BATCH_NORM_MODES, TRAINS_GAMMA_AND_BETA, UPDATES_STATISTICS, is_batch_norm
from finetune.groups.layer_tree import layer_tree
from finetune.recipe import groups as recipe_groups


def test_only_weights_of_batch_normalization_count_and_not_those_of_other_normalizations():
    layers = keras.layers
    parts = [layers.Dense(2, name="dense"), layers.BatchNormalization(name="bn"), layers.LayerNormalization(name="ln")]
    tree = layer_tree(keras.Sequential([keras.Input((2,)), *parts]))
    assert {leaf.name for leaf in tree.leaves if is_batch_norm(leaf)} == {
        *("bn/gamma", "bn/beta", "bn/moving_mean", "bn/moving_variance"),
    }


def test_a_recipe_knows_the_same_modes():
    assert tuple(BATCH_NORM_MODES) == recipe_groups.BATCH_NORM_MODES


def test_the_words_of_a_mode_agree_with_what_it_does():
    for mode, words in BATCH_NORM_MODES.items():
        assert ("statistics updated" in words) == (mode in UPDATES_STATISTICS)
        # In mode `train` gamma and beta train as all weights of the group do, which needs no word.
        assert ("gamma and beta train" in words) == (mode in TRAINS_GAMMA_AND_BETA and mode != "train")
