import gc
import io
import tarfile
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from finetune.errors import RestoreError
from finetune.models import unpacking
from finetune.pretrained.formats.readers import read_weights


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch):
    """A folder for temporary files that is empty before and after."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def weights(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    np.savez(folder / "weights.npz", kernel=np.arange(6.0).reshape(2, 3))
    (folder / "README.md").write_text("how it was made")
    return folder


def packed(folder, name, inside="model"):
    path = folder.with_name(name)
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for file in folder.iterdir():
                archive.write(file, Path(inside, file.name))
    else:
        with tarfile.open(path, {".tgz": "w:gz", ".gz": "w:gz", ".xz": "w:xz"}.get(path.suffix, "w")) as archive:
            archive.add(folder, inside)
    return path


def refused(path):
    with pytest.raises(RestoreError) as caught:
        read_weights(path)
    return str(caught.value)


@pytest.mark.parametrize("name", ["m.tar.gz", "m.tgz", "m.tar", "m.zip", "m.tar.xz"])
@pytest.mark.parametrize("inside", ["model", "."])
def test_an_archive_is_read_like_the_folder_it_holds_and_cleared_away_afterwards(weights, name, inside, temporary):
    path = packed(weights, name, inside)
    moved = path.rename(path.with_name("download"))
    found = read_weights(moved)
    assert (found.path, found.kind) == (str(moved), "npz")
    np.testing.assert_array_equal(found.tensors[0].read(), np.arange(6.0).reshape(2, 3))
    tensor = found.tensors[0]
    del found
    tensor.read()  # one weight alone keeps what was unpacked
    assert any(temporary.iterdir())
    del tensor
    assert not any(temporary.iterdir())


def tar_with(path, *members):
    with tarfile.open(path, "w:gz") as archive:
        for name, kind in members:
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.size = kind, "/etc/passwd", 3 if kind == tarfile.REGTYPE else 0
            archive.addfile(info, io.BytesIO(b"abc"))
    return path


OUTSIDE = ["../evil.h5", "model/../../evil.h5", "/tmp/evil.h5", "..\\evil.h5", "C:\\evil.h5", "C:evil.h5"]


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_path_that_leads_out_is_refused_before_anything_is_written(name, tmp_path, temporary):
    message = refused(tar_with(tmp_path / "m.tar.gz", ("good.h5", tarfile.REGTYPE), (name, tarfile.REGTYPE)))
    assert f"m.tar.gz` would write outside of it: `{name}`. Do not use it." in message
    with zipfile.ZipFile(tmp_path / "m.zip", "w") as archive:
        archive.writestr("good.h5", b"abc")
        archive.writestr(name, b"abc")
    assert "would write outside of it" in refused(tmp_path / "m.zip")
    assert not any(temporary.iterdir())
    assert not (tmp_path / "evil.h5").exists()


@pytest.mark.parametrize(
    ("kind", "told"), [(tarfile.SYMTYPE, "link"), (tarfile.LNKTYPE, "link"), (tarfile.FIFOTYPE, "device")]
)
def test_links_and_devices_are_refused(kind, told, tmp_path):
    message = refused(tar_with(tmp_path / "m.tar.gz", ("weights.h5", kind)))
    assert f"holds something else: `weights.h5 ({told})`." in message


def test_a_link_in_a_zip_archive_is_refused(tmp_path):
    link = zipfile.ZipInfo("weights.h5")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "m.zip", "w") as archive:
        archive.writestr(link, "/etc/passwd")
    assert "holds something else: `weights.h5 (link)`." in refused(tmp_path / "m.zip")


def test_an_archive_that_swells_is_refused_before_anything_is_written(tmp_path, temporary):
    with zipfile.ZipFile(tmp_path / "m.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("weights.h5", bytes(101 * 2**20))
    message = refused(tmp_path / "m.zip")
    assert "An archive may unpack to 10,000 files and 104,857,600 bytes." in message
    assert not any(temporary.iterdir())


def test_an_archive_of_too_many_files_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(unpacking, "MOST_FILES", 3)
    members = [(f"{n}.h5", tarfile.REGTYPE) for n in range(4)]
    assert "may unpack to 3 files" in refused(tar_with(tmp_path / "m.tar", *members))


def test_an_archive_in_an_archive_is_not_opened(weights, tmp_path):
    outer = tmp_path / "outer"
    outer.mkdir()
    packed(weights, "inner.tar.gz").rename(outer / "inner.tar.gz")
    assert "inner.tar.gz` is not in one of these formats" in refused(packed(outer, "outer.tar"))


@pytest.mark.parametrize(
    ("name", "kept"),
    [("m.tar.gz", 0.3), ("m.zip", 0.9), ("m.tar.xz", 0.5), pytest.param("m.tar.gz", 0.9, marks=pytest.mark.grid)],
)
def test_a_truncated_archive_is_refused_and_cleared_away(weights, name, kept, temporary):
    np.save(weights / "noise.npy", np.random.default_rng(0).normal(size=1000))
    path = packed(weights, name)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    assert "must be complete and undamaged" in refused(path)
    gc.collect()
    assert not any(temporary.iterdir())


def test_an_archive_without_weights_is_refused_by_its_own_name(tmp_path):
    message = refused(tar_with(tmp_path / "m.tar.gz", ("README.md", tarfile.REGTYPE), ("b.txt", tarfile.REGTYPE)))
    assert f"`{tmp_path}/m.tar.gz` holds neither: `README.md`, `b.txt`." in message


def test_a_compressed_archive_is_held_to_its_checksum(tmp_path):
    save_file({"kernel": np.zeros(1000, "float32")}, tmp_path / "m.safetensors")
    with tarfile.open(tmp_path / "m.tar.gz", "w:gz", compresslevel=0) as archive:
        archive.add(tmp_path / "m.safetensors", "m.safetensors")
    assert read_weights(tmp_path / "m.tar.gz").kind == "safetensors"
    content = bytearray((tmp_path / "m.tar.gz").read_bytes())
    content[2500] ^= 1  # among the values
    (tmp_path / "m.tar.gz").write_bytes(content)
    assert "CRC check failed" in refused(tmp_path / "m.tar.gz")
