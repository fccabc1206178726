"""Labels: their numbers, their weights, and how wide a head they need."""

import keras
import numpy as np
import pytest

from finetune.data.examples import Examples
from finetune.data.labels import class_weights, count_outputs, encode_classes, number_labels, with_one_hot_targets
from finetune.errors import DataError


def test_classes_are_numbered_in_sorted_order():
    labels, names = number_labels(["dog", "cat", "dog", "ant"])
    assert labels.tolist() == [2, 1, 2, 0]
    assert names == ("ant", "cat", "dog")


def test_an_order_can_be_given_with_classes_that_do_not_occur():
    labels, names = number_labels(["dog", "cat"], ["dog", "emu", "cat"])
    assert labels.tolist() == [0, 2]
    assert names == ("dog", "emu", "cat")


def test_a_class_that_is_not_named_is_an_error_with_the_nearest():
    with pytest.raises(DataError, match=r"`cat`, `dog`\. The data also hold `dgo`\. Did you mean `dog`"):
        number_labels(["cat", "dgo"], ["cat", "dog"])


def test_balanced_weights_give_every_class_the_same_sum_and_the_rows_the_mean_1():
    labels = np.repeat([0, 1, 3], [70, 20, 10])
    weights = class_weights(labels, "balanced", ())
    sums = [weights[labels == label].sum() for label in (0, 1, 3)]
    np.testing.assert_allclose(sums, 100 / 3, rtol=1e-6)
    np.testing.assert_allclose(weights.mean(), 1, rtol=1e-6)


def test_weights_by_name_train_as_keras_trains_with_class_weight():
    x, labels = np.random.default_rng(0).normal(size=(32, 4)).astype("float32"), np.arange(32) % 3
    losses = []
    for options in (
        {"class_weight": {0: 1.0, 1: 5.0, 2: 0.5}},
        {"sample_weight": class_weights(labels, {"b": 5.0, "c": 0.5}, ["a", "b", "c"])},
    ):
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, activation="softmax")])
        model.compile("sgd", "sparse_categorical_crossentropy")
        losses.append(model.fit(x, labels, epochs=2, verbose=0, **options).history["loss"])
    assert losses[0] == losses[1]


def test_a_class_that_does_not_exist_is_an_error_with_the_nearest():
    with pytest.raises(DataError, match=r"`cat`, `dog`\. Received: `dgo`\. Did you mean `dog`"):
        class_weights(np.array([0, 1]), {"dgo": 2.0}, ["cat", "dog"])


def test_targets_that_are_no_classes_have_no_class_weights():
    with pytest.raises(DataError, match=r"type `float32` and shape \(2,\)"):
        class_weights(np.array([0.5, 2], "float32"), "balanced", ())
    with pytest.raises(DataError, match=r"type `float32` and shape \(2, 2\)"):
        class_weights(np.ones((2, 2), "float32"), "balanced", ())


@pytest.mark.parametrize("labels", [np.array([0.0, 1, 1, 1]), np.eye(2)[[0, 1, 1, 1]], np.array([[0], [1], [1], [1]])])
def test_labels_of_every_form_that_keras_takes_have_class_weights(labels):
    np.testing.assert_allclose(class_weights(labels, "balanced", ("a", "b")), [2, 2 / 3, 2 / 3, 2 / 3])


@pytest.mark.parametrize(
    ("y", "loss", "width"),
    [
        (np.array([0, 2, 1]), "sparse_categorical_crossentropy", 3),
        (np.array([0, 1, 1]), "binary_crossentropy", 1),
        (np.eye(5), "categorical_crossentropy", 5),
        (np.ones(3), "mse", 1),
        (np.ones((3, 2)), "mse", 2),
    ],
)
def test_the_width_of_a_head_follows_from_the_targets(y, loss, width):
    assert count_outputs(Examples(y, y, y, y), loss) == width


def test_classes_without_a_row_to_train_on_still_have_an_output():
    y = np.array([0, 1])
    assert count_outputs(Examples(y, y, y, y, class_names=("a", "b", "c")), "sparse_categorical_crossentropy") == 3


def test_a_head_cannot_be_sized_by_no_examples_or_by_several_targets():
    with pytest.raises(DataError, match=r"There is none\. Write the number of classes"):
        count_outputs(None, "mse")
    with pytest.raises(DataError, match="There is a `dict`"):
        count_outputs(Examples(1, {"a": 1}, 1, 1), "mse")


def test_two_classes_are_0_and_1_for_every_binary_loss_and_for_a_hinge():
    for loss in ("bce", "BinaryCrossentropy", "hinge", "squared_hinge"):
        assert encode_classes(["b", "a"], loss)[0].tolist() == [1, 0]


def test_names_of_classes_are_refused_under_a_loss_of_numbers():
    with pytest.raises(DataError) as caught:
        encode_classes(["cat", "dog", "cat"], "mse")
    assert str(caught.value) == (
        "The loss `mse` takes numbers. The targets are names of classes, such as `cat`, `dog`. Take the loss "
        "`sparse_categorical_crossentropy`, or `auto`."
    )


def test_labels_of_a_binary_loss_may_be_none_at_all():
    y, names = encode_classes(["a|b", "", "b"], "binary_crossentropy")
    assert y.tolist() == [[1, 1], [0, 0], [0, 1]]
    assert names == ("a", "b")


def test_each_class_gets_a_target_in_every_split_as_wide_as_the_network():
    y, about = np.array([[0], [2]]), {"target": {"kind": "classes"}}
    examples = Examples(np.zeros((2, 1)), y, np.zeros((2, 1)), y[::-1], source=about)
    made = with_one_hot_targets(examples, {"": 4})
    assert made.y_train.tolist() == [[1, 0, 0, 0], [0, 0, 1, 0]]
    assert made.y_test.tolist() == made.y_train[::-1].tolist()
    assert made.source == {"target": {"kind": "one_hot"}}
    named = Examples(np.zeros((2, 1)), {"a": y, "b": y}, np.zeros((2, 1)), {"a": y, "b": y})
    made = with_one_hot_targets(named, {"b": None})
    assert (made.y_train["a"] is y, made.y_train["b"].shape) == (True, (2, 3))
    assert with_one_hot_targets(named, {}) is named
