import json

import keras
import numpy as np
import pytest

from finetune.errors import FinetuneError
from finetune.training.checkpoints.callback_state import callback_states, restore_callbacks


class Counter(keras.callbacks.Callback):
    not_resumed = ("clock",)

    def __init__(self, limit):
        super().__init__()
        self.limit = limit
        self.clock = 0.0


def through_json(callbacks):
    states, arrays = callback_states(callbacks)
    return json.loads(json.dumps(states)), arrays


def test_attributes_of_all_plain_kinds_come_back_with_their_types():
    values = {
        "number": 0.1,
        "nothing": None,
        "rows": [{"epoch": 1, "loss": float("inf")}, {}],
        "pair": (1, (True, "text")),
        "by_number": {3: [np.float32(0.5)]},
        "weights": [np.arange(3.0), np.zeros((0, 2), "int8")],
    }
    before, after = Counter(1), Counter(1)
    vars(before).update(values)
    states, arrays = through_json([before])
    restore_callbacks([after], states, arrays, source="step.safetensors")
    assert repr({name: vars(after)[name] for name in values}) == repr(values)
    assert type(after.by_number[3][0]) is np.float32


def test_settings_clocks_and_objects_stay_those_of_the_new_process():
    before, after = Counter(1), Counter(2)
    before.clock, before.model_of_mine, before.function = 9.0, keras.Sequential(), print
    states, arrays = through_json([before])
    assert states == {"Counter-1": {"_model": None} if "_model" in states["Counter-1"] else {}}
    restore_callbacks([after], states, arrays, source="step.safetensors")
    assert (after.limit, after.clock) == (2, 0.0)


def test_callbacks_of_the_same_class_are_told_apart_by_their_order():
    before, after = [Counter(1), Counter(1)], [Counter(1), Counter(1), Counter(1)]
    before[0].count, before[1].count = 3, 4
    restore_callbacks(after, *through_json(before), source="step.safetensors")
    assert [vars(callback).get("count") for callback in after] == [3, 4, None]


def test_early_stopping_and_plateau_of_keras_go_on_where_they_were():
    def made():
        stopping = keras.callbacks.EarlyStopping("loss", patience=3, restore_best_weights=True)
        return [stopping, keras.callbacks.ReduceLROnPlateau("loss", patience=2)]

    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    before, after = made(), made()
    for callback in (*before, *after):
        callback.set_model(model)
        callback.on_train_begin()
    for epoch, loss in enumerate((2.0, 1.0, 1.5)):
        for callback in before:
            callback.on_epoch_end(epoch, {"loss": loss})
    restore_callbacks(after, *through_json(before), source="step.safetensors")
    assert (after[0].wait, after[0].best, after[0].best_epoch) == (1, 1.0, 1)
    assert (after[1].wait, after[1].best) == (1, 1.0)
    for one, other in zip(after[0].best_weights, before[0].best_weights, strict=True):
        np.testing.assert_array_equal(one, other)


class Elsewhere(keras.callbacks.Callback):
    """Has its state in a variable."""

    def __init__(self):
        super().__init__()
        self.count, self.forgotten = keras.Variable(0), 0

    def state_to_resume(self):
        return {"count": int(self.count), "pair": (1, None)}

    def resume_state(self, state):
        self.count.assign(state["count"])
        self.pair = state["pair"]


def test_a_callback_that_keeps_its_state_elsewhere_is_asked_for_it():
    before, after = Elsewhere(), Elsewhere()
    before.count.assign(7)
    before.forgotten = 1
    states, arrays = through_json([before])
    restore_callbacks([after], states, arrays, source="step.safetensors")
    assert (int(after.count), after.pair, after.forgotten) == (7, (1, None), 0)


def test_a_state_of_another_kind_is_refused_with_the_file_and_the_name():
    callback = keras.callbacks.EarlyStopping("loss", patience=3)
    callback.on_train_begin()
    states, arrays = callback_states([callback])
    restore_callbacks([callback], states, arrays, source="step.safetensors")
    states["EarlyStopping-1"]["wait"] = "x"
    with pytest.raises(
        FinetuneError, match=r"`callbacks.EarlyStopping-1.wait` in `step.safetensors` cannot be: it is `x`"
    ):
        restore_callbacks([callback], states, arrays, source="step.safetensors")


def test_a_callback_that_reads_its_own_state_is_told_of_by_the_file():
    class Counting(keras.callbacks.Callback):
        def resume_state(self, state):
            self.count = state["count"] + 1

    callback = Counting()
    restore_callbacks([callback], {"Counting-1": {"count": 1}}, {}, source="step.safetensors")
    assert callback.count == 2
    for state in ({}, {"count": "x"}):
        with pytest.raises(FinetuneError, match=r"`callbacks.Counting-1` in `step.safetensors` cannot be: "):
            restore_callbacks([callback], {"Counting-1": state}, {}, source="step.safetensors")


def test_texts_in_arrays_are_left_out_since_their_type_has_no_name_to_find_it_by():
    callback = keras.callbacks.Callback()
    callback.names, callback.count = np.array(["a", "bc"]), 3
    states, arrays = callback_states([callback])
    assert states["Callback-1"]["count"] == 3
    assert "names" not in states["Callback-1"]
    assert arrays == {}
