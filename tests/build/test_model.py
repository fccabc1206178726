import subprocess
import sys
import tarfile
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

import finetune
from finetune import layer_tree
from finetune.build.model import build_for
from finetune.data.examples import Examples
from finetune.errors import FinetuneError, RecipeError
from finetune.recipe.loader import load_recipe

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

ROOT = Path(__file__).resolve().parents[2]
GROUPS = """
groups:
  - {name: body, prefixes: [BODY], optimizer: sgd, learning_rate: 1.0e-3}
  - {name: head, prefixes: [head], optimizer: adamw, learning_rate: 1.0e-2}
train: {epochs: 1, batch_size: 8, loss: sparse_categorical_crossentropy, metrics: [accuracy]}
"""


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TFHUB_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture
def write(tmp_path):
    """Writes `recipe.yaml` and its `rows.npz`."""

    def to_file(model, x, y=None, body="hub"):
        y = np.arange(len(x)) % 3 if y is None else y
        np.savez(tmp_path / "rows.npz", x_train=x, y_train=y, x_test=x, y_test=y)
        (tmp_path / "recipe.yaml").write_text(
            f"model: {{{model}}}\ndata: {{npz: rows.npz}}{GROUPS.replace('BODY', body)}"
        )
        return tmp_path / "recipe.yaml"

    return to_file


def rows(*shape):
    return np.random.default_rng(0).normal(size=(12, *shape)).astype("float32")


def images(size):
    return np.random.default_rng(0).integers(0, 256, size=(6, size, size, 3)).astype("uint8")


def names_of(tree_or_plan):
    return [weight.name for weight in tree_or_plan.weights]


# -- SavedModels ------------------------------------------------------------------------------------------------------


def test_a_recipe_plans_a_saved_model_with_a_head(write, encoder_folder):
    path = write(f"hub: {encoder_folder}, head: {{classes: 3, units: 4}}", rows(6))
    with pytest.raises(FinetuneError, match=r"recipe.yaml:1:14: `model.hub`: The graph .* add `--allow-code hub:/"):
        finetune.plan(path)
    layout = finetune.plan(path, allow_code=[f"hub:{encoder_folder}"])
    assert names_of(layout.plan)[:2] == ["hub/stem/kernel", "hub/stem/bias"]
    assert names_of(layout.plan)[-2:] == ["head/output/kernel", "head/output/bias"]
    sources = {weight.name: weight.restored_from for weight in layout.plan.weights}
    assert sources["hub/body/kernel"] == str(encoder_folder)
    assert sources["head/output/kernel"] is None


@pytest.mark.slow
def test_a_recipe_runs_a_saved_model_from_an_archive_beside_it(write, encoder, encoder_folder, tmp_path):
    with tarfile.open(tmp_path / "encoder.tar.gz", "w:gz") as file:
        file.add(encoder_folder, arcname=".")
    path = write("hub: encoder.tar.gz, head: {classes: 3}", rows(6))
    path.write_text(
        path.read_text().replace("groups:\n", "groups:\n  - {name: stem, prefixes: [hub/stem, hub/bn], frozen: true}\n")
    )
    allowed = {"allow_code": ["hub:encoder.tar.gz"]}  # as the recipe has it, or as a path from the working directory
    result = finetune.run(path, tmp_path / "out", **allowed)
    assert (result.frozen_unchanged, result.frozen_tensors) == (True, 6)
    stem = layer_tree(result.model).by_name["hub/stem/kernel"].variable
    np.testing.assert_array_equal(stem.numpy(), encoder.get_layer("stem").kernel.numpy())
    again = keras.models.load_model(tmp_path / "out" / "model.keras", safe_mode=False)
    np.testing.assert_array_equal(again.predict(rows(6), verbose=0), result.model.predict(rows(6), verbose=0))
    allowed = {"allow_code": [f"hub:{tmp_path}/encoder.tar.gz"]}
    assert (
        finetune.plan(tmp_path / "out" / "recipe.yaml", **allowed).model.count_params() == result.model.count_params()
    )


@pytest.mark.slow
def test_a_recipe_fine_tunes_a_text_module_on_text(write, tmp_path):
    class Letters(tf.Module):
        def __init__(self):
            super().__init__()
            self.vectors = tf.Variable(np.random.default_rng(0).normal(size=(256, 4)).astype("float32"))

        @tf.function(input_signature=[tf.TensorSpec([None], tf.string)])
        def __call__(self, inputs):
            codes = tf.strings.unicode_decode(inputs, "UTF-8")
            return tf.reduce_mean(tf.gather(self.vectors, codes), axis=1)

    tf.saved_model.save(Letters(), str(tmp_path / "letters"))
    texts = np.array(["aaa", "bbbb", "cc"] * 4)
    result = finetune.run(
        write("hub: letters, head: {classes: 3}", texts), tmp_path / "out", allow_code=["hub:letters"]
    )
    assert result.metrics["loss"] < result.metrics_before["loss"]


# -- Applications -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_recipe_restores_an_application_from_a_local_file_that_has_a_head_of_its_own(write, tmp_path):
    body = keras.applications.MobileNetV2(weights=None, input_shape=(32, 32, 3), alpha=0.35, include_top=False)
    # As people fine-tune: the network is a layer, and a classifier of their own comes after it.
    parts = [body, keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(4, name="mine")]
    keras.Sequential([keras.Input((32, 32, 3)), *parts]).save(tmp_path / "whole.h5")
    application = "application: MobileNetV2, input_shape: [32, 32, 3], arguments: {alpha: 0.35}, head: {classes: 3}"
    path = write(f"{application}, weights: whole.h5", images(32), body="Conv1")
    path.write_text(path.read_text().replace("prefixes: [Conv1]", "rest: true"))
    layout = finetune.plan(path)
    np.testing.assert_array_equal(
        layer_tree(layout.model).by_name["Conv1/kernel"].variable.numpy(), body.get_layer("Conv1").kernel.numpy()
    )
    missing = [weight.name for weight in layout.plan.weights if weight.restored_from is None]
    assert missing == ["head/output/kernel", "head/output/bias"]


@pytest.mark.slow
def test_weights_of_another_network_are_refused_with_their_place(write, tmp_path, tiny):
    tiny().save_weights(tmp_path / "tiny.weights.h5")
    application = "application: MobileNetV2, input_shape: [32, 32, 3], arguments: {alpha: 0.35}, head: {classes: 3}"
    with pytest.raises(FinetuneError) as error:
        finetune.plan(write(f"{application}, weights: tiny.weights.h5", images(32), body="Conv1"))
    assert "recipe.yaml:1:" in str(error.value)
    assert "`model.weights`: " in str(error.value)
    advice = "write `weights: none` and `restore: {from: tiny.weights.h5, exclude: [head], allow_unused: [...]}`."
    assert str(error.value).endswith(advice)


@pytest.mark.slow
def test_an_application_with_its_own_head_is_saved_for_plain_keras(write, tmp_path):
    application = "application: MobileNet, weights: none, include_top: true, input_shape: [32, 32, 3]"
    path = write(f"{application}, arguments: {{alpha: 0.25, classes: 3}}", images(32), body="conv1")
    path.write_text(path.read_text().replace("prefixes: [head]", "rest: true"))
    layout = finetune.plan(path)
    assert layout.model.output_shape == (None, 3)
    assert {weight.restored_from for weight in layout.plan.weights} == {None}
    layout.model.save(tmp_path / "model.keras")
    code = f"import keras; assert keras.models.load_model({str(tmp_path / 'model.keras')!r}, compile=False).input_shape[1:] == (32, 32, 3)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# -- Heads on what there was before -----------------------------------------------------------------------------------


def test_a_recipe_puts_a_new_head_on_a_keras_file(write, tiny_files):
    model = f"keras_file: {tiny_files / 'tiny.keras'}, head: {{classes: 3, after: body}}"
    layout = finetune.plan(write(model, rows(6), body="body, stem, bn"))
    assert names_of(layout.plan)[-2:] == ["head/output/kernel", "head/output/bias"]
    assert [w.name for w in layout.plan.weights if w.restored_from is None] == names_of(layout.plan)[-2:]


def test_a_head_begins_with_the_scale_of_the_targets(write, tiny_files):
    y = np.linspace(1e5, 3e5, 12).astype("float32")
    model = f"keras_file: {tiny_files / 'tiny.keras'}, head: {{classes: auto, after: body, standardize: true}}"
    path = write(model, rows(6), y, body="body, stem, bn")
    path.write_text(path.read_text().replace("sparse_categorical_crossentropy, metrics: [accuracy]", "mse"))
    layout = finetune.plan(path)
    rescaling = layout.model.get_layer("head").get_layer("rescaling")
    train = layout.examples.y_train.astype("float64")
    assert (rescaling.scale, rescaling.offset) == pytest.approx((train.std(), train.mean()))
    assert not [advice for advice in layout.plan.advice if "standardize" in advice]


def test_a_head_of_classes_has_no_scale_of_targets(write, tiny_files):
    path = write(
        f"keras_file: {tiny_files / 'tiny.keras'}, head: {{classes: 3, after: body, standardize: true}}", rows(6)
    )
    with pytest.raises(FinetuneError) as error:
        finetune.plan(path)
    assert "`model.head`: `standardize: true` is for targets that are numbers, and a head that ends without" in str(
        error.value
    )
    assert "It ends in `softmax`. Remove `standardize`, or take a loss of numbers" in str(error.value)


@pytest.mark.parametrize("dtype", ["float32", "int32"])
def test_a_network_that_waits_for_its_first_rows_is_built_for_them(dtype, recipe):
    loaded = load_recipe(recipe)
    first = keras.layers.Dense(3) if dtype == "float32" else keras.layers.Embedding(9, 3)
    x, network = np.ones((6, 5), dtype), keras.Sequential([first, keras.layers.Dense(2)])
    build_for(loaded, network, Examples(x, x[:, 0], x, x[:, 0]))
    assert network.input_shape == (None, 5)
    assert network(x).shape[-1] == 2


def test_a_network_that_cannot_take_the_rows_is_refused_with_its_place(recipe):
    loaded = load_recipe(recipe, overrides=["model={builder: 'finetune.examples.networks:mlp'}"])
    x, network = np.ones((6, 5), "float32"), keras.Sequential([keras.layers.Conv2D(3, 2)])
    with pytest.raises(RecipeError) as error:
        build_for(loaded, network, Examples(x, x[:, 0], x, x[:, 0]))
    assert str(error.value).startswith(
        "--set model: `model.builder`: A network takes the rows of the data. ValueError: "
    )
    assert str(error.value).endswith("A row of the data is (5,) of float32. Change the data or the model.")


# -- Bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("hub: nowhere", "recipe.yaml:1:14: `model.hub`: A handle names a SavedModel that exists. `"),
        ("hub: FOLDER, signature: serve", "has no `serve`; it has `serving_default`."),
        (
            "hub: FOLDER, output_key: note",
            "`output_key` is the name of an output of the module. `FOLDER` has no `note`; it has a single",
        ),
        ("hub: FOLDER, input_shape: [7]", "first; received `[7]` for a row."),
        (
            "hub: FOLDER, head: {classes: 3, activation: sofmax}",
            "`model.head`: An activation is the name of a function in `keras.activations`.",
        ),
    ],
)
def test_what_is_wrong_with_a_model_is_reported_in_one_message_with_its_place(write, encoder_folder, model, said):
    path, allowed = write(model.replace("FOLDER", str(encoder_folder)), rows(6)), [f"hub:{encoder_folder}"]
    with pytest.raises(FinetuneError) as error:
        finetune.plan(path, allow_code=allowed)
    assert said.replace("FOLDER", str(encoder_folder)) in str(error.value)
    assert "recipe.yaml:1:" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_the_command_line_tells_a_handle_without_a_network_in_one_line_and_exits_2(write):
    path = write("hub: 'http://127.0.0.1:1/google/encoder/1', head: {classes: 3}", rows(6))
    command = [sys.executable, "-m", "finetune", "run", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert "is not downloaded before you allow it. If you trust its author, add `--allow-code hub:http" in done.stderr
    command += ["--allow-code", "hub:http://127.0.0.1:1/google/encoder/1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert f"error: {path}:1:14: `model.hub`: A TensorFlow Hub" in done.stderr
    assert not (ROOT / "runs" / "recipe-1").exists()
