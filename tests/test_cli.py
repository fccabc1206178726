import json
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
import yaml

ROOT = Path(__file__).resolve().parent.parent
DIGITS = ROOT / "recipes" / "digits.yaml"
ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"},
    "PYTHONPATH": str(ROOT),
    "COLUMNS": "100",
}


def finetune(*arguments, **more):
    command = [sys.executable, "-m", "finetune", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=300, check=False, **more)


def refused(*arguments, code=2):
    """Runs a command that must fail with a message alone; returns the message."""
    done = finetune(*arguments)
    assert done.returncode == code
    assert "Traceback" not in done.stderr
    return done.stderr


# -- check ------------------------------------------------------------------------------------------------------------


def test_a_good_recipe_is_well_written_and_the_next_command_is_named(recipe):
    done = finetune("check", recipe)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "tiny.yaml: valid. See what it does with `finetune plan tiny.yaml`.\n"


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_of_the_project_is_well_written(path):
    done = finetune("check", path)
    # The files of `scripts/make_movie_tables.py` are not in the repository; everything else is checked.
    faults = [line for line in done.stderr.splitlines() if "/recipes/movie/" not in line]
    assert (done.returncode == 0 or "/recipes/movie/" in done.stderr, faults) == (True, [])


WITHOUT_TENSORFLOW = """
import sys
sys.argv = ["finetune", *sys.argv[1:]]
from finetune.cli import main
try:
    main()
except SystemExit as done:
    assert not done.code, done.code
loaded = {name.split(".")[0] for name in sys.modules} & {"tensorflow", "keras", "tensorflow_hub", "numpy", "h5py"}
assert not loaded, loaded
"""


@pytest.mark.parametrize("arguments", [["check", "tiny.yaml"], ["run", "--help"]])
def test_check_and_help_load_neither_tensorflow_nor_keras_nor_numpy(recipe, arguments):
    command = [sys.executable, "-c", WITHOUT_TENSORFLOW, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, check=False)
    assert (done.returncode, done.stderr) == (0, "")


# -- inspect ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["m.npz", "m.safetensors", "tiny.keras"])
def test_inspect_lists_weights_without_loading_tensorflow(name, tiny_files, tmp_path):
    arrays = {"kernel": np.ones((2, 3), "float32")}
    np.savez(tmp_path / "m.npz", **arrays)
    safetensors.numpy.save_file(arrays, tmp_path / "m.safetensors")
    path = tiny_files / name if name == "tiny.keras" else tmp_path / name
    command = [sys.executable, "-c", WITHOUT_TENSORFLOW.replace(', "numpy", "h5py"', ""), "inspect", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert ("head/0" if name == "tiny.keras" else "kernel  ") in done.stdout


def test_inspect_prints_json_on_request_and_a_message_alone_for_what_is_no_weight_file(tmp_path):
    np.savez(tmp_path / "m.npz", kernel=np.ones((2, 3), "float32"))
    listed = json.loads(finetune("inspect", tmp_path / "m.npz", "--json").stdout)
    assert (listed["kind"], listed["parameters"], listed["weights"][0]["name"]) == ("npz", 6, "kernel")
    (tmp_path / "m.txt").write_text("hello")
    assert refused("inspect", tmp_path / "m.txt").startswith("error: Known formats are `.keras`")


# -- reference --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_reference_writes_outputs_that_a_run_is_held_to(tiny_files, recipe, tmp_path):
    np.save(tmp_path / "rows.npy", np.ones((2, 6), "float32"))
    done = finetune("reference", tiny_files / "tiny.keras", tmp_path / "r.npz", "--input", tmp_path / "rows.npy")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[:2] == ["input: 2x6", "output: 2x3"]
    restore = ["--set", f"restore.from={tiny_files / 'tiny.keras'}", "--set", f"restore.verify={tmp_path / 'r.npz'}"]
    np.savez(tmp_path / "r.npz", input=np.ones((2, 6)), output=np.zeros((2, 3)))
    message = refused("run", recipe, *restore, "--out", tmp_path / "out")
    assert "`output` differs by up to" in message
    assert not (tmp_path / "out").exists()


def test_all_problems_are_reported_at_once_with_file_line_and_column(recipe):
    text = recipe.read_text()
    for old, new in [("seed: 3", "seed: -3"), ("momentum: 0.9}", "learning_rate: 1}"), ("epochs: 2", "epoch: 2")]:
        assert old in text
        text = text.replace(old, new)
    recipe.write_text(text)
    lines = refused("check", recipe).splitlines()
    assert lines[0] == "error: tiny.yaml:1:7: `seed` must be 0 or more. Received: `-3`."
    assert lines[1].startswith("tiny.yaml:8:")
    assert lines[2:] == [
        "tiny.yaml:11:1: `train.epochs` is missing. Add it under `train`.",
        "tiny.yaml:11:9: `train.epoch` is not a known key. Did you mean `epochs`?",
    ]


def test_an_override_is_applied_and_one_that_is_wrong_is_named(recipe):
    assert (
        finetune("check", recipe, "--set", "train.epochs=5", "--set", "groups.head.learning_rate=1e-3").returncode == 0
    )
    message = refused("check", recipe, "--set", "train.epochs=many", "--set", "groups.hed.learning_rate=1")
    assert "--set train.epochs: `train.epochs` must be a whole number." in message
    assert "Did you mean `head`?" in message


def test_code_of_others_needs_to_be_allowed_by_name(recipe):
    override = ["--set", "model={builder: my_package.models:build}"]
    message = refused("check", recipe, *override)
    assert "`model.builder: my_package.models:build` names code that is not part of finetune" in message
    assert "--allow-code my_package" in message
    assert "no module `my_package` to import" in refused("check", recipe, *override, "--allow-code", "my_package")
    assert "--allow-code my_package" in refused("check", recipe, *override, "--allow-code", "my_pack")
    Path("my_package").mkdir()
    Path("my_package", "__init__.py").touch()
    Path("my_package", "models.py").write_text("def build(): ...")
    assert finetune("check", recipe, *override, "--allow-code", "my_package").returncode == 0


def test_a_missing_recipe_is_reported_with_the_nearest_name(recipe):
    assert refused("check", "tny.yaml") == "error: The recipe `tny.yaml` does not exist. Did you mean `tiny.yaml`?\n"


@pytest.mark.parametrize(
    "line", [["--debug", "check", "no.yaml"], ["check", "--debug", "no.yaml"], ["check", "no.yaml", "--debug"]]
)
def test_debug_shows_the_traceback_wherever_it_stands_and_keeps_the_exit_code(line):
    done = finetune(*line)
    assert done.returncode == 2
    assert done.stderr.startswith("Traceback (most recent call last):")
    assert (
        done.stderr.rstrip().splitlines()[-1].startswith("finetune.errors.RecipeError: The recipe `no.yaml` does not")
    )


def test_debug_changes_nothing_about_a_good_command(recipe):
    done = finetune("check", recipe, "--debug")
    assert (done.returncode, done.stderr) == (0, "")


# -- Usage ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["chek", "a.yaml"], "No such command 'chek'"),
        (["check"], "Missing argument"),
        (["check", "a.yaml", "--sett", "x=1"], "No such option: --sett"),
        (["run", "a.yaml", "--out"], "requires an argument"),
        (["check", "a.yaml", "b.yaml"], "unexpected extra argument"),
    ],
)
def test_a_wrong_command_line_exits_2_with_the_usage(arguments, told):
    message = refused(*arguments)
    assert told in message
    assert len(message) < 400


def test_without_a_command_the_help_is_shown():
    done = finetune()
    assert done.returncode == 2
    assert "finetune check recipe.yaml" in done.stdout + done.stderr


def test_the_help_names_every_command_and_the_version_is_the_packages():
    shown = finetune("--help").stdout
    assert all(f"  {command} " in shown for command in ("run", "plan", "check"))
    assert finetune("--version").stdout == "finetune 0.1.0\n"


# -- plan and run -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_plan_as_json_is_alone_on_stdout_and_nothing_is_on_stderr(recipe):
    done = finetune("plan", recipe, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    plan = json.loads(done.stdout)
    assert plan["groups"] == ["stem", "body", "head"]
    body = next(weight for weight in plan["weights"] if weight["name"] == "body/kernel")
    assert body["learning_rate"] == pytest.approx([1e-2, 1e-2, 5e-3])


@pytest.mark.slow
def test_a_run_tells_plan_epochs_metrics_proof_and_folder_and_nothing_on_stderr(recipe):
    done = finetune("run", recipe, "--out", "out")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0] == "model: tiny, 187 parameters"
    assert [line[:9] for line in lines if line.startswith("epoch")] == ["epoch 1/2", "epoch 2/2"]
    starts = [line.partition(": ")[0] for line in lines]
    results = starts.index("test loss")
    assert starts[results : results + 3] == ["test loss", "test accuracy", "without inputs"]
    assert [line.split() for line in lines[results + 3 :]][1] == ["class", "test", "recall", "precision"]
    assert lines[-2:] == ["proof: all 6 frozen tensors are bit-identical to the start", "written: out"]


@pytest.mark.slow
def test_a_plan_shows_groups_and_with_weights_every_weight(recipe):
    groups = finetune("plan", recipe)
    assert (groups.returncode, groups.stderr) == (0, "")
    assert "stem, bn" in groups.stdout
    assert "body/kernel" not in groups.stdout
    weights = finetune("plan", recipe, "--weights").stdout
    assert "bn/moving_variance" in weights
    assert "0.01, 0.01, 0.005" in weights


@pytest.mark.slow
def test_a_reader_that_stops_reading_is_no_error_worth_a_traceback(recipe):
    command = f"{sys.executable} -m finetune plan tiny.yaml --json | head -n 1"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, env=ENVIRONMENT, check=False)
    assert done.stdout == "{\n"
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_terminal_that_knows_only_ascii_gets_a_table_too(recipe):
    command = [sys.executable, "-m", "finetune", "plan", "tiny.yaml"]
    environment = {**ENVIRONMENT, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "momentum" in done.stdout


@pytest.mark.slow
def test_bad_input_found_only_with_the_model_exits_2_with_its_place_and_leaves_nothing(recipe):
    assert refused("run", recipe, "--out", "out", "--set", "groups.body.prefixes=[bdy]") == (
        "error: --set groups.body.prefixes: group `body` matches nothing: `prefixes: [bdy]`. The model's top layers are "
        "`stem`, `bn`, `body`, `head`. Did you mean `body`?\n"
    )
    assert not Path("out").exists()


@pytest.mark.slow
def test_training_that_fails_exits_1_with_advice_alone(recipe):
    rates = ["--set", "groups.body.learning_rate=1e30", "--set", "groups.head.learning_rate=1e30"]
    message = refused("run", recipe, "--out", "out", *rates, code=1)
    assert message.startswith("error: A loss must be a finite number.")
    assert message.count("\n") == 1
    assert not Path("out/model.keras").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("number", "name", "code"), [(signal.SIGINT, "Ctrl-C", 130), (signal.SIGTERM, "SIGTERM", 143)])
def test_a_signal_saves_the_weights_says_so_in_one_line_and_leaves_no_other_files(recipe, tmp_path, number, name, code):
    (tmp_path / "tmp").mkdir()
    more = ["--set", "train.epochs=100000", "--set", "train.cache=disk"]
    with subprocess.Popen(
        [sys.executable, "-m", "finetune", "run", "tiny.yaml", "--out", "out", *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**ENVIRONMENT, "TMPDIR": str(tmp_path / "tmp")},
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
            "metrics.csv",
            "tensorboard",
            "checkpoints",
        )
    }
    assert list((tmp_path / "tmp").iterdir()) == []


def test_output_that_cannot_be_written_does_not_end_the_training_and_is_said_at_the_end(recipe):
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "finetune", "run", "tiny.yaml", "--out", "out"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT, check=False)
    assert (done.returncode, done.stderr) == (
        1,
        "error: Part of the output could not be written: No space left on device.\n",
    )
    assert Path("out/result.json").exists()


def test_the_exit_codes_are_in_the_help():
    said = " ".join(finetune("--help").stdout.split())
    assert "Exit codes: 0; 2 for bad input" in said
    assert "130 after Ctrl-C, 143 after SIGTERM and 129 after SIGHUP" in said


@pytest.mark.slow
def test_ctrl_c_while_tensorflow_starts_prints_none_of_its_noise(recipe):
    script = """
import os, signal, sys, threading
from finetune.cli import main
sys.argv = ["finetune", "plan", "tiny.yaml"]
threading.Timer(0.8, os.kill, (os.getpid(), signal.SIGINT)).start()
main()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=ENVIRONMENT, check=False)
    assert (done.returncode, done.stderr) == (130, "stopped by Ctrl-C\n")


@pytest.mark.slow
def test_the_embedded_recipe_runs_and_learns(tmp_path):
    done = finetune("run", DIGITS, "--out", tmp_path / "out", "--set", "train.epochs=5", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["frozen_unchanged"] is True
    assert result["metrics"]["accuracy"] > 0.7
    assert result["metrics"]["accuracy"] > result["metrics_before"]["accuracy"] + 0.3


# -- lr-range and suggest ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_an_lr_range_test_shows_a_curve_and_a_rate_and_writes_what_is_asked_for(tmp_path):
    before = DIGITS.read_bytes()
    done = finetune("lr-range", DIGITS, "--group", "head", "--out", tmp_path / "out")
    assert (done.returncode, done.stderr) == (0, "")
    assert "learning rate of `head` alone" in done.stdout
    assert 1e-3 < float(done.stdout.partition("suggested for `head`: ")[2].split()[0]) < 1e-1
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "lr_range.json",
        "lr_range.png",
        "lr_range.svg",
    ]
    assert DIGITS.read_bytes() == before


@pytest.mark.slow
def test_an_lr_range_test_that_refuses_exits_1_and_one_that_cannot_be_made_exits_2(recipe):
    done = finetune("lr-range", recipe, "--start", "1e-12", "--end", "1e-10", "--steps", "40")
    assert (done.returncode, done.stderr) == (1, "")
    assert "no suggestion: The curve is flat" in done.stdout
    assert "raises the rate from `start` > 0" in refused("lr-range", recipe, "--start", "-1")


@pytest.mark.slow
def test_suggested_groups_are_alone_on_stdout_so_that_they_can_be_piped(recipe):
    done = finetune("suggest", recipe, "--batches", "2")
    assert done.returncode == 0
    assert [group["name"] for group in yaml.safe_load(done.stdout)["groups"]] == ["stem", "body", "head"]
    assert "of the largest" in done.stderr


# -- Names from outside -----------------------------------------------------------------------------------------------


def test_names_in_files_reach_the_terminal_escaped(recipe, tmp_path):
    name = "\x1b]0;title\x07\x1b[31mred\u202e/kernel\nerror: forged\r"
    safetensors.numpy.save_file({name: np.ones(1, "float32")}, tmp_path / "e.safetensors")
    listed = finetune("inspect", tmp_path / "e.safetensors")
    message = refused("plan", recipe, "--set", f"restore.from={tmp_path / 'e.safetensors'}")
    for text in (listed.stdout, message):
        assert not set("\x1b\x07\u202e") & set(text)
        assert "red\\u202e/kernel\\nerror: forged\\r" in text


def test_a_file_name_that_is_not_unicode_is_shown_escaped(tmp_path):
    path = os.fsencode(tmp_path) + b"/\xff\x1b.yaml"
    done = subprocess.run(
        [sys.executable, "-m", "finetune", "check", path], capture_output=True, env=ENVIRONMENT, check=False
    )
    assert done.returncode == 2
    assert b"\\udcff\\x1b.yaml" in done.stderr
