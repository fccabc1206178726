"""Opens a saved model again, as somebody who has only Keras would, before a run says that it is done.

Where a file names only classes of Keras, whatever the process has registered plays no part, and opening it here is
what opening it elsewhere is. A file with other classes, or with code of its own (`Lambda`), may open here and nowhere
else: a new process opens it, which starts while the run draws its plots.
"""

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras

from finetune.errors import quote, reason
from finetune.keras_private import fresh_names

_TIMEOUT = 300  # seconds; importing Keras takes about five
_OPEN = """
import sys
import keras
try:
    keras.models.load_model(sys.argv[1])
except Exception as error:
    print("FAILED", type(error).__name__, str(error).strip())
else:
    print("OPENED")
"""


def open_again(path: Path) -> Callable[[], str]:
    """Begins to open a `.keras` file with plain Keras, in safe mode.

    Args:
        path: The file.

    Returns:
        A function that waits for the end. It returns an empty text where the file opens, and otherwise sentences that
        say why it does not and what to do.
    """
    foreign = list(dict.fromkeys(_foreign(_config(path))))
    if not foreign:
        return lambda: _opened_here(path)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"}
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", _OPEN, path.name],  # modules that lie in the folder are not those of Keras
        cwd=path.parent,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )

    def wait() -> str:
        try:
            out, _ = process.communicate(timeout=_TIMEOUT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            return _sentence(path, f"nothing within {_TIMEOUT} seconds", foreign)
        lines = out.strip().splitlines()
        if lines and lines[-1] == "OPENED":
            return ""
        start = next((n for n, line in enumerate(lines) if line.startswith("FAILED ")), None)
        said = " ".join(lines[start:]).removeprefix("FAILED ") if start is not None else "the process ended"
        return _sentence(path, reason(Exception(said)), foreign)

    return wait


def _opened_here(path: Path) -> str:
    try:
        with fresh_names():
            keras.models.load_model(path)
    except Exception as error:
        return _sentence(path, f"{type(error).__name__} {reason(error)}", [])
    return ""


def _sentence(path: Path, said: str, foreign: list[str]) -> str:
    if "Lambda" in foreign:
        advice = (
            "A `Lambda` layer is code, which Keras runs only with `load_model(path, safe_mode=False)`: use that, or "
            "put a layer class or `keras.ops` in its place."
        )
    elif any(name.startswith("finetune>") for name in foreign):
        advice = "Import `finetune` first, and use `load_model(path, safe_mode=False)`: the file holds a graph."
    elif foreign:
        advice = (
            f"It holds {quote(foreign)}. Import what defines them before loading, or pass them as `custom_objects`; "
            "classes need `@keras.saving.register_keras_serializable` and a `get_config`."
        )
    else:
        advice = "Build the model in code, and load the weights."
    return (
        f"A saved model must open with plain Keras, and `{path.name}` does not: {said.rstrip('.')}. {advice} All "
        "weights are also in `checkpoints/last.weights.h5`."
    )


def _config(path: Path) -> Any:
    with zipfile.ZipFile(path) as archive:
        return json.loads(archive.read("config.json"))


def _foreign(config: Any) -> Iterator[str]:
    """Yields the names of classes and functions in a config that are not of Keras, and `Lambda`."""
    if isinstance(config, dict):
        module, name = config.get("module"), config.get("class_name")
        if name in ("Lambda", "__lambda__"):
            yield "Lambda"
        elif isinstance(name, str) and "config" in config and not name.startswith("__"):  # `__keras_tensor__`: values
            is_of_keras = isinstance(module, str) and (module.split(".")[0] in ("keras", "builtins"))
            if not is_of_keras:
                yield str(config.get("registered_name") or name)
        for value in config.values():
            yield from _foreign(value)
    elif isinstance(config, list):
        for value in config:
            yield from _foreign(value)
