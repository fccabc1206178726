"""After the last step a run is evaluated, saved and proven, and says what went wrong."""

import json
import os
import sys
from io import StringIO
from pathlib import Path

import keras
import numpy as np
import pytest
from rich.console import Console

import finetune
from finetune.errors import DataError, TrainingError
from finetune.results.hashes import check_hashes

# NumPy 2 warns when Keras copies a TensorFlow variable to save it.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")


def read_json(path):
    return json.loads(path.read_text())


DIVERGE = ["groups.body.learning_rate=1e30", "groups.head.learning_rate=1e30"]


@pytest.mark.slow
def test_weights_that_break_in_the_very_last_step_are_found_on_the_test_examples(recipe, names_in):
    last_step = "train.epochs=1", "train.batch_size=60"
    with pytest.raises(TrainingError, match=r"on the test examples after training\. Lower the learning rates"):
        finetune.run(recipe, "out", overrides=[*DIVERGE, *last_step])
    assert not names_in("out") & {"model.keras", "result.json"}


PARTS = '''
import keras, numpy as np, tensorflow as tf
from finetune.data.examples import Examples

@keras.saving.register_keras_serializable("parts")
class Odd(keras.layers.Layer):
    """Fails on a batch with a value above 100, or changes a frozen weight, or cannot be saved."""

    def __init__(self, how, **more):
        super().__init__(**more)
        self.how = how

    def build(self, shape):
        self.count = self.add_weight(shape=(), initializer="zeros", trainable=False, name="count")

    def call(self, x, training=None):
        if self.how == "drift" and training:
            self.count.assign_add(1.0)
        if self.how == "fail":
            tf.debugging.assert_less(x, 100.0, message="a value is too large")
        if self.how == "memory":
            x = tf.ensure_shape(tf.cond(tf.reduce_any(x > 100.0), lambda: tf.py_function(no_memory, [x], x.dtype), lambda: x), x.shape)
        return x

    def get_config(self):
        if self.how == "unsaved":
            raise NotImplementedError("no config here")
        return {**super().get_config(), "how": self.how}

def no_memory(x):
    raise MemoryError

def network(how):
    parts = [keras.Input((6,)), Odd(how, name="odd"), keras.layers.Dense(8, name="stem"), keras.layers.Dense(3, name="head")]
    return keras.Sequential([*parts[:-1], keras.layers.Dense(3, activation="softmax", name="head")], name="odd")

def rows(bad_row=None):
    x, y = np.ones((40, 6), "float32"), np.arange(40) % 3
    if bad_row is not None:
        x[bad_row] = 1000.0
    return Examples(x[:30], y[:30], x[30:], y[30:])
'''


@pytest.fixture
def odd(recipe, monkeypatch):
    """Runs a recipe whose network has a layer that misbehaves in one of several ways."""
    Path("odd_parts.py").write_text(PARTS)
    monkeypatch.syspath_prepend(os.getcwd())
    trained = "optimizer: sgd, learning_rate: 0.01"

    def run(how, groups, rows=""):
        overrides = [
            f"model={{builder: odd_parts:network, arguments: {{how: {how}}}}}",
            f"data={{builder: odd_parts:rows, arguments: {{{rows}}}}}",
            f"groups={groups.replace('TRAINED', trained)}",
        ]
        return finetune.run(recipe, "out", overrides=overrides, allow_code=["odd_parts"])

    yield run
    sys.modules.pop("odd_parts", None)


ALL = "[{name: all, rest: true, TRAINED}]"


def test_an_error_inside_tensorflow_is_one_line_and_keeps_what_there_is(odd, names_in):
    with pytest.raises(TrainingError) as error:
        odd("fail", ALL, "bad_row: 20")
    assert str(error.value).startswith("Training stopped with an error. InvalidArgumentError: ")
    assert "a value is too large" in str(error.value)
    assert str(error.value).endswith("`--debug` shows where. What was written so far is in `out`.")
    assert "\n" not in str(error.value)
    assert {"plan.json", "recipe.yaml"} <= names_in("out")


def test_memory_that_runs_out_in_training_is_said_with_what_to_do(odd):
    with pytest.raises(
        TrainingError, match=r"^Training stopped with an error\. There is not enough memory\. Close other"
    ):
        odd("memory", ALL, "bad_row: 20")


def test_an_error_on_the_test_examples_is_bad_input_and_leaves_nothing(odd):
    with pytest.raises(DataError, match="a value is too large"):
        odd("fail", ALL, "bad_row: 35")
    assert not Path("out").exists()


def test_a_frozen_tensor_that_changes_all_the_same_is_reported_and_not_hidden(odd):
    with pytest.raises(TrainingError, match=r"stay bit-identical\. 1 of 3 changed in the run: `odd/count`"):
        odd("drift", "[{name: stem, prefixes: [odd, stem], frozen: true}, {name: head, rest: true, TRAINED}]")
    stored = read_json(Path("out/result.json"))
    assert (stored["frozen_unchanged"], stored["frozen_tensors"]) == (False, 3)
    # The error is the last line of the log, and the hashes are those of the files with it.
    assert Path("out/run.log").read_text().splitlines()[-1].startswith("TrainingError: Frozen tensors must stay")
    assert check_hashes(Path("out")).holds


@pytest.mark.slow
def test_a_model_that_cannot_be_saved_whole_keeps_its_weights(odd):
    with pytest.raises(TrainingError) as error:
        odd("unsaved", ALL)
    assert str(error.value).startswith(
        "A trained model is saved whole, so that plain Keras can load it. NotImplementedError: "
    )
    assert f"The weights after epoch 2 are in `{Path('out/checkpoints/last.weights.h5')}`" in str(error.value)
    assert Path("out/checkpoints/last.weights.h5").is_file()
    assert not Path("out/model.keras").exists()


def test_a_model_that_plain_keras_does_not_open_is_told_and_recorded(tiny_files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    Path("lambda_nets.py").write_text(
        "from keras import Input, Sequential, layers\n"
        "def build():\n"
        "    halved = layers.Lambda(lambda x: x / 2)\n"
        "    return Sequential([Input((6,)), halved, layers.Dense(3, 'softmax', name='head')])\n"
    )
    Path("r.yaml").write_text(
        f"model: {{builder: 'lambda_nets:build'}}\ndata: {{npz: {tiny_files / 'rows.npz'}}}\n"
        "groups: [{name: all, rest: true, optimizer: adam, learning_rate: 1.0e-3}]\n"
        "train: {epochs: 1, loss: sparse_categorical_crossentropy}\n"
    )
    told = StringIO()
    result = finetune.run("r.yaml", "out", allow_code=["lambda_nets"], console=Console(file=told, width=1000))
    assert f"warning: {result.not_opened}" in told.getvalue()
    assert "A `Lambda` layer is code" in result.not_opened
    assert read_json(Path("out/result.json"))["not_opened"] == result.not_opened
    assert Path("out/checkpoints/last.weights.h5").is_file()


def test_a_loss_that_grows_and_stays_finite_is_told(recipe, tmp_path, rows):
    x, y = rows[0], rows[0][:, :1]
    np.savez(tmp_path / "numbers.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    keras.Sequential([keras.Input((6,)), keras.layers.Dense(1, name="head")]).save(tmp_path / "linear.keras")
    out = StringIO()
    overrides = [
        *(f"model.keras_file={tmp_path / 'linear.keras'}", f"data.npz={tmp_path / 'numbers.npz'}", "train.epochs=1"),
        *("train.loss=mse", "train.metrics=", "groups=[{name: all, rest: true, optimizer: sgd, learning_rate: 100}]"),
    ]
    console = Console(file=out, width=300)
    result = finetune.run(recipe, tmp_path / "out", overrides=overrides, console=console)
    assert result.metrics["loss"] > 10 * result.metrics_before["loss"], "the test needs a loss that grows"
    (warning,) = result.warnings
    assert warning.startswith("the test loss is ")
    assert f"warning: {warning}" in out.getvalue()
    assert json.loads((tmp_path / "out" / "result.json").read_text())["warnings"] == [warning]
