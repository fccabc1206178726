"""Images in files, decoded and resized when they are taken.

Plain JPEG and PNG files are decoded by TensorFlow, in parallel and without Python. Everything else (palettes, alpha, 16
bits, a turned camera, other formats) is decoded by Pillow, which knows all of it, one at a time.
"""

import hashlib
import io
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from PIL import Image, ImageOps

from finetune.data.class_folders import ClassFiles, find_files
from finetune.data.file_endings import IMAGES
from finetune.data.file_names import file_paths
from finetune.data.image_heads import PILLOW, REDUCTIONS, SHRINKS, head_of, heads_of
from finetune.data.rows import Rows, StoredRows

ENDINGS = IMAGES
RESIZES = ("pad", "crop", "stretch")


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

    An image of another size is resized bilinearly; where its height or width shrinks to less than half, to the means of
    areas. Transparent parts become white. Of an animation the first picture is taken. An image that the camera has
    marked as turned is turned upright.

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
    digest = hashlib.sha256(repr((size, channels, resize, value_range)).encode())
    sizes = np.zeros(len(paths), np.int64)
    for number, path in enumerate(map(str, paths)):
        try:
            stat = os.stat(path)
        except OSError:  # `heads_of` says which files cannot be read
            digest.update(os.fsencode(f"{path}\n"))
            continue
        sizes[number] = stat.st_size
        digest.update(os.fsencode(f"{path} {stat.st_size} {stat.st_mtime_ns}\n"))
    heads = heads_of(paths, size, resize, key=digest.hexdigest(), checked=checked, places=places)
    # What no file needs is no part of the graph: a branch costs more than most of what it would choose from.
    shrinks, (reductions, decoders) = bool((heads >= SHRINKS).any()), np.unique(heads % SHRINKS, return_inverse=True)
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
        head = head_of(io.BytesIO(content), size, resize)
        return np.array(0 if isinstance(head, str) else all_reductions.index(head % SHRINKS), np.int32)

    all_reductions = (PILLOW, *REDUCTIONS)
    decoder: Any = tf.ensure_shape(tf.numpy_function(decoder_for, [data], tf.int32, stateful=False), ())
    return _in_range(resized(_decoded(data, decoder, all_reductions, channels), size, resize), value_range)


def _decoded(data: Any, decoder: Any, reductions: Sequence[int], channels: int) -> Any:
    """Decodes bytes; `decoder` is the place in `reductions` of what divides the height and the width."""

    def decode(reduction: int) -> Callable[[], Any]:
        if reduction == PILLOW:
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
        inner, ratio, largest = tf.constant(size), tf.reduce_min(ratios), tf.reduce_max(ratios)
    else:
        ratio = largest = tf.reduce_min(ratios) if resize == "pad" else tf.reduce_max(ratios)
        inner = tf.maximum(tf.cast(tf.round(shape * ratio), tf.int32), 1)
    image = _shrunk(image, inner, ratio, largest) if shrinks else tf.image.resize(image, inner)
    excess: Any = inner - tf.constant(size)
    if resize == "pad":
        before = -excess // 2
        image = tf.pad(image, [[before[0], -excess[0] - before[0]], [before[1], -excess[1] - before[1]], [0, 0]])
    elif resize == "crop":
        top, left = excess[0] // 2, excess[1] // 2
        image = image[top : top + size[0], left : left + size[1]]
    return tf.ensure_shape(image, (*size, image.shape[-1]))


def _shrunk(image: Any, size: Any, smallest: Any, largest: Any) -> Any:
    """Resizes an image of which an axis may shrink to less than half; `smallest` and `largest` are by how much axes do.

    Down to a half every pixel counts in a bilinear mean of four. Beyond it means of areas count all, in half of the
    time that antialiasing takes, and are as near to Lanczos' method; but an axis that grows would repeat pixels.
    """
    bilinear = partial(tf.image.resize, image, size)
    areas = lambda: tf.raw_ops.ResizeArea(images=image[tf.newaxis], size=size)[0]  # noqa: E731
    shrinking = lambda: tf.cond(largest < 1.0, areas, partial(bilinear, antialias=True))  # noqa: E731
    return tf.cond(smallest < 0.5, shrinking, bilinear)


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
