import csv
import os
import pty
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from io import StringIO

import keras
import numpy as np
import pytest
from rich.console import Console

from finetune.interruption import Stopped, deferred, stoppable
from finetune.optimizers.grouped import GroupedOptimizer
from finetune.optimizers.schedules import exponential_decay
from finetune.training import callbacks
from finetune.training.callbacks import (
    LastWeights,
    LearningRateLogger,
    MetricsFile,
    ProgressLine,
    StopAtNonFiniteLoss,
    StopAtSignal,
    learning_rates,
)
from finetune.training.fast.fast_loop import FastLoop
from finetune.training.saving import save_weights

# NumPy 2 warns when Keras copies a TensorFlow variable to save it.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")


def compiled(model, optimizer=None, **more):
    optimizer = optimizer or grouped(model)
    model.compile(optimizer, loss="sparse_categorical_crossentropy", metrics=["accuracy"], run_eagerly=True, **more)
    return model


def grouped(model, body=1e-3, head=1e-2):
    return GroupedOptimizer(
        {
            "body": (keras.optimizers.SGD(body), model.layers[:-1]),
            "head": (keras.optimizers.SGD(head), model.layers[-1]),
        }
    )


def fit(model, rows, *callbacks, epochs=2, **more):
    x, y = rows
    return model.fit(x, y, batch_size=30, epochs=epochs, verbose=0, callbacks=list(callbacks), **more).history


# -- Rates ------------------------------------------------------------------------------------------------------------


def test_the_rate_of_every_group_is_in_the_logs_of_every_epoch_as_of_the_next_step(tiny, rows):
    model = tiny()
    rate = exponential_decay(1e-2, decay_steps=3, decay_rate=0.5, staircase=True)
    history = fit(compiled(model, grouped(model, rate, 1e-1)), rows, LearningRateLogger(), epochs=3)
    np.testing.assert_allclose(history["learning_rate/body"], [5e-3, 2.5e-3, 1.25e-3], rtol=1e-6)
    np.testing.assert_allclose(history["learning_rate/head"], [1e-1] * 3, rtol=1e-6)


def test_rates_are_read_through_the_wrapper_of_mixed_precision(tiny, rows):
    model = tiny()
    wrapped = keras.optimizers.LossScaleOptimizer(grouped(model))
    assert fit(compiled(model, wrapped), rows, LearningRateLogger(), epochs=1)["learning_rate/body"] == [
        pytest.approx(1e-3)
    ]


def test_a_plain_optimizer_logs_its_rate_under_its_name(tiny, rows):
    model = compiled(tiny(), keras.optimizers.Adam(exponential_decay(1e-2, 3, 0.5), name="adam"))
    assert fit(model, rows, LearningRateLogger(), epochs=1)["learning_rate/adam"] == [pytest.approx(5e-3)]
    assert learning_rates(model) == {"adam": pytest.approx(5e-3)}


# -- Files ------------------------------------------------------------------------------------------------------------


def test_the_metrics_file_has_a_row_for_every_epoch_and_is_whole_after_each(tiny, rows, tmp_path):
    path, seen = tmp_path / "metrics.csv", []
    look = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: seen.append(path.read_text()))
    history = fit(compiled(tiny()), rows, LearningRateLogger(), MetricsFile(path), look, validation_split=0.3, epochs=3)
    with path.open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["epoch"] for row in table] == ["1", "2", "3"]
    names = {"loss", "accuracy", "val_loss", "val_accuracy", "learning_rate/body", "learning_rate/head"}
    assert set(table[0]) == {"epoch", *names}
    for name in names:
        assert [float(row[name]) for row in table] == pytest.approx(history[name])
    assert [text.count("\n") for text in seen] == [2, 3, 4]


def test_a_second_fit_begins_a_new_metrics_file(tiny, rows, tmp_path):
    model, metrics = compiled(tiny()), MetricsFile(tmp_path / "metrics.csv")
    fit(model, rows, metrics)
    fit(model, rows, metrics, epochs=1)
    assert (tmp_path / "metrics.csv").read_text().count("\n") == 2


def test_the_last_weights_are_those_of_the_last_epoch_with_the_optimizer(tiny, rows, tmp_path):
    model = compiled(tiny())
    fit(model, rows, LastWeights(tmp_path / "deep" / "last.weights.h5"), epochs=2)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["last.weights.h5"]
    again = compiled(tiny())
    again.optimizer.build(again.trainable_variables)
    again.load_weights(tmp_path / "deep" / "last.weights.h5")
    assert int(again.optimizer.iterations) == 6
    for one, other in zip(model.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_weights_of_an_epoch_that_broke_do_not_replace_the_last_good_ones(tiny, rows, tmp_path):
    path = tmp_path / "last.weights.h5"
    model = compiled(tiny())
    fit(model, rows, LastWeights(path), epochs=1)
    good = path.read_bytes()
    model.optimizer.learning_rate = 1e30
    fit(model, rows, LastWeights(path), epochs=1)
    assert not np.isfinite(model.get_weights()[0]).all()
    assert path.read_bytes() == good


@pytest.fixture
def saved_at(monkeypatch):
    """Makes saving take 0.3 s; the steps after which it was done."""
    steps = []

    def slow(model, path, **options):
        steps.append(int(model.optimizer.iterations))
        time.sleep(0.3)
        save_weights(model, path, **options)

    monkeypatch.setattr(callbacks, "save_weights", slow)
    return steps


def test_where_epochs_are_short_few_are_saved_but_always_the_last(tiny, rows, tmp_path, saved_at):
    fit(compiled(tiny()), rows, LastWeights(tmp_path / "last.weights.h5"), epochs=5)
    assert saved_at == [3, 15]  # between the first and the last there were not 30 s


def test_a_training_of_less_than_a_second_is_saved_once(tiny, rows, tmp_path, monkeypatch, saved_at):
    monkeypatch.setattr(LastWeights, "_FIRST_SECONDS", 60.0)
    fit(compiled(tiny()), rows, LastWeights(tmp_path / "last.weights.h5"), epochs=3)
    assert saved_at == [9]


@pytest.mark.slow
def test_where_epochs_are_long_every_one_is_saved(tiny, rows, tmp_path, monkeypatch, saved_at):
    monkeypatch.setattr(LastWeights, "_SHARE", 1e9)
    fit(compiled(tiny()), rows, LastWeights(tmp_path / "last.weights.h5"), epochs=3)
    assert saved_at == [3, 6, 9]


# -- Files that cannot be written -------------------------------------------------------------------------------------


def test_metrics_that_cannot_be_written_for_a_while_are_complete_afterwards_and_one_line_says_so(
    tiny, rows, tmp_path, at_epochs
):
    said = []
    path = tmp_path / "metrics.csv"
    fit(compiled(tiny()), rows, MetricsFile(path, said.append), at_epochs(1, 3, 50), epochs=5)
    assert path.read_text().count("\n") == 6
    (line,) = said
    assert line.startswith(f"warning: Files are written whole or not at all. `{path}` could not be written: File too")
    assert line.endswith(" Training goes on; a later epoch tries again.")


def test_weights_that_cannot_be_written_keep_the_former_file_and_are_saved_elsewhere_at_the_end(
    tiny, rows, tmp_path, monkeypatch, small_files
):
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    said = []
    last = LastWeights(tmp_path / "run" / "checkpoints" / "last.weights.h5", said.append)
    model = compiled(tiny())
    fit(model, rows, last, epochs=1)
    before = last.path.read_bytes()
    undo = small_files(1000)
    try:
        fit(model, rows, last, epochs=2)
        assert (
            last.keep()
            == f"The weights after epoch 1 are in `{last.path}`. Those after epoch 2 could not be saved anywhere."
        )
    finally:
        undo()
    assert last.path.read_bytes() == before
    assert [line[:50] for line in said] == ["warning: Files are written whole or not at all. `/"]
    last.path.unlink()
    last.path.parent.rmdir()
    last.path.parent.write_text("a file in the way of the folder")
    sentence = last.keep()
    (saved,) = (tmp_path / "tmp").iterdir()
    assert sentence == f"The weights after epoch 2 are in `{saved}`."
    again = compiled(tiny())
    again.load_weights(saved)
    np.testing.assert_array_equal(again.get_weights()[0], model.get_weights()[0])


# -- Signals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "sentence"),
    [(5, "epoch 1 and 2 of 3 steps of epoch 2"), (3, "epoch 1"), (2, "2 of 3 steps of epoch 1")],
)
def test_a_signal_stops_between_two_steps_and_the_weights_of_that_moment_are_kept(tiny, rows, tmp_path, step, sentence):
    model, last, steps = compiled(tiny()), LastWeights(tmp_path / "last.weights.h5"), []
    send = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda number, logs: os.kill(os.getpid(), signal.SIGTERM) if len(steps) == step else None,
        on_train_batch_begin=lambda number, logs: steps.append(number),
    )

    def work():
        with deferred():
            fit(model, rows, last, send, StopAtSignal(), epochs=9)

    with pytest.raises(Stopped), stoppable():
        work()
    assert int(model.optimizer.iterations) == step
    assert last.keep() == f"The weights after {sentence} are in `{last.path}`."
    again = compiled(tiny())
    again.optimizer.build(again.trainable_variables)
    again.load_weights(last.path)
    assert int(again.optimizer.iterations) == step


def test_what_is_kept_is_counted_in_steps_that_were_made_and_only_weights_worth_it_are_saved(tiny, rows, tmp_path):
    model, last, seen = tiny(), LastWeights(tmp_path / "last.weights.h5"), []
    model.compile(grouped(model), "sparse_categorical_crossentropy", steps_per_execution=4)
    note = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: seen.append(last._steps))
    fit(model, rows, FastLoop(), last, note, epochs=1)
    assert seen == [3]  # not the 4 that a call may have
    last._steps, before = 0, last.path.read_bytes()  # as in the first call of an epoch
    model.layers[-1].bias.assign([np.nan] * 3)
    assert last.keep(newest=False) == f"The weights after epoch 1 are in `{last.path}`."
    assert last.path.read_bytes() == before
    last.count(2)
    assert last.keep() == f"The weights after 2 of 3 steps of epoch 1 are in `{last.path}`."
    assert last.path.read_bytes() != before


def test_without_a_signal_nothing_stops_and_before_the_first_step_no_weights_are_saved(tiny, rows, tmp_path):
    last = LastWeights(tmp_path / "last.weights.h5")
    assert last.keep() == "No weights are saved."
    with stoppable():
        assert len(fit(compiled(tiny()), rows, last, StopAtSignal(), validation_split=0.3)["loss"]) == 2


# -- Losses that are no numbers ---------------------------------------------------------------------------------------


def test_training_stops_at_the_first_loss_that_is_not_finite_and_says_where_and_prints_nothing(tiny, rows, capfd):
    model, guard = compiled(tiny()), StopAtNonFiniteLoss()
    diverge = keras.callbacks.LambdaCallback(
        on_epoch_begin=lambda epoch, logs: setattr(model.optimizer, "learning_rate", 1e30) if epoch == 1 else None
    )
    history = fit(model, rows, guard, diverge, epochs=9)
    assert len(history["loss"]) == 2
    epoch, step, loss = guard.stopped_at
    assert (epoch, step) == (2, 2)
    assert not np.isfinite(loss)
    assert capfd.readouterr() == ("", "")


class Loss:
    """A loss on a device, which notes when it is read."""

    def __init__(self, value, step, read):
        self.value, self.step, self.read = value, step, read

    def __float__(self):
        self.read.append(self.step)
        return self.value


def test_no_step_is_waited_for_its_loss_is_read_when_the_next_one_or_the_epoch_is_done(tiny):
    guard, read, seen = StopAtNonFiniteLoss(), [], []
    guard.set_model(compiled(tiny()))
    guard.on_train_begin()
    guard.on_epoch_begin(0)
    for step, value in enumerate([1.0, 2.0, float("nan")]):
        guard.on_train_batch_end(step, {"loss": Loss(value, step, read)})
        seen.append(list(read))
    assert seen == [[], [0], [0, 1]]
    assert guard.stopped_at is None
    guard.on_epoch_end(0)
    assert guard.stopped_at[:2] == (1, 3)
    assert guard.model.stop_training


def test_where_it_stopped_is_reported_exactly_also_when_the_steps_after_are_not_finite_either(tiny, rows):
    model, guard = compiled(tiny(), keras.optimizers.SGD(1e30)), StopAtNonFiniteLoss()
    losses = []
    fit(model, rows, guard, keras.callbacks.LambdaCallback(on_train_batch_end=lambda b, logs: losses.append(logs)))
    values = [float(logs["loss"]) for logs in losses]
    first = next(step for step, value in enumerate(values) if not np.isfinite(value))
    assert guard.stopped_at[:2] == (1, first + 1)
    np.testing.assert_equal(guard.stopped_at[2], values[first])


def test_a_sound_fit_is_not_stopped(tiny, rows):
    guard = StopAtNonFiniteLoss()
    fit(compiled(tiny()), rows, guard)
    assert guard.stopped_at is None


# -- Progress ---------------------------------------------------------------------------------------------------------


def test_without_the_logger_the_line_of_an_epoch_reads_the_rates_itself(tiny, rows):
    out = StringIO()
    with ProgressLine(Console(file=out, width=200), epochs=1, steps_per_epoch=3) as progress:
        fit(compiled(tiny()), rows, progress, epochs=1)
    assert out.getvalue().rstrip().endswith("rate: body 1.00e-03  head 1.00e-02")


@pytest.fixture
def xterm(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")


def told(tiny, rows, console, epochs=2, **more):
    with ProgressLine(console, epochs=epochs, steps_per_epoch=3) as progress:
        return fit(compiled(tiny()), rows, LearningRateLogger(), progress, epochs=epochs, **more)


@pytest.mark.slow
def test_a_pipe_gets_one_plain_line_for_every_epoch_with_loss_metrics_and_rates(tiny, rows):
    out = StringIO()
    few = tuple(part[:5] for part in rows)
    history = told(tiny, few, Console(file=out, width=200), epochs=10)
    lines = out.getvalue().splitlines()
    assert len(lines) == 10
    assert lines[0] == (
        f"epoch  1/10  loss {history['loss'][0]:.4f}  accuracy {history['accuracy'][0]:.4f}  "
        "rate: body 1.00e-03  head 1.00e-02"
    )
    assert lines[-1].startswith("epoch 10/10  loss ")


def test_many_groups_are_one_range_and_a_rate_that_has_risen_and_fallen_shows_its_peak(tiny, rows):
    def line(rates, measured):
        out = StringIO()
        progress = ProgressLine(Console(file=out, width=200), epochs=1, steps_per_epoch=3)
        progress.rows = lambda epoch: measured
        progress.on_epoch_end(0, {"loss": 1.0, **{f"learning_rate/{name}": rate for name, rate in rates.items()}})
        return out.getvalue().rstrip().partition("  rate: ")[2]

    row = {"learning_rate/body": 2e-3, "learning_rate/head": None, "update_ratio/body": 1e-4, "update_ratio/head": None}
    assert line({"body": 1e-5, "head": 1e-2}, [row]) == (
        "body 1.00e-05 (was 2.00e-03)  head 1.00e-02  update: body 1.00e-04"
    )
    many = {f"block_{number}": 10.0 ** (number - 19) for number in range(19)}
    assert line(many, []) == "19 groups 1.00e-19 (block_0) to 1.00e-01 (block_18)"


def test_losses_come_before_metrics(tiny, rows):
    out = StringIO()
    told(tiny, rows, Console(file=out, width=200), epochs=1, validation_split=0.3)
    words = out.getvalue().split()
    names = [word for word in words if word.replace("_", "").isalpha()]
    assert names == ["epoch", "loss", "val_loss", "accuracy", "val_accuracy", "body", "head"]


def test_a_silent_console_gets_nothing(tiny, rows, capfd):
    told(tiny, rows, Console(quiet=True))
    assert capfd.readouterr() == ("", "")


def read_all(terminal):
    shown = b""
    while True:
        try:
            shown += os.read(terminal, 65536)
        except OSError:  # the other end is closed
            os.close(terminal)
            return shown.decode()


@pytest.mark.usefixtures("xterm")
def test_a_terminal_gets_a_bar_that_moves_and_is_gone_at_the_end(tiny, rows):
    ours, theirs = pty.openpty()
    with ThreadPoolExecutor() as reader, os.fdopen(theirs, "w") as terminal:
        reading = reader.submit(read_all, ours)
        told(tiny, rows, Console(file=terminal, width=100))
        terminal.close()
        shown = reading.result()
    assert "1/6" in shown
    assert "\x1b[?25l" in shown  # the cursor is hidden while the bar moves
    assert shown.rstrip().endswith("\x1b[2K")  # and the bar's line is erased
    assert shown.count("epoch 2/2  loss") == 1


@pytest.mark.usefixtures("xterm")
def test_the_bar_is_taken_off_the_terminal_when_training_breaks(tiny, rows):
    out = StringIO()
    console = Console(file=out, width=100, force_terminal=True)

    def fail(batch, logs):
        raise RuntimeError("broken")

    progress = ProgressLine(console, epochs=2, steps_per_epoch=3)
    with pytest.raises(RuntimeError, match="broken"), progress:
        fit(compiled(tiny()), rows, progress, keras.callbacks.LambdaCallback(on_train_batch_end=fail))
    assert out.getvalue().rstrip().endswith("\x1b[2K")
    assert "\x1b[?25h" in out.getvalue()  # the cursor is back
