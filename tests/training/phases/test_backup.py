import re

import keras
import numpy as np
import pytest

from finetune.errors import TrainingError
from finetune.groups.selectors import Selector, resolve_groups
from finetune.optimizers.grouped import GroupedOptimizer
from finetune.optimizers.saved_state import PhasePosition
from finetune.optimizers.schedules import exponential_decay
from finetune.training.phases.backup import PhaseBackup, check_position
from finetune.training.phases.phase import Phase
from finetune.training.phases.train_phases import train_phases
from finetune.training.phases.until import Until

# NumPy 2 warns when Keras copies a TensorFlow variable to save it.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")
X = np.random.default_rng(0).normal(size=(12, 4)).astype("float32")
Y = np.arange(12) % 3
FALL = exponential_decay(0.02, decay_steps=4, decay_rate=0.5)
PHASES = [
    Phase(["head"], epochs=2),
    Phase(["body", "head"], steps=7, rates={"body": FALL, "head": 5e-3}, clock="phase", warmup_steps=4),
    Phase("all", epochs=2, rates={"stem": FALL}),
]
BackupAndRestore = keras.callbacks.BackupAndRestore


class KilledError(Exception):
    """What stands for a process that is killed."""


def kill_at(epoch, batch=None):
    class Killer(keras.callbacks.Callback):
        def on_epoch_begin(self, number, logs=None):
            self.number = number
            if batch is None and number == epoch:
                raise KilledError

        def on_train_batch_end(self, number, logs=None):
            if batch is not None and (self.number, number) == (epoch, batch):
                raise KilledError

    return Killer()


def train(*callbacks, phases=PHASES):
    keras.utils.set_random_seed(0)
    names = ("stem", "body", "head")
    model = keras.Sequential([keras.Input((4,)), *(keras.layers.Dense(3, name=name) for name in names)])
    groups = resolve_groups(model, [Selector(name, prefixes=(name,)) for name in names])
    optimizer = GroupedOptimizer({group.name: (keras.optimizers.Adam(0.01), group) for group in groups})
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    records = train_phases(model, groups, phases, X, Y, batch_size=4, shuffle=False, callbacks=list(callbacks))
    return model, records


@pytest.fixture(scope="module")
def straight():
    return train()[0]


def assert_identical(model, other):
    for one, two in zip(model.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)
    for one, two in zip(model.optimizer.variables, other.optimizer.variables, strict=True):
        np.testing.assert_array_equal(one.numpy(), two.numpy())
    assert model.optimizer.learning_rates == other.optimizer.learning_rates
    assert model.optimizer.saved_state.phase == other.optimizer.saved_state.phase


# Phase 1 has the epochs 0 and 1, phase 2 the epochs 2, 3 and a part of 4, phase 3 the epochs 5 and 6.
@pytest.mark.parametrize(
    ("killed", "first"),
    [
        ((4, 0), 2),
        *(pytest.param(*each, marks=pytest.mark.grid) for each in (((1,), 1), ((2,), 2), ((5,), 3), ((6,), 3))),
    ],
)
def test_a_run_that_was_killed_ends_with_the_bits_of_a_run_that_was_not(killed, first, straight, tmp_path):
    folder = tmp_path / "backup"
    with pytest.raises(KilledError):
        train(BackupAndRestore(folder), kill_at(*killed))
    resumed, records = train(BackupAndRestore(folder))
    assert_identical(resumed, straight)
    assert [record.number for record in records] == list(range(first, 4))
    assert not folder.exists()  # deleted as by Keras, after the last phase


def test_a_run_may_be_killed_again_and_again(straight, tmp_path):
    for epoch in (1, 3, 5, 6):
        with pytest.raises(KilledError):
            train(BackupAndRestore(tmp_path / "backup"), kill_at(epoch))
    assert_identical(train(BackupAndRestore(tmp_path / "backup"))[0], straight)


@pytest.mark.grid
def test_a_run_may_be_killed_within_several_epochs(straight, tmp_path):
    for killed in ((1, 1), (4, 0), (4, 0), (6, 2)):
        with pytest.raises(KilledError):
            train(BackupAndRestore(tmp_path / "backup"), kill_at(*killed))
    resumed, records = train(BackupAndRestore(tmp_path / "backup"))
    assert_identical(resumed, straight)
    assert [(record.number, record.epochs) for record in records] == [(3, 2)]


@pytest.mark.grid
def test_a_second_kill_within_the_first_epoch_after_a_resume_goes_on_with_that_epoch(tmp_path):
    # Of the 3 steps of an epoch the second is saved: a resumed run makes it again on the weights that have it already.
    for _ in range(2):
        with pytest.raises(KilledError):
            train(BackupAndRestore(tmp_path / "backup", save_freq=2), kill_at(5, 2))
    epochs = []
    heard = keras.callbacks.LambdaCallback(on_epoch_begin=lambda epoch, logs: epochs.append(epoch))
    resumed, records = train(BackupAndRestore(tmp_path / "backup", save_freq=2), heard)
    assert epochs == [5, 6]
    assert [(record.number, record.epochs) for record in records] == [(3, 2)]
    assert int(resumed.optimizer.iterations) > 6 + 7 + 6


def test_a_backup_that_is_not_deleted_is_of_a_run_that_is_over(straight, tmp_path):
    keep = {"backup_dir": tmp_path / "backup", "delete_checkpoint": False}
    train(BackupAndRestore(**keep))
    again, records = train(BackupAndRestore(**keep))
    assert_identical(again, straight)
    assert records == []


def test_a_phase_that_ended_early_is_not_trained_on_after_a_kill(tmp_path):
    phases = [Phase(["head"], epochs=9, until=Until("loss", min_delta=9.0)), Phase("all", epochs=2)]
    whole, _ = train(phases=phases)
    with pytest.raises(KilledError):
        train(BackupAndRestore(tmp_path / "backup"), kill_at(2), phases=phases)
    resumed, records = train(BackupAndRestore(tmp_path / "backup"), phases=phases)
    assert_identical(resumed, whole)
    assert [(record.number, record.epochs) for record in records] == [(2, 2)]


def test_a_backup_within_an_epoch_goes_on_at_the_begin_of_that_epoch_as_in_keras(tmp_path):
    with pytest.raises(KilledError):
        train(BackupAndRestore(tmp_path / "backup", save_freq=2), kill_at(5, 2))
    resumed, records = train(BackupAndRestore(tmp_path / "backup", save_freq=2))
    assert [(record.number, record.epochs) for record in records] == [(3, 2)]
    assert int(resumed.optimizer.iterations) > 6 + 7 + 6


def test_without_a_kill_a_backup_changes_nothing(straight, tmp_path):
    model, records = train(BackupAndRestore(tmp_path / "backup"))
    assert_identical(model, straight)
    assert [(record.epochs, record.steps) for record in records] == [(2, 6), (3, 7), (2, 6)]


def test_a_later_fit_begins_where_its_arguments_say(tmp_path):
    with pytest.raises(KilledError):
        train(BackupAndRestore(tmp_path / "backup"), kill_at(5))
    model, _ = train(BackupAndRestore(tmp_path / "backup"))
    assert model.fit(X, Y, epochs=2, verbose=0).epoch == [0, 1]


def test_the_backup_of_a_run_with_more_phases_is_an_error(tmp_path):
    with pytest.raises(KilledError):
        train(BackupAndRestore(tmp_path / "backup"), kill_at(6))
    expected = (
        "`BackupAndRestore` goes on with the run that made its backup. Received one of phase 3, and there are 1 phases. "
        "Run the same phases with the same groups, or delete the backup to begin anew."
    )
    with pytest.raises(TrainingError, match=re.escape(expected)):
        train(BackupAndRestore(tmp_path / "backup"), phases=[Phase("all", epochs=9)])


def test_the_backup_of_a_fit_without_phases_is_an_error():
    with pytest.raises(TrainingError, match="Received one that holds no phase: it is of a `fit` without phases, or of"):
        check_position(None, 3, PHASES)
    check_position(None, 0, PHASES)
    check_position(PhasePosition(3, 5, 13), 6, PHASES)


def test_a_callback_of_a_subclass_hears_of_epochs_and_batches(tmp_path):
    heard = []

    class Hearing(BackupAndRestore):
        def on_epoch_begin(self, epoch, logs=None):
            heard.append(("epoch", epoch))

        def on_train_batch_begin(self, batch, logs=None):
            heard.append(("batch", batch))

    backup = PhaseBackup(Hearing(tmp_path / "backup"))
    backup.on_epoch_begin(3)
    backup.on_train_batch_begin(5)
    assert heard == [("epoch", 3), ("batch", 5)]
