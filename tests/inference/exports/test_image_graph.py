import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from finetune.data.images import image_of_bytes
from finetune.inference.exports.image_graph import image_in_graph


def picture(mode, height, width):
    y, x = np.mgrid[:height, :width]
    values = np.stack([np.sin(x / 9 + band) * np.cos(y / 7 * band) * 100 + 128 for band in range(4)], axis=-1)
    values += np.random.default_rng(0).normal(0, 8, values.shape)
    pixels = np.clip(values, 0, 255).astype(np.uint8)
    if mode == "I;16":
        return Image.fromarray(pixels[..., 0].astype(np.uint16) * 251 + 77)
    image = Image.fromarray(pixels, "RGBA")
    return image if mode == "RGBA" else image.convert(mode)


def encoded(image, format, **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def turned(orientation, endian):
    exif = Image.Exif()
    exif.endian = endian
    exif[0x010F], exif[0x0112] = "a camera", orientation
    return {"exif": exif}


def files():
    for height, width in ((40, 60), (310, 170)):
        kinds = [("JPEG", mode) for mode in ("RGB", "L")]
        kinds += [("PNG", mode) for mode in ("RGB", "L", "RGBA", "LA", "P", "1", "I;16")]
        for format, mode in [*kinds, ("GIF", "P"), ("BMP", "RGB"), ("BMP", "L")]:
            yield f"{format} {mode}", encoded(picture(mode, height, width), format)
        for number in range(1, 9):
            options = turned(number, "<>"[number % 2])
            yield f"JPEG turned {number}", encoded(picture("RGB", height, width), "JPEG", **options)
        yield "PNG palette", encoded(picture("P", height, width), "PNG", transparency=3)
        yield "JPEG progressive", encoded(picture("RGB", height, width), "JPEG", progressive=True, subsampling=0)


@pytest.mark.filterwarnings("ignore:'mode' parameter is deprecated:DeprecationWarning")
@pytest.mark.parametrize(("channels", "resize"), [(3, "pad"), (3, "crop"), (1, "stretch")])
def test_a_graph_without_python_decodes_files_to_the_same_values_as_training(channels, resize):
    options = {"size": (48, 64), "channels": channels, "resize": resize, "value_range": (-1.0, 1.0)}
    signature = [tf.TensorSpec((), tf.string)]
    graph = tf.function(lambda data: image_in_graph(data, **options), input_signature=signature)
    training = tf.function(lambda data: image_of_bytes(data, **options), input_signature=signature)
    operations = {node.op for node in graph.get_concrete_function().graph.as_graph_def().node}
    assert not {"PyFunc", "EagerPyFunc", "PyFuncStateless"} & operations
    differences = {name: float(np.abs(graph(data) - training(data)).max()) for name, data in files()}
    assert {name: value for name, value in differences.items() if value > 1e-6} == {}
    assert graph(next(files())[1]).shape == (48, 64, channels)


def test_what_is_no_image_is_an_error_of_the_graph():
    with pytest.raises(tf.errors.InvalidArgumentError):
        image_in_graph(tf.constant(b"text"), size=(4, 4), channels=3, resize="pad", value_range=(0, 255))
