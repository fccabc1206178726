import pytest
import tensorflow as tf

from finetune.training.features.checked_outputs import OffError, check_rows, check_same

ROWS = (tf.constant([[1.0], [2.0], [4.0]]),)


def checked(run):
    values = {"0": run(ROWS[0])}
    check_same(lambda rows: ({"0": run(rows[0])}, {}), ROWS, values)


def test_rows_that_depend_on_themselves_alone_can_be_kept():
    checked(lambda x: 2 * x)
    check_rows({"0": 2 * ROWS[0]}, 3)


def test_last_bits_may_depend_on_the_place_in_the_batch():
    checked(lambda x: x + tf.constant([[0.0], [1e-7], [2e-7]]))


def test_rows_that_depend_on_others_or_on_the_call_cannot():
    with pytest.raises(OffError, match="returns other outputs for an example when the other examples change"):
        checked(tf.cumsum)
    calls = iter(range(9))
    with pytest.raises(OffError, match="returns other outputs when it is run again on the same examples"):
        checked(lambda x: x + float(next(calls)))


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (tf.constant(["a", "b", "c"]), "is not a dense tensor of numbers"),
        (tf.constant(1.0), "has no row for every example"),
        (ROWS[0][:2], "has no row for every example"),
    ],
)
def test_what_has_no_row_of_numbers_for_each_example_cannot(value, why):
    with pytest.raises(OffError, match=why):
        check_rows({"0": value}, 3)
