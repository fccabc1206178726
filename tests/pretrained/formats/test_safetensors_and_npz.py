import io
import json
import zipfile

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from finetune.errors import RestoreError
from finetune.pretrained.formats.readers import read_weights

ARRAYS = {
    "encoder.0.weight": np.arange(6, dtype="float32").reshape(2, 3),
    "encoder.0.bias": np.ones(3, "float16"),
    "half": np.array([1.5, -2], ml_dtypes.bfloat16),
}


def named(path):
    return {tensor.name: tensor for tensor in read_weights(path).tensors}


def refused(path):
    with pytest.raises(RestoreError) as caught:
        read_weights(path)
    return str(caught.value)


@pytest.fixture(params=["model.safetensors", "model.npz"])
def flat(request, tmp_path):
    path = tmp_path / request.param
    save_file(ARRAYS, path) if path.suffix == ".safetensors" else np.savez(path, **ARRAYS)
    return path


def test_arrays_come_back_with_their_names_shapes_and_types_bfloat16_included(flat):
    found = named(flat)
    assert {name: (t.shape, t.dtype) for name, t in found.items()} == {
        name: (array.shape, array.dtype.name) for name, array in ARRAYS.items()
    }
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(found[name].read(), array)
        assert found[name].read().dtype == array.dtype


def test_the_format_is_recognised_by_the_content_not_by_the_name(flat):
    kind = read_weights(flat).kind
    moved = flat.rename(flat.with_name("download.bin"))
    assert (read_weights(moved).kind, kind) == (kind, flat.suffix[1:])


def test_a_dotted_name_is_known_with_slashes_too(flat):
    assert named(flat)["encoder.0.weight"].aliases == ("encoder/0/weight",)
    assert named(flat)["half"].aliases == ()


def test_slots_counters_and_optimizer_states_are_no_weights(tmp_path):
    books = {
        "bn.num_batches_tracked": np.array(7),
        "global_step": np.array(7),
        "encoder.0.weight.Adam": np.zeros((2, 3)),
        "opt_state.0.mu.encoder": np.zeros(3),
        "seed_generator.seed_generator_state": np.zeros(2, "uint32"),
    }
    np.savez(tmp_path / "m.npz", **ARRAYS, **books)
    assert set(named(tmp_path / "m.npz")) == set(ARRAYS)


def test_text_and_dates_in_an_npz_are_no_weights(tmp_path):
    np.savez(tmp_path / "m.npz", kernel=np.ones(2), about=np.array("made by hand"))
    assert set(named(tmp_path / "m.npz")) == {"kernel"}


def test_an_npz_with_pickles_is_refused_and_nothing_in_it_is_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "sprung"), "w"))

    np.savez(tmp_path / "m.npz", kernel=np.ones(2), trap=np.array([Trap()], dtype=object), allow_pickle=True)
    message = refused(tmp_path / "m.npz")
    assert "holds Python objects, which could run code and are not read: `trap`." in message
    assert not (tmp_path / "sprung").exists()


def test_a_pickle_of_pytorch_is_refused_with_the_way_to_safetensors(tmp_path):
    (tmp_path / "old.bin").write_bytes(b"\x80\x02}q\x00.")
    with zipfile.ZipFile(tmp_path / "new.pt", "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}q\x00.")
    for name in ("old.bin", "new.pt"):
        assert "is a Python pickle" in (message := refused(tmp_path / name))
        assert "safetensors.torch.save_file" in message


def test_an_npz_whose_header_promises_more_than_it_holds_is_refused(tmp_path):
    np.savez(tmp_path / "m.npz", kernel=np.ones((2, 2)))
    with zipfile.ZipFile(tmp_path / "m.npz") as archive:
        lying = archive.read("kernel.npy").replace(b"(2, 2), }  ", b"(2, 2222),}")
    with zipfile.ZipFile(tmp_path / "m.npz", "w") as archive:
        archive.writestr("kernel.npy", lying)
    assert "`kernel.npy` promises 35,552 bytes and holds 32" in refused(tmp_path / "m.npz")


HEADER = {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}


@pytest.mark.parametrize(
    "lie",
    [{"data_offsets": [0, 800]}, {"data_offsets": [4, 12]}, {"data_offsets": [8, 0]}, {"shape": [2, 10**12]}]
    + [{"dtype": "F64"}, {"dtype": "F99"}, {"shape": [-2]}, {"data_offsets": "all"}],
    ids=str,
)
def test_a_safetensors_header_that_lies_is_refused(lie, tmp_path):
    header = json.dumps({"a": HEADER["a"] | lie}).encode()
    (tmp_path / "m.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    assert refused(tmp_path / "m.safetensors").startswith("A weight file must be complete and undamaged. Reading `")


# -- Several files ----------------------------------------------------------------------------------------------------


TYPES = ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "float32", "float64"]
TYPES += ["bool", "complex64", "bfloat16", "float8_e4m3fn", "float8_e5m2"]


def test_every_type_of_safetensors_is_read_as_it_was_written(tmp_path):
    arrays = {name: np.array([1, 0], name) for name in TYPES}
    save_file(arrays, tmp_path / "m.safetensors")
    tensors = named(tmp_path / "m.safetensors")
    assert {name: tensor.dtype for name, tensor in tensors.items()} == {name: name for name in TYPES}
    for name, array in arrays.items():
        assert tensors[name].read().tobytes() == array.tobytes()


def test_a_counter_is_a_scalar_and_a_scalar_need_not_be_a_counter(tmp_path):
    np.savez(tmp_path / "m.npz", step=np.array(1), scale=np.array(2.0), iterations=np.ones(3))
    assert set(named(tmp_path / "m.npz")) == {"scale", "iterations"}


def test_an_npz_that_promises_more_values_than_numpy_can_count_is_refused(tmp_path):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"shape": (2**32, 2**32), "fortran_order": False, "descr": "<f4"})
    with zipfile.ZipFile(tmp_path / "m.npz", "w") as archive:
        archive.writestr("kernel.npy", header.getvalue())
    assert "promises 73,786,976,294,838,206,464 bytes and holds 0" in refused(tmp_path / "m.npz")
