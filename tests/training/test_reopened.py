import subprocess
import zipfile

import keras
import pytest
from keras import layers

from finetune.training.reopened import open_again

# NumPy 2 warns when Keras copies a TensorFlow variable to save it.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")


@keras.saving.register_keras_serializable("tests_of_reopening")
class Halved(layers.Layer):
    def call(self, x):
        return x / 2


def saved(folder, *middle):
    model = keras.Sequential([keras.Input((4,)), *middle, layers.Dense(3, "softmax", name="head")])
    model.save(folder / "model.keras")
    return folder / "model.keras"


def test_a_model_of_keras_classes_opens_without_another_process(tmp_path, monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", None)
    inner = keras.Sequential([layers.Dense(2, "relu", kernel_regularizer="l2"), layers.BatchNormalization()])
    assert open_again(saved(tmp_path, inner))() == ""
    inputs = keras.Input((4,))
    keras.Model(inputs, layers.Dense(2)(inputs) + 1.0).save(tmp_path / "graph.keras")  # its config holds tensors
    assert open_again(tmp_path / "graph.keras")() == ""


def test_a_file_without_its_weights_is_told(tmp_path):
    path, cut = saved(tmp_path), tmp_path / "cut.keras"
    with zipfile.ZipFile(path) as whole, zipfile.ZipFile(cut, "w") as part:
        for name in ("metadata.json", "config.json"):
            part.writestr(name, whole.read(name))
    told = open_again(cut)()
    assert told.startswith("A saved model must open with plain Keras, and `cut.keras` does not: ")
    assert told.endswith(
        " Build the model in code, and load the weights. All weights are also in `checkpoints/last.weights.h5`."
    )


def test_a_lambda_is_told_with_what_to_do(tmp_path):
    told = open_again(saved(tmp_path, layers.Lambda(lambda x: x / 2)))()
    assert "`model.keras` does not: " in told
    assert "`load_model(path, safe_mode=False)`" in told


@pytest.mark.sample(1)
@pytest.mark.parametrize("name", ["keras", "sys", "json"])
def test_a_class_that_only_this_process_knows_is_named_and_modules_in_the_run_folder_are_not_run(tmp_path, name):
    (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'RAN')!r}, 'w')")
    told = open_again(saved(tmp_path, Halved()))()
    assert "It holds `tests_of_reopening>Halved`. Import what defines them before loading" in told
    assert not (tmp_path / "RAN").exists()
