from types import MappingProxyType

import keras
import numpy as np
import pytest
import tensorflow as tf

from finetune import Checkpoint, FastLoop, GroupedOptimizer, Selector, resolve_groups, train_phases
from finetune.errors import TrainingError
from finetune.training.checkpoints.checkpoint_file import checkpoint_files, read_newest
from finetune.training.phases.phase import Phase
from finetune.training.phases.until import Until

X = np.random.default_rng(0).normal(size=(20, 4)).astype("float32")
Y = np.random.default_rng(1).normal(size=(20, 2)).astype("float32")
STEPS = 7  # of 3 rows, in an epoch


class KilledError(Exception):
    """What stands for a process that is killed."""


class Kill(keras.callbacks.Callback):
    """Ends the training after a step, or in the middle of the validation."""

    def __init__(self, epoch, batch, *, validating=False):
        super().__init__()
        self.moment, self.validating = (epoch, batch), validating

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        self.batch = batch
        if (self.epoch, batch) == self.moment and not self.validating:
            raise KilledError

    def on_test_batch_begin(self, batch, logs=None):
        if (self.epoch, self.batch) == self.moment and self.validating:
            raise KilledError


class Epochs(keras.callbacks.Callback):
    """Counts steps within an epoch, as a callback of a user might."""

    def __init__(self):
        super().__init__()
        self.counts = []

    def on_epoch_begin(self, epoch, logs=None):
        self.counts = [*self.counts, 0]

    def on_train_batch_end(self, batch, logs=None):
        self.counts[-1] += 1


COMPILED = {}


def compiled(optimizer, **options):
    """Returns a compiled model in the state of a new process; it is compiled, and so traced, once for the same options."""
    key = repr((optimizer, options))
    if key not in COMPILED:
        model = made()
        model.compile(keras.optimizers.Adam(1e-2, **optimizer), "mse", metrics=["mae"], **options)
        model.optimizer.build(
            model.trainable_variables
        )  # otherwise Keras traces its step twice; one is not built below
        variables = [*model.variables, *model.optimizer.variables]
        start = [(variable, variable.numpy().copy()) for variable in variables]
        model.make_train_function()
        COMPILED[key] = model, start, model.train_function
    model, start, model.train_function = COMPILED[key]  # a training that is killed may leave another one
    keras.utils.set_random_seed(0)
    for variable, value in start:
        variable.assign(value)
    return model


def made():
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Dense(8, name="body"), keras.layers.Dropout(0.3), keras.layers.BatchNormalization()]
    return keras.Sequential([keras.Input((4,)), *layers, keras.layers.Dense(2, name="head")])


def fit(folder, *, kill=None, epochs=4, steps_per_execution=1, optimizer=MappingProxyType({}), steps=STEPS, **options):
    model = compiled(dict(optimizer), steps_per_execution=steps_per_execution)
    stopping = keras.callbacks.EarlyStopping("loss", patience=3, restore_best_weights=True)
    counter = Epochs()
    checkpoint = Checkpoint(folder, callbacks=[stopping, counter], **options)
    model.fit(
        checkpoint.batches(X[: 3 * steps], Y[: 3 * steps], batch_size=3, seed=7),
        steps_per_epoch=steps,
        epochs=epochs,
        verbose=0,
        validation_data=(X, Y),
        shuffle=False,
        callbacks=[stopping, counter, checkpoint, *([kill] if kill else [])],
    )
    return model, counter


def everything(model):
    variables = [*model.variables, *model.optimizer.variables]
    return [variable.numpy().tobytes() for variable in variables], model.history.history, model.history.epoch


def killed(call, *arguments, kill, **options):
    with pytest.raises(KilledError):
        call(*arguments, kill=kill, **options)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The checkpoints of all steps of a training that was left alone."""
    return tmp_path_factory.mktemp("straight")


@pytest.fixture(scope="module")
def straight(written):
    return everything(fit(written, every_steps=1, keep=99)[0])


@pytest.mark.sample(3)
@pytest.mark.parametrize(
    "moment", [(0, 1), (0, 7), (2, 5), *(pytest.param(each, marks=pytest.mark.grid) for each in ((1, 1), (3, 7)))]
)
def test_a_fit_that_was_killed_goes_on_bit_for_bit(moment, straight, written, killed_at, tmp_path):
    killed_at(moment, written, tmp_path / "killed")
    model, counter = fit(tmp_path / "killed", every_steps=1)
    assert everything(model) == straight
    assert counter.counts == [STEPS] * 4


def test_it_may_be_killed_again_and_again_and_while_it_validates(straight, tmp_path):
    for kill in (Kill(0, 4), Kill(0, 6, validating=True), Kill(1, 1), Kill(2, 6, validating=True), Kill(3, 0)):
        killed(fit, tmp_path, kill=kill, every_steps=2)
    assert everything(fit(tmp_path, every_steps=2)[0]) == straight


@pytest.fixture
def in_background(monkeypatch):
    """Lets a thread write checkpoints of any size."""
    monkeypatch.setattr("finetune.training.checkpoints.checkpoint_writer.IN_BACKGROUND", 0)


def test_a_file_that_a_thread_writes_holds_its_moment_and_not_a_later_one(in_background, straight, tmp_path):
    for kill in (Kill(0, 4), Kill(0, 6, validating=True), Kill(1, 1), Kill(2, 6), Kill(3, 0)):
        killed(fit, tmp_path, kill=kill, every_steps=1)
    assert everything(fit(tmp_path, every_steps=1)[0]) == straight


def test_what_a_thread_cannot_write_is_told_once_and_training_goes_on(in_background, tmp_path):
    (tmp_path / "file").write_text("")
    said, checkpoint, model = [], Checkpoint(tmp_path / "file", every_steps=1), made()
    checkpoint.report = said.append
    model.compile("adam", "mse")
    model.fit(X, Y, epochs=2, verbose=0, callbacks=[checkpoint])
    assert len(said) == 1
    assert "could not be written" in said[0]
    assert not checkpoint.save()


def test_nothing_is_written_while_steps_that_were_made_before_pass(straight, tmp_path):
    for kill in (Kill(2, 4), Kill(2, 1)):  # the second while the steps before the checkpoint pass
        killed(fit, tmp_path, kill=kill, every_seconds=1e-9)
        assert (Checkpoint(tmp_path).position.epoch, Checkpoint(tmp_path).position.step) == (2, 5)
    assert everything(fit(tmp_path, every_seconds=1e-9)[0]) == straight


def test_the_steps_since_the_last_checkpoint_are_made_again(straight, tmp_path):
    killed(fit, tmp_path, kill=Kill(2, 5), every_steps=4)
    assert Checkpoint(tmp_path).position.step == 4
    assert everything(fit(tmp_path, every_steps=4)[0]) == straight


def test_averages_and_accumulated_gradients_go_on(tmp_path):
    optimizer = {"gradient_accumulation_steps": 4, "use_ema": True, "clipnorm": 1.0}
    straight = everything(fit(tmp_path / "straight", optimizer=optimizer)[0])
    killed(fit, tmp_path / "killed", kill=Kill(2, 1), every_steps=1, optimizer=optimizer)
    assert everything(fit(tmp_path / "killed", optimizer=optimizer)[0]) == straight


def test_a_training_that_is_over_can_be_made_longer(straight, tmp_path):
    fit(tmp_path, epochs=2)
    assert Checkpoint(tmp_path).position.epoch == 2
    model, _ = fit(tmp_path, epochs=4)
    assert everything(model) == straight
    assert everything(fit(tmp_path, epochs=4)[0])[0] == straight[0], "a third time, nothing is left to be trained"


@pytest.mark.grid
def test_data_that_are_read_in_order_are_read_up_to_the_place(tmp_path):
    def train(folder, kill=None):
        model = made()
        model.compile("adam", "mse")
        callbacks = [Checkpoint(folder, every_steps=1), *([kill] if kill else [])]
        model.fit(X, Y, batch_size=3, epochs=2, shuffle=False, verbose=0, callbacks=callbacks)
        return everything(model)

    straight = train(tmp_path / "straight")
    killed(train, tmp_path / "killed", kill=Kill(1, 3))
    assert train(tmp_path / "killed") == straight


def test_a_fit_that_was_stopped_trains_no_epoch_more(tmp_path):
    model = made()
    model.compile("adam", "mse")
    stopping = keras.callbacks.EarlyStopping("loss", min_delta=100.0)
    for epochs in (2, 0):
        checkpoint = Checkpoint(tmp_path, callbacks=[stopping])
        history = model.fit(X, Y, epochs=9, shuffle=False, verbose=0, callbacks=[stopping, checkpoint])
        assert len(history.epoch) == 2, epochs
    model.fit(X, Y, epochs=1, verbose=0)
    assert len(model.history.epoch) == 1, "a later `fit` begins where its arguments say"


def test_keras_own_calls_of_several_steps_end_where_they_ended(tmp_path):
    straight = everything(fit(tmp_path / "straight", steps_per_execution=2, steps=6)[0])
    killed(fit, tmp_path / "killed", kill=Kill(1, 3), every_steps=1, steps_per_execution=2, steps=6)
    assert everything(fit(tmp_path / "killed", steps_per_execution=2, steps=6)[0]) == straight
    killed(fit, tmp_path / "other", kill=Kill(1, 3), every_steps=1, steps_per_execution=2, steps=6)
    with pytest.raises(TrainingError, match="in the middle of a call of 3 steps"):
        fit(tmp_path / "other", steps_per_execution=3, steps=6)
    with pytest.raises(TrainingError, match="7 steps in an epoch and `steps_per_execution=2`"):
        fit(tmp_path / "odd", steps_per_execution=2)


PHASES = [
    Phase(["head"], epochs=3, until=Until("loss", patience=0, min_delta=0.05)),
    Phase(["body", "head"], steps=10, rates={"head": 5e-3}, warmup_steps=4),
    Phase("all", epochs=1, auto_rgn=1e-3),
]


def in_phases(folder, kill=None, **options):
    model = made()
    groups = resolve_groups(model, [Selector("body", prefixes="body"), Selector("head", rest=True)])
    adam = keras.optimizers.Adam
    model.compile(GroupedOptimizer({group.name: (adam(0.01), group) for group in groups}), "mse")
    checkpoint = Checkpoint(folder, every_steps=2, **options)
    callbacks = [checkpoint, *([kill] if kill else [])]
    records = train_phases(model, groups, PHASES, X, Y, batch_size=3, shuffle=False, callbacks=callbacks)
    variables = [*model.variables, *model.optimizer.variables]
    return [variable.numpy().tobytes() for variable in variables], model.optimizer.learning_rates, records[-1].steps


@pytest.fixture(scope="module")
def written_phases(tmp_path_factory):
    return tmp_path_factory.mktemp("straight_phases")


@pytest.fixture(scope="module")
def straight_phases(written_phases):
    return in_phases(written_phases, keep=99)


@pytest.mark.sample(2)
@pytest.mark.parametrize(
    "moment", [(0, 4), (2, 2), pytest.param((3, 2), marks=pytest.mark.grid), (5, 6)]
)  # in the first phase twice
def test_phases_go_on_bit_for_bit(moment, straight_phases, written_phases, killed_at, tmp_path):
    killed_at(moment, written_phases, tmp_path / "killed")
    assert in_phases(tmp_path / "killed") == straight_phases


@pytest.mark.sample(1)
@pytest.mark.parametrize("length", ["known", "unknown"])
@pytest.mark.filterwarnings("ignore:Your input ran out of data")
def test_steps_that_a_loss_scale_has_passed_over_are_not_made_again(length, killed_at, tmp_path):
    data, more = (X, Y), {"batch_size": 3}
    if length == "unknown":
        data, more = (tf.data.Dataset.from_tensor_slices(data).batch(3).filter(lambda *_: True),), {}

    def train(folder, **options):
        model = made()
        groups = resolve_groups(model, [Selector("body", prefixes=("body",)), Selector("head", rest=True)])
        grouped = GroupedOptimizer({group.name: (keras.optimizers.Adam(0.01), group) for group in groups})
        # The first steps overflow, and are passed over until the scale has been halved often enough.
        model.compile(keras.optimizers.LossScaleOptimizer(grouped, initial_scale=2.0**127), "mse")
        callbacks = [Checkpoint(folder, every_steps=1, **options)]
        phases = [Phase("all", steps=12), Phase(["head"], epochs=1)]
        records = train_phases(model, groups, phases, *data, shuffle=False, callbacks=callbacks, **more)
        return [variable.numpy().tobytes() for variable in (*model.variables, *model.optimizer.variables)], records

    straight, records = train(tmp_path / "straight", keep=99)
    assert records[0].steps < 12
    for epoch, step in ((0, 4), (1, 3)):
        killed_at((epoch, step), tmp_path / "straight", tmp_path / f"{epoch}")
        assert train(tmp_path / f"{epoch}")[0] == straight


def test_a_damaged_file_is_passed_over(straight, tmp_path):
    killed(fit, tmp_path, kill=Kill(2, 4), every_steps=1)
    newest, before = checkpoint_files(tmp_path)
    newest.write_bytes(newest.read_bytes()[:1000])
    checkpoint = Checkpoint(tmp_path)
    assert (checkpoint.path, checkpoint.damaged) == (before, {newest: "its content is not what was written"})
    assert everything(fit(tmp_path, every_steps=1)[0]) == straight


def test_before_fit_has_begun_nothing_is_saved(tmp_path):
    assert not Checkpoint(tmp_path).save()
    assert list(tmp_path.iterdir()) == []


def test_a_loss_that_is_no_number_is_not_saved(tmp_path):
    model = made()
    model.compile(keras.optimizers.SGD(1e30), "mse")
    model.fit(X, Y, batch_size=3, epochs=2, verbose=0, callbacks=[Checkpoint(tmp_path, every_steps=1)])
    _, saved, _ = read_newest(tmp_path)
    assert saved is None or all(np.isfinite(array).all() for array in saved.arrays.values() if array.dtype.kind == "f")


def test_the_checkpoint_of_another_model_is_refused(tmp_path):
    fit(tmp_path, epochs=1)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    model.compile("sgd", "mse")
    with pytest.raises(TrainingError, match="goes on with the training that wrote it"):
        model.fit(X, Y, verbose=0, callbacks=[Checkpoint(tmp_path)])


@pytest.mark.parametrize("options", [{"every_seconds": 0}, {"every_steps": 0}, {"keep": 0}])
def test_numbers_out_of_range_are_refused(options, tmp_path):
    with pytest.raises(TrainingError, match="Checkpoints are written every so many seconds"):
        Checkpoint(tmp_path, **options)


def test_a_disk_that_is_full_lets_training_go_on(tmp_path):
    (tmp_path / "file").write_text("")
    said = []
    checkpoint = Checkpoint(tmp_path / "file")
    checkpoint.report = said.append
    model = made()
    model.compile("adam", "mse")
    model.fit(X, Y, epochs=2, verbose=0, callbacks=[checkpoint])
    assert len(said) == 1
    assert "could not be written" in said[0]


def test_a_training_goes_on_with_the_kernels_it_was_begun_with(tmp_path):
    def trained(folder, kernels, epochs, kill=None):
        model = made()
        model.compile(keras.optimizers.Adam(1e-2), "mse")
        model.optimizer.build(model.trainable_variables)
        checkpoint = Checkpoint(tmp_path / folder, every_steps=2)
        callbacks = [FastLoop(kernels=kernels), checkpoint, *([kill] if kill else [])]
        batches = checkpoint.batches(X, Y, batch_size=3, seed=7)
        model.fit(batches, steps_per_epoch=STEPS, epochs=epochs, shuffle=False, verbose=0, callbacks=callbacks)
        return [weight.numpy() for weight in model.weights]

    straight = trained("straight", "native", 3)
    with pytest.raises(KilledError):
        trained("killed", "native", 3, Kill(1, 4))
    with pytest.raises(TrainingError) as caught:
        trained("killed", "exact", 3)
    assert "is of one with `kernels: native`, and it goes on with `kernels: exact`. Pass `kernels='native'`" in str(
        caught.value
    )
    for before, now in zip(straight, trained("killed", "native", 3), strict=True):
        np.testing.assert_array_equal(before, now)
