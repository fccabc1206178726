import io
import zipfile

import numpy as np
import pytest

from finetune.commands.reference import write_reference
from finetune.data.npz import read_npz
from finetune.errors import DataError, FinetuneError, RestoreError
from finetune.files.npy_headers import check_arrays, read_npy_header
from finetune.pretrained.reference_outputs import read_reference


def header(shape, dtype="<f4"):
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}"
    text += " " * (-(len(text) + 11) % 64) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


def lying(path, shape="(1000000, 1000000)", dtype="<f4"):
    """Writes an archive whose arrays promise terabytes."""
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("x_train", "y_train", "x_test", "y_test", "input", "output"):
            archive.writestr(f"{name}.npy", header(shape, dtype) + bytes(64))
    return path


def test_the_header_of_an_array_is_read_and_compared_with_its_length():
    made = io.BytesIO()
    np.save(made, np.ones((2, 3), "f4"))
    made.seek(0)
    assert read_npy_header(made, len(made.getvalue()), "a") == ((2, 3), np.dtype("f4"))
    made.seek(0)
    with pytest.raises(ValueError, match="`a` promises 24 bytes and holds 25"):
        read_npy_header(made, len(made.getvalue()) + 1, "a")


@pytest.mark.parametrize("dtype", ["<f4", "|S2000000000", "<U500000000"])
def test_an_array_that_promises_more_than_it_holds_is_called_damaged_not_too_large_for_the_machine(tmp_path, dtype):
    with pytest.raises(ValueError, match=r"`x_train.npy` promises [\d,]+ bytes and holds 64"):
        check_arrays(lying(tmp_path / "a.npz", dtype=dtype))


def test_records_empty_arrays_and_python_objects_are_no_lies(tmp_path):
    path = tmp_path / "a.npz"
    records, objects = np.zeros(3, [("a", "<f8"), ("b", "<c16")]), np.array([None], object)
    np.savez(path, records=records, objects=objects, empty=np.zeros((0, 5)), scalar=np.float32(1), text=np.array("a"))
    check_arrays(path)


def test_every_reader_of_arrays_says_so(tmp_path):
    path = lying(tmp_path / "a.npz")
    with pytest.raises(
        DataError, match=r"must be a readable `.npz` file; .*promises 4,000,000,000,000 bytes and holds 64"
    ):
        read_npz(path)
    with pytest.raises(RestoreError, match=r"cannot be read: `x_train.npy` promises 4,000,000,000,000 bytes"):
        read_reference(path)
    with pytest.raises(FinetuneError, match=r"cannot be read: `x_train.npy` promises 4,000,000,000,000 bytes"):
        write_reference(tmp_path / "m.keras", tmp_path / "r.npz", inputs=path)
    (tmp_path / "a.npy").write_bytes(header("(1000000, 1000000)") + bytes(64))
    with pytest.raises(FinetuneError, match=r"cannot be read: `a.npy` promises 4,000,000,000,000 bytes and holds 64"):
        write_reference(tmp_path / "m.keras", tmp_path / "r.npz", inputs=tmp_path / "a.npy")
