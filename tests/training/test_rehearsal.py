"""A rehearsal trains, evaluates and saves as a run does, and leaves nothing behind."""

import time

import keras
import numpy as np
import pytest

from finetune.data.examples import Examples, Split
from finetune.errors import MachineError
from finetune.groups.selectors import Selector, resolve_groups
from finetune.optimizers.grouped import GroupedOptimizer
from finetune.training import rehearsal as rehearsal_module
from finetune.training.monitor_interval import measured_every
from finetune.training.phases.phase import Phase
from finetune.training.rehearsal import FEWEST_STEPS, rehearse
from finetune.training.run_fit import FitOptions

ROWS, BATCH = 1000, 5


LONG = (Phase(epochs=50),)


def parts(rate=0.1, body=None, loss="mse", phases=LONG, **options):
    """Returns model, groups, phases, examples and options of a small run."""
    keras.utils.set_random_seed(1)
    layers = [keras.Input((4,)), body or keras.layers.Dense(8, name="body"), keras.layers.BatchNormalization(name="bn")]
    model = keras.Sequential([*layers, keras.layers.Dropout(0.5), keras.layers.Dense(1, name="head")])
    groups = resolve_groups(model, [Selector("head", prefixes=("head",)), Selector("body", rest=True)])
    adam = keras.optimizers.Adam
    model.compile(GroupedOptimizer({g.name: (adam(rate), g) for g in groups}), loss, metrics=["mae"], jit_compile=False)
    random = np.random.default_rng(0)
    x, y = random.normal(size=(ROWS, 4)).astype("float32"), random.normal(size=(ROWS, 1)).astype("float32")
    examples = Examples(x, y, x[:90], y[:90], x[:70], y[:70], weights_train=np.ones(ROWS, "float32"))
    settings = {"epochs": 50, "steps_per_epoch": ROWS // BATCH, "batch_size": BATCH, "shuffle": True, "seed": 0}
    settings |= {"cache": "auto", "cache_passes": 1, "steps_per_execution": "auto", "announce_phases": False} | options
    return model, groups, phases, examples, FitOptions(**settings)


def test_afterwards_weights_optimizer_and_metrics_are_what_they_were():
    model, *others = parts()
    state = [*model.variables, *model.optimizer.variables]
    before = [variable.numpy().tobytes() for variable in state]
    random = np.random.get_state()[1].tobytes()
    rehearsal = rehearse(model, *others)
    assert rehearsal.problem == ""
    assert rehearsal.records[0].steps > 0
    assert [variable.numpy().tobytes() for variable in state] == before
    assert np.random.get_state()[1].tobytes() == random


def test_it_takes_a_few_rows_of_every_split_and_measures_every_phase(monkeypatch):
    monkeypatch.setattr(rehearsal_module, "MOST_STEPS", 8)
    phases = (Phase(["head"], epochs=40), Phase("all", steps=3000))
    finished = []
    rehearsal = rehearse(*parts(phases=phases), finish=lambda folder, records: finished.append((folder, len(records))))
    assert rehearsal.steps == 8
    few = rehearsal.examples
    assert [len(few.train), len(few.test), len(few.validation)] == [8 * BATCH, 40, 40]
    assert len(few.weights_train) == len(few.train)
    assert [len(times.epochs) > 1 for times in rehearsal.phases] == [True, True]
    assert rehearsal.phases[0].features is not None  # of the frozen body
    assert min(rehearsal.evaluate_seconds, rehearsal.save_seconds) > 0
    [(folder, count)] = finished
    assert (folder.exists(), count) == (False, 2)


def test_rows_that_are_slow_to_read_make_it_take_fewer_steps(monkeypatch):
    model, _, _, examples, _ = parts()
    assert rehearsal_module._steps_worth_measuring(model, examples, BATCH) > 10
    first = Split.first
    monkeypatch.setattr(Split, "first", lambda split, rows: (time.sleep(0.7), first(split, rows))[1])
    assert rehearsal_module._steps_worth_measuring(model, examples, BATCH) == FEWEST_STEPS


def test_layer_groups_are_measured_as_often_as_in_the_run_and_nothing_is_evaluated_within_an_epoch(monkeypatch):
    seen = []
    train = rehearsal_module.train
    monkeypatch.setattr(rehearsal_module, "train", lambda *of, **more: (seen.append(of[4]), train(*of, **more))[1])
    monkeypatch.setattr(rehearsal_module, "MOST_STEPS", 8)
    settings = {"log_every_steps": "auto", "evaluate_every_steps": 5}
    model, groups, phases, examples, options = parts(phases=(Phase(epochs=2),), **settings)
    rehearse(model, groups, phases, examples, options)
    assert seen[0].evaluate_every_steps is None
    assert seen[0].log_every_steps == measured_every("auto", model, batch_size=BATCH, steps=50 * ROWS // BATCH)


def test_an_epoch_of_few_steps_is_rehearsed_as_a_whole():
    model, groups, phases, examples, options = parts(batch_size=300, steps_per_epoch=4)
    assert len(rehearse(model, groups, phases, examples, options).examples.train) == ROWS


@keras.saving.register_keras_serializable("rehearsal_test")
class Unsaved(keras.layers.Dense):
    """A layer that cannot be saved."""

    def get_config(self):
        raise NotImplementedError("no config here")


def failing_loss(y, y_pred):
    raise ValueError("this loss fails when it is traced")


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"rate": 1e30}, "A loss must be a finite number. It became `"),
        ({"body": Unsaved(8, name="body")}, "training breaks off. NotImplementedError: no config here"),
        ({"loss": failing_loss}, "training breaks off. ValueError: this loss fails when it is traced"),
    ],
)
def test_what_would_end_a_run_is_said_without_files_that_are_gone(changed, said):
    model, *others = parts(**changed)
    before = [variable.numpy().tobytes() for variable in model.variables]
    problem = rehearse(model, *others).problem
    assert problem.startswith(said)
    assert "finetune-" not in problem
    assert [variable.numpy().tobytes() for variable in model.variables] == before


def loss_without_memory(y, y_pred):
    raise MemoryError


def test_a_machine_that_fails_is_not_a_problem_of_the_recipe():
    model, *others = parts(loss=loss_without_memory)
    with pytest.raises(MachineError) as error:
        rehearse(model, *others)
    assert str(error.value).startswith("Training on a few rows failed because there is not enough memory")
