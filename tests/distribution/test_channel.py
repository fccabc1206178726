import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from finetune.distribution.channel import Channel, Limits
from finetune.distribution.worker_processes import local_clusters
from finetune.errors import TrainingError


def eventually(ready, seconds=15.0):
    end = time.monotonic() + seconds
    while not ready() and time.monotonic() < end:
        time.sleep(0.01)
    assert ready()


def test_values_of_all_workers_reach_all_of_them_in_their_order(together):
    channels = together(local_clusters(3))
    with ThreadPoolExecutor(3) as pool:
        for round_ in range(20):
            parts = [{"of": channel.cluster.index, "round": round_} for channel in channels]
            values = list(pool.map(Channel.exchange, channels, parts, ["a test"] * 3))
            assert values == [[{"of": index, "round": round_} for index in range(3)]] * 3
    time.sleep(0.1)
    assert [channel.lost for channel in channels] == [""] * 3, "a worker that says goodbye is not lost"


def test_a_connection_that_breaks_is_a_lost_worker_for_all_others(together):
    channels = together(local_clusters(3))
    said = []
    channels[2].on_lost = said.append
    channels[1]._peers[0].connection.shutdown(socket.SHUT_RDWR)  # as the system does for a process that is killed
    eventually(lambda: channels[0].lost and channels[2].lost and said)
    address = channels[0].cluster.addresses[1]
    sentence = f"Worker 1 (`{address}`) has ended without a word: it was killed, or its machine is gone."
    assert channels[0].lost == channels[2].lost == said[0] == sentence
    for channel in (channels[0], channels[2]):
        with pytest.raises(TrainingError) as caught:
            channel.exchange(1, "a test")
        assert str(caught.value) == f"All workers of a run train together. {sentence}"


def test_the_chief_is_missed_by_all(together):
    channels = together(local_clusters(3))
    channels[0]._closing = True  # it says nothing any more
    for peer in channels[0]._peers.values():
        peer.connection.shutdown(socket.SHUT_RDWR)
    eventually(lambda: channels[1].lost and channels[2].lost)
    assert channels[2].lost.startswith(f"Worker 0 (`{channels[0].cluster.addresses[0]}`, the chief) has ended")


def test_what_a_worker_says_when_it_fails_reaches_all_others(together):
    channels = together(local_clusters(3))
    channels[2].close("The disk is full.")
    eventually(lambda: channels[0].lost and channels[1].lost)
    assert channels[1].lost == f"Worker 2 (`{channels[0].cluster.addresses[2]}`) failed: The disk is full."


def test_what_a_worker_has_sent_counts_though_it_has_failed_since(together):
    chief, other = together(local_clusters(2))
    peer = chief._peers[1]
    peer.send({"number": 1, "values": ["seed 7", "seed 8"]})  # the answer to the first exchange
    chief.close("What they were told differs.")
    eventually(lambda: other.lost)
    assert other.exchange("seed 8", "what they were told") == ["seed 7", "seed 8"]
    with pytest.raises(TrainingError, match=r"failed: What they were told differs\."):
        other.exchange(2, "the next")


def test_a_worker_that_does_not_come_in_time_is_named(together):
    channels = together(local_clusters(2), Limits(start=20, answer=0.5, silence=20))
    with pytest.raises(TrainingError) as caught:
        channels[0].exchange(1, "the network and the rows")
    name = f"worker 1 (`{channels[0].cluster.addresses[1]}`)"
    assert f"This worker waited 0.5 seconds for {name} to come to this: the network and the rows." in str(caught.value)
    eventually(lambda: channels[1].lost)


def test_a_worker_that_falls_silent_is_named(together, monkeypatch):
    clusters = local_clusters(2)
    channels = together(clusters, Limits(start=20, answer=20, silence=1.0))
    monkeypatch.setattr(channels[1]._peers[0], "send", lambda message: None)
    eventually(lambda: channels[0].lost)
    assert channels[0].lost.startswith(f"Worker 1 (`{clusters[0].addresses[1]}`) has been silent for ")


def test_threads_end_with_the_channel(together):
    before = threading.active_count()
    channels = together(local_clusters(2), Limits(start=20, answer=20, silence=1))
    for channel in channels:
        channel.close()
    eventually(lambda: threading.active_count() <= before)
