"""The grid of networks that Keras 2 wrote: it has every layer with weights, and a sample of its cells is restored."""

import inspect
import json
import sys
from pathlib import Path

import keras
import pytest

tf_keras = pytest.importorskip("tf_keras")
SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
pytestmark = pytest.mark.filterwarnings("ignore")  # Keras 2 warns about each format but one, and about NumPy 2


@pytest.fixture(scope="module")
def grid(script):
    return script("keras2_grid")


def test_every_layer_of_keras_2_with_weights_that_keras_3_still_has_is_in_the_grid(grid):
    with_weights = set()
    for name in vars(keras.layers).keys() & vars(tf_keras.layers).keys():
        kind = getattr(tf_keras.layers, name)
        own = [base for base in getattr(kind, "__mro__", ()) if base.__name__ not in ("Layer", "BaseRandomLayer")]
        if any("add_weight(" in inspect.getsource(base) for base in own if base.__module__.startswith("tf_keras")):
            with_weights.add(kind.__name__)
    # RNN has the weights of its cell, Discretization those of `adapt`, and SpectralNormalization fails in tf_keras.
    missing = with_weights - {name.split()[0] for name in grid.LAYERS}
    assert missing == {"RNN", "Discretization", "SpectralNormalization"}


@pytest.mark.parametrize(
    ("name", "layer_name", "kind"),
    [
        ("MultiHeadAttention", "body", "weights.h5"),
        ("MultiHeadAttention", "", "keras"),
        ("a model inside", "", "weights.h5"),
        ("Bidirectional", "body", "h5"),
        ("StackedRNNCells", "", "keras"),
        ("DepthwiseConv2D", "", "model.h5"),
        ("TimeDistributed of a model", "body", "checkpoint"),
    ],
)
def test_a_layer_that_keras_2_saved_computes_the_same_when_restored(grid, name, layer_name, kind):
    assert grid.layer_cell(name, layer_name, kind) == ""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("MobileNetV3Small", "h5"),
        ("MobileNetV3Small", "checkpoint"),
        pytest.param("DenseNet121", "h5", marks=pytest.mark.grid),
        pytest.param("DenseNet121", "checkpoint", marks=pytest.mark.grid),
    ],
)
def test_networks_with_slashes_and_capitals_in_names_are_restored(grid, name, kind):
    assert grid.application_cell(name, kind) == ""


KINDS = ("h5", "weights.h5", "keras")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("turn", "every"), [(0, 4), *(pytest.param(turn, 1, marks=pytest.mark.grid) for turn in range(3))]
)
def test_every_layer_that_keras_2_saved_computes_the_same_when_restored(grid, turn, every):
    """Every layer in one of the formats, in turn; all turns together are all layers in all formats."""
    cells = [(name, KINDS[(number + turn) % len(KINDS)]) for number, name in enumerate(grid.LAYERS)][::every]
    wrong = {(name, kind): grid.layer_cell(name, "body", kind) for name, kind in cells}
    assert {cell: text for cell, text in wrong.items() if text} == {}


def test_a_layer_that_computes_something_else_or_does_not_fit_is_reported(grid, monkeypatch):
    def another(k, **named):
        activation = "tanh" if k is keras else None
        return k.layers.Dense(3, activation=activation, **named)

    monkeypatch.setitem(grid.LAYERS, "another", ((4,), another))
    assert grid.layer_cell("another", "", "h5").startswith("differs by ")
    monkeypatch.setitem(grid.LAYERS, "another", ((4,), lambda k, **n: k.layers.Dense(4 if k is keras else 5, **n)))
    assert grid.layer_cell("another", "", "h5").startswith("refused: ")


def test_cells_that_are_in_the_file_of_results_are_not_repeated(grid, monkeypatch, tmp_path, capsys):
    out = tmp_path / "results.jsonl"
    out.write_text(json.dumps({"cell": "Dense unnamed h5", "wrong": "as before"}) + "\n")
    options = ["keras2_grid.py", "--layers", "Dense", "--formats", "h5", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", options)
    with pytest.raises(SystemExit) as ended:
        grid.main()
    assert ended.value.code == 1
    assert capsys.readouterr().out.splitlines() == [
        "Dense unnamed h5: as before",
        "Dense body h5: restored",
        "1 failed",
    ]
    assert json.loads(out.read_text().splitlines()[1]) == {"cell": "Dense body h5", "wrong": ""}
