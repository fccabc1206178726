"""Records are read by index, and what is wrong with a file is said with the record."""

import numpy as np
import pytest
import tensorflow as tf

from finetune.data.tfrecord_files import read_index
from finetune.errors import DataError

RECORDS = [bytes([number]) * (number * 7 % 40) for number in range(30)]


@pytest.fixture
def write(tmp_path):
    """Writes records into a file."""

    def written(name, records, options=None):
        with tf.io.TFRecordWriter(str(tmp_path / name), options) as writer:
            for record in records:
                writer.write(record)
        return tmp_path / name

    return written


def test_records_of_several_files_are_those_that_tensorflow_reads(write):
    paths = [write("a-0", RECORDS[:11]), write("a-1", []), write("a-2", RECORDS[11:])]
    records = read_index(paths)
    read = [record.numpy() for record in tf.data.TFRecordDataset([str(path) for path in paths])]
    assert [records[index] for index in range(len(records))] == read == RECORDS
    assert [records.place(index) for index in (0, 10, 11, 29)] == ["a-0:0", "a-0:10", "a-2:0", "a-2:18"]


@pytest.mark.parametrize("kind", ["GZIP", "ZLIB"])
def test_compressed_files_are_refused(write, kind):
    with pytest.raises(
        DataError, match=rf"is compressed by {kind}\. Write it without: `tf\.io\.TFRecordWriter\(path\)`"
    ):
        read_index([write("a", RECORDS, kind)])


def test_a_file_that_is_cut_short_names_the_record(write):
    path = write("a", RECORDS)
    for missing in (1, 3, 30):
        path.write_bytes(path.read_bytes()[:-missing])
        with pytest.raises(DataError, match=r"record 2\d is damaged or cut short\. Write it again"):
            read_index([path])


def test_a_damaged_length_names_the_record(write):
    path = write("a", RECORDS)
    data = bytearray(path.read_bytes())
    offset = sum(16 + len(record) for record in RECORDS[:4])
    for byte in range(8):
        damaged = bytearray(data)
        damaged[offset + byte] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"record 4"):
            read_index([path])


def test_damaged_data_are_an_error_when_the_record_is_read(write):
    path = write("a", RECORDS)
    data = bytearray(path.read_bytes())
    data[sum(16 + len(record) for record in RECORDS[:4]) + 13] ^= 1
    path.write_bytes(data)
    records = read_index([path])
    assert records[3] == RECORDS[3]
    with pytest.raises(DataError, match="`a:4` is damaged"):
        records[4]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "hold none"),
        (b"some text, and no records at all", "no file of records"),
        (bytes(40), "no file of records"),
    ],
)
def test_other_files_are_refused(tmp_path, content, said):
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(DataError, match=said):
        read_index([tmp_path / "a"])


def test_an_index_is_as_long_as_the_files(write):
    records = read_index([write("a", RECORDS)])
    assert len(records) == 30
    assert records.offsets.dtype == np.int64
