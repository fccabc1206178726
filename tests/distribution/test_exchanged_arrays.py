"""What two real processes have given to each other: see `program_of_workers.py`."""


def test_each_worker_gets_the_arrays_of_all_bit_for_bit(two_workers):
    expected = [[[index, -0.0], [[True, index == 1, False]], [0.5]] for index in range(2)]
    assert [seen["exchanged"] for seen in two_workers] == [expected] * 2
    assert [seen["exchanged bits"] for seen in two_workers] == [["-0.0", "nan"]] * 2


def test_frozen_features_are_computed_in_shares_and_are_those_of_a_process_alone(two_workers):
    """Of 5 batches each computes 3, the last of which nobody takes from one of them."""
    for seen in two_workers:
        alone, together, same = seen["features"]
        assert (alone, together, same) == (5, 3, True)
