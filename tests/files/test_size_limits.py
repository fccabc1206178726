import zipfile

import numpy as np
import pytest

from finetune.errors import FinetuneError
from finetune.files.size_limits import allowed_bytes, check_header, check_size, check_zip


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
