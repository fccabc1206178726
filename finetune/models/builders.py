"""Networks from builder functions and from Keras files."""

import importlib
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import keras

from finetune.errors import FinetuneError, did_you_mean, quote, reason


def call_builder(builder: str, arguments: Mapping[str, Any]) -> Any:
    """Calls the function `package.module:function` with keyword arguments.

    Whether the code may run at all is asked before, where the recipe is read.

    Raises:
        FinetuneError: If it does not exist, does not take these arguments, or fails.
    """
    function = _find(builder)
    try:
        inspect.signature(function).bind(**arguments)
    except TypeError as error:
        raise FinetuneError(
            f"A builder is called with the `arguments` of the recipe. `{builder}` has {error}. It takes "
            f"`{inspect.signature(function)}`."
        ) from None
    try:
        return function(**arguments)
    except FinetuneError:
        raise
    except Exception as error:
        raise FinetuneError(
            f"A builder returns a network or examples. `{builder}` failed with {type(error).__name__}: "
            f"{reason(error)}. Mend it, or see where with `--debug`."
        ) from error


def _find(builder: str) -> Callable[..., Any]:
    module_name, _, name = builder.partition(":")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # the module's own code runs
        raise FinetuneError(
            f"A builder is a function in an importable module. `{module_name}` of `{builder}` cannot be imported: "
            f"{type(error).__name__}: {reason(error)}. Install the package, or put its folder on `PYTHONPATH`."
        ) from error
    found = getattr(module, name, None)
    # What the module merely imported is not its own: else a trusted one would lend its name to any code.
    home = str(getattr(found, "__module__", "")).partition(".")[0]
    if not callable(found) or home != module_name.partition(".")[0]:
        functions = [key for key, value in inspect.getmembers(module, inspect.isfunction) if not key.startswith("_")]
        raise FinetuneError(
            f"A builder is a function. `{module_name}` has no function `{name}`; it has {quote(functions) or 'none'}."
            f"{did_you_mean(name, functions)}"
        )
    return found


def load_keras_file(path: Path) -> keras.Model:
    """Loads a whole model from a `.keras` or legacy `.h5` file, without its optimizer and without running code in it.

    Raises:
        FinetuneError: If the file is missing, holds no whole model, or needs code that is not there.
    """
    if not path.is_file():
        beside = [p.name for p in path.parent.glob("*.keras")] if path.parent.is_dir() else []
        raise FinetuneError(
            f"`keras_file` is a file that `model.save` wrote. `{path}` does not exist."
            f"{did_you_mean(path.name, beside) or f' Beside it are {quote(beside)}.' if beside else ''}"
        )
    try:
        model: Any = keras.saving.load_model(path, compile=False)
    except Exception as error:
        raise FinetuneError(
            f"`keras_file` is a whole model as `model.save` writes it. `{path}` cannot be loaded: {reason(error)}. "
            "If it holds weights alone, build the model with `builder` and name the file under `restore: {from: ...}`."
        ) from error
    return model


def check_model(model: Any, source: str) -> keras.Model:
    """Returns the model if it is a built Keras model; raises a FinetuneError if not."""
    if not isinstance(model, keras.Model):
        raise FinetuneError(
            f"A recipe fine-tunes a Keras model. `{source}` gave a `{type(model).__name__}`. Return a `keras.Model`."
        )
    if not model.built:
        raise FinetuneError(
            f"A model must have its weights before they can be grouped. The one from `{source}` is not built. Give it "
            "a `keras.Input`, or call it once on an example before returning it."
        )
    return model
