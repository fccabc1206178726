"""The modes of BatchNormalization, and which weights they are about."""

import keras
from keras import layers

from finetune.groups.batch_norm import BATCH_NORM_MODES, TRAINS_GAMMA_AND_BETA, UPDATES_STATISTICS, is_batch_norm
from finetune.groups.layer_tree import layer_tree


def test_the_four_modes_are_the_four_ways_to_train_gamma_and_beta_and_to_update_statistics():
    ways = {(mode in TRAINS_GAMMA_AND_BETA, mode in UPDATES_STATISTICS) for mode in BATCH_NORM_MODES}
    assert len(ways) == len(BATCH_NORM_MODES) == 4


def test_the_words_of_a_mode_say_what_it_does():
    for mode, words in BATCH_NORM_MODES.items():
        assert ("statistics updated" in words) == (mode in UPDATES_STATISTICS)
        assert words.startswith("training" if mode in UPDATES_STATISTICS else "inference")


def test_only_weights_of_batch_normalization_follow_its_modes():
    parts = [layers.Dense(3, name="dense"), layers.BatchNormalization(name="bn"), layers.LayerNormalization(name="ln")]
    tree = layer_tree(keras.Sequential([keras.Input((4,)), *parts]))
    assert {leaf.layer for leaf in tree.leaves if is_batch_norm(leaf)} == {"bn"}
