import os
import subprocess
import sys
from io import StringIO

import pytest

from finetune.results.lenient_output import lenient


@pytest.fixture
def full():
    """A stream to a disk without room, by lines."""
    with open("/dev/full", "w", buffering=1) as file, lenient(file) as stream:
        yield stream
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())  # else what is left in the buffer cannot be closed


def test_where_there_is_no_room_text_is_no_error_and_the_failure_is_known(full):
    print("a line", file=full)
    print("another", file=full, flush=True)
    assert full.failure.strerror == "No space left on device"


def test_a_reader_that_has_gone_is_no_failure():
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w", buffering=1) as file, lenient(file) as stream:
        print("a line", file=stream)
        assert stream.failure is None
        os.dup2(os.open(os.devnull, os.O_WRONLY), writer)


def test_text_arrives_by_lines_and_what_the_encoding_lacks_is_escaped(tmp_path):
    with (tmp_path / "a.txt").open("w", buffering=1, encoding="ascii") as file, lenient(file) as stream:
        print("größe", file=stream)
        assert (tmp_path / "a.txt").read_text() == "gr\\xf6\\xdfe\n"


def test_a_stream_that_is_no_file_stays():
    stream = StringIO()
    assert lenient(stream) is stream


@pytest.mark.parametrize("streams", ["2>&-", ">&-", "<&-", "<&- >&- 2>&-"])
def test_streams_that_are_closed_are_the_null_device(tmp_path, streams):
    code = (
        "import os, sys; from finetune.results.lenient_output import lenient, open_closed_streams\n"
        "open_closed_streams()\n"
        "sys.stdout, sys.stderr = lenient(sys.stdout), lenient(sys.stderr)\n"
        "print('a'); print('b', file=sys.stderr); sys.stdin.read()\n"
        "with open('file', 'w') as file: number = file.fileno()\n"
        "open('number', 'w').write(f'{number} {os.dup(2) > 2}')"
    )
    command = f'{sys.executable} -c "$CODE" {streams}'
    options = {"cwd": tmp_path, "env": {**os.environ, "CODE": code}, "stdin": subprocess.DEVNULL}
    done = subprocess.run(["bash", "-c", command], check=False, **options)
    assert done.returncode == 0
    number, works = (tmp_path / "number").read_text().split()
    assert int(number) > 2
    assert works == "True"
