"""Targets: what they are, by the loss or by their values, and the form in which a loss takes them."""

import numpy as np
import pytest

from finetune.data.examples import Examples
from finetune.data.table_column import Column
from finetune.data.table_files import Table
from finetune.data.table_places import places_in
from finetune.data.targets import class_target, kind_of_array, loss_for, metrics_for, number_text_targets, read_target
from finetune.errors import DataError

SPARSE, BINARY = "sparse_categorical_crossentropy", "binary_crossentropy"


def numbers(*values, name="n"):
    return Column(name, "number", np.array(values, float), all(value == round(value) for value in values))


def texts(*values, name="t"):
    return Column(name, "text", np.array(values))


def table(*columns, path="a.csv"):
    places = places_in("a.csv", range(2, 2 + len(columns[0].values)))
    return Table(path, {column.name: column for column in columns}, places)


def read(column, loss="auto", **options):
    return read_target(table(column), [column.name], loss, **options)


# -- The loss decides -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("column", "loss", "expected", "names"),
    [
        (texts("b", "a", "b"), SPARSE, [1, 0, 1], ("a", "b")),
        (numbers(10, 2, 10), SPARSE, [1, 0, 1], ("2", "10")),
        (numbers(0.0, 10.0, 2.0, 1.0), SPARSE, [0, 3, 2, 1], ("0", "1", "2", "10")),
        (texts("b", "a", "b"), BINARY, [1.0, 0.0, 1.0], ("a", "b")),
        (texts("b", "a", "b"), "bce", [1.0, 0.0, 1.0], ("a", "b")),
        (texts("b", "a", "b"), "hinge", [1.0, 0.0, 1.0], ("a", "b")),
        (texts("b", "a", "b"), "categorical_crossentropy", [[0, 1], [1, 0], [0, 1]], ("a", "b")),
        (texts("b", "a", "b"), "kl_divergence", [[0, 1], [1, 0], [0, 1]], ("a", "b")),
        (texts("x|y", "z", "y"), BINARY, [[1, 1, 0], [0, 0, 1], [0, 1, 0]], ("x", "y", "z")),
        (numbers(1.5, 2, -3), "mse", [1.5, 2, -3], ()),
    ],
)
def test_the_loss_says_what_becomes_of_a_target(column, loss, expected, names):
    target = read(column, loss)
    assert target.values.tolist() == expected
    assert target.class_names == names


def test_several_columns_are_several_targets():
    columns = [numbers(1, 0, name="a"), numbers(0, 1, name="b")]
    target = read_target(table(*columns), ["a", "b"], BINARY)
    assert target.values.tolist() == [[1, 0], [0, 1]]
    assert (target.class_names, target.about["kind"]) == (("a", "b"), "labels")
    assert read_target(table(*columns), ["a", "b"], "mse").class_names == ()


def test_the_type_of_a_target_may_be_written():
    soft = read(numbers(0.1, 0.9, 0.9), BINARY, types={"n": "number"})
    assert soft.values.tolist() == pytest.approx([0.1, 0.9, 0.9])
    with pytest.raises(DataError, match="The loss `mse` takes numbers"):
        read(numbers(1, 2), "mse", types={"n": "category"})


def test_a_row_without_a_target_is_named():
    with pytest.raises(DataError, match=r"`t` is missing in 1 of 2 rows: `a\.csv:3`"):
        read(texts("a", ""), SPARSE)


def test_numbers_with_fractions_are_no_classes():
    for loss in (SPARSE, "categorical_crossentropy"):
        with pytest.raises(DataError) as error:
            read(numbers(1, 1.5, 2.25, 1.5), loss)
        assert str(error.value) == (
            f"The loss `{loss}` takes classes. The target `n` has numbers with fractions, 3 different, such as `1.5`. For "
            "numbers take `mean_squared_error`; if they are names of classes, set `types: {n: category}`."
        )
    assert read(numbers(1, 1.5, 1.5), SPARSE, types={"n": "category"}).class_names == ("1", "1.5")
    assert read(numbers(1, 1.5, 1.5), SPARSE, class_names=["1", "1.5"]).values.tolist() == [0, 1, 1]


def test_fractions_between_two_classes_are_probabilities():
    soft = read(numbers(0.25, 1, 0), BINARY)
    assert (soft.values.tolist(), soft.class_names, soft.about["kind"]) == ([0.25, 1, 0], (), "numbers")
    with pytest.raises(DataError, match=r"has numbers with fractions, 2 different, such as `1\.5`"):
        read(numbers(0, 1.5), BINARY)


def test_a_loss_of_numbers_and_a_target_of_text_do_not_fit():
    with pytest.raises(DataError, match=r"The loss `mse` takes numbers\. The target `t` is text, such as `a`, `b`"):
        read(texts("a", "b"), "mse")


# -- The values decide ------------------------------------------------------------------------------------------------

RATINGS, PRICES = numbers(*[1, 2, 5] * 9), numbers(*range(100, 130))


@pytest.mark.parametrize(
    ("column", "outputs", "kind", "loss"),
    [
        (texts("b", "a", "b"), None, "classes", SPARSE),
        (texts("b", "a", "b"), 2, "classes", SPARSE),
        (texts("b", "a", "b"), 1, "classes", BINARY),
        (texts("x|y", "z", "y"), None, "labels", BINARY),
        (RATINGS, None, "classes", SPARSE),
        (RATINGS, 3, "classes", SPARSE),
        (RATINGS, 1, "numbers", "mean_squared_error"),
        (PRICES, None, "numbers", "mean_squared_error"),
        (PRICES, 40, "classes", SPARSE),
        (numbers(1.5, 2, 3), None, "numbers", "mean_squared_error"),
        (numbers(0, 1, 1), 1, "classes", BINARY),
        (numbers(0, 1, 1), None, "classes", SPARSE),
    ],
)
def test_auto_reads_a_column_by_its_values_and_the_outputs_of_the_network(column, outputs, kind, loss):
    target = read(column, outputs=outputs)
    assert target.about["kind"] == kind
    assert target.about["reason"]
    assert loss_for(kind, outputs) == loss


def test_a_written_type_or_written_names_count_more_than_the_values():
    assert read(RATINGS, types={"n": "number"}).about["kind"] == "numbers"
    assert read(PRICES, types={"n": "category"}).about["kind"] == "classes"
    assert read(numbers(0, 1, 1), class_names=["1", "0"]).values.tolist() == [1, 0, 0]


def test_several_columns_of_0_and_1_are_labels_and_others_numbers():
    labels = table(numbers(1, 0, name="a"), numbers(1, 1, name="b"))
    assert read_target(labels, ["a", "b"], "auto").about["kind"] == "labels"
    sizes = table(numbers(1, 0, name="a"), numbers(1, 7, name="b"))
    assert read_target(sizes, ["a", "b"], "auto").about["kind"] == "numbers"


def test_a_column_in_which_nearly_every_row_differs_is_no_class():
    with pytest.raises(DataError) as caught:
        read(texts(*(f"text {n}" for n in range(30))))
    assert str(caught.value) == (
        "A class has several rows. The target `t` has 30 different values in 30 rows, such as `text 0`, `text 1`, "
        "`text 2` and 27 more. Name the column that holds the classes, or a loss."
    )


def test_three_classes_do_not_fit_a_single_output():
    with pytest.raises(DataError, match=r"tells two classes apart\. The target has 3: `a`, `b`, `c`"):
        class_target(["a", "b", "c"], "auto", outputs=1)


@pytest.mark.parametrize(
    ("y", "outputs", "kind"),
    [
        (np.array([0, 2, 1]), None, "classes"),
        (np.array([0, 2, 1]), 3, "classes"),
        (np.array([0, 2, 1]), 1, "numbers"),
        (np.array([0, 1, 1]), 1, "classes"),
        (np.array([0.0, 1, 1]), 1, "classes"),
        (np.array([0.0, 1, 2]), None, "numbers"),
        (np.array([0.0, 1, 2]), 3, "classes"),
        (np.array([True, False]), None, "classes"),
        (np.array([-1, 1]), None, "numbers"),
        (np.arange(1000), None, "numbers"),
        (np.array([0.5, 1.5]), None, "numbers"),
        (np.array([[0], [1]]), 2, "classes"),
        (np.eye(3), 3, "one_hot"),
        (np.array([[0.2, 0.8], [0.5, 0.5]]), None, "one_hot"),
        (np.array([[1, 1, 0], [0, 1, 0]]), None, "labels"),
        (np.array([[1.0, 5.0], [2.0, 3.0]]), None, "numbers"),
        (np.zeros((2, 4, 4), int), 3, "classes"),
    ],
)
def test_auto_reads_an_array_by_its_values(y, outputs, kind):
    assert kind_of_array(y, outputs)[0] == kind


def test_targets_that_are_no_numbers_in_memory_need_a_written_loss():
    with pytest.raises(DataError, match=r"There is a `list`\. Write the name of the loss"):
        kind_of_array([1, 2], None)


def test_every_kind_has_metrics():
    assert metrics_for("numbers") == ("mean_absolute_error",)
    assert metrics_for("classes") == metrics_for("one_hot") == ("accuracy",)
    assert metrics_for("labels")[0] == "binary_accuracy"


# -- Text in arrays ---------------------------------------------------------------------------------------------------


def test_classes_that_are_text_are_numbered_alike_in_every_split():
    x = np.zeros((2, 1))
    examples = Examples(x, np.array(["dog", "cat"]), x, np.array(["cat", "ant"]))
    numbered = number_text_targets(examples, {"": SPARSE})
    assert numbered.class_names == ("ant", "cat", "dog")
    assert (numbered.y_train.tolist(), numbered.y_test.tolist()) == ([2, 1], [1, 0])


def test_text_of_a_single_output_among_several_is_numbered():
    x, y = np.zeros((2, 1)), {"kind": np.array([b"b", b"a"]), "size": np.array([1.0, 2.0])}
    numbered = number_text_targets(Examples(x, y, x, y), {"kind": SPARSE, "size": "mse"})
    assert numbered.y_train["kind"].tolist() == [1, 0]
    assert numbered.y_train["size"] is y["size"]


def test_text_under_a_loss_of_numbers_is_refused():
    x, y = np.zeros((2, 1)), np.array(["dog", "cat"])
    with pytest.raises(DataError, match=r"The loss `mse` takes numbers\. The targets are names of classes"):
        number_text_targets(Examples(x, y, x, y), {"": "mse"})


def test_blanks_around_labels_are_no_part_of_them():
    assert read(texts("red | green", "red|green", "|"), BINARY).class_names == ("green", "red")


def test_a_row_without_labels_is_written_as_a_bar():
    assert read(texts("a|b", "|"), BINARY).values.tolist() == [[1, 1], [0, 0]]
    with pytest.raises(DataError, match=r"fill them in\. A row that has none of the labels is written `\|`\."):
        read(texts("a|b", ""), BINARY)


@pytest.mark.parametrize("loss", ["auto", BINARY, "mse"])
def test_lists_of_quantities_are_not_taken_for_labels(loss):
    with pytest.raises(DataError) as error:
        read(texts("1.5|95.25", "2.5|3"), loss)
    assert str(error.value) == (
        "A list in a target holds labels. Those of `t` hold numbers with fractions, such as `1.5|95.25`. Write each "
        "number into a column of its own, and name them: `target: [y1, y2]`."
    )


def test_lists_of_whole_numbers_are_labels():
    assert read(texts("1|2", "2"), BINARY).class_names == ("1", "2")
    assert read(texts("v1.5|v2", "v2"), BINARY).class_names == ("v1.5", "v2")
