import json
import sys
import zipfile

import h5py
import keras
import numpy as np
import pytest
from keras import layers

from finetune.errors import DataError, FinetuneError
from finetune.models.builders import call_builder, check_model, load_keras_file

# NumPy 2 warns when Keras copies a TensorFlow variable to save it.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

MODULE = """
import keras
from keras.layers import Dense
from finetune.errors import DataError

def network(width, *, name="made"):
    return keras.Sequential([keras.Input((2,)), keras.layers.Dense(width)], name=name)

def broken():
    return 1 / 0

def ours():
    raise DataError("no rows")

not_a_function = 3
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "made_for_a_test.py").write_text(MODULE)
    (tmp_path / "half_written.py").write_text("def network(:\n")
    (tmp_path / "raises.py").write_text("raise RuntimeError('no licence')\n")
    (tmp_path / "lacks.py").write_text("import not_there_at_all\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "made_for_a_test"
    sys.modules.pop("made_for_a_test", None)


def problem(call, *arguments):
    with pytest.raises(FinetuneError) as error:
        call(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


# -- Builders ---------------------------------------------------------------------------------------------------------


def test_a_builder_is_called_with_its_arguments(module):
    model = call_builder(f"{module}:network", {"width": 5, "name": "mine"})
    assert (model.name, model.output_shape) == ("mine", (None, 5))


def test_a_builder_of_keras_is_one():
    model = call_builder("keras.applications.mobilenet_v2:MobileNetV2", {"weights": None, "alpha": 0.35})
    assert model.name == "mobilenetv2_0.35_224"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({}, "missing a required argument: 'width'"),
        ({"width": 1, "widht": 2}, "got an unexpected keyword argument 'widht'"),
    ],
)
def test_arguments_that_do_not_fit_are_refused_with_the_form_of_the_builder(module, arguments, complaint):
    assert problem(call_builder, f"{module}:network", arguments) == (
        f"A builder is called with the `arguments` of the recipe. `{module}:network`: {complaint}. It accepts "
        "`(width, *, name='made')`."
    )


def test_a_misspelt_function_is_refused_with_the_nearest_name(module):
    assert problem(call_builder, f"{module}:netwrk", {}) == (
        f"A builder is a function. `{module}` has no function `netwrk`; it has `broken`, `network`, `ours`. Did you mean "
        "`network`?"
    )


@pytest.mark.parametrize("name", ["not_a_function", "Dense", "keras"])
def test_what_is_no_function_of_the_module_itself_is_no_builder(module, name):
    assert f"has no function `{name}`" in problem(call_builder, f"{module}:{name}", {"units": 3})


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("nowhere_to_be_found", "ModuleNotFoundError: No module named 'nowhere_to_be_found'"),
        ("half_written", "SyntaxError: invalid syntax"),
        ("raises", "RuntimeError: no licence"),
        ("lacks", "ModuleNotFoundError: No module named 'not_there_at_all'"),
    ],
)
def test_a_module_that_cannot_be_imported_is_one_short_error(module, name, complaint):
    message = problem(call_builder, f"{name}:network", {})
    assert message.startswith(f"A builder is a function in an importable module. `{name}` of `{name}:network` cannot")
    assert complaint in message
    assert message.endswith("Install the package, or add its folder to `PYTHONPATH`.")


def test_a_builder_that_fails_is_reported_with_its_error(module):
    assert problem(call_builder, f"{module}:broken", {}) == (
        f"A builder returns a network or examples. `{module}:broken` raised ZeroDivisionError: division by zero. Fix "
        "it; `--debug` shows the traceback."
    )


def test_an_error_of_this_package_in_a_builder_passes_unchanged(module):
    with pytest.raises(DataError, match=r"^no rows$"):
        call_builder(f"{module}:ours", {})


@pytest.mark.parametrize("made", [None, np.zeros(3), layers.Dense(3)])
def test_only_a_keras_model_is_a_model(made):
    assert f"`a:b` returned a `{type(made).__name__}`. Return a `keras.Model`." in problem(check_model, made, "a:b")


def test_a_model_without_weights_yet_is_refused():
    assert "is not built" in problem(check_model, keras.Sequential([layers.Dense(3)]), "a:b")


def test_a_built_model_is_returned_unchanged(tiny):
    model = tiny()
    assert check_model(model, "a:b") is model


# -- Files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "ending", [".keras", pytest.param(".h5", marks=pytest.mark.filterwarnings("ignore:.*HDF5 file.*"))]
)
def test_a_saved_model_is_loaded_with_its_weights_and_without_its_optimizer(tiny, tmp_path, ending):
    model = tiny()
    model.compile("adam", loss="mse")
    path = tmp_path / f"model{ending}"
    model.save(path)
    loaded = load_keras_file(path)
    assert not loaded.compiled
    for one, other in zip(model.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_missing_file_is_refused_with_the_nearest_name(tmp_path):
    (tmp_path / "pets.keras").touch()
    path = tmp_path / "pest.keras"
    assert problem(load_keras_file, path) == (
        f"`keras_file` is a file that `model.save` wrote. `{path}` does not exist. Did you mean `pets.keras`?"
    )
    assert problem(load_keras_file, tmp_path / "other.h5").endswith("In the same folder: `pets.keras`.")
    assert problem(load_keras_file, tmp_path / "no" / "folder.keras").endswith("does not exist.")


def test_what_is_no_model_is_one_short_error_with_a_way_out(tiny, tmp_path):
    (tmp_path / "text.keras").write_text("hello")
    tiny().save_weights(tmp_path / "only.weights.h5")
    with zipfile.ZipFile(tmp_path / "zip.keras", "w") as file:
        file.writestr("a", "b")
    with h5py.File(tmp_path / "empty.h5", "w"):
        pass
    for name in ("text.keras", "only.weights.h5", "zip.keras", "empty.h5"):
        message = problem(load_keras_file, tmp_path / name)
        assert message.startswith(
            f"`keras_file` is a whole model as `model.save` writes it. `{tmp_path / name}` cannot"
        )
        assert message.endswith("build the model with `builder` and name the file under `restore: {from: ...}`.")


def test_a_truncated_file_is_one_short_error(tiny, tmp_path):
    tiny().save(tmp_path / "whole.keras")
    (tmp_path / "half.keras").write_bytes((tmp_path / "whole.keras").read_bytes()[:2000])
    assert "cannot be loaded" in problem(load_keras_file, tmp_path / "half.keras")


@pytest.mark.parametrize(
    "ending", [".keras", pytest.param(".h5", marks=pytest.mark.filterwarnings("ignore:.*HDF5 file.*"))]
)
def test_code_inside_a_file_is_not_run(tmp_path, ending):
    marker = tmp_path / "it_ran"
    code = eval(f"lambda x: (open({str(marker)!r}, 'w').close(), x)[1]")
    model = keras.Sequential([keras.Input((2,)), layers.Lambda(code), layers.Dense(1)])
    model.save(tmp_path / f"trap{ending}")
    marker.unlink()
    assert "cannot be loaded" in problem(load_keras_file, tmp_path / f"trap{ending}")
    assert not marker.exists()


def test_a_file_may_not_name_functions_of_other_packages(tiny, tmp_path):
    tiny().save(tmp_path / "model.keras")
    with zipfile.ZipFile(tmp_path / "model.keras") as good, zipfile.ZipFile(tmp_path / "trap.keras", "w") as bad:
        for name in good.namelist():
            content = good.read(name)
            if name == "config.json":
                config = json.loads(content)
                config["config"]["layers"][1]["config"]["activation"] = {
                    "module": "os",
                    "class_name": "function",
                    "config": "system",
                    "registered_name": "system",
                }
                content = json.dumps(config)
            bad.writestr(name, content)
    assert "cannot be loaded" in problem(load_keras_file, tmp_path / "trap.keras")


def test_a_model_with_layers_of_unknown_classes_says_which(tmp_path):
    @keras.saving.register_keras_serializable("test_models")
    class Unheard(layers.Dense):
        pass

    keras.Sequential([keras.Input((2,)), Unheard(1)]).save(tmp_path / "own.keras")
    keras.saving.get_custom_objects().pop("test_models>Unheard")
    assert "Unheard" in problem(load_keras_file, tmp_path / "own.keras")


def test_a_file_of_keras_is_checked_before_keras_opens_it(tmp_path):
    keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, name="d")]).save(tmp_path / "m.keras")
    with h5py.File(tmp_path / "w.h5", "w") as file:
        file["layers"] = h5py.ExternalLink("/etc/passwd", "/layers")
    with zipfile.ZipFile(tmp_path / "m.keras") as old, zipfile.ZipFile(tmp_path / "linked.keras", "w") as new:
        for name in ("config.json", "metadata.json"):
            new.writestr(name, old.read(name))
        new.write(tmp_path / "w.h5", "model.weights.h5")
    with pytest.raises(FinetuneError, match=r"point to another file: `/layers \(a link to another file\)`"):
        load_keras_file(tmp_path / "linked.keras")
    with h5py.File(tmp_path / "bomb.h5", "w") as file:
        file.create_dataset("x", (10**9,), "float32", chunks=(10**6,), compression="gzip")
    with pytest.raises(FinetuneError, match=r"`.*bomb.h5` holds 4,000,000,000"):
        load_keras_file(tmp_path / "bomb.h5")
