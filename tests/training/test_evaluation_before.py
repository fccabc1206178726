import numpy as np
import pytest

from finetune.data.examples import Split
from finetune.training.evaluation_before import rows_before

TEST = Split(np.arange(5000), np.arange(5000) // 500)


@pytest.mark.parametrize(
    ("setting", "trained", "count"),
    [(True, 10, 5000), (False, 10, 32), ("auto", 10, 1000), ("auto", 20_000, 2000), ("auto", 10**6, 5000)],
)
def test_at_most_a_tenth_as_many_rows_as_are_trained_on_are_evaluated_before(setting, trained, count):
    assert len(rows_before(TEST, setting, trained=trained, batch_size=32)) == count


def test_they_are_of_all_parts_of_a_table_that_is_sorted_by_class():
    chosen = rows_before(TEST, "auto", trained=1, batch_size=32)
    assert np.bincount(chosen.y).tolist() == pytest.approx([100] * 10, abs=1)
    assert chosen.x[0] == 0
    assert chosen.x[-1] == 4999


def test_few_rows_are_all_taken_as_they_are():
    few = TEST.select(slice(900))
    assert rows_before(few, "auto", trained=1, batch_size=32) is few
