"""Settings that are finite numbers and train nothing, or nonsense, are told in the plan; usual ones are not."""

import keras
import pytest

from finetune.planning.extreme_settings import advice_on_extremes
from finetune.planning.plan import GroupSettings

opt = keras.optimizers


def advice(optimizer, rate=1e-3, *, steps=1000, **train):
    settings = {
        "head": GroupSettings(optimizer, type(optimizer).__name__.lower(), rate, rate if not callable(rate) else 0.0)
    }
    return list(advice_on_extremes(settings, {"ema_momentum": 0.99, **train}, steps))


@pytest.mark.parametrize(
    ("optimizer", "rate", "train"),
    [
        (opt.AdamW(1e-3, weight_decay=0.1), 0.1, {}),
        (opt.SGD(1.0, momentum=0.9), 10.0, {}),
        (opt.RMSprop(1e-3, epsilon=1.0), 1e-2, {"global_clipnorm": 0.01}),
        (opt.Adam(1e-3), 1e-3, {"use_ema": True}),
        (opt.Adadelta(1.0), 1.0, {"clipvalue": 1e-3, "clipnorm": None}),
    ],
)
def test_usual_settings_are_left_alone(optimizer, rate, train):
    assert advice(optimizer, rate, **train) == []


@pytest.mark.parametrize(
    ("optimizer", "rate", "train", "begin"),
    [
        (
            opt.AdamW(1e-3, weight_decay=1e30),
            1e-3,
            {},
            "weight decay takes 1e+27 times the weights of group `head` off",
        ),
        (opt.SGD(1e-3, weight_decay=1e4), 1e-3, {}, "weight decay takes 10 times the weights of group `head` off them"),
        (opt.Adam(1e-3), 3.0, {}, "group `head` has a learning rate of 3. `adam` moves each weight by about its rate"),
        (opt.SGD(1e-3), 1e30, {}, "group `head` has a learning rate of 1e+30. `sgd` multiplies gradients by it"),
        (opt.SGD(1e-3), lambda step: 1e9 if step == 500 else 0.1, {}, "group `head` has a learning rate of 1e+09."),
        (opt.Adam(1e-3, epsilon=1e10), 1e-3, {}, "`epsilon: 1e+10` divides every step of group `head`"),
        (opt.Adam(1e-3), 1e-3, {"global_clipnorm": 1e-30}, "`train.global_clipnorm: 1e-30` makes gradients so small"),
        (opt.Adam(1e-3), 1e-3, {"clipvalue": 1e-12}, "`train.clipvalue: 1e-12` makes gradients so small"),
    ],
)
def test_what_cannot_train_is_told_with_its_size(optimizer, rate, train, begin):
    (sentence,) = advice(optimizer, rate, **train)
    assert sentence.startswith(begin)


def test_an_average_that_is_mostly_the_first_weights_is_told():
    (sentence,) = advice(opt.Adam(1e-3), use_ema=True, steps=30, gradient_accumulation_steps=2)
    assert sentence == (
        "the moving average that the model ends with (`train.use_ema`) is still to 87% the weights of the first of 15 "
        "updates: `ema_momentum: 0.99` averages over about 100. Lower it, or train for longer"
    )
