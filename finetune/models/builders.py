"""Networks from builder functions and from files that `model.save` wrote."""

import importlib
import inspect
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import keras

from finetune.errors import FinetuneError, did_you_mean, quote, reason
from finetune.files.hdf5_check import check_hdf5
from finetune.files.size_limits import check_zip
from finetune.machine_failures import raise_machine_failure
from finetune.models.weight_memory import limited_to_file


def call_builder(builder: str, arguments: Mapping[str, Any]) -> Any:
    """Calls the function `package.module:function` with keyword arguments.

    Whether the module may be imported at all is decided where the recipe is read, before this.

    Raises:
        FinetuneError: If there is no such function, it does not accept the arguments, or it fails. An error of this
            package that it raises is passed on unchanged.
    """
    function = _import_function(builder)
    # Bound first, so that a `TypeError` raised inside the function is not taken for a wrong argument.
    try:
        inspect.signature(function).bind(**arguments)
    except ValueError:
        pass  # it has no signature: a class or function that is not written in Python
    except TypeError as error:
        raise FinetuneError(
            f"A builder is called with the `arguments` of the recipe. `{builder}`: {error}. It accepts "
            f"`{inspect.signature(function)}`."
        ) from None
    try:
        return function(**arguments)
    except FinetuneError:
        raise
    except Exception as error:
        raise_machine_failure(error, f"`{builder}`")
        raise FinetuneError(
            f"A builder returns a network or examples. `{builder}` raised {type(error).__name__}: {reason(error)}. Fix "
            "it; `--debug` shows the traceback."
        ) from error


def _import_function(builder: str) -> Callable[..., Any]:
    module_name, _, name = builder.partition(":")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # the module's code runs, and may raise anything
        raise_machine_failure(error, f"Importing `{module_name}`")
        raise FinetuneError(
            f"A builder is a function in an importable module. `{module_name}` of `{builder}` cannot be imported: "
            f"{type(error).__name__}: {reason(error)}. Install the package, or add its folder to `PYTHONPATH`."
        ) from error
    function = getattr(module, name, None)
    # A name that the module merely imported is refused: through a trusted module any other code could be called.
    package = str(getattr(function, "__module__", "")).partition(".")[0]
    if not callable(function) or package != module_name.partition(".")[0]:
        functions = [key for key, value in inspect.getmembers(module, inspect.isfunction) if not key.startswith("_")]
        raise FinetuneError(
            f"A builder is a function. `{module_name}` has no function `{name}`; it has {quote(functions) or 'none'}."
            f"{did_you_mean(name, functions)}"
        )
    return function


def load_keras_file(path: Path, *, safe_mode: bool = True) -> keras.Model:
    """Loads a whole model from a `.keras` or legacy `.h5` file, without its optimizer.

    Args:
        path: The file.
        safe_mode: Whether code inside the file, `Lambda` layers and graphs of SavedModels, is not run.

    Raises:
        FinetuneError: If the file is missing, has no whole model in it, asks for more weights than a file of its size
            may hold, or needs classes that are not registered.
    """
    if not path.is_file():
        others = [p.name for p in path.parent.glob("*.keras")] if path.parent.is_dir() else []
        raise FinetuneError(
            f"`keras_file` is a file that `model.save` wrote. `{path}` does not exist."
            f"{did_you_mean(path.name, others) or f' In the same folder: {quote(others)}.' if others else ''}"
        )
    _check_content(path)
    # `compile=False`: the recipe brings its own optimizer, and the saved one may need classes that are not installed.
    try:
        with limited_to_file(path):
            model: Any = keras.saving.load_model(path, compile=False, safe_mode=safe_mode)
    except FinetuneError:
        raise
    except Exception as error:
        raise_machine_failure(error, f"Loading `{path}`")
        raise FinetuneError(
            f"`keras_file` is a whole model as `model.save` writes it. `{path}` cannot be loaded: {reason(error)}. If "
            "the file has weights alone, build the model with `builder` and name the file under `restore: {from: ...}`."
        ) from error
    return model


def _check_content(path: Path) -> None:
    """Checks the weights in a `.keras` or `.h5` file before Keras opens them; what is neither is left to Keras.

    Raises:
        FinetuneError: As `finetune.files.hdf5_check.check_hdf5` does.
    """
    try:
        is_archive = zipfile.is_zipfile(path)
        if is_archive:
            check_zip(path)
        check_hdf5(path, "model.weights.h5" if is_archive else "")
    except ValueError as error:
        if isinstance(error, FinetuneError):
            raise
        raise FinetuneError(
            f"`keras_file` must be complete and undamaged. `{path}` is not: {error}. Copy it again."
        ) from error
    except (OSError, KeyError, zipfile.BadZipFile):
        return  # Keras says what is wrong


def check_model(model: Any, source: str) -> keras.Model:
    """Returns `model` if it is a built Keras model.

    Args:
        model: What a builder or a file returned.
        source: What messages call the place that it comes from.

    Raises:
        FinetuneError: If it is not a Keras model, or has no weights yet.
    """
    if not isinstance(model, keras.Model):
        raise FinetuneError(
            f"A recipe fine-tunes a Keras model. `{source}` returned a `{type(model).__name__}`. Return a "
            "`keras.Model`."
        )
    if not model.built:
        raise FinetuneError(
            f"A model must have its weights before they can be grouped. The model of `{source}` is not built. Start it "
            "with a `keras.Input`, or call it once on an example before returning it."
        )
    return model
