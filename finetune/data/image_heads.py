"""What the heads of image files say: how each is decoded, and which are no images.

Opening a file and reading its head takes about a tenth of a millisecond of a processor: minutes for a million files,
each time that a process begins. So what was seen is kept, a byte for each file, in `~/.cache/finetune/images`, and is
used again while the names, sizes and times of all files are the same.
"""

import io
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from finetune.errors import DataError
from finetune.machine_failures import raise_machine_failure

REDUCTIONS = (1, 2, 4, 8)  # by which the decoder of JPEG can divide height and width
PILLOW = 0  # in place of a reduction: TensorFlow would decode the file otherwise
SHRINKS = 16  # is added to a reduction where the decoded image may have more than twice the size
KEPT_FROM = 10_000  # files: the heads of fewer are read in about a second
_MOST_KEPT = 32  # sets of files
_AT_ONCE = 4096  # files that wait for a thread
_SHOWN = 5  # files in a message
_ORIENTATION = 0x0112  # the EXIF tag that says how the camera was held; 1 is upright


def heads_of(
    paths: Sequence[Path], size: tuple[int, int], resize: str, *, key: str, checked: bool, places: Sequence[str]
) -> np.ndarray:
    """Returns what `head_of` says of each file, uint8 of shape `(files,)`.

    Args:
        paths: The files.
        size: Height and width that the images get.
        resize: `pad`, `crop` or `stretch`.
        key: Another one for other files, sizes or times, and for another `size` or `resize`.
        checked: Whether files that are no images are an error.
        places: Where each file is named, if anywhere.

    Raises:
        DataError: Files are not images.
    """
    place = _place(key) if len(paths) >= KEPT_FROM else None
    if place and (kept := _kept(place, len(paths))) is not None:
        return kept
    seen, broken, count = np.zeros(len(paths), np.uint8), [], 0
    with ThreadPoolExecutor(8) as pool:
        for start in range(0, len(paths), _AT_ONCE):
            looks = pool.map(lambda path: head_of(path, size, resize), paths[start : start + _AT_ONCE])
            for number, look in enumerate(looks, start):
                if not isinstance(look, str):
                    seen[number] = look
                    continue
                count += 1
                if len(broken) < _SHOWN:
                    name = f"`{places[number]}` `{paths[number]}`" if places else f"`{paths[number]}`"
                    broken.append(f"{name} ({look})")
    if broken and checked:
        more = f" and {count - len(broken)} more" if count > len(broken) else ""
        raise DataError(
            f"Image files must be readable. {count} of {len(paths)} are not: {', '.join(broken)}{more}. "
            "Replace or remove them."
        )
    if place and not broken:
        _keep(place, seen)
    return seen


def head_of(path: Path | io.BytesIO, size: tuple[int, int], resize: str) -> int | str:
    """Returns the reduction for a file that TensorFlow decodes as Pillow does, else `PILLOW`; plus `SHRINKS`, if so.

    What is wrong with a file is returned as text.

    Args:
        path: The file, or its bytes.
        size: Height and width that the image gets.
        resize: `pad`, `crop` or `stretch`.
    """
    try:
        with Image.open(path) as image:
            upright = image.getexif().get(_ORIENTATION, 1) == 1
            eight_bits = image.format == "JPEG" or "transparency" not in image.info
            if not (image.format in ("JPEG", "PNG") and image.mode in ("L", "RGB") and upright and eight_bits):
                return PILLOW + SHRINKS
            # A JPEG decodes to a half, a quarter or an eighth of its size: in less time, and without aliasing.
            shrinks = [image.height / size[0], image.width / size[1]]
            shrink = max(shrinks) if resize == "pad" else min(shrinks)
            reduction = max(r for r in REDUCTIONS if r <= max(shrink, 1) and (r == 1 or image.format == "JPEG"))
            is_small = -(-image.height // reduction) <= 2 * size[0] and -(-image.width // reduction) <= 2 * size[1]
            return reduction if is_small else reduction + SHRINKS
    except UnidentifiedImageError:
        is_empty = not (path.getbuffer().nbytes if isinstance(path, io.BytesIO) else path.stat().st_size)
        return "empty" if is_empty else "not an image"
    except Exception as error:  # Pillow raises errors of many classes over damaged files
        raise_machine_failure(error, f"Reading `{path if isinstance(path, Path) else 'an image'}`")
        return str(error) or type(error).__name__


def _place(key: str) -> Path | None:
    """Returns where the heads of a set of files are kept; `None` where the user has no folder for it."""
    with suppress(RuntimeError):
        cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        return Path(cache, "finetune", "images", f"{key}-1")  # 1: of the values of `head_of`
    return None


def _kept(place: Path, count: int) -> np.ndarray | None:
    try:
        content = place.read_bytes()
        place.touch()  # those that are used stay
    except OSError:
        return None
    # Whatever else lies there is no set of heads.
    known = np.array([reduction + more for reduction in (PILLOW, *REDUCTIONS) for more in (0, SHRINKS)], np.uint8)
    kept = np.frombuffer(content, np.uint8)
    return kept if len(kept) == count and np.isin(kept, known).all() else None


def _keep(place: Path, heads: np.ndarray) -> None:
    with suppress(OSError):  # the next process then reads the heads again
        place.parent.mkdir(parents=True, exist_ok=True)
        partial = place.with_name(f".{place.name}-{os.getpid()}")
        partial.write_bytes(heads.tobytes())
        partial.replace(place)
        newest_first = sorted(place.parent.iterdir(), key=lambda path: -path.stat().st_mtime)
        for path in newest_first[_MOST_KEPT:]:
            path.unlink(missing_ok=True)
