import time

import pytest

from finetune.training.checkpoints.writing_times import WritingTimes


@pytest.fixture
def clock(monkeypatch):
    """A list with the time now, which a test sets."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def due(times, steps, *, begin=0):
    times.begin_epoch(begin, made=0)
    return [step for step in steps if times.is_due(step)]


def test_with_steps_it_is_due_at_every_multiple_and_first_so_many_steps_behind_the_place_of_the_epoch():
    assert due(WritingTimes(300.0, 3), range(1, 11)) == [3, 6, 9]
    assert due(WritingTimes(300.0, 3), range(5, 11), begin=4) == [7, 9]


def test_calls_of_several_steps_are_due_where_they_pass_a_multiple():
    assert due(WritingTimes(300.0, 3), [2, 4, 6, 8, 10]) == [4, 6, 10]


def test_with_seconds_the_first_is_due_at_once_and_the_next_after_the_interval(clock):
    times = WritingTimes(50.0, None)
    times.begin_training()
    assert times.is_due(1)
    times.copied(0.3)
    clock[0] += 1000
    assert not times.is_due(2), "one is being written"
    times.written(9.7)  # 10 s in all: more than a hundredth of the interval
    clock[0] += 49.9
    assert not times.is_due(3)
    clock[0] += 0.2
    assert times.is_due(4)


def test_what_takes_little_time_is_written_more_often(clock):
    times = WritingTimes(300.0, None)
    times.copied(0.01)
    times.written(0.02)  # 0.03 s, a hundredth of 3 s
    clock[0] += 2.9
    assert not times.seconds_have_passed()
    clock[0] += 0.2
    assert times.seconds_have_passed()


@pytest.mark.parametrize(("size", "last"), [(1, [12]), (4, [12])])
def test_the_last_call_before_the_rates_fall_is_known(size, last):
    times = WritingTimes(300.0, None)
    times.cooldown_at = 12 if size == 1 else 14
    found = []
    for epoch in range(2):
        times.begin_epoch(0, made=epoch * 8)
        found += [epoch * 8 + step for step in range(size, 9, size) if times.is_last_before_cooldown(step, size)]
    assert found == last


def test_without_falling_rates_no_call_is_the_last():
    times = WritingTimes(300.0, None)
    assert not any(times.is_last_before_cooldown(step, 1) for step in range(9))
