import io
import subprocess
import sys
import zipfile

import h5py
import numpy as np
import pytest

from finetune.files import hdf5_survey
from finetune.files.hdf5_survey import cpu_seconds, survey


def surveyed(write):
    """Returns the survey of a file that a function fills."""
    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        write(file)
    with h5py.File(content) as file:
        return survey(file)


def test_the_memory_that_a_file_asks_for_is_that_of_its_values_and_attributes():
    def write(file):
        file.create_group("a/b")["c"] = np.zeros((10, 3), "float64")
        file["a"].attrs["names"] = np.zeros(100, "S5")

    assert surveyed(write) == {"elsewhere": [], "bytes": 10 * 3 * 8 + 500, "objects": 3}


def test_values_that_take_no_place_in_the_file_count_in_full():
    assert surveyed(lambda file: file.create_dataset("x", (10**9,), "float32"))["bytes"] == 4 * 10**9
    packed = surveyed(lambda file: file.create_dataset("x", (10**9,), "float32", chunks=(1000,), compression="gzip"))
    assert packed["bytes"] == 4 * 10**9
    chunk = surveyed(lambda file: file.create_dataset("x", (1,), "float32", maxshape=(None,), chunks=(10**8,)))
    assert chunk["bytes"] == 4 * 10**8, "a whole chunk is read for a single value"


def test_whatever_lies_in_other_files_is_listed_at_every_level():
    def write(file):
        deep = file.create_group("a/b/c")
        deep["link"] = h5py.ExternalLink("/etc/passwd", "/x")
        deep.create_dataset("raw", (8,), "uint8", external=[("/etc/passwd", 0, 8)])
        layout = h5py.VirtualLayout((4,), "float32")
        layout[:] = h5py.VirtualSource("other.h5", "x", (4,))
        file.create_virtual_dataset("made", layout)

    assert sorted(surveyed(write)["elsewhere"]) == [
        "/a/b/c/link (a link to another file)",
        "/a/b/c/raw (values in another file)",
        "/made (a virtual dataset)",
    ]


def test_links_inside_the_file_count_once_and_circles_end():
    def write(file):
        file["x"] = np.zeros(4, "float32")
        file["soft"] = h5py.SoftLink("/nowhere")
        group = file.create_group("g")
        group["up"], group["again"], group["top"] = group, file["x"], file["/"]

    assert surveyed(write)["bytes"] == 16


def test_groups_nested_deeper_than_the_limit_of_python_are_walked():
    def write(file):
        group = file
        for _ in range(1500):
            group = group.create_group("g")

    assert surveyed(write)["objects"] == 1500


def test_a_file_has_the_more_seconds_the_larger_it_is_and_a_small_one_that_never_ends_is_soon_stopped():
    assert [cpu_seconds(size) for size in (0, 2**20, 10 * 2**20, 2**40)] == [4, 5, 14, 20]


@pytest.mark.parametrize("member", ["", "model.weights.h5"])
def test_as_a_program_it_needs_no_other_module_of_the_package(tmp_path, member):
    with h5py.File(tmp_path / "m.h5", "w") as file:
        file["x"] = np.zeros(4, "float32")
    with zipfile.ZipFile(tmp_path / "m.keras", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(tmp_path / "m.h5", "model.weights.h5")
    path = tmp_path / ("m.keras" if member else "m.h5")
    packages = h5py.__file__.rpartition("/h5py/")[0]
    command = [sys.executable, "-I", "-S", hdf5_survey.__file__, packages, str(path), member]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["ready", '{"elsewhere": [], "bytes": 16, "objects": 1}']
