"""Opens an export in a new process with nothing but the runtime of its format, and compares what it says.

The programs here are what a user's would be; none imports this package.
"""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from finetune.errors import FinetuneError, reason
from finetune.files.temporary_folders import temporary_folder
from finetune.inference.exports.compared_rows import plain_arrays

_TIMEOUT = 600  # seconds; importing TensorFlow takes about five

_READ = """
import base64, sys
import numpy as np
place, rows, answers = sys.argv[1:4]
x = {}
for name, array in np.load(rows).items():
    if name.startswith("base64:"):
        name, decoded = name[7:], [base64.b64decode(text) for text in array.reshape(-1)]
        array = np.array(decoded, object).reshape(array.shape)
    x[name] = array
"""
_WRITE = """
outputs = {name: np.asarray(value) for name, value in outputs.items()}
np.savez(answers, **{name: value for name, value in outputs.items() if value.dtype.kind in "fiub"})
"""
_PROGRAMS = {
    "savedmodel": """
import tensorflow as tf
answer = tf.saved_model.load(place).signatures["serving_default"]
outputs = answer(**{name: tf.constant(array) for name, array in x.items()})
""",
    "hub": """
import tensorflow as tf
import tensorflow_hub as hub
loaded = hub.load(place)
outputs = loaded.signatures["serving_default"](**{name: tf.constant(array) for name, array in x.items()})
layer = hub.KerasLayer(loaded, trainable=True)  # registers the variables and the regularization losses
assert layer.variables, "it has variables"
""",
    "keras": """
import keras
import tensorflow as tf
model = keras.models.load_model(place)
outputs = model({name: tf.constant(array) for name, array in x.items()})
""",
    "litert": """
from ai_edge_litert.interpreter import Interpreter
answer = Interpreter(place).get_signature_runner("serving_default")
outputs = answer(**x)
""",
    "onnx": """
import onnxruntime
session = onnxruntime.InferenceSession(place, providers=["CPUExecutionProvider"])
names = [each.name for each in session.get_outputs()]
outputs = dict(zip(names, session.run(names, x)))
""",
    "safetensors": """
from safetensors.numpy import load_file
outputs = load_file(place)
""",
}


def answers_of_fresh_process(
    format: str, file: Path, arrays: Mapping[str, np.ndarray], imports: Sequence[str] = ()
) -> dict[str, np.ndarray]:
    """Returns what an export answers in a new process, numbers alone.

    Args:
        format: Its format.
        file: The file or folder to open.
        arrays: What it is given, by the names of its inputs.
        imports: Modules to import before.

    Raises:
        FinetuneError: It cannot be opened or run there.
    """
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"}
    program = "".join(f"import {name}\n" for name in imports) + _READ + _PROGRAMS[format] + _WRITE
    with temporary_folder() as folder:
        np.savez(folder / "rows.npz", **plain_arrays(dict(arrays)))  # pyright: ignore[reportArgumentType] - names
        names = [str(path.absolute()) for path in (file, folder / "rows.npz", folder / "answers.npz")]
        try:
            # `-P`: modules that lie in the folder are not those of the runtime.
            ended = subprocess.run(
                [sys.executable, "-P", "-c", program, *names],
                cwd=folder,
                env=environment,
                capture_output=True,
                text=True,
                timeout=_TIMEOUT,
            )
        except subprocess.TimeoutExpired as error:
            raise FinetuneError(
                f"An export is opened in a new process. `{file.name}` gave no answer within {_TIMEOUT} seconds."
            ) from error
        if ended.returncode:
            said = ended.stderr.strip().splitlines()[-1:] or [f"the process ended with {ended.returncode}"]
            raise FinetuneError(
                f"An export must open with the runtime of its format alone. `{format}` does not: "
                f"{reason(Exception(said[0]))}. {_advice(ended.stderr)}"
            )
        with np.load(folder / "answers.npz") as answers:
            return dict(answers)


def _advice(text: str) -> str:
    if "finetune>" in text or "HubLayer" in text:
        return "The network has a layer of this package: export it as `savedmodel` or `hub`."
    return "Export it in another format, such as `savedmodel`."
