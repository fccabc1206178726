import gc
import os
import signal
import sys
import zipfile

import h5py
import numpy as np
import pytest

from finetune.errors import FinetuneError, RestoreError
from finetune.files import hdf5_check, hdf5_survey
from finetune.files.hdf5_check import check_hdf5


@pytest.fixture
def sound(tmp_path):
    with h5py.File(tmp_path / "m.h5", "w") as file:
        file["x"] = np.arange(4.0)
    return tmp_path / "m.h5"


def program(monkeypatch, tmp_path, text):
    """Has another program run in place of the survey."""
    (tmp_path / "program.py").write_text(text)
    monkeypatch.setattr(hdf5_survey, "__file__", str(tmp_path / "program.py"))


def test_a_sound_file_passes_alone_and_in_an_archive(sound):
    check_hdf5(sound)
    with zipfile.ZipFile(sound.parent / "m.keras", "w") as archive:
        archive.write(sound, "model.weights.h5")
    check_hdf5(sound.parent / "m.keras", "model.weights.h5")


@pytest.mark.parametrize("end", ["SIGSEGV", "SIGABRT", "SIGBUS", "SIGXCPU"])
def test_a_file_over_which_the_library_crashes_or_never_ends_is_refused(monkeypatch, tmp_path, sound, end):
    program(
        monkeypatch, tmp_path, f"import os\nprint('ready', flush=True)\nos.kill(os.getpid(), {getattr(signal, end):d})"
    )
    with pytest.raises(ValueError, match="it crashes the HDF5 library"):
        check_hdf5(sound)


@pytest.mark.parametrize(
    "text",
    [
        "import a_module_that_is_not_there",
        "import os\nos.kill(os.getpid(), 11)",
        "import os\nprint('ready', flush=True)\nos.kill(os.getpid(), 9)",
        "print('ready')\nraise MemoryError",
        "import time\nprint('ready', flush=True)\ntime.sleep(60)",
    ],
    ids=["cannot import", "crashes before it reads", "killed by the system", "fails", "waits"],
)
def test_a_process_that_fails_for_its_own_reasons_is_no_evidence_about_the_file(monkeypatch, tmp_path, sound, text):
    program(monkeypatch, tmp_path, text)
    monkeypatch.setattr(hdf5_check, "_SECONDS", 2.0)
    check_hdf5(sound)


def test_without_a_process_the_links_and_the_size_are_checked_all_the_same(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no_python"))
    with h5py.File(tmp_path / "m.h5", "w") as file:
        file["x"] = h5py.ExternalLink("other.h5", "/x")
    with pytest.raises(RestoreError, match="point to another file"):
        check_hdf5(tmp_path / "m.h5")


def test_a_file_that_holds_far_more_than_its_size_is_refused_with_the_option(tmp_path, monkeypatch):
    with h5py.File(tmp_path / "m.h5", "w") as file:
        file.create_dataset("x", (10**9,), "float32", chunks=(10**6,), compression="gzip")
    with pytest.raises(FinetuneError, match=r"holds 4,000,000,000. .*variable `FINETUNE_MAX_SIZE=4GB`"):
        check_hdf5(tmp_path / "m.h5")
    monkeypatch.setenv("FINETUNE_MAX_SIZE", "4GB")
    check_hdf5(tmp_path / "m.h5")


def test_garbage_of_tensorflow_in_this_process_does_not_reach_the_other(sound):
    import tensorflow as tf

    for _ in range(3):  # a fork of this process would collect these cycles, and crash or wait for a lock
        iterator = iter(tf.data.Dataset.range(8).map(lambda x: x + 1, num_parallel_calls=2).prefetch(2))
        next(iterator)
        cycle = [iterator]
        cycle.append(cycle)
        del iterator, cycle
        check_hdf5(sound)
    gc.collect()


def test_no_process_is_left_over(sound):
    check_hdf5(sound)
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)
