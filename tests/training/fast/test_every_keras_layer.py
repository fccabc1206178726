"""Every public layer, loss, regularizer, constraint and initializer of Keras trains with the bits of one Keras optimizer.

They are found in Keras' namespaces, so that a new one is tried, too. Here it is in float32, many layers in a model of
independent branches; `scripts/keras_grid.py` tries them all with mixed precision, XLA, masked and ragged inputs.
"""

import importlib
import sys
from pathlib import Path
from types import ModuleType

import keras
import pytest
from keras import layers

SCRIPTS = Path(__file__).resolve().parents[3] / "scripts"
KINDS = ("vector", "sequence", "image", "volume", "tokens", "others")
TOGETHER = 24
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Gradients do not exist for variables:UserWarning"),  # behind `RandomColorJitter`
    pytest.mark.filterwarnings("ignore:Layer '.*_flat' .* does not support masking:UserWarning"),
]


@pytest.fixture(scope="module")
def script():
    """Imports a script by name."""
    sys.path.insert(0, str(SCRIPTS))
    yield importlib.import_module
    sys.path.remove(str(SCRIPTS))


@pytest.fixture(scope="module")
def cases(script):
    return script("keras_cases")


@pytest.fixture(scope="module")
def ways(script):
    return script("keras_ways")


@pytest.fixture(scope="module")
def layer_cases(cases):
    return cases.layer_cases()


@pytest.fixture
def few_layers(cases, monkeypatch):
    """Takes a namespace of two layers for that of Keras; returns it."""
    few = ModuleType("layers")
    few.Dense, few.Flatten = layers.Dense, layers.Flatten
    monkeypatch.setattr(cases, "layers", few)
    return few


def assert_same(ways, model, data, names=("fast",), **options):
    """Returns how many weights were in buffers."""
    expected, moved = ways.train(model, data, "keras", **options), 0
    for name in names:
        trained = ways.train(model, data, name, **options)
        assert ways.differences(trained, expected) == [], name
        assert trained.reason is None
        moved = max(moved, trained.moved)
    return moved


@pytest.mark.sample(3)
@pytest.mark.parametrize(
    ("kind", "every"), [(kind, 6) for kind in KINDS] + [pytest.param(kind, 1, marks=pytest.mark.grid) for kind in KINDS]
)
def test_every_layer(cases, layer_cases, ways, kind, every):
    alike = {}
    for case in layer_cases:
        if (case.kind if case.kind in KINDS else "others") == kind:
            alike.setdefault(case.kind, []).append(case)
    alike = {of_kind: members[::every] for of_kind, members in alike.items()}
    assert alike
    for of_kind, members in alike.items():
        # What writes its weight keeps all others out of buffers, which are to be tried, too.
        writes = [case for case in members if case.name == "SpectralNormalization"]
        quiet = [case for case in members if case not in writes]
        for part in [writes, *(quiet[i : i + TOGETHER] for i in range(0, len(quiet), TOGETHER))]:
            if part:
                # Functions of `FastLoop` and of phases are the same; the other ways are tried where it is cheap.
                names = ways.WAYS if of_kind in ("tokens", "words") else ("phases" if of_kind == "vector" else "fast",)
                moved = assert_same(ways, cases.model_of(part), cases.data_for(of_kind, len(part)), names)
                assert moved or "fast" not in names or len(part) == 1


@pytest.mark.grid
def test_every_loss(script, ways):
    model, losses, data = script("keras_members").model_of_losses()
    assert len(losses) >= 22
    assert assert_same(ways, model, data, loss=losses) == 21  # the biases of the bodies


@pytest.mark.grid
def test_every_regularizer_constraint_and_initializer(script, ways):
    model, data = script("keras_members").model_of_weights()
    assert assert_same(ways, model, data) > 20


def test_a_new_layer_that_needs_arguments_asks_for_a_line_in_the_table(cases, few_layers):
    class NewLayer(layers.Layer):
        def __init__(self, units):
            super().__init__()

    few_layers.NewLayer = NewLayer
    with pytest.raises(ValueError, match=r"Add a line to the table: how it is made to `ARGUMENTS`") as error:
        cases.layer_cases()
    assert "\n  NewLayer: " in str(error.value)
    assert "missing 1 required positional argument: 'units'" in str(error.value)


def test_a_new_layer_that_needs_none_is_tried(cases, few_layers):
    few_layers.NewLayer = type("NewLayer", (layers.ReLU,), {})
    assert [case.name for case in cases.layer_cases()] == ["Dense", "Flatten", "NewLayer"]


def test_a_difference_is_seen_and_named(cases, layer_cases, ways):
    case = next(case for case in layer_cases if case.name == "Dense")
    model, data = cases.model_of([case]), cases.data_for(case.kind, 1)
    expected = ways.train(model, data, "keras")
    other = ways.train(model, data, "fit", rule=keras.optimizers.SGD)
    assert any("dense_before_0/kernel differs by" in line for line in ways.differences(other, expected))
    assert ways.differences(expected, expected) == []
