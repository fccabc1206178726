import struct
import zipfile

import numpy as np
import pytest

from finetune.errors import FinetuneError
from finetune.files.size_limits import allowed_bytes, check_header, check_size, check_zip, check_zip_list
from finetune.pretrained.formats.detect import is_npz
from finetune.pretrained.formats.readers import read_weights


def test_a_file_may_hold_two_hundred_times_its_size_and_a_small_file_a_hundred_megabytes():
    assert allowed_bytes(10) == 100 * 2**20
    assert allowed_bytes(10**6) == 200 * 10**6
    assert allowed_bytes(10**9) == 64 * 2**30


@pytest.mark.parametrize(
    ("setting", "allowed"),
    [("8GB", 8 * 10**9), ("1.5 GiB", 3 * 2**29), ("500m", 5 * 10**8), ("1000", 1000), ("", 100 * 2**20)],
)
def test_the_environment_sets_another_limit(monkeypatch, setting, allowed):
    monkeypatch.setenv("FINETUNE_MAX_SIZE", setting)
    assert allowed_bytes(10) == allowed


@pytest.mark.parametrize("setting", ["much", "-5GB", "5XB", "1e9", "inf", "5I", "9" * 20])
def test_a_setting_that_is_no_size_is_refused(monkeypatch, setting):
    monkeypatch.setenv("FINETUNE_MAX_SIZE", setting)
    with pytest.raises(
        FinetuneError, match=r"is a number of bytes, .* Received: `.*`. Write e.g. `FINETUNE_MAX_SIZE=80GB`"
    ):
        allowed_bytes(10)


def test_the_message_names_the_sizes_and_the_setting_that_is_large_enough(tmp_path, monkeypatch):
    path = tmp_path / "m.keras"
    path.write_bytes(b"0" * 10)
    check_size(path, 100 * 2**20)
    with pytest.raises(FinetuneError) as caught:
        check_size(path, 5_800_000_001)
    assert str(caught.value) == (
        "A file of 10 bytes may hold 104,857,600 bytes, so that a small file cannot fill the memory. "
        f"`{path}` holds 5,800,000,001. If you trust it, raise the limit with the environment variable "
        "`FINETUNE_MAX_SIZE=6GB`."
    )
    monkeypatch.setenv("FINETUNE_MAX_SIZE", "6GB")
    check_size(path, 5_800_000_001)


def test_the_files_of_an_archive_count_together(tmp_path):
    path = tmp_path / "many.npz"
    np.savez_compressed(path, **{f"x{n}": np.zeros(30_000_000, "uint8") for n in range(4)})
    with pytest.raises(FinetuneError, match=r"may hold 104,857,600 bytes, .* holds 120,000,512"):
        check_zip(path)
    with zipfile.ZipFile(tmp_path / "small.zip", "w") as archive:
        archive.writestr("a", "text")
    check_zip(tmp_path / "small.zip")


def test_a_table_of_contents_has_a_limit_of_its_own(monkeypatch):
    check_header("m.safetensors", 25_000_000)
    with pytest.raises(FinetuneError, match=r"have 25,000,000 bytes. That of `m.safetensors` has 30,000,001. .*=31MB`"):
        check_header("m.safetensors", 30_000_001)
    monkeypatch.setenv("FINETUNE_MAX_SIZE", "31MB")
    check_header("m.safetensors", 30_000_001)


def listing(path, count):
    """Writes a zip archive that lists as many files, none of which is there."""
    entry = struct.pack("<4s6H3I5H2I", b"PK\x01\x02", 20, 20, *[0] * 7, 4, *[0] * 6) + b"abcd"
    size = count * len(entry)
    end64 = struct.pack("<4sQ2H2I4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, size, 30)
    end64 += struct.pack("<4sIQI", b"PK\x06\x07", 0, 30 + size, 1)
    end = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    path.write_bytes(b"PK\x03\x04" + bytes(26) + entry * count + end64 + end)
    return path


def test_a_zip_archive_may_list_a_hundred_thousand_files(tmp_path, monkeypatch):
    check_zip_list(listing(tmp_path / "few.zip", 200_000))
    many = listing(tmp_path / "many.zip", 200_001)
    for check in (check_zip_list, check_zip, is_npz, read_weights):  # none of them makes an object for each file
        with pytest.raises(FinetuneError, match=r"may have 10,000,000 bytes. That of `.*` has 10,000,050. .*=11MB`"):
            check(many)
    monkeypatch.setenv("FINETUNE_MAX_SIZE", "11MB")
    check_zip_list(many)
    np.savez(tmp_path / "sound.npz", a=np.ones(3))
    (tmp_path / "no.zip").write_bytes(b"PK\x03\x04")
    check_zip_list(tmp_path / "sound.npz")
    check_zip_list(tmp_path / "no.zip")  # `zipfile` says what it is


def test_an_index_in_json_has_the_limit_of_a_table_of_contents(tmp_path):
    path = tmp_path / "model.safetensors.index.json"
    with path.open("wb") as file:
        file.truncate(10**10)  # takes no room on the disk
    with pytest.raises(
        FinetuneError, match=r"A table of contents may have 25,000,000 bytes. That of .* has 10,000,000,000"
    ):
        read_weights(path)
