"""Which formats there are, and what can be checked of an export without TensorFlow."""

import os
from importlib.util import find_spec
from pathlib import Path

from finetune.errors import FinetuneError, did_you_mean, quote

# The module of each format, and its function.
FORMATS = {
    "savedmodel": ("saved_model", "write"),
    "hub": ("saved_model", "write_hub"),
    "keras": ("keras_file", "write"),
    "litert": ("litert", "write"),
    "onnx": ("onnx_file", "write"),
    "safetensors": ("safetensors_file", "write"),
}
# What a format is made with and run by, and the extra of this package that has it.
_NEEDS = {"litert": ("ai_edge_litert",), "onnx": ("onnx", "tf2onnx", "onnxruntime")}
QUANTIZED = ("int8", "float16")


def check_export(format: str, out: Path, quantize: str | None = None) -> None:
    """Checks what can be checked of an export without TensorFlow.

    Args:
        format: The format.
        out: The folder to write.
        quantize: `int8`, `float16` or `None`.

    Raises:
        FinetuneError: The format is not known or its packages are missing, the place is taken, or the format has no
            such quantization.
    """
    if format == "tfjs":
        raise FinetuneError(
            "TensorFlow.js has a converter that needs an older TensorFlow than 2.20, so it cannot be installed beside "
            "this one. Export `savedmodel`, and convert that where `tensorflowjs` is installed."
        )
    if format not in FORMATS:
        raise FinetuneError(
            f"A format is one of {quote(FORMATS, limit=len(FORMATS))}. Received: `{format}`."
            f"{did_you_mean(format, list(FORMATS))}"
        )
    if quantize and quantize not in QUANTIZED:
        raise FinetuneError(
            f"`quantize` is one of {quote(QUANTIZED)}. Received: `{quantize}`.{did_you_mean(quantize, QUANTIZED)}"
        )
    if quantize and format != "litert":
        raise FinetuneError(f"`quantize` is for the format `litert`. Received: `{format}`. Remove it.")
    if os.path.lexists(out) and not (out.is_dir() and not any(out.iterdir())):
        what = "is not empty" if out.is_dir() else "is a file"
        raise FinetuneError(f"An export is written to a new folder. `{out}` {what}. Choose another place.")
    parent = next(path for path in out.absolute().parents if os.path.lexists(path))
    if not (parent.is_dir() and os.access(parent, os.W_OK | os.X_OK)):
        raise FinetuneError(
            f"An export is written to a new folder. `{out}` cannot be made: `{parent}` is "
            f"{'write-protected' if parent.is_dir() else 'a file'}. Choose another place."
        )
    if absent := [name for name in _NEEDS.get(format, ()) if find_spec(name) is None]:
        packages = quote(name.replace("_", "-") for name in absent)
        raise FinetuneError(
            f"An export is made and run once with the packages of its format. For `{format}`, {packages} "
            f"{'is' if len(absent) == 1 else 'are'} not installed. Install: "
            f"`pip install 'discriminative-finetune[{format}]'`."
        )
