"""Images in files, decoded and resized when they are taken.

Plain JPEG and PNG files are decoded by TensorFlow, in parallel and without Python. Everything else (palettes, alpha, 16
bits, a turned camera, other formats) is decoded by Pillow, which knows all of it, one at a time.
"""

import hashlib
import io
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from PIL import Image, ImageOps, UnidentifiedImageError

from finetune.data.class_folders import ClassFiles, find_files
from finetune.data.file_endings import IMAGES
from finetune.data.file_names import file_paths
from finetune.data.rows import Rows, StoredRows
from finetune.errors import DataError
from finetune.machine_failures import raise_machine_failure

ENDINGS = IMAGES
RESIZES = ("pad", "crop", "stretch")
_REDUCTIONS = (1, 2, 4, 8)  # by which the decoder of JPEG can divide height and width
_PILLOW = 0  # in place of a reduction: TensorFlow would decode the file otherwise
_SHRINKS = 16  # is added to a reduction where the decoded image may have more than twice the size
_AT_ONCE = 4096  # files that wait for a thread
_SHOWN = 5  # files in a message
_ORIENTATION = 0x0112  # the EXIF tag that says how the camera was held; 1 is upright


def find_images(folder: str | Path) -> ClassFiles:
    """Lists the images in folders of classes, sorted; see `finetune.data.class_folders.find_files`.

    Raises:
        DataError: There is no such folder, there are no folders of classes, or a class has no images.
    """
    return find_files(folder, ENDINGS, "images", "cat")


def image_rows(
    paths: Sequence[Path],
    *,
    size: tuple[int, int],
    channels: int = 3,
    resize: str = "pad",
    value_range: tuple[float, float] = (0.0, 255.0),
    checked: bool = True,
    places: Sequence[str] = (),
) -> Rows:
    """Returns the images of some files as rows, each of shape `(height, width, channels)`, float32.

    An image of another size is resized bilinearly, with antialiasing where it shrinks to less than half. Transparent
    parts become white. Of an animation the first picture is taken. An image that the camera has marked as turned is
    turned upright.

    Args:
        paths: The files.
        size: Height and width in pixels.
        channels: 3 for colours, 1 for grey.
        resize: `pad` keeps the whole image and its proportions, with black beside it; `crop` keeps the proportions and
            fills the size; `stretch` does not keep the proportions.
        value_range: What black and white become.
        checked: Whether the head of every file is read first, and files that are not images are an error.
        places: Where each file is named, such as `photos.csv:17`, if anywhere.

    Raises:
        DataError: Files cannot be read as images; names them.
    """
    paths = file_paths(paths)
    looks = _look_at(paths, size, resize, checked, places)
    # What no file needs is no part of the graph: a branch costs more than most of what it would choose from.
    shrinks, (reductions, decoders) = bool((looks >= _SHRINKS).any()), np.unique(looks % _SHRINKS, return_inverse=True)
    digest = hashlib.sha256(repr((size, channels, resize, value_range)).encode())
    sizes = np.zeros(len(paths), np.int64)
    for number, path in enumerate(paths):
        stat = path.stat()
        sizes[number] = stat.st_size
        digest.update(os.fsencode(f"{path} {stat.st_size} {stat.st_mtime_ns}\n"))
    with tf.device("CPU:0"):
        decoder_of: Any = tf.constant(decoders.astype(np.int32))
    name = paths.graph_names()

    def pixels(index: Any) -> Any:
        image = _decoded(tf.io.read_file(name(index)), decoder_of[index], reductions.tolist(), channels)
        return _in_range(resized(image, size, resize, shrinks=shrinks), value_range)

    # A function of its own: outside of a graph `map_fn` logs warnings where a file cannot be decoded.
    @tf.function(autograph=False, input_signature=[tf.TensorSpec((None,), tf.int64)])
    def images(indices: Any) -> Any:
        return tf.map_fn(pixels, indices, fn_output_signature=tf.TensorSpec((*size, channels), tf.float32))

    return Rows(
        len(paths),
        lambda indices: images(tf.cast(indices, tf.int64)),
        fingerprint=digest.hexdigest(),
        take_row=pixels,
        stored=StoredRows(lambda row: paths[row].read_bytes(), sizes, paths),
    )


def image_of_bytes(data: Any, *, size: tuple[int, int], channels: int, resize: str, value_range: Any) -> Any:
    """Returns the image in the bytes of a file, as `image_rows` does. Runs in graphs.

    Args:
        data: The bytes, a string of shape `()`.
        size: Height and width in pixels.
        channels: 3 for colours, 1 for grey.
        resize: `pad`, `crop` or `stretch`.
        value_range: What black and white become.
    """

    def decoder_for(content: bytes) -> np.ndarray:
        look = _look(io.BytesIO(content), size, resize)
        return np.array(0 if isinstance(look, str) else all_reductions.index(look % _SHRINKS), np.int32)

    all_reductions = (_PILLOW, *_REDUCTIONS)
    decoder: Any = tf.ensure_shape(tf.numpy_function(decoder_for, [data], tf.int32, stateful=False), ())
    return _in_range(resized(_decoded(data, decoder, all_reductions, channels), size, resize), value_range)


def _decoded(data: Any, decoder: Any, reductions: Sequence[int], channels: int) -> Any:
    """Decodes bytes; `decoder` is the place in `reductions` of what divides the height and the width."""

    def decode(reduction: int) -> Callable[[], Any]:
        if reduction == _PILLOW:
            return lambda: tf.numpy_function(_decode_with_pillow, [data, channels], tf.uint8, stateful=False)
        # The op decodes PNG, too. `INTEGER_ACCURATE` gives the values that other libraries give.
        return lambda: tf.io.decode_jpeg(data, channels=channels, ratio=reduction, dct_method="INTEGER_ACCURATE")

    ways = [decode(reduction) for reduction in reductions]
    return tf.ensure_shape(ways[0]() if len(ways) == 1 else tf.switch_case(decoder, ways), (None, None, channels))


def _in_range(image: Any, value_range: tuple[float, float]) -> Any:
    low, high = value_range
    return image if (low, high) == (0, 255) else low + image * ((high - low) / 255.0)


def resized(image: Any, size: tuple[int, int], resize: str, *, shrinks: bool = True) -> Any:
    """Returns an image of the size, float32. An image that has the size already keeps its values.

    Args:
        image: Shape `(height, width, channels)`, of any numbers.
        size: Height and width in pixels.
        resize: `pad`, `crop` or `stretch`, as for `image_rows`.
        shrinks: Whether it may have more than twice the size.
    """
    shape: Any = tf.cast(tf.shape(image)[:2], tf.float32)
    ratios: Any = tf.constant(size, tf.float32) / shape
    if resize == "stretch":
        inner, ratio = tf.constant(size), tf.reduce_min(ratios)
    else:
        ratio = tf.reduce_min(ratios) if resize == "pad" else tf.reduce_max(ratios)
        inner = tf.maximum(tf.cast(tf.round(shape * ratio), tf.int32), 1)
    # Down to a half every pixel still counts in a bilinear mean of four; antialiasing takes three times as long.
    plain = partial(tf.image.resize, image, inner)
    image = tf.cond(ratio < 0.5, partial(plain, antialias=True), plain) if shrinks else plain()
    excess: Any = inner - tf.constant(size)
    if resize == "pad":
        before = -excess // 2
        image = tf.pad(image, [[before[0], -excess[0] - before[0]], [before[1], -excess[1] - before[1]], [0, 0]])
    elif resize == "crop":
        top, left = excess[0] // 2, excess[1] // 2
        image = image[top : top + size[0], left : left + size[1]]
    return tf.ensure_shape(image, (*size, image.shape[-1]))


def _look_at(
    paths: Sequence[Path], size: tuple[int, int], resize: str, checked: bool, places: Sequence[str]
) -> np.ndarray:
    """Reads the head of every file; returns what `_look` says of it, uint8 of shape `(files,)`.

    Raises:
        DataError: Files are not images.
    """
    seen, broken, count = np.zeros(len(paths), np.uint8), [], 0
    with ThreadPoolExecutor(8) as pool:
        for start in range(0, len(paths), _AT_ONCE):
            looks = pool.map(lambda path: _look(path, size, resize), paths[start : start + _AT_ONCE])
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
    return seen


def _look(path: Path | io.BytesIO, size: tuple[int, int], resize: str) -> int | str:
    """Returns the reduction for a file that TensorFlow decodes as Pillow does, else `_PILLOW`; plus `_SHRINKS`, if so.

    What is wrong with a file is returned as text.
    """
    try:
        with Image.open(path) as image:
            upright = image.getexif().get(_ORIENTATION, 1) == 1
            eight_bits = image.format == "JPEG" or "transparency" not in image.info
            if not (image.format in ("JPEG", "PNG") and image.mode in ("L", "RGB") and upright and eight_bits):
                return _PILLOW + _SHRINKS
            # A JPEG decodes to a half, a quarter or an eighth of its size: in less time, and without aliasing.
            shrinks = [image.height / size[0], image.width / size[1]]
            shrink = max(shrinks) if resize == "pad" else min(shrinks)
            reduction = max(r for r in _REDUCTIONS if r <= max(shrink, 1) and (r == 1 or image.format == "JPEG"))
            is_small = -(-image.height // reduction) <= 2 * size[0] and -(-image.width // reduction) <= 2 * size[1]
            return reduction if is_small else reduction + _SHRINKS
    except UnidentifiedImageError:
        is_empty = not (path.getbuffer().nbytes if isinstance(path, io.BytesIO) else path.stat().st_size)
        return "empty" if is_empty else "not an image"
    except Exception as error:  # Pillow raises errors of many classes over damaged files
        raise_machine_failure(error, f"Reading `{path if isinstance(path, Path) else 'an image'}`")
        return str(error) or type(error).__name__


def _decode_with_pillow(data: bytes, channels: int) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith("I") or upright.mode == "F":  # 16 bits, which `convert` would cut off
        values = np.asarray(upright).astype(np.float64)
        upright = Image.fromarray(np.rint(np.clip(values / 257, 0, 255)).astype(np.uint8))
    if upright.has_transparency_data:
        white = Image.new("RGBA", upright.size, "white")
        upright = Image.alpha_composite(white, upright.convert("RGBA"))
    pixels = np.asarray(upright.convert("RGB" if channels == 3 else "L"))
    return pixels if channels == 3 else pixels[..., np.newaxis]
