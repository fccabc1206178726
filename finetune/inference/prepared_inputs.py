"""From raw rows to the inputs of a model, as the training rows were made into them."""

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from finetune.build.source_keys import network_inputs
from finetune.build.text_source import made_of_ids
from finetune.data.audio import read_sound
from finetune.data.columns import category_places
from finetune.data.file_beginnings import BYTES, begins_as
from finetune.data.images import image_of_bytes
from finetune.data.table_column import cell_text
from finetune.data.table_head import MISSING
from finetune.data.tokenizer_file import Encode, encoding, open_tokenizer
from finetune.data.tokens import buckets_up_to
from finetune.errors import DataError, did_you_mean, quote
from finetune.inference.raw_rows import RawRows
from finetune.inference.record import InputRecord, RunRecord
from finetune.models.preset_text import preset_text

Prepare = Callable[[RawRows], Any]


def prepares(record: RunRecord, model: Any) -> Prepare:
    """Returns the function that makes the inputs of a model of raw rows.

    Args:
        record: What the run says of its inputs.
        model: Its model.

    Returns:
        A function whose result is what the model takes. It raises `DataError` where a row does not fit, and says where
        the row is.
    """
    tensors, columns = (
        network_inputs(model),
        list(dict.fromkeys(name for each in record.inputs for name in each.columns)),
    )
    parts = [(_maker(record, each, tensors), each) for each in record.inputs]
    if [each.kind for _, each in parts] == ["array"]:
        return lambda rows: _arrays(rows, tensors)
    derived = made_of_ids(list(tensors), [each.name for _, each in parts])

    def prepare(rows: RawRows) -> Any:
        made: dict[str, Any] = {}
        for make, each in parts:
            value = make(_values(rows, each, columns))
            if each.kind != "tokens":
                made[each.name] = value
                continue
            made[each.name] = value["ids"]
            made |= {name: value[part] for name, part in derived.items()}
        return next(iter(made.values())) if len(tensors) == 1 else {name: made[name] for name in tensors}

    return prepare


def _values(rows: RawRows, each: InputRecord, every: Sequence[str]) -> RawRows:
    """Returns the columns of an input; a value without a name is that of an only column.

    Args:
        rows: The rows.
        each: The input.
        every: The columns of all inputs.

    Raises:
        DataError: A column is missing.
    """
    if "" in rows.columns and every != [""]:
        _check_nameless(rows, each, every)
    if each.columns == ("",) and "" not in rows.columns:
        if len(rows.columns) != 1:
            raise DataError(
                f"The rows of this run are files of kind `{each.kind}`. Received a table with the columns "
                f"{quote(rows.columns)}. Name the files, their folder, or a table with a single column of their names."
            )
        return RawRows({"": next(iter(rows.columns.values()))}, rows.places, rows.folder)
    if "" in rows.columns:
        return RawRows({each.columns[0]: rows.columns[""]}, rows.places, rows.folder)
    absent = [name for name in each.columns if name not in rows.columns]
    if absent:
        known = list(rows.columns)
        raise DataError(
            f"Rows need the columns that the model was trained on: {quote(every, limit=20)}. `{rows.places[0]}` "
            f"has columns {quote(known)}; {quote(absent)} {'is' if len(absent) == 1 else 'are'} missing."
            f"{did_you_mean(absent[0], known)}"
        )
    if each.kind != "features":  # numbers and categories may be missing; a text or a file that is not there is none
        for row, place in enumerate(rows.places):
            if all(rows.columns[name][row] is None for name in each.columns):
                raise DataError(f"Rows need a value for {quote(each.columns)}. `{place}` has none.")
    return RawRows({name: rows.columns[name] for name in each.columns}, rows.places, rows.folder)


def _check_nameless(rows: RawRows, each: InputRecord, every: Sequence[str]) -> None:
    """Refuses values without a name where rows have several columns, and files and arrays where they are no such.

    Raises:
        DataError: Says what was received, and which columns rows have.
    """
    first = rows.columns[""][0]
    is_file = isinstance(first, Path)
    if len(every) == 1 and (each.kind in ("image", "audio") or not (is_file or np.ndim(first))):
        return
    shape = np.shape(first) if not is_file else ()
    received = "a file" if is_file else f"an array of shape {shape}" if shape else "a single value without a name"
    these = "these columns" if len(every) > 1 else "this column"
    these += "" if len(every) > 1 or each.kind == "features" else ", or texts on standard input: `-`"
    raise DataError(
        f"Rows need the columns that the model was trained on: {quote(every, limit=20)}. `{rows.places[0]}` is "
        f"{received}. Give a table, or JSON objects, with {these}."
    )


def _maker(record: RunRecord, each: InputRecord, tensors: Mapping[str, Any]) -> Callable[[RawRows], Any]:
    if each.kind == "image":
        return _images(each)
    if each.kind == "audio":
        tensor = tensors.get(each.name) if len(tensors) > 1 else next(iter(tensors.values()))
        return _sounds(each, channel_axis=len(getattr(tensor, "shape", ())) == 3)
    if each.kind == "tokens":
        return _tokens(record, each)
    missing = {"", *(MISSING if record.missing is None else record.missing)}
    if each.kind == "features":
        return lambda rows: np.concatenate(
            [_feature(rows, name, of, missing) for name, of in each.fitted.items()], axis=1
        ).astype(np.float32)
    return lambda rows: np.array([_text(value, missing) for value in next(iter(rows.columns.values()))], object)


def _text(value: Any, missing: set[str]) -> str:
    text = cell_text(value)
    return "" if text in missing else text


def _feature(rows: RawRows, name: str, about: Mapping[str, Any], missing: set[str]) -> np.ndarray:
    """Returns a normalized number, or a 1 at the place of a category, as `finetune.data.columns` fitted them."""
    texts = [_text(value, missing) for value in rows.columns[name]]
    if about["kind"] == "category":
        return category_places(texts, about["categories"])
    numbers = np.full(len(texts), np.nan)
    for row, text in enumerate(texts):
        try:
            numbers[row] = float(text) if text else np.nan
            if text and not np.isfinite(numbers[row]):
                raise ValueError
        except ValueError:
            raise DataError(f"`{name}` holds numbers. `{rows.places[row]}` has `{text[:60]}`.") from None
    numbers = np.where(np.isnan(numbers), about["mean"], numbers) - about["mean"]
    return (numbers / (about["variance"] ** 0.5 or 1.0))[:, np.newaxis]


def _images(each: InputRecord) -> Callable[[RawRows], Any]:
    options = {name: each.fitted[name] for name in ("size", "channels", "resize", "value_range")}
    options |= {"size": tuple(options["size"]), "value_range": tuple(options["value_range"])}

    @tf.function(autograph=False, input_signature=[tf.TensorSpec((None,), tf.string)])
    def decode(contents: Any) -> Any:
        spec = tf.TensorSpec((*options["size"], options["channels"]), tf.float32)
        return tf.map_fn(lambda data: image_of_bytes(data, **options), contents, fn_output_signature=spec)

    def make(rows: RawRows) -> Any:
        values = next(iter(rows.columns.values()))
        contents = [content_of(value, rows, row) for row, value in enumerate(values)]
        with tf.device("CPU:0"):
            try:
                return decode(tf.constant(contents, tf.string))
            except tf.errors.OpError as error:
                for data, place in zip(contents, rows.places, strict=True):
                    _check_image(data, place, error)
                raise

    return make


def content_of(value: Any, rows: RawRows, row: int) -> bytes:
    """Returns the bytes of a file: of its name, of the bytes themselves, or of a picture in memory.

    Args:
        value: The value of a row.
        rows: The rows, which say where names of files begin.
        row: The number of the row.

    Raises:
        DataError: There is no such file, or the value is no picture.
    """
    if isinstance(value, bytes):
        return value
    if isinstance(value, str | Path):
        return _existing(value, rows, row).read_bytes()
    from PIL import Image

    picture = value if isinstance(value, Image.Image) else _picture(np.asarray(value), rows.places[row])
    file = io.BytesIO()
    picture.save(file, "PNG")  # keeps every value
    return file.getvalue()


def _check_image(data: bytes, place: str, error: Exception) -> None:
    """Refuses bytes that are no image at all; of damaged images the decoder's words say more."""
    from PIL import Image, UnidentifiedImageError

    try:
        Image.open(io.BytesIO(data)).close()
    except UnidentifiedImageError:
        kind = begins_as(data[:BYTES]) or "none of these"
        raise DataError(
            f"The rows of this run are images: JPEG, PNG, GIF, BMP, WebP. `{place}` is {kind}. Leave it "
            "out, or give the image."
        ) from error
    except Exception:  # of many classes, over a damaged image: the caller raises what the decoder has said
        return


def _picture(array: np.ndarray, place: str) -> Any:
    from PIL import Image

    if array.ndim not in (2, 3) or array.dtype.kind not in "iuf":
        raise DataError(
            "The rows of this run are images: names of files, or arrays of shape (height, width) or (height, width, "
            f"3). `{place}` has type `{array.dtype}` and shape {array.shape}."
        )
    plain = array[..., 0] if array.ndim == 3 and array.shape[-1] == 1 else array
    whole = plain.astype(np.uint8) if plain.dtype.kind in "iuf" else plain
    if (whole != plain).any():
        raise DataError(
            "A picture in memory has whole values from 0 to 255, shape (height, width) or (height, width, 3). "
            f"`{place}` has type `{array.dtype}` and shape {array.shape}. Multiply values from 0 to 1 by 255, or name "
            "its file."
        )
    return Image.fromarray(whole)


def _existing(value: str | Path, rows: RawRows, row: int) -> Path:
    path = (rows.folder or Path()) / value if isinstance(value, str) else value
    if not path.is_file():
        names = [other.name for other in path.parent.glob("*")] if path.parent.is_dir() else []
        raise DataError(
            f"`{rows.places[row]}` names the file `{path}`, which does not exist.{did_you_mean(path.name, names)}"
        )
    return path


def _sounds(each: InputRecord, *, channel_axis: bool) -> Callable[[RawRows], Any]:
    rate, length = each.fitted["sample_rate"], each.fitted["length"]

    def make(rows: RawRows) -> np.ndarray:
        values = next(iter(rows.columns.values()))
        sounds = np.stack(
            [
                read_sound(_existing(value, rows, row), rate, length)
                if isinstance(value, str | Path)
                else _samples(value, length, rows.places[row])
                for row, value in enumerate(values)
            ]
        )
        return sounds[..., np.newaxis] if channel_axis else sounds

    return make


def _samples(value: Any, length: int, place: str) -> np.ndarray:
    samples = np.asarray(value, np.float32)
    if samples.ndim != 1:
        raise DataError(
            "The rows of this run are sounds: names of WAV files, or samples of shape (length,). "
            f"`{place}` has shape {samples.shape}."
        )
    whole = np.zeros(length, np.float32)
    whole[: min(length, len(samples))] = samples[:length]
    return whole


def _tokens(record: RunRecord, each: InputRecord) -> Callable[[RawRows], dict[str, np.ndarray]]:
    encode, length, pad_id = encoder_of(record, each)
    padding = record.source.get("padding", "length")  # what the run decided
    buckets = np.array(buckets_up_to(length))

    def make(rows: RawRows) -> dict[str, np.ndarray]:
        columns = [[cell_text(value) for value in rows.columns[name]] for name in each.columns]
        ids, types, lengths, _ = encode(list(zip(*columns, strict=True)))
        longest = int(lengths.max(initial=1))
        bucket = int(buckets[np.searchsorted(buckets, longest)])
        width = {"buckets": bucket, "longest": longest}.get(padding, length)
        is_token = np.arange(width) < lengths[:, np.newaxis]
        made = {"ids": np.full(is_token.shape, pad_id, np.int32), "types": np.zeros(is_token.shape, np.int32)}
        made["ids"][is_token], made["types"][is_token] = ids, types
        return made | {"mask": is_token.astype(np.int32)}

    return make


def encoder_of(record: RunRecord, each: InputRecord) -> tuple[Encode, int, int]:
    """Returns what makes token ids of texts, how many a row has at most, and the id that fills rows up.

    Args:
        record: What the run says.
        each: An input of kind `tokens`.
    """
    about, spec = each.fitted, record.recipe["data"].get("tokenizer") or {}
    if spec.get("file"):
        file = open_tokenizer(record.kept_file(spec["file"]), pad_token=spec.get("pad_token"))
        return encoding(file, about["length"], len(each.columns)), about["length"], about["pad_id"]
    preset = preset_text(record.kept_preset(str(about["tokenizer"])), about["length"], len(each.columns))
    return preset.encode, preset.length, preset.pad_id


def _arrays(rows: RawRows, tensors: Mapping[str, Any]) -> Any:
    """Returns rows of arrays as they are; their shapes are checked against the inputs."""
    names = list(tensors)
    given = dict(rows.columns)
    if names == [""] and len(given) == 1:
        given = {"": next(iter(given.values()))}
    if set(given) != set(names):
        wrong = sorted(set(given) - set(names))
        raise DataError(
            f"This run was trained on arrays{'' if names == [''] else ': ' + quote(names)}. `{rows.places[0]}` has "
            f"{'values without a name' if list(given) == [''] else 'the columns ' + quote(given)}."
            f"{did_you_mean(wrong[0], names) if wrong else ''} Give an `.npz` or `.npy` file of rows as the network "
            "takes them."
        )
    made = {name: _array(given[name], tensors[name], rows) for name in names}
    return made[""] if names == [""] else made


def _array(values: Sequence[Any], tensor: Any, rows: RawRows) -> np.ndarray:
    shape, dtype = tuple(getattr(tensor, "shape", ()))[1:], str(getattr(tensor, "dtype", "float32"))
    try:
        array = np.asarray(values, object if dtype == "string" else dtype)
    except (TypeError, ValueError):
        first = values[0]
        text = f"the text `{first[:60]}`" if isinstance(first, str) else f"a `{type(first).__name__}`"
        shown = "a file of another kind" if isinstance(first, Path) else text
        raise DataError(
            f"This run was trained on arrays, rows of shape {shape}. `{rows.places[0]}` is {shown}. Give an `.npz` or "
            "`.npy` file of rows as the network takes them."
        ) from None
    received = array.shape[1:]
    fits = len(received) == len(shape) and all(a in (None, b) for a, b in zip(shape, received, strict=True))
    if not fits:
        raise DataError(f"The network takes rows of shape {shape}. `{rows.places[0]}` has {received}.")
    return array
