import json
import pickle

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from keras.optimizers.schedules import ExponentialDecay

from finetune.optimizers.grouped import GroupedOptimizer
from finetune.optimizers.saved_state import PhasePosition
from finetune.optimizers.schedules import exponential_decay
from finetune.optimizers.unwrap_optimizer import unwrap
from finetune.training.fast.fast_loop import FastLoop

# NumPy 2 warns when Keras copies a TensorFlow variable to save it.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")
SGD, Adam = keras.optimizers.SGD, keras.optimizers.Adam
X = np.random.default_rng(0).normal(size=(8, 4)).astype("float32")
Y = np.arange(8) % 3
FORMATS = ("keras", "weights", "checkpoint", "pickle")


def a_model(wrap=False, head=ExponentialDecay(0.1, 3, 0.5), **settings):  # noqa: B008 - a schedule is a constant
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Dense(3, name=name) for name in ("stem", "body", "head")]
    model = keras.Sequential([keras.Input((4,)), *layers])
    rates = [SGD(0.05, momentum=0.9), Adam(0.01), Adam(head)]
    optimizer = GroupedOptimizer({x.name: (rate, x) for x, rate in zip(layers, rates, strict=True)}, **settings)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.LossScaleOptimizer(optimizer) if wrap else optimizer, loss)
    return model


def train(model, *callbacks):
    model.fit(X, Y, batch_size=4, shuffle=False, verbose=0, callbacks=list(callbacks))


def renewed(model):
    model.make_train_function(force=True)
    return model


def reloaded(model, kind, folder, into=None):
    """The model after a way through a file; `weights` and `checkpoint` load into a model that exists."""
    if kind == "keras":
        model.save(folder / "model.keras")
        return keras.models.load_model(folder / "model.keras")
    if kind == "pickle":
        return pickle.loads(pickle.dumps(model))
    into = into or a_model(wrap=model.optimizer is not unwrap(model.optimizer))
    into.optimizer.build(into.trainable_variables)  # as Keras asks for, before it loads weights
    if kind == "weights":
        model.save_weights(folder / "model.weights.h5")
        into.load_weights(folder / "model.weights.h5")
    else:
        model.optimizer.build(model.trainable_variables)  # TensorFlow saves only what has been made
        path = tf.train.Checkpoint(model=model).save(str(folder / "checkpoint"))
        tf.train.Checkpoint(model=into).restore(path).assert_consumed()
    return into


def assert_goes_on_alike(model, other):
    assert unwrap(other.optimizer).learning_rates == unwrap(model.optimizer).learning_rates
    for trained in (model, other):
        train(trained)
    assert unwrap(other.optimizer).learning_rates == unwrap(model.optimizer).learning_rates
    for one, two in zip(model.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)


def in_a_phase(model, warmup_steps=0):
    optimizer = unwrap(model.optimizer)
    optimizer.restart(["stem"])
    optimizer.reschedule("stem", 0.02, warmup_steps=warmup_steps)
    optimizer.reschedule("body", exponential_decay(0.02, decay_steps=2, decay_rate=0.5), from_now=True)
    optimizer.reschedule("head", 0.005)
    return renewed(model)


@pytest.mark.sample(5)
@pytest.mark.parametrize("wrap", [False, True], ids=["bare", "loss scale"])
@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("warmup_steps", [pytest.param(0, marks=pytest.mark.grid), 9])
def test_the_rates_and_clocks_of_a_phase_come_back(kind, wrap, warmup_steps, tmp_path):
    model = a_model(wrap)
    train(model)
    in_a_phase(model, warmup_steps)
    train(model)
    unwrap(model.optimizer).learning_rate = 0.004
    other = reloaded(model, kind, tmp_path)
    assert unwrap(other.optimizer).learning_rates["stem"] < 0.02
    assert_goes_on_alike(model, other)


@pytest.mark.sample(2)
@pytest.mark.parametrize("fast", [False, True], ids=["keras", "fast loop"])
@pytest.mark.parametrize("kind", ["weights", "checkpoint"])
def test_a_model_that_was_trained_already_trains_with_the_rates_of_the_file(kind, fast, tmp_path):
    model, other = a_model(), a_model()
    callbacks = [FastLoop()] if fast else []
    for trained in (model, other):
        train(trained, *callbacks)
    in_a_phase(model, 5)
    train(model, *callbacks)
    reloaded(model, kind, tmp_path, into=other)
    train(model)
    train(other, *callbacks)
    assert other.optimizer.learning_rates == model.optimizer.learning_rates
    for one, two in zip(model.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)


def test_a_step_of_the_users_own_that_was_traced_before_gets_a_warning(tmp_path):
    model = in_a_phase(a_model())
    train(model)
    model.save_weights(tmp_path / "model.weights.h5")
    other = a_model()
    variables, optimizer = other.trainable_variables, other.optimizer
    optimizer.build(variables)
    tf.function(lambda: optimizer.apply([tf.ones(v.shape) for v in variables], variables))()
    with pytest.warns(UserWarning, match=r"Make the `tf\.function` of your training step anew"):
        other.load_weights(tmp_path / "model.weights.h5")


def test_a_state_of_the_same_kind_keeps_the_compiled_function(tmp_path):
    model = a_model()
    train(model)
    model.save_weights(tmp_path / "model.weights.h5")
    kept = model.train_function
    model.load_weights(tmp_path / "model.weights.h5")
    assert model.train_function is kept


def test_reductions_and_shares_are_undone_after_loading_as_before(tmp_path):
    model = a_model(head=0.1)
    optimizer = model.optimizer
    optimizer.share_rate("stem", 0.5)
    optimizer.learning_rate = 0.02
    loaded = reloaded(model, "keras", tmp_path).optimizer
    for one in (optimizer, loaded):
        one.reset_rates()
    assert (
        loaded.learning_rates == optimizer.learning_rates == pytest.approx({"stem": 0.025, "body": 0.01, "head": 0.1})
    )
    for one in (optimizer, loaded):
        one.share_rate("stem", 1.0)
        one.reschedule("body")
    assert loaded.learning_rates == optimizer.learning_rates == pytest.approx({"stem": 0.05, "body": 0.01, "head": 0.1})


def test_the_phase_comes_back(tmp_path):
    model = a_model()
    assert model.optimizer.saved_state.phase is None
    model.optimizer.saved_state.phase = PhasePosition(number=2, epoch=3, step=17)
    for kind in FORMATS:
        assert reloaded(model, kind, tmp_path).optimizer.saved_state.phase == PhasePosition(2, 3, 17)


def test_the_document_of_a_phase_does_not_depend_on_whether_the_phases_before_were_made_in_this_process():
    def optimizer():
        return GroupedOptimizer({"body": (keras.optimizers.SGD(exponential_decay(0.1, 10, 0.5)), tf.Variable([1.0]))})

    through, fresh = optimizer(), optimizer()
    through.iterations.assign(5)
    through.reschedule("body", exponential_decay(0.2, 5, 0.5), from_now=True, warmup_steps=3)
    assert through.saved_state.document()["groups"]["body"]["follows"]["since"] == 5
    for each in (through, fresh):  # the next phase, which counts from the first step of the run
        each.iterations.assign(9)
        each.reschedule("body", None, from_now=False, warmup_steps=0)
        each.reset_rates()
    assert through.saved_state.document() == fresh.saved_state.document()


def test_the_document_is_small_and_the_same_in_every_format(tmp_path):
    model = in_a_phase(a_model())
    text = model.optimizer.saved_state.serialize()
    assert len(text) < 4000
    for kind in FORMATS:
        assert json.loads(reloaded(model, kind, tmp_path).optimizer.saved_state.serialize()) == json.loads(text)


def test_a_file_without_the_document_leaves_the_rates_as_they_are_made():
    model = a_model()
    train(model)
    old = {str(i): v.numpy() for i, v in enumerate(model.optimizer.variables)}
    other = a_model()
    other.set_weights(model.get_weights())
    other.optimizer.load_own_variables(old)
    assert_goes_on_alike(model, other)


def test_a_function_as_a_schedule_stays_where_the_optimizer_was_made_with_one(tmp_path):
    model, other = a_model(head=lambda: 0.25), a_model(head=lambda: 0.125)
    reloaded(model, "weights", tmp_path, into=other)
    assert other.optimizer.learning_rates["head"] == 0.125  # as Keras, whose files of weights hold no schedule


def saved_store(model):
    store = {}
    model.optimizer.save_own_variables(store)
    return store


LOADS = {
    "weights": lambda optimizer, saved: optimizer.load_own_variables(saved_store(saved)),
    "checkpoint": lambda optimizer, saved: optimizer.saved_state.deserialize(saved.optimizer.saved_state.serialize()),
}


@pytest.mark.parametrize("load", LOADS.values(), ids=LOADS)
def test_a_state_of_an_optimizer_made_otherwise_is_left_out_with_a_warning_that_says_how(load):
    model, other = a_model(), a_model(head=0.1)
    train(model)
    expected = (
        "In the file the optimizers of `head` are made with a schedule as the learning rate, here with a number. Of "
    )
    with pytest.warns(UserWarning, match=expected):
        load(other.optimizer, model)
    assert int(other.optimizer.iterations) == 0
    assert other.optimizer.learning_rates == pytest.approx({"stem": 0.05, "body": 0.01, "head": 0.1})


@pytest.mark.parametrize("load", LOADS.values(), ids=LOADS)
def test_a_state_of_groups_of_other_names_is_left_out_with_a_warning_that_names_them(load):
    model, other = a_model(), a_model()
    train(model)
    rules = zip(("low", "body", "head"), other.layers, (SGD(0.05, momentum=0.9), Adam(0.01), Adam(0.1)), strict=True)
    other.compile(GroupedOptimizer({name: (rule, layer) for name, layer, rule in rules}), "mse")
    expected = "The file is of the groups `stem`, `body`, `head`, this optimizer has `low`, `body`, `head`. Of the"
    with pytest.warns(UserWarning, match=expected):
        load(other.optimizer, model)
    assert int(other.optimizer.iterations) == 0


def test_another_optimizer_of_keras_reads_the_weights_of_such_a_file_as_of_any_other(tmp_path):
    model, plain = a_model(), a_model()
    plain.compile("sgd", "mse")
    train(model)
    model.save_weights(tmp_path / "model.weights.h5")
    plain.optimizer.build(plain.trainable_variables)
    with pytest.warns(UserWarning, match="Skipping variable loading for optimizer 'sgd"):
        plain.load_weights(tmp_path / "model.weights.h5")
    for one, two in zip(model.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)


def test_an_asynchronous_checkpoint_holds_the_document(tmp_path):
    model, other = in_a_phase(a_model()), a_model()
    train(model)
    options = tf.train.CheckpointOptions(experimental_enable_async_checkpoint=True)
    checkpoint = tf.train.Checkpoint(model=model)
    path = checkpoint.save(str(tmp_path / "checkpoint"), options=options)
    checkpoint.sync()
    tf.train.Checkpoint(model=other).restore(path)
    assert_goes_on_alike(model, other)


# -- Any sequence of operations ---------------------------------------------------------------------------------------


def plateau(model):
    optimizer = unwrap(model.optimizer)
    optimizer.learning_rate = float(optimizer.learning_rate) * 0.5


def phase(model):
    in_a_phase(model, 3)


def end_of_phases(model):
    optimizer = unwrap(model.optimizer)
    for name in optimizer.group_names:
        optimizer.reschedule(name)
    optimizer.reset_rates()
    renewed(model)


def freeze(model):
    model.get_layer("body").kernel.trainable = False
    renewed(model)


OPERATIONS = {"train": train, "plateau": plateau, "phase": phase, "end of phases": end_of_phases, "freeze": freeze}


@pytest.mark.grid
@settings(max_examples=6, derandomize=True)
@given(st.lists(st.sampled_from([*OPERATIONS, *FORMATS]), min_size=2, max_size=7))
def test_any_sequence_with_files_in_it_gives_the_rates_and_the_next_step_of_a_run_not_saved(tmp_path_factory, sequence):
    straight, model = a_model(), a_model()
    folder = tmp_path_factory.mktemp("files")
    for name in sequence:
        if name in OPERATIONS:
            OPERATIONS[name](straight)
            OPERATIONS[name](model)
        else:
            into = None
            if name in ("weights", "checkpoint"):
                into = a_model()
                train(into)  # so that the file is loaded into a model in the middle of a training
                # Files of weights do not hold what is frozen, as in Keras.
                into.get_layer("body").kernel.trainable = model.get_layer("body").kernel.trainable
                renewed(into)
            model = reloaded(model, name, folder, into)
        assert model.optimizer.learning_rates == straight.optimizer.learning_rates
    assert_goes_on_alike(straight, model)
