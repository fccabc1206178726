"""Phases and Auto-RGN read the data as a single `fit` would: no batch is lost, and nothing is opened an extra time."""

import random

import keras
import numpy as np
import pytest
import tensorflow as tf

from finetune.groups.selectors import Selector, resolve_groups
from finetune.optimizers.grouped import GroupedOptimizer
from finetune.training.phases.phase import Phase
from finetune.training.phases.phase_data import PhaseData, Stream
from finetune.training.phases.train_phases import train_phases

X = np.arange(24.0, dtype="float32").reshape(12, 2)
Y = np.arange(12) % 2
STEPS = 3


class Pairs(keras.utils.PyDataset):
    """Three batches of four rows."""

    def __len__(self):
        return STEPS

    def __getitem__(self, index):
        random.random()
        return X[4 * index : 4 * index + 4], Y[4 * index : 4 * index + 4]


class Seen(keras.layers.Layer):
    """Notes the first number of every batch that is trained on."""

    def __init__(self):
        super().__init__(name="seen")
        self.firsts = []

    def call(self, inputs, training=False):
        def note(value):
            self.firsts.append(float(value))
            return np.float32(value)

        if training and not isinstance(inputs, keras.KerasTensor):
            tf.numpy_function(note, [inputs[0, 0]], tf.float32)
        return inputs


def model_that_notes():
    keras.utils.set_random_seed(0)
    seen = Seen()
    parts = [keras.layers.Dense(2, name="body"), keras.layers.Dense(2, activation="softmax", name="head")]
    model = keras.Sequential([keras.Input((2,)), seen, *parts])
    groups = resolve_groups(model, [Selector("body", prefixes="body"), Selector("head", rest=True)])
    made = GroupedOptimizer({group.name: (keras.optimizers.SGD(1e-3), group) for group in groups})
    model.compile(made, loss="sparse_categorical_crossentropy")
    return model, groups, seen.firsts


def generator(batches):
    for n in range(batches):
        yield np.full((4, 2), n, "float32"), np.zeros(4)


@pytest.mark.filterwarnings("ignore:`shuffle=True` was passed")
@pytest.mark.parametrize("auto_rgn", [None, 1e-3])
def test_a_generator_is_read_on_from_phase_to_phase_and_none_of_its_batches_is_lost(auto_rgn):
    model, groups, firsts = model_that_notes()
    phases = [Phase(epochs=1, auto_rgn=auto_rgn), Phase(steps=2, auto_rgn=auto_rgn), Phase(epochs=1)]
    rest = generator(20)
    train_phases(model, groups, phases, rest, steps_per_epoch=STEPS)
    if auto_rgn is None:
        assert firsts == [*range(8)]
        assert next(rest)[0][0, 0] == 8
    # What Auto-RGN measures over, it does not take away.
    assert {*range(8)} <= {*firsts}
    assert next(rest)[0][0, 0] <= 12


@pytest.mark.filterwarnings("ignore:`shuffle=True` was passed", "ignore:Your input ran out of data")
@pytest.mark.parametrize("length", ["known", "unknown"])
def test_auto_rgn_looks_at_the_batches_that_an_epoch_trains_on_and_opens_the_dataset_no_extra_time(length):
    opened = []

    def rows():
        opened.append(1)
        yield from generator(STEPS)

    signature = (tf.TensorSpec((None, 2), tf.float32), tf.TensorSpec((None,), tf.float32))
    data = tf.data.Dataset.from_generator(rows, output_signature=signature)
    if length == "known":
        data = data.apply(tf.data.experimental.assert_cardinality(STEPS))
    model, groups, firsts = model_that_notes()
    train_phases(model, groups, [Phase(epochs=2, auto_rgn=1e-3), Phase(epochs=1)], data)
    assert len(opened) == 3
    assert sorted(firsts) == sorted([0, 1, 2] * 3 + [0, 1, 2] * 2)


def test_with_auto_rgn_a_dataset_trains_as_without_looking_ahead():
    data = tf.data.Dataset.from_tensor_slices((X, Y)).shuffle(12, seed=1).batch(4).cache().prefetch(2)
    _, _, firsts = model_that_notes()
    model, groups, firsts = model_that_notes()
    train_phases(model, groups, [Phase(epochs=2, auto_rgn=1e-3)], data.repeat(), steps_per_epoch=STEPS, shuffle=False)
    expected = [float(x[0, 0]) for x, _ in data]
    assert sorted(set(firsts)) == sorted(expected)
    assert sum(1 for _ in data) == STEPS


def batches_of(data):
    return [[None if part is None else np.asarray(part).tolist() for part in batch] for batch in data]


def test_of_arrays_auto_rgn_measures_the_first_rows_that_are_trained_on():
    data = PhaseData(X, Y, {"batch_size": 4, "validation_split": 0.5, "class_weight": {0: 1.0, 1: 3.0}}, 4)
    assert batches_of(data) == [
        [X[:4].tolist(), Y[:4].tolist(), [1.0, 3.0, 1.0, 3.0]],
        [X[4:6].tolist(), Y[4:6].tolist(), [1.0, 3.0]],
    ]


def test_a_pydataset_is_read_by_index_and_the_random_state_stays():
    random.seed(3)
    before = random.getstate()
    data = PhaseData(Pairs(), None, {"class_weight": {1: 2.0}}, 2)
    assert [batch[2] for batch in batches_of(data)] == [[1.0, 2.0, 1.0, 2.0]] * 2
    assert random.getstate() == before
    assert data.inputs(steps=3, looks_ahead=True) is data.x


def test_a_stream_shows_what_it_will_give_and_begins_again_after_its_end():
    begun = []
    stream = Stream(lambda: begun.append(1) or iter("abc"))
    assert stream.peek(2) == ["a", "b"]
    assert stream.peek(2) == ["a", "b"]
    assert [*stream.read()] == ["a", "b", "c"]
    assert len(begun) == 1
    assert stream.peek(9) == ["a", "b", "c"]
    assert len(begun) == 2
    reader = stream.read()
    assert [next(reader), *stream.peek(1), next(reader)] == ["a", "b", "b"]


def test_a_stream_of_known_size_begins_again_though_nobody_read_beyond_its_last_batch():
    stream = Stream(lambda: iter("abcdef"), 2)
    reader = stream.read()
    assert [next(reader), next(reader)] == ["a", "b"]
    assert stream.peek(3) == ["a", "b"]


@pytest.mark.parametrize("kind", ["array", "list", "dataset", "validation split"])
def test_auto_rgn_measures_raw_strings_as_a_kerashub_task_trains_on_them(kind, text_classifier):
    texts, labels = ["the good film", "a bad film", "Good fox", "bad"] * 2, np.array([1, 0] * 4)
    x, y, fit = texts if kind == "list" else np.array(texts), labels, {"batch_size": 2}
    if kind == "dataset":
        x, y, fit = tf.data.Dataset.from_tensor_slices((texts, labels)).batch(2), None, {}
    if kind == "validation split":
        fit["validation_split"] = 0.5
    model = text_classifier("sgd")
    data = PhaseData(x, y, {**fit, "class_weight": {0: 1.0, 1: 3.0}}, 4, model)
    data.inputs(steps=None, looks_ahead=True)
    batches = list(data)
    assert len(batches) == (2 if kind == "validation split" else 4)
    expected = model.preprocessor(texts[:2])
    for number, (inputs, targets, weights) in enumerate(batches):
        np.testing.assert_array_equal(targets, [1, 0])
        np.testing.assert_array_equal(weights, [3, 1])
        if number % 2 == 0:
            np.testing.assert_array_equal(inputs["token_ids"], expected["token_ids"])
