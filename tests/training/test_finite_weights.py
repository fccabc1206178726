"""`fit` ends with an error at the first epoch after which a weight is no finite number."""

import keras
import numpy as np
import pytest

from finetune.errors import TrainingError
from finetune.groups.layer_tree import layer_tree
from finetune.groups.selectors import Selector, resolve_groups
from finetune.training.finite_weights import FiniteWeights, check_weights

X, Y = np.ones((8, 2), "float32"), np.ones((8, 1), "float32")


@pytest.fixture
def model():
    layers = keras.layers
    net = keras.Sequential([keras.Input((2,)), layers.Dense(4, name="stem"), layers.Dense(1, name="head")])
    net.compile("sgd", "mse")
    return net


@pytest.fixture
def groups(model):
    return resolve_groups(model, [Selector("stem", prefixes="stem", frozen=True), Selector("head", rest=True)])


def poison(model, layer, epoch, value=np.nan):
    def assign(now, logs):
        if now == epoch:
            bias = model.get_layer(layer).bias
            bias.assign(np.full(bias.shape, value, "float32"))

    return keras.callbacks.LambdaCallback(on_epoch_begin=assign)


def test_sound_training_goes_on(model, groups):
    assert len(model.fit(X, Y, epochs=2, verbose=0, callbacks=[FiniteWeights(groups)]).epoch) == 2


def test_the_error_names_weight_group_and_epoch(model, groups):
    with pytest.raises(TrainingError) as caught:
        model.fit(X, Y, epochs=5, verbose=0, callbacks=[poison(model, "stem", 2), FiniteWeights(groups)])
    message = str(caught.value)
    assert message.startswith(
        "Every weight and every moving statistic must be a finite number. Since epoch 3 (all were finite after epoch 2), "
    )
    assert "`stem/bias` (group `stem`): 4 of 4 values are no finite numbers, the first at [0]: nan" in message


def test_what_is_wrong_before_training_is_found_before_training(model, groups):
    model.get_layer("head").bias.assign([np.inf])
    with pytest.raises(TrainingError, match="Before training, a weight has other values: `head/bias`"):
        model.fit(X, Y, verbose=0, callbacks=[FiniteWeights(groups)])


def test_nothing_is_checked_after_an_epoch_while_another_callback_deals_with_it(model, groups):
    history = model.fit(
        X, Y, verbose=0, callbacks=[poison(model, "stem", 0), FiniteWeights(groups, unless=lambda: True)]
    )
    assert np.isnan(history.history["loss"][0])


def test_without_groups_the_weights_alone_are_named(model):
    model.get_layer("head").bias.assign([np.nan])
    with pytest.raises(
        TrainingError, match=r"`head/bias`: 1 of 1 values are no finite numbers, the first at \[0\]: nan\. "
    ):
        check_weights(layer_tree(model).leaves, (), "after training")
