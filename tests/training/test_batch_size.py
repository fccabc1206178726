import keras
import numpy as np
import pytest
import tensorflow as tf

from finetune.data.examples import Examples
from finetune.errors import MachineError, TrainingError
from finetune.training.batch_size import BatchSize, largest_batch, measure_batch_size, most_rows


def proportional(once, of_row, *, tried, fails=10**9):
    """What steps take: something once, and so much for each row."""
    most = 0.0

    def steps_of(size):
        nonlocal most
        tried.append(size)
        if size >= fails:
            raise tf.errors.ResourceExhaustedError(None, None, "failed to allocate memory")
        most = max(most, once + of_row * size)
        return most

    return steps_of


def test_the_largest_size_that_fits_is_taken_and_none_is_tried_that_would_take_too_much():
    tried = []
    size = largest_batch(proportional(100, 10, tried=tried), 1024, available=1000)
    assert (size.rows, size.needed, tried) == (64, 740, [2, 4, 8, 16, 32, 64])
    assert size.refused == "128 rows would take about 1.38 kB; 1 kB are available"
    assert size.sentence(5000) == (
        "batch size: 64, the largest power of two that fits into memory: 128 rows would take about 1.38 kB; 1 kB are "
        "available. The learning rates stay as they are written; `train.learning_rate: auto` measures them for this size"
    )


def test_room_for_the_rows_themselves_is_left():
    size = largest_batch(proportional(100, 10, tried=[]), 1024, available=1000, reserved=300)
    assert (size.rows, size.refused.endswith("1 kB are available, 300 bytes are for the rows")) == (32, True)


def test_without_a_limit_the_bound_decides():
    size = largest_batch(proportional(100, 1, tried=[]), 64, available=10**6)
    assert (size.rows, size.refused) == (64, "")
    assert size.sentence(600).startswith(
        "batch size: 64, the largest power of two up to 1,024 with at least 8 steps in an epoch, but 8 where there are "
        "few rows; 600 rows to train on. Steps took 164 bytes of memory, and 1 MB are available. The learning"
    )


def test_steps_that_took_no_memory_beyond_what_the_process_has_are_no_limit():
    assert largest_batch(lambda size: 0.0, 256, available=1000).rows == 256


def test_where_memory_runs_out_the_size_before_is_taken():
    size = largest_batch(proportional(0, 0, tried=[], fails=32), 1024, available=10**9)
    assert (size.rows, size.refused) == (16, "steps of 32 rows end for lack of memory; 1 GB are available")
    with pytest.raises(MachineError, match=r"A training step of 2 rows does not fit into memory. There is not enough"):
        largest_batch(proportional(0, 0, tried=[], fails=1), 1024, available=10**9)


def test_a_step_that_fails_for_another_reason_ends_it_with_a_sentence():
    def steps_of(size):
        raise ValueError("no such axis")

    with pytest.raises(TrainingError) as error:
        largest_batch(steps_of, 8, available=1)
    assert str(error.value) == (
        "`train.batch_size: auto` makes a few steps. Steps of 2 rows fail: no such axis. Write a number of rows to train "
        "without them."
    )


@pytest.mark.parametrize(("rows", "most"), [(1, 1), (5, 4), (63, 8), (64, 8), (128, 16), (10**9, 1024)])
def test_a_size_leaves_eight_steps_or_has_eight_rows(rows, most):
    assert most_rows(rows) == most


def test_the_measurement_leaves_no_trace():
    keras.utils.set_random_seed(3)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dropout(0.5), keras.layers.Dense(2)])
    model.compile("adam", "mse", metrics=["mae"])
    model.optimizer.build(model.trainable_variables)
    x, y = np.ones((300, 4), "float32"), np.ones((300, 2), "float32")
    before = [variable.numpy() for variable in (*model.variables, *model.optimizer.variables)]
    state = np.random.get_state()[1].tolist()
    size = measure_batch_size(model, Examples(x, y, x, y))
    assert isinstance(size, BatchSize)
    assert (size.rows, size.refused) == (32, "")
    after = [variable.numpy() for variable in (*model.variables, *model.optimizer.variables)]
    assert all(np.array_equal(one, other) for one, other in zip(before, after, strict=True))
    assert np.random.get_state()[1].tolist() == state
