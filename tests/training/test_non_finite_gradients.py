"""`fit` ends at a step whose gradients are not finite, or goes on as if its rows were not there."""

import keras
import numpy as np
import pytest

from finetune.errors import GroupError, TrainingError
from finetune.groups.selectors import Selector, resolve_groups
from finetune.optimizers.grouped import GroupedOptimizer
from finetune.optimizers.unwrap_optimizer import unwrap
from finetune.training.checkpoints.checkpoint import Checkpoint
from finetune.training.fast.fast_loop import FastLoop
from finetune.training.non_finite_gradients import NonFiniteGradients
from finetune.training.phases.phase import Phase
from finetune.training.phases.train_phases import train_phases

X = np.random.default_rng(0).normal(size=(40, 3)).astype("float32")
Y = X.sum(1, keepdims=True)
BAD = X.copy()
BAD[21] = np.nan  # in step 6 of 10
GOOD_ROWS = np.r_[0:20, 24:40]


def make(*, jit_compile=False, steps_per_execution=1, loss="mse", policy="float32", **settings):
    keras.utils.set_random_seed(0)
    layers = keras.layers
    dtype = {"dtype": policy}
    model = keras.Sequential(
        [
            keras.Input((3,)),
            layers.Dense(4, name="stem", **dtype),
            layers.BatchNormalization(name="bn", **dtype),
            layers.Dense(4, name="body", kernel_constraint="unit_norm", **dtype),
            layers.Dense(1, name="head", **dtype),
        ]
    )
    groups = resolve_groups(model, [Selector("stem", prefixes=["stem", "bn"]), Selector("rest", rest=True)])
    adam, sgd = keras.optimizers.Adam(1e-2), keras.optimizers.SGD(1e-2, momentum=0.9)
    optimizer = GroupedOptimizer({"stem": (adam, groups[0]), "rest": (sgd, groups[1])}, **settings)
    model.compile(
        optimizer if policy == "float32" else keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=512.0),
        loss,
        jit_compile=jit_compile,
        steps_per_execution=steps_per_execution,
    )
    return model, groups


def fit(model, x, y, *callbacks, epochs=2):
    history = model.fit(x, y, batch_size=4, epochs=epochs, shuffle=False, verbose=0, callbacks=list(callbacks))
    return history.history["loss"]


def values(model):
    return [v.numpy() for v in [*model.weights, *unwrap(model.optimizer).variables]]


def in_the_same_function(loop):
    """XLA joins other operations where there is a conditional, which changes the last bits."""
    return [NonFiniteGradients("skip")] if "jit_compile" in loop else []


LOOPS = [
    *({"steps_per_execution": 1}, {"steps_per_execution": 4}),
    *({"steps_per_execution": 4, "fast": True}, {"jit_compile": True}),
]
ACCUMULATED, AVERAGED = {"gradient_accumulation_steps": 2}, {"use_ema": True, "global_clipnorm": 1.0}
# Each loop and each setting, and both settings where the loop is ours; XLA takes seconds to compile.
LOOPS_AND_SETTINGS = [
    *((LOOPS[0], ACCUMULATED), (LOOPS[1], AVERAGED), (LOOPS[2], ACCUMULATED), (LOOPS[2], AVERAGED), (LOOPS[3], {})),
]


@pytest.fixture(scope="module")
def trained_on():
    """Trains on some rows, once for the same ones and settings; returns losses and values, which no loop changes."""
    known = {}

    def train(rows, *, epochs, **options):
        key = repr((rows, epochs, options))
        if key not in known:
            model, _ = make(**options)
            known[key] = fit(model, X[rows], Y[rows], *in_the_same_function(options), epochs=epochs), values(model)
        return known[key]

    return train


@pytest.mark.sample(3)
@pytest.mark.parametrize(("loop", "settings"), LOOPS_AND_SETTINGS, ids=str)
def test_training_goes_on_with_the_bits_of_one_that_never_saw_the_batch(loop, settings, trained_on):
    options = {name: value for name, value in loop.items() if name != "fast"}
    fast = [FastLoop()] if "fast" in loop else []
    model, groups = make(**options, **settings)
    careful = NonFiniteGradients("skip", groups)
    xla = {"jit_compile": True} if "jit_compile" in loop else {}
    expected_losses, expected_values = trained_on(GOOD_ROWS, epochs=2, **settings, **xla)
    assert fit(model, BAD, Y, *fast, careful) == expected_losses
    for value, expected in zip(values(model), expected_values, strict=True):
        np.testing.assert_array_equal(value, expected)
    assert careful.skipped == 2
    assert careful.summary() == (
        "2 of 20 steps were left out, since gradients were not finite; the first in epoch 1, step 6: "
        "the gradient of `stem/kernel` (group `stem`)"
    )


@pytest.mark.parametrize("loop", LOOPS[:3], ids=str)  # what XLA compiles is the same as with `skip`
def test_stop_ends_fit_with_the_weights_before_the_step_and_names_it(loop, trained_on):
    options = {name: value for name, value in loop.items() if name != "fast"}
    model, groups = make(**options)
    stop = NonFiniteGradients("stop", groups)
    with pytest.raises(TrainingError) as caught:
        fit(model, BAD, Y, *([FastLoop()] if "fast" in loop else []), stop)
    assert str(caught.value) == (
        "Gradients must be finite numbers. They were not in epoch 1, step 6: the gradient of `stem/kernel` (group `stem`). "
        "No such step was made: the weights are those of the step before. Look at the examples of that step, lower the "
        "learning rates, or leave such steps out (`skip`)."
    )
    _, expected_values = trained_on(np.arange(20), epochs=1)
    for value, expected in zip(values(model), expected_values, strict=True):
        np.testing.assert_array_equal(value, expected)
    assert (stop.stopped_at.epoch, stop.stopped_at.step, stop.stopped_at.group) == (1, 6, "stem")


def test_steps_whose_gradients_are_all_finite_have_the_bits_of_a_fit_without_the_callback():
    (model, _), (plain, _) = make(steps_per_execution=4), make(steps_per_execution=4)
    careful = NonFiniteGradients("skip")
    assert fit(model, X, Y, FastLoop(), careful) == fit(plain, X, Y, FastLoop())
    for value, expected in zip(values(model), values(plain), strict=True):
        np.testing.assert_array_equal(value, expected)
    assert (careful.skipped, careful.first, careful.summary()) == (0, None, "")


@pytest.mark.parametrize("fast", [False, True])
def test_a_later_fit_without_the_callback_leaves_no_step_out(fast):
    model, _ = make()
    callbacks = [FastLoop()] if fast else []
    fit(model, BAD, Y, *callbacks, NonFiniteGradients("skip"))
    fit(model, X, Y, *callbacks, epochs=1)
    assert np.isfinite(model.get_weights()[0]).all()
    fit(model, BAD, Y, *callbacks, epochs=1)
    assert np.isnan(model.get_weights()[0]).any()


def test_a_function_that_was_traced_without_the_callback_is_not_used_with_it():
    model, _ = make()
    fit(model, X, Y, FastLoop())
    fit(model, X, Y)
    careful = NonFiniteGradients("skip")
    fit(model, BAD, Y, careful)
    fit(model, BAD, Y, FastLoop(), careful)
    assert np.isfinite(model.get_weights()[0]).all()
    assert careful.skipped == 4


def test_too_many_in_a_row_and_an_epoch_without_a_step_end_fit():
    model, _ = make()
    with pytest.raises(
        TrainingError, match=r"Those of 3 steps in a row were not\. The first was left out in epoch 1, step 5: "
    ):
        fit(model, np.r_[X[:16], np.full((24, 3), np.nan)], Y, NonFiniteGradients("skip", most_in_row=2))
    model, _ = make()
    with pytest.raises(TrainingError, match="No step of epoch 1 was made, since the gradients of all were not finite"):
        fit(model, np.full_like(X, np.nan), Y, NonFiniteGradients("skip"))
    fit(model, X, Y)  # the callback of the `fit` that ended decides nothing any more
    assert int(model.optimizer.iterations) == 20


@pytest.mark.parametrize("answer", ["stop", "skip"])
def test_steps_that_the_scale_of_a_float16_loss_leaves_out_are_counted_and_leave_no_trace(answer):
    model, _ = make(policy="mixed_float16")
    careful = NonFiniteGradients(answer)
    losses = fit(model, BAD, Y, careful)
    assert np.isfinite(losses).all()
    assert np.isfinite(np.concatenate([w.ravel() for w in model.get_weights()])).all()
    assert (careful.skipped, careful.first.step, careful.first.variable) == (2, 6, "")
    assert careful.summary().endswith("; the first in epoch 1, step 6")
    with pytest.raises(TrainingError, match="Those of 21 steps in a row were not"):
        fit(model, np.r_[X[:4], np.full((196, 3), np.nan)], np.ones((200, 1)), NonFiniteGradients(answer))


def test_phases_and_their_first_steps_are_counted_through():
    model, groups = make()
    careful = NonFiniteGradients("skip", groups)
    phases = [Phase(["rest"], epochs=1), Phase("all", epochs=1), Phase("all", steps=7)]
    train_phases(model, groups, phases, BAD, Y, batch_size=4, callbacks=[careful])
    assert (careful.skipped, careful.first.epoch) == (3, 1)
    assert np.isfinite(np.concatenate([w.ravel() for w in model.get_weights()])).all()


def test_the_counts_go_on_in_the_process_that_goes_on_with_the_training(killed_at, tmp_path):
    def run(folder, **options):
        model, groups = make()
        careful = NonFiniteGradients("skip", groups)
        checkpoint = Checkpoint(folder, every_steps=1, callbacks=[careful], **options)
        batches = checkpoint.batches(BAD, Y, batch_size=4, shuffle=False)
        options = {"steps_per_epoch": 10, "epochs": 3, "shuffle": False, "verbose": 0}
        model.fit(batches, callbacks=[careful, checkpoint], **options)
        return model, careful

    whole, counted = run(tmp_path / "whole", keep=99)
    for moment in ((0, 8), (1, 10)):
        killed_at(moment, tmp_path / "whole", tmp_path / str(moment))
        resumed, careful = run(tmp_path / str(moment))
        assert careful.skipped == counted.skipped == 3
        assert careful.summary() == counted.summary()
        assert careful.summary().startswith("3 of 30 steps were left out")
        for value, expected in zip(values(resumed), values(whole), strict=True):
            np.testing.assert_array_equal(value, expected)


def test_wrong_uses_are_refused_with_what_to_do():
    with pytest.raises(GroupError, match=r"`answer` must be one of `stop`, `skip`\. Received `rewind`\. Choose one"):
        NonFiniteGradients("rewind")
    model, _ = make()
    model.compile("adam", "mse")
    with pytest.raises(
        GroupError, match=r"The model is compiled with `Adam`\. Put it into a `GroupedOptimizer`, as its only"
    ):
        fit(model, X, Y, NonFiniteGradients())


def test_keras_own_fit_on_replicas_is_refused_and_that_of_a_recipe_is_not(monkeypatch):
    model, _ = make()
    monkeypatch.setattr("finetune.training.non_finite_gradients.replicas_of", lambda model: 2)
    with pytest.raises(
        GroupError, match=r"Keras' own `fit` is to train the model, on 2 replicas\. Train it with `finetune"
    ):
        NonFiniteGradients().set_model(model)
    monkeypatch.setattr("finetune.training.non_finite_gradients.is_adopted", lambda model: True)
    NonFiniteGradients().set_model(model)
