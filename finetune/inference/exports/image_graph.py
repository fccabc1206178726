"""Decoding and resizing of images as operations of TensorFlow alone, for graphs that run without Python.

`finetune.data.images` decodes plain JPEG and PNG files by TensorFlow, and everything else by Pillow. The same values
come of both here: the arithmetic of Pillow is repeated for palettes, alpha and 16 bits of PNG. What TensorFlow cannot
do is in `NOT_IN_GRAPH`.
"""

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from finetune.data.images import resized

NOT_IN_GRAPH = (
    "images are decoded by TensorFlow, which differs from training for JPEG in CMYK, BMP with a palette, and PNG in "
    "grey with a transparent value; of turned pictures of a camera (EXIF) only JPEG are turned upright"
)
_REDUCTIONS = (1, 2, 4, 8)  # by which the decoder of JPEG can divide height and width
_PNG = b"\x89PNG\r\n\x1a\n"
_DEPTH, _COLOUR_TYPE = 24, 25  # places in the head of a PNG file: bits of a value, and what the values are
_GREY, _RGB = 0, 2  # colour types; the others are palettes and those with alpha
_HEAD = 2**16  # bytes of a JPEG among which the EXIF data begin
_ORIENTATION = 0x0112
_MOST_TAGS = 512


def image_in_graph(data: Any, *, size: tuple[int, int], channels: int, resize: str, value_range: Any) -> Any:
    """Returns the image in the bytes of a file, as `finetune.data.images.image_of_bytes` does, without Python.

    Args:
        data: The bytes of a JPEG, PNG, GIF or BMP file, a string of shape `()`.
        size: Height and width in pixels.
        channels: 3 for colours, 1 for grey.
        resize: `pad`, `crop` or `stretch`.
        value_range: What black and white become.

    Returns:
        Float32 of shape `(height, width, channels)`.
    """
    is_png = tf.equal(tf.strings.substr(data, 0, len(_PNG)), _PNG)
    is_jpeg = tf.equal(tf.strings.substr(data, 0, 3), b"\xff\xd8\xff")
    image: Any = tf.case(
        [(is_png, lambda: _png(data, channels)), (is_jpeg, lambda: _jpeg(data, size, channels, resize))],
        default=lambda: _in_channels(tf.io.decode_image(data, channels=3, expand_animations=False), channels),
    )
    low, high = value_range
    image = resized(tf.ensure_shape(image, (None, None, channels)), size, resize)
    return image if (low, high) == (0, 255) else low + image * ((high - low) / 255.0)


def _jpeg(data: Any, size: tuple[int, int], channels: int, resize: str) -> Any:
    """Decodes a JPEG to a half, a quarter or an eighth of its size where it has to shrink by more than that.

    One that is turned is decoded whole, as Pillow does it then.
    """
    orientation = _orientation(data)
    shape: Any = tf.cast(tf.io.extract_jpeg_shape(data)[:2], tf.float64)
    shrinks = shape / tf.constant(size, tf.float64)
    shrink: Any = tf.reduce_max(shrinks) if resize == "pad" else tf.reduce_min(shrinks)
    place = tf.reduce_sum(tf.cast(shrink >= tf.constant(_REDUCTIONS[1:], tf.float64), tf.int32))
    place = tf.where(tf.equal(orientation, 1), place, 0)

    def decode(reduction: int) -> Callable[[], Any]:
        return lambda: tf.io.decode_jpeg(data, channels=channels, ratio=reduction, dct_method="INTEGER_ACCURATE")

    return _upright(tf.switch_case(place, [decode(each) for each in _REDUCTIONS]), orientation)


def _orientation(data: Any) -> Any:
    """Returns the orientation in the EXIF data of a JPEG, 1 to 8; 1, upright, where it has none.

    The data begin with `Exif`, two zeros and the head of a TIFF file: `II` or `MM` for the order of bytes, and at 4 the
    place of a directory. That is a count and, 12 bytes each, tags with a value at 8.
    """
    head: Any = tf.cast(tf.io.decode_raw(tf.strings.substr(data, 0, _HEAD), tf.uint8), tf.int32)
    length = tf.size(head)
    marks = [head[place : length - 5 + place] for place in range(6)]
    is_exif = tf.reduce_all(tf.stack([tf.equal(a, b) for a, b in zip(marks, b"Exif\0\0", strict=True)]), axis=0)
    start: Any = tf.argmax(tf.cast(is_exif, tf.int32), output_type=tf.int32) + 6

    def byte(at: Any) -> Any:
        return tf.gather(head, tf.clip_by_value(at, 0, length - 1))

    def number(at: Any) -> Any:  # of 16 bits
        low, high = byte(at), byte(at + 1)
        return tf.where(tf.equal(byte(start), ord("I")), low + 256 * high, 256 * low + high)

    is_little = tf.equal(byte(start), ord("I"))
    directory = start + tf.where(is_little, number(start + 4), number(start + 6))  # below 65,536, as `head` is
    count = tf.minimum(number(directory), _MOST_TAGS)
    tags = directory + 2 + 12 * tf.range(count)
    is_orientation = tf.equal(number(tags), _ORIENTATION) & tf.reduce_any(is_exif)
    value = tf.reduce_max(tf.concat([tf.where(is_orientation, number(tags + 8), 0), [1]], axis=0))
    return tf.where((value >= 1) & (value <= 8), value, 1)


def _upright(image: Any, orientation: Any) -> Any:
    """Returns an image turned as `PIL.ImageOps.exif_transpose` does."""

    def turned(transposes: bool, flips: tuple[int, ...]) -> Callable[[], Any]:
        def turn() -> Any:
            each = tf.transpose(image, (1, 0, 2)) if transposes else image
            return tf.reverse(each, flips) if flips else each

        return turn

    turns = [(False, ()), (False, (1,)), (False, (0, 1)), (False, (0,))]
    turns += [(True, ()), (True, (1,)), (True, (0, 1)), (True, (0,))]
    return tf.switch_case(orientation - 1, [turned(*each) for each in turns])


def _png(data: Any, channels: int) -> Any:
    depth, colour = (tf.io.decode_raw(tf.strings.substr(data, at, 1), tf.uint8)[0] for at in (_DEPTH, _COLOUR_TYPE))
    is_plain = tf.equal(colour, _GREY) | tf.equal(colour, _RGB)

    def of_16_bits() -> Any:
        values: Any = tf.cast(tf.io.decode_png(data, channels=1, dtype=tf.uint16), tf.float64)
        grey = tf.cast(tf.round(values / 257), tf.uint8)
        return grey if channels == 1 else tf.repeat(grey, 3, axis=-1)

    return tf.case(
        [
            (tf.equal(colour, _GREY) & tf.equal(depth, 16), of_16_bits),
            (is_plain, lambda: tf.io.decode_png(data, channels=channels)),
        ],
        default=lambda: _in_channels(_on_white(tf.io.decode_png(data, channels=4)), channels),
    )


def _on_white(image: Any) -> Any:
    """Returns RGB of RGBA before white, with the rounding of `PIL.Image.alpha_composite`."""
    values: Any = tf.cast(image, tf.int32)
    alpha = values[..., 3:]
    mixed = 128 * (values[..., :3] * alpha + 255 * (255 - alpha)) + (0x80 << 7)
    # Division by 255 with rounding, as Pillow has it: `(x >> 8) + x >> 8`.
    shifted = tf.bitwise.right_shift(tf.bitwise.right_shift(mixed, 8) + mixed, 8)
    return tf.cast(tf.bitwise.right_shift(shifted, 7), tf.uint8)


def _in_channels(image: Any, channels: int) -> Any:
    """Returns RGB as it is, or as grey with the weights of Pillow: `(19595 R + 38470 G + 7471 B + 0x8000) >> 16`."""
    if channels == 3:
        return image
    weights = tf.constant([19595, 38470, 7471], tf.int32)
    grey: Any = tf.reduce_sum(tf.cast(image, tf.int32) * weights, axis=-1, keepdims=True) + 0x8000
    return tf.cast(tf.bitwise.right_shift(grey, 16), tf.uint8)
