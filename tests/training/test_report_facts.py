"""What a report needs the network for."""

import json

import keras
import numpy as np

from finetune.data.examples import Examples
from finetune.training import report_facts as module
from finetune.training.predictions import predict_test_rows
from finetune.training.report_facts import report_facts

X = np.random.default_rng(0).random((20, 4, 4, 3)).astype("float32")


def facts(shows_inputs=True, **about):
    model = keras.Sequential([keras.Input((4, 4, 3)), keras.layers.GlobalAveragePooling2D(), keras.layers.Softmax()])
    model.compile("sgd", "sparse_categorical_crossentropy", metrics=["accuracy"])
    y = np.arange(20) % 3
    examples = Examples(X, y, X, y, class_names=("a", "b", "c"), **about)
    model.evaluate(X, y, verbose=0)
    predictions = predict_test_rows(model, examples)
    return report_facts(model, examples, predictions, seed=3, shows_inputs=shows_inputs)


def test_facts_are_plain_data_with_the_worst_rows_and_their_pictures():
    made, arrays = facts(places={"test": [f"img/{n}.png" for n in range(20)]})
    made = json.loads(json.dumps(made))
    worst = made["outputs"][""]["worst"][0]
    assert worst["place"] == f"img/{worst['row']}.png"
    assert worst["actual"] == "abc"[worst["row"] % 3]
    assert set(worst["inputs"][""]) == {"picture"}
    assert set(made["intervals"]) == {"loss", "accuracy"}
    assert arrays["targets"].tolist() == (np.arange(20) % 3).tolist()
    assert arrays["scores"].shape == (20, 3)
    assert arrays["names"].tolist() == ["a", "b", "c"]


def test_inputs_are_left_out_where_they_are_not_wanted():
    assert all("inputs" not in row for row in facts(shows_inputs=False)[0]["outputs"][""]["worst"])


def test_the_line_of_a_table_takes_the_place_of_numbers(tmp_path):
    (tmp_path / "a.csv").write_text("name\n" + "".join(f"row{n}\n" for n in range(20)))
    x, y = np.zeros((6, 2), "float32"), np.array([0, 1] * 3)
    model = keras.Sequential([keras.Input((2,)), keras.layers.Softmax()])
    model.compile("sgd", "sparse_categorical_crossentropy")
    places = {"test": [f"a.csv:{n + 2}" for n in range(6)]}
    examples = Examples(x, y, x, y, places=places, source={"file": str(tmp_path / "a.csv")})
    worst = report_facts(model, examples, predict_test_rows(model, examples), seed=1)[0]["outputs"][""]["worst"]
    assert worst[0]["inputs"] == {"": {"text": f"name: row{worst[0]['row']}"}}


def test_arrays_of_many_rows_are_of_evenly_spaced_ones(monkeypatch):
    monkeypatch.setattr(module, "_MOST_VALUES", 9)
    assert facts()[1]["rows"].tolist() == [0, 10, 19]
