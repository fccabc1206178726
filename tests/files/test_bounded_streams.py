import bz2
import gzip
import io
import lzma
import struct
import tarfile
import zlib

import pytest

from finetune.errors import FinetuneError
from finetune.files.bounded_streams import LONGEST_READ, bounded_stream
from finetune.models.unpacking import extract

PACKERS = {".tar": bytes, ".tar.gz": gzip.compress, ".tar.bz2": bz2.compress, ".tar.xz": lzma.compress}


def tar(members, **options):
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", **options) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return made.getvalue()


@pytest.mark.parametrize("ending", PACKERS)
def test_an_archive_unpacks_to_the_same_bytes_however_it_is_compressed(tmp_path, ending):
    content, long = b"weights" * 100_000, "a" * 60 + "/" + "ö" * 90  # a name for a PAX record
    (tmp_path / "out").mkdir()
    (tmp_path / f"a{ending}").write_bytes(PACKERS[ending](tar({"m.h5": content, long: b"x"})))
    extract(tmp_path / f"a{ending}", tmp_path / "out")
    assert (tmp_path / "out" / "m.h5").read_bytes() == content
    assert (tmp_path / "out" / long).read_bytes() == b"x"


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
@pytest.mark.parametrize("ending", PACKERS)
def test_a_header_of_megabytes_is_refused(tmp_path, ending, format):
    (tmp_path / "out").mkdir()
    path = tmp_path / f"a{ending}"
    path.write_bytes(PACKERS[ending](tar({"n" * (LONGEST_READ + 1000): b"x"}, format=format)))
    with pytest.raises(
        FinetuneError, match=r"The header of a file in an archive may have 4,194,304 bytes, .* has 4,19"
    ):
        extract(path, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def with_dictionary(raw, code):
    """Writes another size of the dictionary into the header of the first block of an xz file."""
    raw = bytearray(raw)
    length = (raw[12] + 1) * 4
    assert raw[14:16] == b"\x21\x01"  # LZMA2, with a property of a byte
    raw[16] = code
    raw[8 + length : 12 + length] = struct.pack("<I", zlib.crc32(raw[12 : 8 + length]))
    return bytes(raw)


def test_an_xz_archive_that_asks_for_a_huge_dictionary_is_refused_in_whichever_of_its_streams(tmp_path):
    sound = lzma.compress(tar({"m.h5": b"weights"}))
    huge = with_dictionary(sound, 40)  # 4 GB
    for content in (huge, sound + huge):
        (tmp_path / "a.tar.xz").write_bytes(content)
        with pytest.raises(FinetuneError, match=r"may take 268,435,456 bytes of memory .* asks for more. Unpack it"):
            extract(tmp_path / "a.tar.xz", tmp_path)
    (tmp_path / "a.tar.xz").write_bytes(with_dictionary(sound, 28))  # 64 MB, that of `xz -9`
    with bounded_stream(tmp_path / "a.tar.xz") as stream:
        assert stream.read(4) == b"m.h5"


@pytest.mark.parametrize("ending", [".tar.gz", ".tar.bz2", ".tar.xz"])
def test_a_damaged_archive_is_still_called_damaged(tmp_path, ending):
    from finetune.errors import RestoreError
    from finetune.pretrained.formats.readers import read_weights

    packed = PACKERS[ending](tar({"m.h5": bytes(range(256)) * 1000}))
    for content in (packed[: len(packed) // 2], packed[:20] + b"damage" + packed[26:]):
        (tmp_path / f"a{ending}").write_bytes(content)
        with pytest.raises(RestoreError, match=r"A weight file must be complete and undamaged. Reading .* failed"):
            read_weights(tmp_path / f"a{ending}")
