"""A graph makes inputs and answers as the run does in Python."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from finetune.inference.answers import probabilities_of
from finetune.inference.exports.compared_rows import arrays_for
from finetune.inference.exports.raw_graph import RawGraph, answers_in_graph, prepared_graph, raw_graph
from finetune.inference.raw_rows import RawRows
from finetune.inference.record import OutputRecord


def prepared_by(graph, fine_tuned, rows):
    arrays = arrays_for(graph.inputs, fine_tuned, rows)
    return graph.prepare({name: tf.constant(array) for name, array in arrays.items()})


def test_columns_are_named_inputs_whose_values_are_normalized_and_looked_up(loaded):
    fine_tuned = loaded("table")
    graph = raw_graph(fine_tuned.record, fine_tuned.model)
    assert [(each.name, each.kind, each.spec.dtype.name) for each in graph.inputs] == [
        ("age", "number", "float64"),
        ("town", "text", "string"),
    ]
    assert graph.outside == []
    columns = {"age": [3, "NA", None, "1e3", -2.5, 7], "town": ["Ulm", "", "NA", "7.0", "Rome", "7"]}
    rows = RawRows(columns, [f"row {number}" for number in range(6)])
    np.testing.assert_array_equal(prepared_by(graph, fine_tuned, rows), fine_tuned.prepare(rows))


@pytest.mark.parametrize(
    ("kind", "name", "meaning"),
    [("images", "image", "JPEG, PNG, GIF or BMP"), ("audio", "sound", "WAV file of 16 bits and 100 samples a second")],
)
def test_files_are_decoded_in_the_graph_to_the_values_of_training(loaded, run_of, kind, name, meaning):
    fine_tuned = loaded(kind)
    graph = raw_graph(fine_tuned.record, fine_tuned.model)
    [taken] = graph.inputs
    assert (taken.name, taken.kind, taken.spec.shape.as_list()) == (name, "bytes", [None])
    assert meaning in taken.meaning
    assert len(graph.outside) == 1
    files = sorted(run_of(kind).parent.glob("photos/*/*.png" if kind == "images" else "clips/*/*.wav"))
    rows = RawRows({"": files}, [file.name for file in files])
    np.testing.assert_array_equal(prepared_by(graph, fine_tuned, rows), fine_tuned.prepare(rows))


def test_a_sound_of_another_rate_is_an_error_of_the_graph(loaded, run_of):
    fine_tuned = loaded("audio")
    graph = raw_graph(fine_tuned.record, fine_tuned.model)
    data = bytearray(next(run_of("audio").parent.glob("clips/*/0.wav")).read_bytes())
    data[24:28], data[28:32] = (200).to_bytes(4, "little"), (400).to_bytes(4, "little")  # bytes a second, too
    with pytest.raises(tf.errors.InvalidArgumentError, match="WAV files have 100 samples a second"):
        graph.prepare({"sound": tf.constant([bytes(data)])})


def test_a_graph_takes_token_ids_where_text_would_need_a_tokenizer_beside_columns_that_it_reads(loaded):
    fine_tuned = loaded("labels")
    graph = raw_graph(fine_tuned.record, fine_tuned.model)
    assert {each.name: each.kind for each in graph.inputs} == {"size": "number", "ids": "prepared"}
    assert graph.outside == ["text becomes token ids outside: `export.json` says how, and the tokenizer is beside it"]
    rows = RawRows({"text": ["red box", "blue"], "size": [3, 4]}, ["a", "b"])
    expected = fine_tuned.prepare(rows)
    for name, value in prepared_by(graph, fine_tuned, rows).items():
        np.testing.assert_array_equal(value, expected[name])


def test_a_text_that_the_network_takes_goes_in_as_it_is_and_missing_words_are_empty(loaded):
    lookup = keras.layers.StringLookup(vocabulary=["good", "bad"])
    network = keras.Sequential([keras.Input((1,), dtype="string"), lookup])
    record = loaded("labels").record

    class OfText:
        inputs = (record.inputs[0].__class__("", "string", ("review",), {}),)
        missing = None

    graph = raw_graph(OfText, network)
    assert [(each.name, each.kind) for each in graph.inputs] == [("review", "text")]
    assert graph.prepare({"review": tf.constant(["good", "NA", "bad"])}).numpy().tolist() == [b"good", b"", b"bad"]


def test_names_of_columns_become_names_that_signatures_take_and_stay_different():
    graph = RawGraph()
    names = [graph.take(column, "text", tf.string, "") for column in ("length (cm)", "length cm", "2nd", "größe", "")]
    assert names == ["length_cm", "length_cm_2", "x_2nd", "größe", "text"]
    assert graph.take("2nd", "text", tf.string, "") == "x_2nd"
    assert graph.take("2nd", "number", tf.float64, "") == "x_2nd_2"


def test_prepared_inputs_are_those_of_the_model(loaded):
    graph = prepared_graph(loaded("labels").model)
    assert {each.name: (each.kind, each.spec.shape.as_list()) for each in graph.inputs} == {
        "ids": ("prepared", [None, None]),
        "size": ("prepared", [None, 1]),
    }


RECORDS = [
    ("classes", "sparse_categorical_crossentropy", True, 3),
    ("classes", "sparse_categorical_crossentropy", False, 3),
    ("classes", "binary_crossentropy", True, 1),
    ("classes", "binary_crossentropy", False, 1),
    ("classes", "hinge", False, 1),
    ("labels", "binary_crossentropy", True, 3),
    ("labels", "binary_focal_crossentropy", False, 3),
]


@pytest.mark.parametrize(("kind", "loss", "logits", "outputs"), RECORDS)
def test_answers_are_those_of_the_run(kind, loss, logits, outputs):
    names = ("a", "b", "c")[: max(outputs, 2)]
    record = OutputRecord("", kind, names, (), loss, logits, {"b": 0.8})
    values = np.random.default_rng(0).normal(size=(20, outputs)).astype("float32")
    values = values if logits or "hinge" in loss else 1 / (1 + np.exp(-values))
    made = answers_in_graph([record], keras.Sequential(), tf.constant(values))
    expected = probabilities_of(record, values)
    np.testing.assert_allclose(made["probabilities"], expected, atol=1e-6)
    if kind == "labels":
        limits = np.array([0.5, 0.8, 0.5])
        np.testing.assert_array_equal(made["is_label"], np.asarray(made["probabilities"]) >= limits.astype("float32"))
    else:
        best = expected.argmax(axis=1)
        assert made["label"].numpy().tolist() == [names[place].encode() for place in best]
        np.testing.assert_allclose(made["probability"], expected.max(axis=1), atol=1e-6)
        assert "label" not in answers_in_graph([record], keras.Sequential(), tf.constant(values), texts=False)


def test_numbers_and_maps_of_classes_are_values(loaded):
    number = OutputRecord("", "numbers", ("price",), ("price",), "mse", False, {})
    maps = OutputRecord("", "classes", ("a", "b"), (), "sparse_categorical_crossentropy", False, {})
    assert set(answers_in_graph([number], keras.Sequential(), tf.ones((2, 1)))) == {"values"}
    assert answers_in_graph([maps], keras.Sequential(), tf.ones((2, 4, 4, 2)))["values"].shape == (2, 4, 4, 2)
    fine_tuned = loaded("table")
    outputs = fine_tuned.model(tf.ones((2, 6)))
    names = set(answers_in_graph(fine_tuned.record.outputs, fine_tuned.model, outputs))
    assert names == {"kind_label", "kind_probability", "kind_probabilities", "price_values"}


def test_inputs_have_names_that_tensorflow_takes_whatever_the_columns_are_called():
    graph = RawGraph()
    columns = ("Fläche", "living area", "面积", "Łódź", "Fl che", "2nd")
    names = [graph.take(each, "number", tf.float32, "a number") for each in columns]
    assert names == ["Fl_che", "living_area", "number", "d", "Fl_che_2", "x_2nd"]
    assert [each.column for each in graph.inputs] == list(columns)
