"""From raw rows to the inputs of a model, and from its outputs to answers, as operations of TensorFlow alone.

What `finetune.inference.prepared_inputs` and `answers` do in Python a graph does here, which runs wherever TensorFlow
does. Tokenizers are Python, so that a graph takes token ids; `text_graph` has the tokenizers of BERT's kind.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import keras
import tensorflow as tf

from finetune.build.source_keys import network_inputs
from finetune.build.text_source import made_of_ids
from finetune.data.table_column import cell_text
from finetune.data.table_head import MISSING
from finetune.inference.answers import class_labels
from finetune.inference.exports.image_graph import NOT_IN_GRAPH, image_in_graph
from finetune.inference.exports.text_graph import LIBRARY, TOKENIZED_OTHERWISE, first_difference, text_graph
from finetune.inference.raw_rows import RawRows
from finetune.inference.record import InputRecord, OutputRecord, RunRecord
from finetune.models.output_names import by_output_name, of_output

_NUMBER = r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?"


@dataclass(frozen=True)
class GraphInput:
    """An input of a graph.

    Attributes:
        name: Its name in the graph.
        column: What the rows call it: the column, or the input of the model; may be empty.
        kind: `bytes` of a file, `number`, `text`, `sentence` (a text that becomes token ids), or `prepared`.
        spec: Its type and shape.
        meaning: What it holds, as a sentence without a point.
    """

    name: str
    column: str
    kind: str
    spec: tf.TensorSpec
    meaning: str


@dataclass
class RawGraph:
    """How a graph makes the inputs of a model.

    Attributes:
        inputs: What the graph takes.
        outside: What it does not do, as sentences; usually empty.
        imports: Modules that have some of its operations.
    """

    inputs: list[GraphInput] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)
    imports: list[str] = field(default_factory=list)
    _makers: list[tuple[str, Callable[[Mapping[str, Any]], Any]]] = field(default_factory=list)

    def prepare(self, tensors: Mapping[str, Any]) -> Any:
        """Returns the inputs of the model, made of tensors by the names of the graph's inputs."""
        made = {name: make(tensors) for name, make in self._makers}
        return next(iter(made.values())) if len(made) == 1 else made

    def take(self, column: str, kind: str, dtype: Any, meaning: str, shape: Sequence[int | None] = (None,)) -> str:
        """Adds an input, unless there is one for the same column, and returns its name.

        Args:
            column: What the rows call it.
            kind: As `GraphInput.kind`.
            dtype: Its type.
            meaning: What it holds.
            shape: Its shape, the axis of the rows included.
        """
        for each in self.inputs:
            if (each.column, each.kind) == (column, kind):
                return each.name
        # TensorFlow names tensors in ASCII alone.
        plain = re.sub(r"\W+", "_", column, flags=re.ASCII).strip("_") or kind
        plain = f"x_{plain}" if plain[0].isdigit() else plain
        used = {each.name for each in self.inputs}
        name = next(each for each in (plain, *(f"{plain}_{n}" for n in range(2, 999))) if each not in used)
        self.inputs.append(GraphInput(name, column, kind, tf.TensorSpec(list(shape), dtype, name=name), meaning))
        return name

    @property
    def made(self) -> set[str]:
        """The inputs of the model that are made."""
        return {name for name, _ in self._makers}

    def make(self, name: str, maker: Callable[[Mapping[str, Any]], Any]) -> None:
        """Sets what makes an input of the model of the graph's inputs."""
        self._makers.append((name, maker))


def prepared_graph(model: keras.Model) -> RawGraph:
    """Returns the graph that takes what the model takes."""
    graph = RawGraph()
    for name, tensor in network_inputs(model).items():
        _take_prepared(graph, name, tensor)
    return graph


def raw_graph(record: RunRecord, model: keras.Model, rows: RawRows | None = None) -> RawGraph:
    """Returns the graph that takes raw rows, as far as TensorFlow can prepare them.

    Args:
        record: What the run says of its inputs.
        model: Its model.
        rows: Rows whose texts the graph must turn into the token ids of training; without them it takes ids.
    """
    graph, tensors = RawGraph(), network_inputs(model)
    makers = {"image": _image, "audio": _sound, "features": _features, "string": _text}
    for each in record.inputs:
        if each.kind in makers and (each.name in tensors or len(tensors) == 1):
            graph.make(each.name, makers[each.kind](graph, each, record))
    tokens = [each for each in record.inputs if each.kind == "tokens"]
    has_ids = bool(tokens) and not (rows and all(_tokens(graph, each, record, tensors, rows) for each in tokens))
    if len(graph.inputs) and len(tensors) == 1:
        return graph
    for name, tensor in tensors.items():
        if name not in graph.made:
            _take_prepared(graph, name, tensor)
    if has_ids:
        graph.outside.append("text becomes token ids outside: `export.json` says how, and the tokenizer is beside it")
    return graph


def _take_prepared(graph: RawGraph, name: str, tensor: Any) -> None:
    shape, dtype = tuple(tensor.shape), tensor.dtype
    key = graph.take(name, "prepared", dtype, "what the model takes", shape)
    graph.make(name, lambda tensors: tensors[key])


def _image(graph: RawGraph, each: InputRecord, record: RunRecord) -> Callable[[Mapping[str, Any]], Any]:
    key = graph.take(each.columns[0] or "image", "bytes", tf.string, "bytes of a JPEG, PNG, GIF or BMP file")
    graph.outside.append(NOT_IN_GRAPH)
    options = {name: each.fitted[name] for name in ("size", "channels", "resize", "value_range")}
    options |= {"size": tuple(options["size"]), "value_range": tuple(options["value_range"])}
    spec = tf.TensorSpec((*options["size"], options["channels"]), tf.float32)

    def make(tensors: Mapping[str, Any]) -> Any:
        return tf.map_fn(lambda data: image_in_graph(data, **options), tensors[key], fn_output_signature=spec)

    return make


def _sound(graph: RawGraph, each: InputRecord, record: RunRecord) -> Callable[[Mapping[str, Any]], Any]:
    rate, length = each.fitted["sample_rate"], each.fitted["length"]
    meaning = f"bytes of a WAV file of 16 bits and {rate:,} samples a second"
    key = graph.take(each.columns[0] or "sound", "bytes", tf.string, meaning)
    graph.outside.append(
        f"sounds of another rate than {rate:,} samples a second, or of other than 16 bits, are refused"
    )

    def decode(data: Any) -> Any:
        sound: Any = tf.audio.decode_wav(data)
        with tf.control_dependencies(
            [tf.debugging.assert_equal(sound.sample_rate, rate, message=f"WAV files have {rate} samples a second")]
        ):
            mono = tf.reduce_mean(sound.audio[:length], axis=1)
        return tf.pad(mono, [[0, length - tf.size(mono)]])

    def make(tensors: Mapping[str, Any]) -> Any:
        return tf.map_fn(decode, tensors[key], fn_output_signature=tf.TensorSpec((length,), tf.float32))

    return make


def _tokens(graph: RawGraph, each: InputRecord, record: RunRecord, tensors: Mapping[str, Any], rows: RawRows) -> bool:
    """Makes the token ids of a text, and what follows from them, if the graph gives the ids of training."""
    make = text_graph(record, each)
    if make is None:
        return False
    texts = [cell_text(value) for value in rows.columns[each.columns[0] if each.columns[0] in rows.columns else ""]]
    different = first_difference(make, record, each, texts)
    if different is not None:
        graph.outside.append(f"TensorFlow Text tokenizes `{rows.places[different]}` in another way than the run")
        return False
    key = graph.take(each.columns[0] or "text", "sentence", tf.string, "a text")
    graph.imports.append(LIBRARY)
    graph.outside.append(TOKENIZED_OTHERWISE)
    parts = {each.name: "ids"} | made_of_ids(list(tensors), [other.name for other in record.inputs])
    for name, part in parts.items():
        dtype = getattr(tensors.get(name, next(iter(tensors.values()))), "dtype", "int32")
        graph.make(name, lambda given, part=part, dtype=dtype: tf.cast(make(given[key])[part], dtype))
    return True


def _missing_words(record: RunRecord) -> list[str]:
    return sorted({"", *(MISSING if record.missing is None else record.missing)})


def _cleaned(texts: Any, words: Sequence[str]) -> Any:
    """Returns texts, empty where they stand for a missing value."""
    return tf.where(tf.reduce_any(texts[:, tf.newaxis] == tf.constant(words), axis=1), "", texts)


def _text(graph: RawGraph, each: InputRecord, record: RunRecord) -> Callable[[Mapping[str, Any]], Any]:
    key, words = graph.take(each.columns[0] or "text", "text", tf.string, "a text"), _missing_words(record)
    return lambda tensors: _cleaned(tensors[key], words)


def _features(graph: RawGraph, each: InputRecord, record: RunRecord) -> Callable[[Mapping[str, Any]], Any]:
    words, parts = _missing_words(record), []
    for column, about in each.fitted.items():
        if about["kind"] == "category":
            key = graph.take(column, "text", tf.string, "a category as text; empty where it is missing")
            parts.append((key, _one_hot(about["categories"], words)))
        else:
            key = graph.take(column, "number", tf.float64, "a number; NaN where it is missing")
            parts.append((key, _normalized(about["mean"], about["variance"])))
    return lambda tensors: tf.cast(tf.concat([make(tensors[key]) for key, make in parts], axis=1), tf.float32)


def _normalized(mean: float, variance: float) -> Callable[[Any], Any]:
    def make(values: Any) -> Any:
        known = tf.where(tf.math.is_nan(values), tf.constant(mean, tf.float64), values)
        return tf.cast((known - mean) / (variance**0.5 or 1.0), tf.float32)[:, tf.newaxis]

    return make


def _one_hot(categories: Sequence[str], words: Sequence[str]) -> Callable[[Any], Any]:
    """Returns what puts a 1 at the place of a category; the first place is that of every other text.

    The categories are a constant of the graph: a lookup table would be a resource that each runtime has to initialize.
    A text that is no category may be the number of one: `1.0` is `1`.
    """
    numbers = [float(each) if re.fullmatch(_NUMBER, each) else float("nan") for each in categories]

    def make(texts: Any) -> Any:
        cleaned = _cleaned(texts, words)
        is_same = cleaned[:, tf.newaxis] == tf.constant(list(categories), tf.string)
        if any(number == number for number in numbers):  # NaN equals nothing
            is_number = tf.strings.regex_full_match(cleaned, _NUMBER)
            values = tf.strings.to_number(tf.where(is_number, cleaned, "nan"), tf.float64)
            is_equal = values[:, tf.newaxis] == tf.constant(numbers, tf.float64)
            is_same = tf.where(tf.reduce_any(is_same, axis=1, keepdims=True), is_same, is_equal)
        places: Any = tf.cast(is_same, tf.float32)
        return tf.concat([1.0 - tf.reduce_sum(places, axis=1, keepdims=True), places], axis=1)

    return make


def answer_prefix(record: OutputRecord) -> str:
    """Returns what the names of the answers for an output begin with; empty for the only one."""
    return f"{re.sub(r'[^A-Za-z0-9]+', '_', record.name)}_" if record.name else ""


def answers_in_graph(
    records: Sequence[OutputRecord], model: keras.Model, outputs: Any, *, texts: bool = True
) -> dict[str, Any]:
    """Returns the answers for the outputs of a model: `label`, `probability`, `probabilities`, `is_label`, `values`.

    Args:
        records: What the outputs mean.
        model: The model.
        outputs: What it gave, tensors whose first axis counts the rows.
        texts: Whether labels are among the answers; runtimes without texts have their numbers alone.

    Returns:
        Tensors by name; where there are several outputs, names begin with that of the output and `_`.
    """
    named, made = by_output_name(model, outputs), {}
    for each in records:
        values: Any = tf.cast(of_output(named, each.name), tf.float32)
        prefix = answer_prefix(each)
        made |= {f"{prefix}{name}": tensor for name, tensor in _answers(each, values, texts).items()}
    return made


def _answers(record: OutputRecord, values: Any, texts: bool) -> dict[str, Any]:
    if record.kind == "numbers" or len(values.shape) > 2:
        return {"values": values}
    probabilities = _probabilities(record, values)
    names = class_labels(record, probabilities.shape[1])
    if record.kind == "labels":
        limits = tf.constant([record.thresholds.get(name, 0.5) for name in names], tf.float32)
        return {"probabilities": probabilities, "is_label": probabilities >= limits}
    best: Any = tf.argmax(probabilities, axis=1)
    answers = {"probabilities": probabilities, "probability": tf.reduce_max(probabilities, axis=1)}
    return answers | ({"label": tf.gather(tf.constant(names), best)} if texts else {})


def _probabilities(record: OutputRecord, values: Any) -> Any:
    """Returns the probability of each class or label, as `finetune.inference.answers.probabilities_of` does."""
    values = values if len(values.shape) == 2 else values[:, tf.newaxis]
    is_single = values.shape[1] == 1 and record.kind == "classes"
    if record.logits:
        values = tf.sigmoid(values) if is_single or record.kind == "labels" else tf.nn.softmax(values)
    elif "hinge" in record.loss.replace("_", "").lower() and "categorical" not in record.loss.lower():
        values = tf.clip_by_value((values + 1) / 2, 0, 1)
    return tf.concat([1 - values, values], axis=1) if is_single else values
