import csv
import json
import os
import subprocess
import sys
import zipfile
from io import StringIO
from pathlib import Path

import keras
import numpy as np
import pytest
from rich.console import Console

import finetune
from finetune.checksum import checksum
from finetune.errors import DataError, FinetuneError, RecipeError, TrainingError
from finetune.groups.layer_tree import layer_tree
from finetune.recipe.loader import load_recipe
from finetune.results.hashes import check_hashes

# NumPy 2 warns when Keras copies a TensorFlow variable to save it.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")


@pytest.fixture(scope="module")
def finished(tiny_files, tmp_path_factory):
    """One finished run with its former weights: restored, a frozen group, validation rows, and what was told."""
    folder = tmp_path_factory.mktemp("finished") / "out"
    keras.models.load_model(tiny_files / "tiny.keras").save_weights(folder.parent / "tiny.weights.h5")
    told = StringIO()
    overrides = [
        f"restore={{from: {folder.parent / 'tiny.weights.h5'}, exclude: [head]}}",
        "train.validation_fraction=0.2",
        "train.epochs=3",
    ]
    recipe = tiny_files / "tiny.yaml"
    result = finetune.run(recipe, folder, overrides=overrides, console=Console(file=told, width=200))
    return result, told.getvalue(), load_recipe(recipe, overrides=overrides)


def read_json(path):
    return json.loads(path.read_text())


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def names_in(folder):
    return {path.name for path in Path(folder).iterdir()}


def snapshot(folder):
    files = [path for path in Path(folder).rglob("*") if path.is_file()]
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


# -- What a run leaves behind -----------------------------------------------------------------------------------------


def test_a_run_folder_holds_every_file_that_is_promised_and_no_other(finished):
    result, _, _ = finished
    assert names_in(result.folder) == {
        *("recipe.yaml", "plan.txt", "plan.json", "restore.json", "metrics.csv", "tensorboard", "checkpoints"),
        *("environment.json", "report.json", "predictions.npz", "report.html", "model_card.md", "hashes.json"),
        *("data.json", "model.keras", "result.json", "plots", "run.log"),
    }
    assert names_in(result.folder / "plots") == {"training.png", "training.svg"}
    kept = names_in(result.folder / "checkpoints")
    assert {name.split("-")[0] for name in kept} == {"last.weights.h5", "step"}
    assert len(kept) == 2
    assert names_in(result.folder / "tensorboard") == {"train", "validation"}


def test_the_result_is_in_a_file_and_in_what_is_returned(finished):
    result, _, _ = finished
    stored = read_json(result.folder / "result.json")
    assert set(stored) == {
        "format",
        "batch_size",
        "metrics",
        "metrics_before",
        "metrics_of_mean",
        "classes",
        "frozen_unchanged",
        "frozen_tensors",
        "seconds",
        "kernels",
    }
    assert stored["metrics"] == result.metrics
    assert stored["metrics_before"] == result.metrics_before
    assert stored["metrics_of_mean"] == result.metrics_of_mean
    assert 0 < result.metrics_of_mean["accuracy"] < 1
    assert stored["classes"] == result.classes
    of_classes = result.classes[""].values()
    hits = sum(of["rows"] * (of["recall"] or 0) for of in of_classes)
    assert hits / sum(of["rows"] for of in of_classes) == pytest.approx(result.metrics["accuracy"])
    assert list(stored["metrics"]) == ["loss", "accuracy"]
    assert (stored["frozen_unchanged"], stored["frozen_tensors"]) == (True, 6)
    assert set(stored["seconds"]) == {"load", "prepare", "evaluate", "train", "save", "plot", "report"}


def test_the_metrics_of_the_result_are_those_of_the_returned_model(finished, rows):
    result, _, _ = finished
    x, y = rows
    outputs = result.model.predict(x[60:], verbose=0)
    assert result.metrics["accuracy"] == pytest.approx(np.mean(outputs.argmax(axis=1) == y[60:]))


def test_metrics_and_the_rate_of_every_group_are_kept_for_every_epoch(finished):
    table = rows_of(finished[0].folder / "metrics.csv")
    assert [row["epoch"] for row in table] == ["1", "2", "3"]
    assert set(table[0]) == {
        *("epoch", "loss", "accuracy", "val_loss", "val_accuracy"),
        *("learning_rate/body", "learning_rate/head"),
    }
    halvings = np.array([3, 6, 9]) // 4  # 48 rows are 3 batches of 16; the rate falls every 4 steps
    np.testing.assert_allclose([float(row["learning_rate/body"]) for row in table], 1e-2 * 0.5**halvings, rtol=1e-6)
    np.testing.assert_allclose([float(row["learning_rate/head"]) for row in table], 2e-2, rtol=1e-6)


def test_the_recipe_in_the_folder_is_the_one_that_ran_wherever_it_is_read(finished, tmp_path, monkeypatch):
    result, _, wanted = finished
    monkeypatch.chdir(tmp_path)
    stored = load_recipe(result.folder / "recipe.yaml")
    assert stored.model_dump(exclude={"model", "data", "restore"}) == wanted.model_dump(
        exclude={"model", "data", "restore"}
    )
    assert Path(stored.model.keras_file).is_absolute()
    assert stored.restore.exclude == ("head",)


def test_what_was_restored_is_kept_with_checksums(finished):
    stored = read_json(finished[0].folder / "restore.json")
    assert len(stored["restored"]) == 8
    assert set(stored["excluded"]) == {"head/kernel", "head/bias"}
    assert stored["missing"] == stored["unused"] == stored["shape_conflict"] == []
    assert all(weight["after"] == weight["file"] for weight in stored["restored"])


def test_the_plan_is_kept_as_text_and_as_data(finished):
    folder = finished[0].folder
    stored = read_json(folder / "plan.json")
    assert (stored["steps"], len(stored["weights"])) == (9, 10)
    text = (folder / "plan.txt").read_text()
    assert all(weight["name"] in text for weight in stored["weights"])


def test_what_is_printed_is_where_weights_came_from_the_plan_every_epoch_and_nothing_else(finished):
    lines = finished[1].splitlines()
    assert lines[0] == "model: tiny, 187 parameters"
    assert lines[1].startswith("8 weights restored from ")
    assert lines[2].startswith("plan: 3 epochs of 3 steps.")
    assert [line[:9] for line in lines if line.startswith("epoch")] == ["epoch 1/3", "epoch 2/3", "epoch 3/3"]
    assert [line.partition(":")[0] for line in lines[-2:]] == ["report", "kept to train for longer"]


def test_frozen_tensors_are_bit_identical_and_all_others_trained(finished, tiny_files):
    start = layer_tree(keras.models.load_model(tiny_files / "tiny.keras")).by_name
    for leaf in layer_tree(finished[0].model).leaves:
        same = checksum(leaf.variable) == checksum(start[leaf.name].variable)
        assert same == leaf.name.startswith(("stem/", "bn/")), leaf.name


def test_the_saved_model_names_nothing_of_finetune(finished):
    with zipfile.ZipFile(finished[0].folder / "model.keras") as file:
        assert b"finetune" not in file.read("config.json")
        assert b"finetune" not in file.read("model.weights.h5")


PLAIN_KERAS = """
import sys
import keras, numpy
model = keras.models.load_model(sys.argv[1])
numpy.save(sys.argv[3], model.predict(numpy.load(sys.argv[2]), verbose=0))
assert not any(name.split(".")[0] == "finetune" for name in sys.modules)
"""


@pytest.mark.slow
def test_the_model_opens_where_finetune_is_not_and_predicts_the_same(finished, rows, tmp_path):
    result, _, _ = finished
    np.save(tmp_path / "x.npy", rows[0])
    command = [sys.executable, "-c", PLAIN_KERAS, result.folder / "model.keras", tmp_path / "x.npy", tmp_path / "y.npy"]
    subprocess.run(command, check=True, cwd=tmp_path, capture_output=True)
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), result.model.predict(rows[0], verbose=0))


def test_the_last_weights_are_those_of_the_model(finished, tiny):
    result, _, _ = finished
    again = tiny()
    again.load_weights(result.folder / "checkpoints" / "last.weights.h5", skip_mismatch=False)
    for one, other in zip(result.model.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_returned_model_can_be_trained_further(finished, rows):
    model = finished[0].model
    steps = int(model.optimizer.iterations)
    model.fit(*rows, batch_size=45, verbose=0)
    assert int(model.optimizer.iterations) == steps + 2


# -- The same again ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_without_out_runs_are_numbered_and_the_same_seed_gives_the_same_result(recipe):
    first, second = (finetune.run(recipe, overrides=["train.epochs=1"]) for _ in range(2))
    assert [first.folder, second.folder] == [Path("runs/tiny-1"), Path("runs/tiny-2")]
    assert first.metrics == second.metrics
    for one, same in zip(first.model.get_weights(), second.model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, same)


@pytest.mark.slow
def test_another_seed_gives_another_result(recipe):
    first, second = (finetune.run(recipe, name, overrides=[f"seed={name}"]) for name in "12")
    assert first.metrics["loss"] != second.metrics["loss"]


def test_a_second_run_into_the_same_folder_is_refused_before_any_work_and_touches_nothing(recipe, finished):
    folder = finished[0].folder
    before = snapshot(folder)
    told = StringIO()
    with pytest.raises(FinetuneError, match="is not empty"):
        finetune.run(recipe, folder, console=Console(file=told))
    assert told.getvalue() == ""
    assert snapshot(folder) == before


def a_former_run(folder):
    for name in ("checkpoints", "plots"):
        (folder / name).mkdir(parents=True)
    (folder / "note.txt").write_text("mine")
    for name in ("recipe.yaml", "plan.txt", "model.keras", "result.json", "plots/training.png", "checkpoints/old.h5"):
        (folder / name).write_text("old")


DIVERGE = ["groups.body.learning_rate=1e30", "groups.head.learning_rate=1e30"]


def test_bad_input_leaves_the_former_run_as_it_was_even_when_overwriting(recipe):
    a_former_run(Path("out"))
    before = snapshot("out")
    with pytest.raises(FinetuneError):
        finetune.run(recipe, "out", overwrite=True, overrides=["groups.body.prefixes=[bdy]"])
    assert snapshot("out") == before


# -- Bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "override",
    [
        *("train.epochs=0", "model.keras_file=nowhere.keras", "data.npz=nowhere.npz", "groups.body.prefixes=[bdy]"),
        *("groups.body.optimizer={name: sgd, momentun: 1}", "train.loss=mze", "train.loss=categorical_crossentropy"),
        *("restore={from: nowhere.h5}", "data={builder: os:getcwd}", "train.validation_fraction=0.999"),
    ],
)
def test_bad_input_is_one_of_our_errors_and_leaves_no_folder_behind(recipe, override):
    with pytest.raises(FinetuneError) as error:
        finetune.run(recipe, "out" if "data" in override else None, overrides=[override])
    assert error.value.exit_code == 2
    assert names_in(".") == {"tiny.yaml"}


@pytest.fixture
def other_rows(rows):
    """Writes other examples into the working directory and returns the override that names them."""

    def write(x=lambda x: x, y_train=lambda y: y, y_test=lambda y: y):
        inputs, labels = x(rows[0]), rows[1]
        np.savez(
            "other.npz",
            x_train=inputs[:60],
            y_train=y_train(labels[:60]),
            x_test=inputs[60:],
            y_test=y_test(labels[60:]),
        )
        return f"data.npz={Path('other.npz').absolute()}"

    return write


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"x": lambda x: x[:, :5]}, "`tiny` takes `6` values per row; the data have `5` values"),
        (
            {"y_train": lambda y: y + 1},
            "`model.keras_file`: A network has an output for each class. The model gives 3 classes, numbered `0` to `2`, and `y_train` has `3`, too.",
        ),
        ({"y_test": lambda y: y + 1}, "and `y_test` has `3`, too. These have no output. Number them from 0"),
        (
            {"y_train": lambda y: np.eye(3)[y], "y_test": lambda y: np.eye(3)[y]},
            "takes the number of the class of each row.",
        ),
    ],
)
def test_examples_that_do_not_fit_are_bad_input_for_run_and_plan(recipe, other_rows, change, told):
    override = other_rows(**change)
    for call in (
        lambda: finetune.run(recipe, "out", overrides=[override]),
        lambda: finetune.plan(recipe, overrides=[override]),
    ):
        with pytest.raises(RecipeError) as error:
            call()
        assert told in str(error.value)
        assert str(error.value).startswith("tiny.yaml:")
        assert "\n" not in str(error.value)
    assert not Path("out").exists()


# -- Training that fails ----------------------------------------------------------------------------------------------


def test_a_loss_that_is_no_number_ends_the_run_with_advice_and_leaves_no_model_of_a_former_run_either(recipe):
    a_former_run(Path("out"))
    with pytest.raises(TrainingError) as error:
        finetune.run(recipe, "out", overrides=DIVERGE, overwrite=True)
    assert error.value.exit_code == 1
    assert "in epoch 1, step " in str(error.value)
    assert "Lower the learning rates, or set `train.global_clipnorm: 1.0`." in str(error.value)
    assert f"`{Path('out/metrics.csv')}`" in str(error.value)
    assert names_in("out") == {
        *("note.txt", "recipe.yaml", "plan.txt", "plan.json", "restore.json", "data.json", "metrics.csv"),
        *("tensorboard", "run.log", "environment.json"),
    }
    assert "old" not in Path("out/recipe.yaml").read_text()


@pytest.fixture
def one_bad_row(recipe, rows):
    """The recipe, with a row among the training rows on which the gradients overflow."""
    x, y = rows[0].astype("float32"), rows[1]
    x[20] = 3e38
    np.savez("bad.npz", x_train=x[:60], y_train=y[:60], x_test=x[60:], y_test=y[60:])
    return recipe, ["data.npz=bad.npz"]


def test_a_step_that_is_not_finite_ends_the_run_with_the_weights_before_it(one_bad_row):
    recipe, overrides = one_bad_row
    with pytest.raises(TrainingError) as caught:
        finetune.run(recipe, "out", overrides=[*overrides, "train.non_finite=stop"])
    message = str(caught.value)
    assert message.startswith("Gradients must be finite numbers. They were not in epoch 1, step ")
    assert "(group `body`)" in message
    assert "steps of epoch 1 are in `out/checkpoints/last.weights.h5`." in message or "No weights are saved." in message
    assert not Path("out/model.keras").exists()


def test_steps_that_are_left_out_are_counted_in_the_result_and_told(one_bad_row):
    recipe, overrides = one_bad_row
    told = StringIO()
    result = finetune.run(
        recipe, "out", overrides=[*overrides, "train.non_finite=skip"], console=Console(file=told, width=400)
    )
    assert result.skipped_steps == read_json(Path("out/result.json"))["skipped_steps"] == 2
    (warning,) = result.warnings
    assert warning.startswith(
        "2 of 8 steps were left out, since gradients were not finite; the first in epoch 1, step "
    )
    assert f"warning: {warning}" in told.getvalue()
    assert np.isfinite([float(row["loss"]) for row in rows_of(Path("out/metrics.csv"))]).all()


def test_weights_that_are_no_numbers_are_not_kept_in_place_of_those_that_were(recipe, monkeypatch):
    from finetune.training import fit as fitting

    class Breaks(fitting.LearningRateLogger):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1:
                self.model.get_layer("bn").moving_mean.assign([np.nan] * 8)

    monkeypatch.setattr(fitting, "LearningRateLogger", Breaks)
    with pytest.raises(TrainingError) as caught:
        finetune.run(recipe, "out")
    assert str(caught.value).startswith(
        "Every weight and every moving statistic must be a finite number. Since epoch 2"
    )
    assert str(caught.value).endswith(" The weights after epoch 1 are in `out/checkpoints/last.weights.h5`.")


@pytest.mark.slow
def test_weights_that_break_in_the_very_last_step_are_found_on_the_test_examples(recipe):
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


def test_an_error_inside_tensorflow_is_one_line_and_keeps_what_there_is(odd):
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


# -- Settings that change how the run goes ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "overrides",
    [
        ["train.global_clipnorm=1.0", "train.gradient_accumulation_steps=2", "train.use_ema=true"],
        ["train.steps_per_execution=3", "train.validation_fraction=0.2"],
        ["train.jit_compile=true"],
        ["groups={by: layer, peak: 1e-2, decay: 2.6, optimizer: adamw, learning_rate: {schedule: one_cycle}}"],
        ["train.shuffle=false", "train.metrics=[]"],
    ],
)
@pytest.mark.slow
def test_a_run_goes_well_with(recipe, overrides):
    result = finetune.run(recipe, "out", overrides=overrides)
    assert result.frozen_unchanged
    assert result.frozen_tensors == (0 if "by: layer" in overrides[0] else 6)
    assert np.isfinite(result.metrics["loss"])
    assert result.metrics["loss"] != result.metrics_before["loss"]


@pytest.mark.slow
@pytest.mark.parametrize("fast_loop", ["false", "true"])
def test_a_run_makes_the_steps_of_its_plan_whoever_makes_them_and_however_many_share_a_call(recipe, fast_loop):
    phases = "phases=[{train: [head], epochs: 2}, {train: all, steps: 6}, {train: all, steps: 2}]"
    jit = {"true": "false", "false": "true"}[fast_loop]  # XLA needs Keras' own loop
    overrides = [phases, "train.epochs=null", "train.steps_per_execution=64", f"train.jit_compile={jit}"]
    result = finetune.run(recipe, "out", overrides=overrides)
    assert [phase.steps for phase in result.phases] == [8, 6, 2]


@pytest.mark.slow
@pytest.mark.parametrize("mixed", ["bfloat16", "float16"])
def test_a_run_in_mixed_precision_keeps_float32_weights_and_puts_the_policy_back(recipe, mixed):
    overrides = [
        "model={builder: finetune.examples.digits:small_cnn}",
        "data={builder: finetune.examples.digits:uci_digits, arguments: {train_rows: 20, test_rows: 20}}",
        "groups.stem.prefixes=[conv1, bn1]",
        "groups.body.prefixes=[conv2, bn2, conv3, bn3]",
        f"train.mixed_precision={mixed}",
        "train.epochs=1",
    ]
    result = finetune.run(recipe, "out", overrides=overrides)
    assert result.frozen_unchanged
    assert {leaf.variable.dtype for leaf in layer_tree(result.model).leaves} == {"float32"}
    assert result.model.get_layer("conv2").compute_dtype == mixed
    assert keras.config.dtype_policy().name == "float32"
    assert keras.models.load_model("out/model.keras").get_layer("conv2").compute_dtype == mixed


@pytest.mark.slow
def test_validation_rows_of_the_data_are_used(recipe, rows):
    x, y = rows
    np.savez(
        "own.npz",
        x_train=x[:50],
        y_train=y[:50],
        x_test=x[60:],
        y_test=y[60:],
        x_validation=x[50:60],
        y_validation=y[50:60],
    )
    result = finetune.run(recipe, "out", overrides=[f"data.npz={Path('own.npz').absolute()}", "train.epochs=1"])
    assert "val_loss" in rows_of(result.folder / "metrics.csv")[0]
    assert read_json(result.folder / "plan.json")["steps"] == 4  # 50 rows by 16


# -- The plan alone ---------------------------------------------------------------------------------------------------


def test_a_plan_trains_nothing_and_writes_nothing(recipe, tiny_files):
    ready = finetune.plan(recipe)
    start = keras.models.load_model(tiny_files / "tiny.keras")
    for one, other in zip(ready.model.get_weights(), start.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    assert names_in(".") == {"tiny.yaml"}


def test_weights_of_a_model_file_count_as_restored_from_it(recipe, tiny_files):
    rows = finetune.plan(recipe).plan.weights
    assert {row.restored_from for row in rows} == {str(tiny_files / "tiny.keras")}


def test_the_plan_of_a_run_is_the_plan_that_was_shown(finished, tiny_files):
    result, _, wanted = finished
    restore = f"restore={{from: {wanted.restore.source}, exclude: [head]}}"
    overrides = [restore, "train.validation_fraction=0.2", "train.epochs=3"]
    shown = finetune.plan(tiny_files / "tiny.yaml", overrides=overrides).plan.to_json()
    assert read_json(result.folder / "plan.json") == json.loads(json.dumps(shown))


def test_a_folder_of_images_trains_without_code(photos):
    told = StringIO()
    result = finetune.run(photos, photos.parent / "out", console=Console(file=told, width=200))
    assert result.metrics["accuracy"] == 1
    assert "data: 12 rows to train on, 6 to test, 6 to validate; 3 classes" in told.getvalue()
    described = read_json(result.folder / "data.json")
    assert described["class_names"] == ["blue", "green", "red"]
    assert described["rows_of_classes"]["test"] == [2, 2, 2]
    assert described["source"]["size"] == [8, 8]
    assert result.model.output_shape == (None, 3)


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


def test_why_the_fast_loop_was_not_used_is_printed_once_and_recorded(tiny_files, tmp_path):
    told = StringIO()
    overrides = [
        "train.jit_compile=true",
        "train.epochs=2",
        "phases=[{train: head, epochs: 1}, {train: all, epochs: 1}]",
    ]
    console = Console(file=told, width=200)
    result = finetune.run(tiny_files / "tiny.yaml", tmp_path / "out", overrides=overrides, console=console)
    sentence = "Keras' own loop made the steps, not the fast one: XLA compiles its step"
    assert told.getvalue().count(sentence) == 1
    recorded = read_json(tmp_path / "out/result.json")
    assert result.keras_loop == recorded["keras_loop"] == "XLA compiles its step"
    assert [phase["keras_loop"] for phase in recorded["phases"]] == ["XLA compiles its step"] * 2


def test_nothing_is_said_of_the_fast_loop_where_it_was_used(finished):
    result, told, _ = finished
    assert result.keras_loop == ""
    assert "own loop" not in told
    assert "keras_loop" not in read_json(result.folder / "result.json")


def test_a_moving_variance_that_becomes_no_number_fails_the_run(recipe, tmp_path, monkeypatch):
    poison = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: (
            poison.model.get_layer("bn").moving_variance.assign(
                np.full(poison.model.get_layer("bn").moving_variance.shape, np.nan)
            )
            if epoch == 1
            else None
        )
    )
    monkeypatch.setattr("finetune.training.fit.LearningRateLogger", lambda: poison)
    with pytest.raises(
        TrainingError, match=r"Since epoch 2 \(all were finite after epoch 1\), .*`bn/moving_variance` \(group `stem`\)"
    ):
        finetune.run(recipe, tmp_path / "out", overrides=["train.epochs=3"])
    assert not (tmp_path / "out" / "model.keras").exists()


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


def test_the_result_says_which_layers_ran_native_kernels_and_exact_ones_have_the_bits_of_keras(recipe, finished):
    result, told, _ = finished
    assert result.native == {"layers": {"BatchNormalization": 1}, "functions": []}
    assert read_json(result.folder / "result.json")["kernels"] == {"native": result.native}
    assert read_json(result.folder / "plan.json")["native"] == {"BatchNormalization": 1, "Dense": 3}
    assert "kernels: native where they apply, in BatchNormalization (1), Dense (3)" in told
    assert "where they apply, in BatchNormalization (1), Dense (3)" in (result.folder / "plan.txt").read_text()
    exact = finetune.run(recipe, out="exact", overrides=["train.kernels=exact"])
    assert read_json(exact.folder / "result.json")["kernels"] == "exact"
    assert "native" not in read_json(exact.folder / "plan.json")
    assert exact.model.test_function is None  # a function of the run's would run its kernels
