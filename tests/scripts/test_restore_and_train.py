"""The script to copy: its options reach the restore and the groups, and bad input ends in a message, not a traceback."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from finetune.errors import FinetuneError
from finetune.examples.digits import small_cnn
from finetune.groups.layer_tree import layer_tree

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
# NumPy 2 warns when Keras copies a TensorFlow variable to save it.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")
tf1 = tf.compat.v1


@pytest.fixture
def script(monkeypatch):
    """Runs the script in this process, and returns what it prints."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    module = importlib.import_module("restore_and_train")

    def run(*options):
        monkeypatch.setattr(sys, "argv", ["restore_and_train.py", "--epochs", "1", *map(str, options)])
        module.main()

    return run


def tf1_checkpoint(folder):
    """What a program of TF1 saved of the digit network in a scope: weights, slots, averages and an auxiliary head."""
    rng = np.random.default_rng(0)
    leaves = layer_tree(small_cnn()).leaves
    with tf.Graph().as_default(), tf1.Session() as session:
        with tf1.variable_scope("net"):
            made = [
                tf1.get_variable(leaf.name, initializer=rng.normal(0.1, 0.01, leaf.variable.shape).astype("float32"))
                for leaf in leaves
            ]
            tf1.get_variable("aux/kernel", (3, 3))
        loss = tf.add_n([tf.reduce_sum(variable**2) for variable in made])
        train = tf1.train.MomentumOptimizer(0.01, 0.9).minimize(loss)
        with tf.control_dependencies([train]):
            update = tf1.train.ExponentialMovingAverage(0.9).apply(made)
        session.run(tf1.global_variables_initializer())
        session.run(update)
        return tf1.train.Saver().save(session, str(folder / "model.ckpt"), global_step=1000)


def test_a_checkpoint_of_tf1_is_restored_by_its_averages_under_other_names(script, tmp_path, capsys):
    path = tf1_checkpoint(tmp_path)
    script(
        "--checkpoint", path, "--rename", "^net/", "", "--allow-unused", "net/aux", "--averages", "--order", "creation"
    )
    printed = capsys.readouterr().out
    assert "18 weights restored from" in printed
    assert "18 of them moving averages, 2 excluded, 1 unused, not read: 20 slots" in printed
    assert "test accuracy: " in printed


@pytest.mark.slow
def test_a_network_may_come_from_a_keras_file(script, tmp_path, capsys):
    small_cnn().save(tmp_path / "m.keras")
    script("--model", tmp_path / "m.keras", "--body", ":4", "--head", "4:")
    assert "18 weights restored" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("network", ["MobileNet", pytest.param("MobileNetV3Small", marks=pytest.mark.grid)])
def test_a_network_of_keras_applications_gets_a_head(network, script, tmp_path, capsys):
    made = getattr(keras.applications, network)(weights=None, include_top=False, input_shape=(32, 32, 3))
    made.save_weights(tmp_path / "m.weights.h5")
    script("--model", network, "--size", "32", "--checkpoint", tmp_path / "m.weights.h5")
    assert "2 excluded" in capsys.readouterr().out


def broken():
    """A builder of a network for another task."""
    return keras.Sequential([keras.Input((28, 28, 1)), keras.layers.Flatten(), keras.layers.Dense(3)])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--model", "InceptionV4"],
            "a network of `keras.applications`. Received: `InceptionV4`. Did you mean `InceptionV3`",
        ),
        (["--model", "no.module:build"], "`no.module` of `no.module:build` cannot be imported"),
        (["--model", f"{__name__}:broken"], r"has the shape \(1, 3\) and sums to 0. End it with `Dense\(10"),
        (["--checkpoint", "nowhere.ckpt"], "There is no `nowhere.ckpt`"),
        (["--rename", "(", ""], "`rename` needs regular expressions"),
        (["--averages"], "`averages` takes the moving averages in a file"),
        (["--body", "0:99"], "reaches beyond the model"),
        (["--exclude", "haed"], "Did you mean `head`"),
    ],
)
def test_bad_input_is_an_error_with_advice(script, options, message):
    with pytest.raises(FinetuneError, match=message):
        script(*options)


@pytest.mark.parametrize("options", [["--epochs", "0"], ["--body-rate", "nan"], ["--seed", "-1"], ["--rename", "a"]])
def test_wrong_options_are_reported_by_the_command_line(script, options, capsys):
    with pytest.raises(SystemExit) as ended:
        script(*options)
    assert ended.value.code == 2
    assert options[0] in capsys.readouterr().err


@pytest.mark.slow
def test_the_program_ends_in_one_message_and_exits_2():
    command = [sys.executable, SCRIPTS / "restore_and_train.py", "--checkpoint", "nowhere.ckpt"]
    environment = {**os.environ, "PYTHONPATH": str(SCRIPTS.parent)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("A file of pretrained weights must exist. There is no `nowhere.ckpt`.")
    assert len(done.stderr.splitlines()) == 1
