"""Checks an HDF5 file in a process of its own before it is read in this one.

The HDF5 library crashes with a segmentation fault, or never returns, on some damaged files. No `except` catches that:
the only safe way to read an HDF5 file of unknown origin is to let another process try it first. That process is fresh
and small: a fork of this one would hold TensorFlow's locks, and crash by itself.
"""

import json
import signal
import subprocess
import sys
from io import BytesIO
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from finetune.errors import RestoreError, quote
from finetune.files import hdf5_survey
from finetune.files.size_limits import check_size
from finetune.files.zip_archives import zip_archive

_SECONDS = 300.0  # on the clock, where the disk may be slow; `hdf5_survey.cpu_seconds` is what counts
# How the library ends a process, and the kernel one that computes forever. Others, such as SIGKILL by a system that is
# out of memory, say nothing about the file.
_CRASHES = ("SIGSEGV", "SIGBUS", "SIGABRT", "SIGFPE", "SIGILL", "SIGXCPU")


def check_hdf5(path: str | Path, member: str = "") -> None:
    """Checks that an HDF5 file can be read, is complete in itself and does not fill the memory.

    Args:
        path: The file, or a zip archive.
        member: The HDF5 file in the zip archive.

    Raises:
        RestoreError: Parts of it are in other files.
        FinetuneError: It holds far more bytes than the file has.
        ValueError: It crashes the HDF5 library, or never ends.
        OSError: It is no HDF5 file, or damaged in a way that the library notices.
    """
    path = Path(path)
    found = _survey_in_process(path, member) or _survey_here(path, member)
    if found["elsewhere"]:
        # Else a file of weights could read any file of whoever opens it.
        raise RestoreError(
            f"A weight file must hold its values itself. In `{path}` these point to another file: "
            f"{quote(found['elsewhere'])}. Save the weights again."
        )
    check_size(path, found["bytes"])


def _survey_in_process(path: Path, member: str) -> dict[str, Any] | None:
    """Returns the survey; `None` if the process says nothing about the file, for whatever reason of its own."""
    folders = dict.fromkeys(str(Path(module.__path__[0]).parent) for module in (h5py, np))
    # `-I -S`: neither the user's environment nor start-up code of installed packages; TensorFlow is never imported.
    command = [sys.executable, "-I", "-S", hdf5_survey.__file__, "\n".join(folders), str(path.absolute()), member]
    try:
        done = subprocess.run(command, capture_output=True, timeout=_SECONDS, stdin=subprocess.DEVNULL, check=False)
    except (OSError, ValueError, subprocess.SubprocessError):  # no process, no Python, or no answer in time
        return None
    lines = done.stdout.decode("utf-8", "replace").splitlines()
    if lines[:1] != [hdf5_survey.READY]:
        return None
    if done.returncode < 0 and _name(-done.returncode) in _CRASHES:
        raise ValueError("it crashes the HDF5 library")
    if done.returncode or len(lines) != 2:
        return None
    answer = json.loads(lines[1])
    if "error" in answer:
        raise OSError(answer["error"])
    return answer


def _name(number: int) -> str:
    return signal.Signals(number).name if number in set(signal.Signals) else ""


def _survey_here(path: Path, member: str) -> dict[str, Any]:
    """Surveys the file in this process: for errors that Python knows, and where no process could be started."""
    source: Any = path
    if member:
        with zip_archive(path) as archive:
            source = BytesIO(archive.read(member))
    with h5py.File(source, "r") as file:
        return hdf5_survey.survey(file)
