"""The modes in which BatchNormalization can run in a layer group.

Three things are independent of each other: whether it normalizes with the statistics of the batch ("training") or with
its moving statistics ("inference"), whether it updates the moving statistics, and whether gamma and beta train.
"""

import keras

from finetune.groups.layer_tree import Leaf

# Each mode in the words of the plan. "Fixed" statistics are not updated.
BATCH_NORM_MODES = {
    "train": "training, statistics updated",
    "freeze": "inference, statistics fixed",
    "affine": "inference, statistics fixed, gamma and beta train",
    "statistics": "training, statistics updated, gamma and beta frozen",
}
TRAINS_GAMMA_AND_BETA = ("train", "affine")
UPDATES_STATISTICS = ("train", "statistics")


def is_batch_norm(leaf: Leaf) -> bool:
    """Whether a BatchNormalization of Keras owns the weight."""
    return isinstance(leaf.owner, keras.layers.BatchNormalization)
