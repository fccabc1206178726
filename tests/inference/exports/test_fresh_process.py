import numpy as np
import pytest
from safetensors.numpy import save_file

from finetune.errors import FinetuneError
from finetune.inference.exports.fresh_process import answers_of_fresh_process


def test_a_new_process_opens_an_export_without_this_package_and_what_lies_beside_it(tmp_path):
    (tmp_path / "safetensors.py").write_text(f"open({str(tmp_path / 'RAN')!r}, 'w')")
    save_file({"a/kernel": np.arange(3.0)}, tmp_path / "a.safetensors")
    answers = answers_of_fresh_process("safetensors", tmp_path / "a.safetensors", {"text": np.array(["é"], object)})
    assert answers["a/kernel"].tolist() == [0, 1, 2]
    assert not (tmp_path / "RAN").exists()


def test_what_does_not_open_is_an_error_with_what_the_runtime_says(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(b"no weights here, only text")
    with pytest.raises(FinetuneError) as caught:
        answers_of_fresh_process("safetensors", tmp_path / "a.safetensors", {})
    assert str(caught.value).startswith(
        "An export must open with the runtime of its format alone. `safetensors` does not: safetensors"
    )
    assert str(caught.value).endswith(" Export it in another format, such as `savedmodel`.")
