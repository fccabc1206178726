import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import safetensors.numpy


@pytest.mark.parametrize(
    "line", [["--debug", "check", "no.yaml"], ["check", "--debug", "no.yaml"], ["check", "no.yaml", "--debug"]]
)
def test_debug_shows_the_traceback_wherever_it_stands_and_keeps_the_exit_code(finetune, line):
    done = finetune(*line)
    assert done.returncode == 2
    assert done.stderr.startswith("Traceback (most recent call last):")
    assert (
        done.stderr.rstrip().splitlines()[-1].startswith("finetune.errors.RecipeError: The recipe `no.yaml` does not")
    )


def test_a_recipe_in_the_place_of_a_command_is_told_with_the_command(refused):
    assert refused("mine.yaml", "--debug") == "error: A recipe is no command. Run it: `finetune run mine.yaml`.\n"


def test_an_option_that_is_a_key_of_a_recipe_is_told_with_what_to_write(finetune, recipe):
    done = finetune("check", recipe, "--epochs", "3")
    assert done.returncode == 2
    assert done.stderr.endswith("`--epochs` is a key of a recipe and no option. Write `--set train.epochs=3`.\n")


def test_debug_changes_nothing_about_a_good_command(finetune, recipe):
    done = finetune("check", recipe, "--debug")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.slow
def test_a_reader_that_stops_reading_is_no_error_worth_a_traceback(environment, recipe):
    command = f"{sys.executable} -m finetune plan tiny.yaml --json | head -n 1"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, env=environment, check=False)
    assert done.stdout == "{\n"
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_terminal_that_knows_only_ascii_gets_a_table_too(environment, recipe):
    command = [sys.executable, "-m", "finetune", "plan", "tiny.yaml"]
    environment = {**environment, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "momentum" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(("number", "name", "code"), [(signal.SIGINT, "Ctrl-C", 130), (signal.SIGTERM, "SIGTERM", 143)])
def test_a_signal_saves_the_weights_says_so_in_one_line_and_leaves_no_other_files(
    environment, recipe, tmp_path, number, name, code
):
    (tmp_path / "tmp").mkdir()
    more = ["--set", "train.epochs=100000", "--set", "train.cache=disk"]
    with subprocess.Popen(
        [sys.executable, "-m", "finetune", "run", "tiny.yaml", "--out", "out", *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**environment, "TMPDIR": str(tmp_path / "tmp")},
    ) as process:
        for line in process.stdout:
            if line.startswith("epoch     20/"):
                assert Path("out/.lock").exists()
                process.send_signal(number)
                break
        process.stdout.read()
        error = process.stderr.read()
    assert process.returncode == code
    told = re.fullmatch(
        rf"stopped by {name}\. The weights after epoch (\d+)(?: and (\d) of 4 steps of epoch \d+)? are in "
        r"`out/checkpoints/last\.weights\.h5`\. `finetune resume out` goes on from there\.\n",
        error,
    )
    assert told, error
    with h5py.File("out/checkpoints/last.weights.h5") as file:
        assert int(file["optimizer/vars/0"][()]) == 4 * int(told[1]) + int(told[2] or 0)
    assert Path("out/metrics.csv").read_text().count("\n") == int(told[1]) + 1
    assert {path.name for path in Path("out").iterdir()} == {
        *(
            "recipe.yaml",
            "plan.txt",
            "plan.json",
            "restore.json",
            "data.json",
            "environment.json",
            "metrics.csv",
            "run.log",
            "tensorboard",
            "checkpoints",
        )
    }
    assert list((tmp_path / "tmp").iterdir()) == []


def test_output_that_cannot_be_written_does_not_end_the_training_and_is_said_at_the_end(environment, recipe):
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "finetune", "run", "tiny.yaml", "--out", "out"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, env=environment, check=False)
    assert (done.returncode, done.stderr) == (
        1,
        "error: Part of the output could not be written: No space left on device.\n",
    )
    assert Path("out/result.json").exists()


@pytest.mark.slow
def test_ctrl_c_while_tensorflow_starts_prints_none_of_its_noise(environment, recipe):
    script = """
import os, signal, sys, threading
from finetune.cli import main
sys.argv = ["finetune", "plan", "tiny.yaml"]
threading.Timer(0.8, os.kill, (os.getpid(), signal.SIGINT)).start()
main()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=False)
    assert (done.returncode, done.stderr) == (130, "stopped by Ctrl-C\n")


def test_names_in_files_reach_the_terminal_escaped(finetune, refused, recipe, tmp_path):
    name = "\x1b]0;title\x07\x1b[31mred\u202e/kernel\nerror: forged\r"
    safetensors.numpy.save_file({name: np.ones(1, "float32")}, tmp_path / "e.safetensors")
    listed = finetune("inspect", tmp_path / "e.safetensors")
    message = refused("plan", recipe, "--set", f"restore.from={tmp_path / 'e.safetensors'}")
    for text in (listed.stdout, message):
        assert not set("\x1b\x07\u202e") & set(text)
        assert "red\\u202e/kernel\\nerror: forged\\r" in text


def test_a_file_name_that_is_not_unicode_is_shown_escaped(environment, tmp_path):
    path = os.fsencode(tmp_path) + b"/\xff\x1b.yaml"
    done = subprocess.run(
        [sys.executable, "-m", "finetune", "check", path], capture_output=True, env=environment, check=False
    )
    assert done.returncode == 2
    assert b"\\udcff\\x1b.yaml" in done.stderr
