"""What two real processes have computed together: see `program_of_workers.py`."""

import pytest
import tensorflow as tf

from finetune.distribution.reductions import padded


def test_loss_gradients_and_statistics_are_those_of_the_rows_of_all_workers(two_workers):
    """Worker 0 has all rows; what worker 1 has changed counts for nothing."""
    assert [seen["step"] for seen in two_workers] == [[3.0, [2.0], [2.0]]] * 2


def test_metrics_are_those_of_all_rows_after_each_call(two_workers):
    assert [(seen["mean"], seen["counted"]) for seen in two_workers] == [(2.0, 8.0)] * 2


def test_each_worker_draws_numbers_of_its_own_and_the_seed_stays_that_of_the_chief(two_workers):
    chief, other = two_workers
    assert chief["seed"] == other["seed"]
    assert chief["seed inside"][0] != other["seed inside"][0]
    assert chief["seed inside"][1] == other["seed inside"][1]


def test_only_statistics_that_the_step_writes_are_averaged(two_workers):
    assert two_workers[0]["written"] == ["a/moving_mean", "a/moving_variance"]


@pytest.mark.parametrize("case", range(6))
def test_two_workers_train_what_one_process_trains_within_a_millionth(two_workers, case):
    for seen in two_workers:
        name, (of_weights, of_metrics) = list(seen["trained"].items())[case]
        assert of_weights < 1e-6, name
        assert of_metrics < 2e-6, name
    assert two_workers[0]["trained"] == two_workers[1]["trained"]


def test_all_workers_leave_out_the_same_steps(two_workers):
    """One in each of three epochs, for a row that only one of them has."""
    for seen in two_workers:
        count, first = seen["left out"]
        assert count == 3
        assert first.endswith("(group `body`)")


def test_an_empty_batch_gets_a_row_of_zeros():
    x, nothing = padded((tf.zeros((0, 3), tf.int32), None), tf.constant(0))
    assert nothing is None
    assert x.shape == (1, 3)
    assert padded(tf.ones((2, 3)), tf.constant(2)).shape == (2, 3)
