import io
import shutil
import tarfile
import tempfile
import zipfile
from pathlib import Path

import pytest

from finetune.errors import FinetuneError
from finetune.models.unpacking import MOST_BYTES, extract, is_archive, unpack


def tar(path, *members, mode="w:gz"):
    """Writes an archive of `(name, content)`, or of `TarInfo`s."""
    with tarfile.open(path, mode) as file:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                file.addfile(member)
                continue
            info = tarfile.TarInfo(member[0])
            info.size = len(member[1])
            file.addfile(info, io.BytesIO(member[1]))
    return path


def special(name, kind, target=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def files_below(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(archive, tmp_path):
    with pytest.raises(FinetuneError) as error:
        unpack(archive, tmp_path / "deep" / "cache")
    assert "\n" not in str(error.value)
    assert files_below(tmp_path / "deep") == {}
    assert not list((tmp_path / "deep").rglob("*"))[1:]
    return str(error.value)


def test_archives_of_every_kind_are_unpacked_by_their_content(tmp_path):
    members = [("a/saved_model.pb", b"graph"), ("a/variables/index", b"index")]
    tar(tmp_path / "x.tar.gz", *members)
    tar(tmp_path / "x.tgz", *members)
    tar(tmp_path / "x.tar", *members, mode="w")
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as file:
        for name, content in members:
            file.writestr(name, content)
    for name in ("x.tar.gz", "x.tgz", "x.tar", "x.zip"):
        assert is_archive(tmp_path / name)
        assert files_below(unpack(tmp_path / name, tmp_path / "cache")) == dict(members)


def test_the_same_content_is_unpacked_once_and_another_beside_it(tmp_path):
    one, other = tar(tmp_path / "a.tar.gz", ("x", b"1")), tar(tmp_path / "b.tar.gz", ("x", b"2"))
    first = unpack(one, tmp_path / "cache")
    number = first.stat().st_ino
    assert unpack(one, tmp_path / "cache") == first
    assert first.stat().st_ino == number
    assert unpack(other, tmp_path / "cache") != first
    assert not [path for path in (tmp_path / "cache").iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize(
    "harm", [lambda x: x.write_bytes(b"2"), lambda x: x.unlink(), lambda x: (x.parent / "y").touch()]
)
def test_a_folder_that_is_no_longer_what_was_unpacked_is_unpacked_again(tmp_path, harm):
    archive = tar(tmp_path / "a.tar.gz", ("x", b"1"))
    harm(unpack(archive, tmp_path / "cache") / "x")
    again = unpack(archive, tmp_path / "cache")
    assert [(path.name, path.read_bytes()) for path in again.iterdir()] == [("x", b"1")]


def test_a_cache_that_others_can_write_to_is_not_taken(tmp_path):
    archive = tar(tmp_path / "a.tar.gz", ("x", b"1"))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "cache").symlink_to("elsewhere")
    assert "cache` is a link or a file. Remove it" in refused_by(archive, tmp_path / "cache")
    (tmp_path / "elsewhere").chmod(0o777)
    assert "elsewhere` can be written to by others" in refused_by(archive, tmp_path / "elsewhere")
    assert not list((tmp_path / "elsewhere").iterdir())


def refused_by(archive, cache):
    with pytest.raises(FinetuneError) as caught:
        unpack(archive, cache)
    return str(caught.value)


@pytest.mark.parametrize("name", ["../escaped", "a/../../escaped", "/tmp/escaped", "..\\escaped", "C:\\escaped"])
def test_a_path_that_leads_out_is_refused_before_anything_is_written(tmp_path, name):
    said = refused(tar(tmp_path / "x.tar.gz", ("good", b"1"), (name, b"out")), tmp_path)
    assert "would write outside of it: `" in said
    assert said.endswith("Do not use it.")
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as file:
        file.writestr("good", b"1")
        file.writestr(name, b"out")
    assert "would write outside of it" in refused(tmp_path / "x.zip", tmp_path)
    assert not list(tmp_path.rglob("escaped"))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_are_refused(tmp_path, kind):
    said = refused(tar(tmp_path / "x.tar.gz", special("variables", kind, "/etc"), ("variables/passwd", b"")), tmp_path)
    assert "holds something else: `variables (" in said


def test_a_link_in_a_zip_is_refused(tmp_path):
    link = zipfile.ZipInfo("variables")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as file:
        file.writestr(link, "/etc")
    assert "holds something else: `variables (link)`" in refused(tmp_path / "x.zip", tmp_path)


def test_what_is_cut_off_damaged_or_no_archive_is_one_short_error(tmp_path):
    whole = tar(tmp_path / "x.tar.gz", ("a", bytes(range(256)) * 400)).read_bytes()
    for name, data in (("cut.tar.gz", whole[: len(whole) // 2]), ("text.tar.gz", b"hello"), ("none.zip", b"")):
        (tmp_path / name).write_bytes(data)
        said = refused(tmp_path / name, tmp_path)
        assert said.startswith("An archive is a complete `.tar.gz`, `.tgz`, `.tar`, `.zip` file.")
        assert f"`{tmp_path / name}` cannot be read: " in said


@pytest.mark.slow
def test_damaged_bytes_anywhere_are_one_short_error_or_harmless(tmp_path):
    whole = bytearray(tar(tmp_path / "x.tar.gz", ("a", b"x" * 3000), ("b/c", b"y" * 100)).read_bytes())
    for at in range(0, len(whole), 2):
        damaged = whole.copy()
        damaged[at] ^= 0xFF
        (tmp_path / "y.tar.gz").write_bytes(damaged)
        try:
            unpack(tmp_path / "y.tar.gz", tmp_path / "cache")
        except FinetuneError:
            continue


# -- Bounds -----------------------------------------------------------------------------------------------------------


def zeros(path, megabytes):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file, file.open("weights", "w", force_zip64=True) as out:
        for _ in range(megabytes):
            out.write(bytes(2**20))
    return path


def test_an_archive_that_unpacks_to_two_hundred_times_its_size_is_refused_unless_it_is_trusted(tmp_path):
    archive = zeros(tmp_path / "x.zip", 101)
    assert refused(archive, tmp_path) == (
        f"An archive may unpack to 10,000 files and 104,857,600 bytes. `{archive}` ({archive.stat().st_size:,} bytes) has "
        "more. If you trust it, unpack it yourself and give the folder, or raise the limit with the environment variable "
        "`FINETUNE_MAX_SIZE=80GB`."
    )
    assert (unpack(archive, tmp_path / "cache", trusted=True) / "weights").stat().st_size == 101 * 2**20


def test_a_small_archive_may_unpack_to_a_hundred_megabytes_at_any_ratio(tmp_path):
    folder = unpack(zeros(tmp_path / "x.zip", 99), tmp_path / "cache")
    assert (folder / "weights").stat().st_size == 99 * 2**20


def test_an_archive_of_too_many_files_is_refused(tmp_path):
    names = [f"{number}" for number in range(10_001)]
    assert "10,000 files" in refused(tar(tmp_path / "x.tar.gz", *((name, b"") for name in names)), tmp_path)
    tar(tmp_path / "y.tar.gz", *((name, b"") for name in names[:-1]))
    assert len(list(unpack(tmp_path / "y.tar.gz", tmp_path / "cache").iterdir())) == 10_000


@pytest.fixture
def small_files_only():
    """Lets this process write no file of more than 1 MiB: a test that goes wrong must not fill a disk or the memory."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_nothing_is_written_where_the_disk_is_too_small(tmp_path, small_files_only):
    places = [place for place in (tmp_path, Path("/dev/shm")) if place.is_dir()]
    place = min(places, key=lambda place: shutil.disk_usage(place).free)
    needed = shutil.disk_usage(place).free + 2**30
    if needed >= MOST_BYTES:
        pytest.skip("needs a disk with less room than the largest archive")
    header = special("weights", tarfile.REGTYPE)
    header.size = needed
    with (tmp_path / "x.tar").open("wb") as file:
        file.write(header.tobuf(tarfile.GNU_FORMAT))
        file.truncate(needed + 2**20)  # a sparse file: takes no room
    with tempfile.TemporaryDirectory(dir=place) as folder:
        small_files_only()
        with pytest.raises(
            FinetuneError, match=rf"`{place}`. `.*` needs {needed:,} bytes there, and .* are free. Make"
        ):
            extract(tmp_path / "x.tar", Path(folder))
        assert files_below(Path(folder)) == {}


def test_a_damaged_checksum_at_the_end_is_found_before_anything_is_written(tmp_path):
    data = bytearray(tar(tmp_path / "x.tar.gz", ("a", bytes(range(256)) * 40)).read_bytes())
    data[-8] ^= 0xFF  # the CRC of gzip
    (tmp_path / "x.tar.gz").write_bytes(data)
    assert "cannot be read" in refused(tmp_path / "x.tar.gz", tmp_path)
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="CRC"):
        extract(tmp_path / "x.tar.gz", tmp_path / "folder")
    assert files_below(tmp_path / "folder") == {}


def test_a_file_may_not_have_more_bytes_than_the_list_of_the_archive_says(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as file:
        file.writestr("a", b"12345678")
    data = bytearray((tmp_path / "x.zip").read_bytes())
    at = data.rindex(b"PK\x01\x02")  # the entry in the central directory: sizes at 20 and 24
    data[at + 24 : at + 28] = (4).to_bytes(4, "little")
    (tmp_path / "x.zip").write_bytes(data)
    assert "cannot be read" in refused(tmp_path / "x.zip", tmp_path)
