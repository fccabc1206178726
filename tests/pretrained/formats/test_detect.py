"""Files that the real libraries wrote, under a name that says nothing: each is recognised by its own format alone."""

import pickle
import tarfile
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
import tensorflow as tf
from safetensors.numpy import save_file

from finetune.pretrained.formats import detect
from finetune.pretrained.formats.detect import is_npz, is_pickle, is_safetensors, is_tar, is_zip, zip_members

ARRAY = np.arange(6, dtype="float32")


def write_npz(path):
    np.savez(path.with_suffix(".npz"), a=ARRAY)
    path.with_suffix(".npz").rename(path)


def write_zip(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/", b"")
        archive.writestr("model/weights.h5", b"abc")


def write_torch(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(1))
        archive.writestr("archive/data/0", b"abc")


def write_tar(path, mode):
    source = path.with_name("README.md")
    source.write_text("how it was made")
    with tarfile.open(path, mode) as archive:
        archive.add(source, "README.md")


def write_checkpoint(path):
    tf.raw_ops.SaveV2(prefix=str(path), tensor_names=["a"], shape_and_slices=[""], tensors=[ARRAY])
    path.with_name(f"{path.name}.index").rename(path)


WRITERS = {
    "hdf5": lambda path: h5py.File(path, "w").close(),
    "npz": write_npz,
    "zip": write_zip,
    "torch": write_torch,
    "pickle": lambda path: path.write_bytes(pickle.dumps(ARRAY)),
    "tar": lambda path: write_tar(path, "w"),
    "tar.gz": lambda path: write_tar(path, "w:gz"),
    "tar.bz2": lambda path: write_tar(path, "w:bz2"),
    "tar.xz": lambda path: write_tar(path, "w:xz"),
    "checkpoint": write_checkpoint,
    "safetensors": lambda path: save_file({"a": ARRAY}, path),
    "text": lambda path: path.write_text("version https://git-lfs.github.com/spec/v1"),
    "empty": lambda path: path.touch(),
}
RECOGNISED = {
    "is_hdf5": {"hdf5"},
    "is_zip": {"npz", "zip", "torch"},
    "is_npz": {"npz"},
    "is_pickle": {"torch", "pickle"},
    "is_tar": {"tar", "tar.gz", "tar.bz2", "tar.xz"},
    "is_checkpoint_index": {"checkpoint"},
    "is_safetensors": {"safetensors"},
    "is_saved_model": set(),
    "is_shard_index": set(),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_a_file_is_recognised_as_what_it_is_and_as_nothing_else(kind, tmp_path):
    path = tmp_path / "download"
    WRITERS[kind](path)
    recognised = {name for name in RECOGNISED if getattr(detect, name)(path)}
    assert recognised == {name for name, kinds in RECOGNISED.items() if kind in kinds}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_pickles_of_every_binary_protocol_are_recognised(protocol, tmp_path):
    (tmp_path / "m").write_bytes(pickle.dumps({"a": 1}, protocol=protocol))
    assert is_pickle(tmp_path / "m")


def test_an_index_of_several_files_is_told_from_other_json_by_what_it_holds(tmp_path):
    (tmp_path / "config.json").write_text('{"weights": {}}')
    (tmp_path / "index.json").write_text('{"weight_map": {}}')
    (tmp_path / "index.txt").write_text('{"weight_map": {}}')
    recognised = [path.name for path in sorted(tmp_path.iterdir()) if detect.is_shard_index(path)]
    assert recognised == ["index.json"]


def test_a_saved_model_is_recognised_by_its_file_s_name():
    names = ["m/saved_model.pb", "m/saved_model.pbtxt", "m/keras_metadata.pb"]
    assert [detect.is_saved_model(Path(name)) for name in names] == [True, True, False]


def test_a_damaged_zip_archive_counts_by_its_name(tmp_path):
    write_zip(tmp_path / "m.npz")
    cut = (tmp_path / "m.npz").read_bytes()[:40]
    for name in ("m.npz", "m.pt", "m.pth", "m.bin", "m.zip"):
        (tmp_path / name).write_bytes(cut)
    assert [is_zip(tmp_path / name) for name in ("m.npz", "m.pt", "m.zip")] == [True, True, True]
    assert [is_npz(tmp_path / name) for name in ("m.npz", "m.pt", "m.zip")] == [True, False, False]
    assert [is_pickle(tmp_path / name) for name in ("m.pt", "m.pth", "m.bin")] == [True, True, True]
    assert [is_pickle(tmp_path / name) for name in ("m.npz", "m.zip")] == [False, False]


def test_a_zip_archive_lists_its_files_and_not_its_folders(tmp_path):
    write_zip(tmp_path / "m")
    assert zip_members(tmp_path / "m") == ["model/weights.h5"]
    (tmp_path / "m").write_bytes(b"PK\x03\x04")
    with pytest.raises(zipfile.BadZipFile):
        zip_members(tmp_path / "m")


def test_an_archive_without_files_is_not_an_npz(tmp_path):
    zipfile.ZipFile(tmp_path / "m", "w").close()
    assert is_zip(tmp_path / "m")
    assert not is_npz(tmp_path / "m")


@pytest.mark.parametrize(("length", "expected"), [(2, True), (1, False), (100_000_000, True), (100_000_001, False)])
def test_a_safetensors_header_has_a_length_within_the_specification(length, expected, tmp_path):
    (tmp_path / "m").write_bytes(length.to_bytes(8, "little") + b"{}")
    assert is_safetensors(tmp_path / "m") is expected


def test_a_compressed_archive_counts_though_it_is_cut_off(tmp_path):
    write_tar(tmp_path / "m", "w:gz")
    (tmp_path / "m").write_bytes((tmp_path / "m").read_bytes()[:20])
    assert is_tar(tmp_path / "m")


def test_a_zip_archive_of_a_version_that_does_not_exist_counts_as_damaged(tmp_path):
    write_zip(tmp_path / "m.npz")
    content = bytearray((tmp_path / "m.npz").read_bytes())
    content[content.index(b"PK\x01\x02") + 6] = 99  # "version needed to extract"; the newest is 6.3
    (tmp_path / "m.npz").write_bytes(content)
    with pytest.raises(zipfile.BadZipFile):
        zip_members(tmp_path / "m.npz")
    assert is_npz(tmp_path / "m.npz")


def test_a_zip_archive_with_anything_beside_arrays_is_not_an_npz(tmp_path):
    np.savez(tmp_path / "m.npz", a=ARRAY)
    with zipfile.ZipFile(tmp_path / "m.npz", "a") as archive:
        archive.writestr("README.md", "how it was made")
    assert not is_npz(tmp_path / "m.npz")
