"""A worker without others; two real ones are in `tests/distribution/program_of_workers.py`."""

from itertools import count

import numpy as np
import pytest
import tensorflow as tf

from finetune.distribution.channel import Channel, Limits
from finetune.distribution.cluster import Cluster
from finetune.distribution.workers import Workers
from finetune.training.features.shares import kept_everywhere, missing_anywhere, outputs_in_order


@pytest.fixture
def lone():
    return Workers(Channel(Cluster(("127.0.0.1:1",), 0), {}, Limits()), tf.distribute.get_strategy())


def every(share):
    """Yields 0, 1, 2 and so on, or every so many of them."""
    return count(*share)


def of_batch(number):
    return [np.array([number, 0.5], np.float32), np.array([number == 2])]


def test_a_worker_without_others_computes_each_batch_once_and_bit_for_bit(lone):
    alone, together = ([*outputs_in_order(every, 3, of_batch, workers)] for workers in (None, lone))
    assert len(alone) == len(together) == 3
    for one, other in zip(alone, together, strict=True):
        for a, b in zip(one, other, strict=True):
            assert (a.dtype, a.tolist()) == (b.dtype, b.tolist())


def test_what_is_missing_and_what_can_be_kept_is_what_this_process_says_if_it_is_alone(lone):
    for workers in (None, lone):
        assert missing_anywhere(workers, [2, 5]) == {2, 5}
        assert kept_everywhere(workers, [2, 5], "") == ([2, 5], "")
        assert kept_everywhere(workers, [], "no room") == ([], "no room")


def test_values_are_kept_where_all_have_room_and_none_where_one_has_none(lone, monkeypatch):
    others = [[[2, 5], ""], [[2], ""]]
    monkeypatch.setattr(lone.channel, "exchange", lambda value, what: others)
    assert kept_everywhere(lone, [2, 5], "") == ([2], "")
    others[1] = [[], "the disk is full"]
    assert kept_everywhere(lone, [2, 5], "") == ([], "the disk is full")
    monkeypatch.setattr(lone.channel, "exchange", lambda value, what: [[5], [2]])
    assert missing_anywhere(lone, [5]) == {2, 5}
