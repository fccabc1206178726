import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from finetune.distribution.channel import Limits
from finetune.distribution.cluster import Cluster
from finetune.distribution.greeting import open_channel
from finetune.distribution.worker_processes import local_clusters
from finetune.errors import FinetuneError

QUICK = Limits(start=20, answer=20, silence=20)


def test_workers_may_start_in_any_order_and_strangers_are_turned_away():
    clusters = local_clusters(2)
    host, port = "127.0.0.1", int(clusters[0].addresses[0].rpartition(":")[2])
    with ThreadPoolExecutor(2) as pool:
        second = pool.submit(open_channel, clusters[1], QUICK)
        time.sleep(0.5)
        first = pool.submit(open_channel, clusters[0], QUICK)
        for words in (  # no worker says this
            b"GET / HTTP/1.1\r\n\r\n",
            b"\x00\xff\n",
            b"[]\n",
            b'{"greeting": "other"}\n',
        ):
            try:
                with socket.create_connection((host, port), timeout=1) as stranger:
                    stranger.sendall(words)
            except OSError:
                pass  # the chief does not listen any more
        for opened in (first.result(), second.result()):
            opened.close()


def test_workers_that_do_not_start_are_named_to_all_that_have(together):
    clusters = local_clusters(3)
    errors = [str(error) for error in together(clusters[:2], Limits(start=1.0))]
    assert (
        errors[0]
        == errors[1]
        == (
            f"A run of several workers begins when all 3 have started. Worker 2 (`{clusters[0].addresses[2]}`) did not come in "
            "time. Look into their logs, and whether they can reach the address of the chief."
        )
    )


def test_a_chief_that_does_not_start_is_named(together):
    clusters = local_clusters(2)
    [error] = together(clusters[1:], Limits(start=0.5))
    assert str(error) == (
        "The workers of a run begin when they have reached the chief. Worker 0 "
        f"(`{clusters[0].addresses[0]}`, the chief) does not answer: Connection refused. Start it, and compare the address "
        "in `finetune launch` with that of its machine."
    )


def test_a_port_that_is_taken_is_named():
    clusters = local_clusters(2)
    port = int(clusters[1].addresses[1].rpartition(":")[2])
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", port))
        holder.listen()
        with pytest.raises(FinetuneError) as caught:
            open_channel(clusters[1], QUICK)
    assert str(caught.value) == (
        f"Each worker needs the port that finetune launch names for it. Port {port} of worker 1 (`127.0.0.1:{port}`) cannot "
        "be used: Address already in use. End the process that holds it, perhaps an earlier run, or choose another port in "
        "every process."
    )


def test_two_processes_with_one_number_are_refused(together):
    zero, one, _ = local_clusters(3)
    # The third says that it is the second; it cannot listen at the same address, which on another machine it could.
    greeting = {
        "greeting": "finetune workers 1",
        "index": 1,
        "addresses": list(zero.addresses),
        "key": "",
        "process": 1,
    }
    host, port = "127.0.0.1", int(zero.addresses[0].rpartition(":")[2])

    def intrude():
        for _ in range(100):
            try:
                with socket.create_connection((host, port), timeout=5) as connection:
                    connection.sendall(json.dumps(greeting | {"host": "other"}).encode() + b"\n")
                    return connection.recv(10_000)
            except OSError:
                time.sleep(0.05)
        return b""

    with ThreadPoolExecutor(1) as pool:
        intruder = pool.submit(intrude)
        time.sleep(0.3)
        errors = [str(error) for error in together([zero, one])]
    assert errors[0].startswith("There is one process for each worker. Two say that they are worker 1: ")
    assert "process 1 on `other`" in errors[0]
    assert errors[0].endswith("Correct `task.index` of one of them.")
    assert b"Two say" in intruder.result() or "Two say" in errors[1]


def test_workers_of_different_clusters_are_refused(together):
    zero, one, _ = local_clusters(3)
    other = Cluster((*one.addresses[:2], "127.0.0.1:9"), 1, "TF_CONFIG")
    errors = [str(error) for error in together([zero, other], Limits(start=5))]
    assert all(
        error.startswith("All workers of a run are told of the same cluster. The chief was told of 3")
        for error in errors
    )
    assert "127.0.0.1:9" in errors[1]


def test_a_worker_that_takes_another_for_the_chief_is_told_so(together):
    zero, one, two = local_clusters(3)
    mistaken = Cluster((one.addresses[1], zero.addresses[0], two.addresses[2]), 2)
    errors = [str(error) for error in together([one, mistaken], Limits(start=2))]
    assert "A process takes the first of its addresses for that of the chief, where worker 1" in errors[1]


def test_an_address_at_which_a_worker_is_not_reached_is_refused(together):
    zero = local_clusters(2)[0]
    with socket.socket() as spare:
        spare.bind(("127.0.0.1", 0))
        wrong = f"127.0.0.1:{spare.getsockname()[1]}"  # nobody listens there
    addresses = (zero.addresses[0], wrong)
    greeting = {"greeting": "finetune workers 1", "index": 1, "addresses": list(addresses), "key": "k", "process": 1}

    def come():
        for _ in range(100):
            try:
                with socket.create_connection(("127.0.0.1", int(addresses[0].rpartition(":")[2])), 5) as connection:
                    connection.sendall(json.dumps(greeting).encode() + b"\n")
                    return connection.recv(10_000)
            except OSError:
                time.sleep(0.05)
        return b""

    with ThreadPoolExecutor(1) as pool:
        told = pool.submit(come)
        [error] = together([Cluster(addresses, 0, "SLURM")])
    assert str(error) == (
        f"TensorFlow reaches each worker at its address. Worker 1 (`{wrong}`) has started, and is not reached at it: "
        "Connection refused. Correct the address in `SLURM`, or open the port."
    )
    assert b"is not reached" in told.result()
