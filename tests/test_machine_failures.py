import errno
import resource
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from finetune.data.images import image_rows
from finetune.data.tfrecord_files import read_index
from finetune.errors import DataError, FinetuneError, MachineError, RestoreError
from finetune.machine_failures import failure_text, machine_failure, raise_machine_failure
from finetune.pretrained.formats.readers import read_weights


def chained(error, cause):
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError(), "there is not enough memory"),
        (np._core._exceptions._ArrayMemoryError((10**12,), np.dtype("f8")), "there is not enough memory"),
        (tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor"), "there is not enough memory"),
        (tf.errors.ResourceExhaustedError(None, None, "x.npz; Too many open files"), "too many files are open"),
        (tf.errors.UnknownError(None, None, "OSError: [Errno 24] Too many open files: 'a.png'"), "too many files are open"),
        (tf.errors.UnknownError(None, None, "MemoryError: \n"), "there is not enough memory"),
        (RuntimeError("std::bad_alloc"), "there is not enough memory"),
        (ImportError("libtensorflow_cc.so.2: failed to map segment from shared object"), "there is not enough memory"),
        (OSError("Can't read data (memory allocation failed for raw data chunk)"), "there is not enough memory"),
        (OSError(errno.ENOSPC, "No space left on device"), "there is no room on a disk"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "there is no room on a disk"),
        (OSError(errno.EFBIG, "File too large"), "a file would be larger than this process may write"),
        (OSError("unable to open file: name = 'a', errno = 24, error message = 'Too many'"), "too many files are open"),
        (RuntimeError("can't start new thread"), "no more threads or processes can be started"),
        (OSError(errno.ESTALE, "Stale file handle"), "the storage does not answer"),
        (chained(ValueError("damaged"), MemoryError()), "there is not enough memory"),
    ],
)  # fmt: skip
def test_failures_of_the_machine_are_told_from_damage(error, said):
    failure = machine_failure(error)
    assert failure is not None
    assert failure[0] == said
    with pytest.raises(
        MachineError, match=f"^Reading `a` failed because {said}, which says nothing about what was read"
    ):
        raise_machine_failure(error, "Reading `a`")


@pytest.mark.parametrize(
    "error",
    [
        ValueError("bad header"),
        OSError(errno.ENOENT, "No such file or directory"),
        OSError(errno.EACCES, "Permission denied"),
        tf.errors.DataLossError(None, None, "corrupted record at 0"),
        ValueError("class `MemoryError:` is no label"),  # text of a file is no evidence about the machine
        tf.errors.InvalidArgumentError(None, None, "Trying to decode PNG"),
    ],
)
def test_damage_is_no_failure_of_the_machine(error):
    assert machine_failure(error) is None
    assert failure_text(error) == ""
    raise_machine_failure(error, "Reading `a`")


def test_a_failure_passes_through_functions_that_tensorflow_calls():
    def read(_):
        raise_machine_failure(MemoryError(), "Reading `a.wav`")

    with pytest.raises(tf.errors.OpError) as caught:
        tf.function(lambda: tf.numpy_function(read, [0], tf.int64))()
    with pytest.raises(MachineError) as raised:
        raise_machine_failure(caught.value, "Reading the rows")
    assert str(raised.value).startswith("Reading `a.wav` failed because there is not enough memory")
    assert raised.value.exit_code == 1


@pytest.fixture
def no_more_files():
    """Lets this process open no more files."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (3, before[1]))
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_sound_files_are_not_called_damaged_where_no_file_can_be_opened(tmp_path, no_more_files):
    from finetune.data.audio import read_head

    tf.io.write_file(str(tmp_path / "a.png"), tf.io.encode_png(np.zeros((4, 4, 3), np.uint8)))
    np.savez(tmp_path / "w.npz", kernel=np.ones(3))
    with tf.io.TFRecordWriter(str(tmp_path / "a.tfrecord")) as writer:
        writer.write(b"record")
    records = read_index([tmp_path / "a.tfrecord"])
    reads = [
        lambda: image_rows([tmp_path / "a.png"], size=(4, 4)),
        lambda: image_rows([tmp_path / "a.png"], size=(4, 4), checked=False),  # `on_error: skip`
        lambda: read_head(tmp_path / "a.wav"),
        lambda: read_weights(tmp_path / "w.npz"),
        lambda: records[0],
    ]
    for read in [*reads[:2], *reads[3:]]:
        read()  # what these import needs files, too
    no_more_files()
    for read in reads:
        with pytest.raises(FinetuneError) as caught:
            read()
        assert isinstance(caught.value, MachineError), caught.value
        assert not isinstance(caught.value, DataError | RestoreError)
        assert "too many files are open" in str(caught.value)


def test_a_process_without_memory_ends_in_a_line_with_exit_code_1(tmp_path):
    code = (
        "import sys; sys.argv = ['finetune', 'check', 'r.yaml']\n"
        "from finetune import cli\n"
        "import finetune.commands.check as check\n"
        "def nothing(*a, **b): bytes(10**15)\n"
        "check.check = nothing\n"
        "cli.main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 1
    assert done.stderr == (
        "error: There is not enough memory. Close other programs, use a smaller batch or model, or a machine with more.\n"
    )
