"""Changes single bits of a finished run and counts how many `finetune audit` finds.

`python scripts/bench_audit.py RUN [COUNT]` changes, one at a time and at random places, bits of the files of the run
(weights, recipe, checkpoints and all others) and of the files that it has read. Each is undone at once, so every file
is in the end as it was; do not use the files meanwhile.
"""

import argparse
import json
import random
import sys
from pathlib import Path

from finetune.errors import FinetuneError
from finetune.results.hashes import FILE, check_hashes


def flip(path: Path, generator: random.Random) -> tuple[int, int]:
    """Flips a bit of a file.

    Returns:
        Where it is, and what the byte was.
    """
    place = generator.randrange(path.stat().st_size)
    with path.open("rb+") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ (1 << generator.randrange(8))]))
    return place, byte


def undo(path: Path, place: int, byte: int) -> None:
    """Writes a byte as it was."""
    with path.open("rb+") as file:
        file.seek(place)
        file.write(bytes([byte]))


def is_found(folder: Path, path: Path) -> bool:
    """Returns whether an audit names a file as changed."""
    try:
        result = check_hashes(folder)
    except FinetuneError:  # the hashes themselves were changed
        return path == folder / FILE
    names = (str(path), str(path.relative_to(folder)) if path.is_relative_to(folder) else "")
    return not result.holds and any(name in names for name in result.changed)


def count_found(folder: Path, count: int, seed: int = 0) -> tuple[int, list[Path]]:
    """Changes a bit of a file, audits, and undoes it, so many times.

    Args:
        folder: The run folder. Every file is in the end what it was.
        count: How many bits are changed, one at a time.
        seed: Seeds files and places.

    Returns:
        How many were found, and the files in which one was not.
    """
    generator = random.Random(seed)
    if not check_hashes(folder).holds:
        raise FinetuneError(f"`{folder}` does not pass its audit as it is.")
    document = json.loads((folder / FILE).read_text(encoding="utf-8"))
    names = (*document["files"], *document["outside"], FILE)
    files = [path for name in names if (path := folder / name).stat().st_size]
    missed = []
    for number in range(count):
        path = files[number % len(files)]
        place, byte = flip(path, generator)
        try:
            missed += [] if is_found(folder, path) else [path]
        finally:
            undo(path, place, byte)
    return count - len(missed), missed


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("count", type=int, nargs="?", default=1000)
    arguments = parser.parse_args()
    found, missed = count_found(arguments.run, arguments.count)
    print(f"{found} of {arguments.count} single-bit changes were found")
    for path in missed:
        print(f"missed: {path}")
    sys.exit(bool(missed))
