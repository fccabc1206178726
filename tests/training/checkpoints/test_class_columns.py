import keras
import numpy as np
import pytest

from finetune.errors import TrainingError
from finetune.training.checkpoints.class_columns import ClassChange, class_changes, columns_of_classes, rearranged

ABC, CAD = ("a", "b", "c"), ("c", "a", "d")


def test_a_sentence_says_which_classes_are_new_gone_and_in_another_order():
    sentence = str(ClassChange("kind", ABC, CAD))
    assert sentence == (
        "classes of `kind`: 2 as before, new: `d` (their weights are fresh, and their slots begin anew), no longer "
        "there: `b`, in another order. A class that was only renamed counts as new: to keep its column, keep its name "
        "(`data.class_names`)"
    )
    assert str(ClassChange("", ("a", "b"), ("b", "a"))) == "classes: 2 as before, in another order"


def test_each_class_keeps_its_column_and_a_new_one_has_that_of_the_fresh_network():
    before, fresh = np.arange(6.0).reshape(2, 3), -np.ones((2, 3))
    moved = rearranged(before, fresh, ClassChange("", ABC, CAD))
    np.testing.assert_array_equal(moved, [[2, 0, -1], [5, 3, -1]])
    np.testing.assert_array_equal(
        rearranged(before[0], np.zeros(4), ClassChange("", ABC, ("b", "a", "c", "z"))), [1, 0, 2, 0]
    )


def test_columns_without_a_name_keep_their_places():
    change = ClassChange("", ("a", "b"), ("b", "a", "c"))
    assert change.places(5, 5) == [1, 0, None, 3, 4]
    assert change.places(2, 3) == [1, 0, None]
    assert ClassChange("", ABC, ("a", "c")).places(3, 2) == [0, 2]


def test_a_single_column_for_two_classes_becomes_two_with_the_same_probabilities():
    change, column = ClassChange("", ("no", "yes"), ("no", "perhaps", "yes")), np.array([[3.0]])
    moved = rearranged(column, np.zeros((1, 3)), change, halves=True)
    np.testing.assert_array_equal(moved, [[-1.5, 0, 1.5]])
    both = np.exp(moved[0, [0, 2]]) / np.exp(moved[0, [0, 2]]).sum()
    np.testing.assert_allclose(both[1], 1 / (1 + np.exp(-3.0)))
    assert rearranged(column, np.zeros((1, 3)), change) is None


def test_the_column_of_an_only_label_is_its_own():
    change = ClassChange("", ("red",), ("blue", "red"))
    np.testing.assert_array_equal(rearranged(np.array([[3.0]]), np.zeros((1, 2)), change, halves=True), [[0, 3]])


@pytest.mark.parametrize("now", [("yes", "no"), ("no", "never")])
def test_a_single_column_of_other_classes_is_not_kept(now):
    assert rearranged(np.array([[3.0]]), np.zeros((1, 1)), ClassChange("", ("no", "yes"), now)) is None


def test_classes_and_columns_of_numbers_are_compared_for_each_output():
    before = {"outputs": {"kind": {"class_names": ["a", "b"]}, "size": {"numbers": {"w": {}, "h": {}}}, "same": {}}}
    now = {"outputs": {"kind": {"class_names": ["a", "b"]}, "size": {"numbers": {"h": {}, "w": {}}}, "same": {}}}
    assert class_changes(before, now) == (ClassChange("size", ("w", "h"), ("h", "w")),)
    assert class_changes({"class_names": ["a"]}, {"class_names": ["a", "b"]}) == (ClassChange("", ("a",), ("a", "b")),)
    assert class_changes({}, {"class_names": ["a", "b"]}) == ()


def heads():
    inputs = keras.Input((4,))
    body = keras.layers.Dense(3, name="body")(inputs)
    head = keras.Sequential([keras.Input((3,)), keras.layers.Dense(3, name="output")], name="head")
    scaled = keras.layers.BatchNormalization(name="scale")(head(body))
    kind = keras.layers.Softmax(name="kind")(scaled)
    return keras.Model(inputs, {"kind": kind, "size": keras.layers.Dense(3, name="size")(body)})


def test_the_columns_are_those_of_the_last_kernel_of_the_output_and_of_what_scales_it():
    columns = columns_of_classes(heads(), [change := ClassChange("kind", ABC, CAD)], {})
    assert columns == dict.fromkeys(
        [
            *(f"scale/{name}" for name in ("gamma", "beta", "moving_mean", "moving_variance")),
            *("head/output/kernel", "head/output/bias"),
        ],
        change,
    )
    assert set(columns_of_classes(heads(), [ClassChange("size", ABC, CAD)], {})) == {"size/kernel", "size/bias"}


class Subclassed(keras.Model):
    def __init__(self, classes):
        super().__init__()
        self.body, self.out = keras.layers.Dense(3), keras.layers.Dense(classes)

    def call(self, x):
        return self.out(self.body(x))


def test_where_the_layers_do_not_show_it_the_number_of_classes_does_or_the_change_is_refused():
    former, model = Subclassed(3), Subclassed(4)
    former(np.ones((1, 4))), model(np.ones((1, 4)))
    saved = {
        name: variable.numpy()
        for name, variable in zip(("body/kernel", "body/bias", "out/kernel", "out/bias"), former.weights, strict=True)
    }
    assert set(columns_of_classes(model, [ClassChange("", ABC, (*ABC, "d"))], saved)) == {"out/kernel", "out/bias"}
    with pytest.raises(TrainingError) as error:
        columns_of_classes(former, [ClassChange("", ABC, ("b", "a", "c"))], saved)
    assert str(error.value) == (
        "Each class keeps its weights by its name. The classes: 3 as before, in another order, and the layers of the "
        "network do not show which of its weights belong to which class. Keep the classes and their order "
        "(`data.class_names`), or begin another run with `restore.from`, whose `exclude` names the last layer."
    )
