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


@pytest.mark.parametrize(
    ("decay_steps", "said"),
    [
        (1000, "the learning rate of group `head` stays at 0.001: the run has 1,000 steps, and the rate falls after 1,000."),
        (30, "the learning rate of group `head` has fallen from 0.001 to 1.53e-08 in the middle of the run of 1,000 steps"),
    ],
)  # fmt: skip
def test_a_decay_in_steps_that_was_meant_in_epochs_and_the_reverse_are_told(decay_steps, said):
    rate = opt.schedules.ExponentialDecay(1e-3, decay_steps, 0.5, staircase=True)
    (sentence,) = advice(opt.SGD(rate), rate)
    assert sentence.startswith(said)
    assert sentence.endswith("`decay_steps` counts batches, `decay_epochs` passes over the rows")


@pytest.mark.parametrize(
    "rate", [opt.schedules.CosineDecay(1e-3, 1000), opt.schedules.ExponentialDecay(1e-3, 999, 0.5)]
)
def test_a_decay_over_the_run_is_left_alone(rate):
    assert advice(opt.SGD(rate), rate) == advice(opt.SGD(rate), rate, steps=1) == []


def test_an_average_that_is_mostly_the_first_weights_is_told():
    (sentence,) = advice(opt.Adam(1e-3), use_ema=True, steps=30, gradient_accumulation_steps=2)
    assert sentence == (
        "the moving average that the model ends with (`train.use_ema`) is still to 87% the weights of the first of 15 "
        "updates: `ema_momentum: 0.99` averages over about 100. Lower it, or train for longer"
    )
