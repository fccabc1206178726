"""Checksums of the tensors in a saved model."""

import zipfile

import keras
import numpy as np
import pytest

from finetune.errors import FinetuneError
from finetune.results.model_weights import checksums_of_model

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")


def test_every_tensor_has_a_checksum_and_only_a_changed_one_has_another(tiny, tmp_path):
    model = tiny()
    model.save(tmp_path / "a.keras")
    weights = model.get_layer("head").get_weights()
    weights[1] = np.nextafter(weights[1], 1)
    model.get_layer("head").set_weights(weights)
    model.save(tmp_path / "b.keras")
    first, second = (checksums_of_model(tmp_path / name) for name in ("a.keras", "b.keras"))
    assert len(first) == len(model.weights)
    assert [name for name in first if first[name] != second[name]] == ["layers/dense_2/vars/1"]
    keras.models.load_model(tmp_path / "a.keras").save(tmp_path / "c.keras")
    assert checksums_of_model(tmp_path / "c.keras") == first


def test_a_file_that_is_damaged_missing_or_something_else_is_refused(tmp_path):
    (tmp_path / "bad.keras").write_text("no archive")
    with zipfile.ZipFile(tmp_path / "empty.keras", "w"):
        pass
    for name in ("bad.keras", "empty.keras", "none.keras"):
        with pytest.raises(
            FinetuneError, match=rf"The weights of a run are in its `model.keras`. `.*{name}` cannot be read"
        ):
            checksums_of_model(tmp_path / name)
