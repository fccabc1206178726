import sys

import pytest

from finetune.errors import FinetuneError
from finetune.inference.exports.formats import FORMATS, check_export


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("savedmode", "a"),
            "A format is one of `savedmodel`, `hub`, `keras`, `litert`, `onnx`, `safetensors`. Received: `savedmode`. Did you mean `savedmodel`?",
        ),
        (
            ("tfjs", "a"),
            "TensorFlow.js has a converter that needs an older TensorFlow than 2.20, so it cannot be installed beside this one. Export `savedmodel`, and convert that where `tensorflowjs` is installed.",
        ),
        (("litert", "a", "int4"), "`quantize` is one of `int8`, `float16`. Received: `int4`. Did you mean `int8`?"),
        (("onnx", "a", "int8"), "`quantize` is for the format `litert`. Received: `onnx`. Remove it."),
        (("hub", "full"), "An export is written to a new folder. `full` is not empty. Choose another place."),
        (("hub", "full/file"), "An export is written to a new folder. `full/file` is a file. Choose another place."),
        (
            ("hub", "full/file/a"),
            "An export is written to a new folder. `full/file/a` cannot be made: `{}/full/file` is a file. Choose another place.",
        ),
    ],
)
def test_what_cannot_be_exported_is_refused_before_anything_is_loaded(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("")
    format, out, *more = arguments
    with pytest.raises(FinetuneError) as caught:
        check_export(format, tmp_path.joinpath(out).relative_to(tmp_path), *more)
    assert str(caught.value) == message.format(tmp_path)


@pytest.mark.parametrize(
    ("format", "packages", "are"),
    [
        ("litert", ["ai_edge_litert"], "`ai-edge-litert` is"),
        ("onnx", ["tf2onnx", "onnxruntime"], "`tf2onnx`, `onnxruntime` are"),
    ],
)
def test_packages_that_are_missing_are_named_with_the_command_that_installs_them(
    tmp_path, monkeypatch, format, packages, are
):
    for package in packages:
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(FinetuneError) as caught:
        check_export(format, tmp_path)
    assert str(caught.value) == (
        f"An export is made and run once with the packages of its format. For `{format}`, {are} not installed. "
        f"Install: `pip install 'discriminative-finetune[{format}]'`."
    )


def test_every_format_may_be_written_to_an_empty_or_a_new_folder(tmp_path):
    for format in ("savedmodel", "hub", "keras", "safetensors"):
        check_export(format, tmp_path)
        check_export(format, tmp_path / "new" / "deep")
    assert set(FORMATS) == {"savedmodel", "hub", "keras", "safetensors", "litert", "onnx"}
