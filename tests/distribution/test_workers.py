import pytest

from finetune.distribution.workers import leaving, lost_worker, training_together, training_workers, workers


def test_tensors_of_all_types_are_summed_over_the_workers(two_workers):
    for seen in two_workers:
        dense, nothing, number, half, sparse, last = seen["sums"]
        assert (dense, nothing, number, half, last) == ([[3.0, 6.0]], None, 30.0, [1.0], [1.0])
        assert sparse == [[3.0, 3.0], [2.0, 2.0], [0.0, 0.0], [0.0, 0.0]]


def test_rows_of_an_embedding_stay_apart_in_the_order_of_the_batch(two_workers):
    assert [seen["sparse rows"] for seen in two_workers] == [[0, 0, 1]] * 2


def test_a_signal_still_reaches_python_in_a_worker(two_workers):
    assert [seen["signal"] for seen in two_workers] == [15, 15]


def test_a_single_process_has_no_workers():
    assert workers() is None
    assert lost_worker() == ""
    with training_together() as together:
        assert together is training_workers() is None
    with pytest.raises(KeyError), leaving():
        raise KeyError
