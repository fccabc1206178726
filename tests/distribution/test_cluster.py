import json

import pytest

from finetune.distribution.cluster import Cluster, cluster_of, host_and_port, read_tf_config
from finetune.errors import FinetuneError

TWO = ["10.0.0.1:2222", "10.0.0.2:2222"]


def read(cluster, task=None):
    config = {"cluster": cluster} | ({"task": task} if task is not None else {})
    return read_tf_config({"TF_CONFIG": json.dumps(config)})


def refusal(cluster, task=None) -> str:
    with pytest.raises(FinetuneError) as caught:
        read(cluster, task)
    return str(caught.value)


def test_workers_are_numbered_with_the_chief_first():
    cluster = read({"worker": TWO}, {"type": "worker", "index": 1})
    assert cluster == Cluster(tuple(TWO), 1, "TF_CONFIG")
    assert (cluster.workers, cluster.is_chief, cluster.name(0)) == (2, False, "worker 0 (`10.0.0.1:2222`, the chief)")
    with_chief = {"worker": TWO, "chief": ["10.0.0.9:1"], "evaluator": ["10.0.0.8:1"], "ps": []}
    assert read(with_chief, {"type": "chief", "index": 0}).is_chief
    assert read(with_chief, {"type": "worker", "index": "1"}) == Cluster(("10.0.0.9:1", *TWO), 2)


def test_a_process_without_others_has_no_cluster():
    assert read_tf_config({}) is read_tf_config({"TF_CONFIG": " "}) is None
    assert read({}) is read({"worker": TWO[:1]}, {"type": "worker", "index": 0}) is None


def test_a_cluster_is_written_as_it_is_read():
    cluster = read({"chief": TWO[:1], "worker": TWO[1:]}, {"type": "worker", "index": 0})
    assert read_tf_config({"TF_CONFIG": cluster.to_tf_config()}) == cluster


@pytest.mark.parametrize(
    ("cluster", "task", "said"),
    [
        (
            {"worker": TWO},
            {"type": "worker", "index": 2},
            "`task.index` is below the 2 addresses of `cluster.worker`, and it is 2",
        ),
        (
            {"worker": TWO},
            {"type": "worker", "index": -1},
            "`task.index` is the number of this process, from 0, and it is `-1`",
        ),
        ({"worker": TWO}, {"type": "worker"}, "from 0, and it is `None`"),
        ({"worker": TWO}, {"type": "worker", "index": True}, "from 0, and it is `True`"),
        (
            {"worker": TWO},
            {"type": "chief", "index": 0},
            "`task.type` is one of the jobs that train, `worker`, and it is `chief`",
        ),
        ({"worker": TWO}, {"type": "evaluator", "index": 0}, "and it is `evaluator`"),
        ({"worker": TWO}, None, "`task` is missing, which says which of the workers this process is"),
        ({"worker": [TWO[0]] * 2}, {"type": "worker", "index": 0}, "`10.0.0.1:2222` is there more than once"),
        ({"worker": TWO, "chief": TWO[:1]}, {"type": "chief", "index": 0}, "is there more than once"),
        (
            {"worker": ["10.0.0.1"]},
            {"index": 0},
            "an address is `host:port` with a port from 1 to 65535, and it has `10.0.0.1`",
        ),
        ({"worker": ["a:70000"]}, {"index": 0}, "and it has `a:70000`"),
        ({"worker": "a:1"}, {"index": 0}, "`cluster.worker` is a list of addresses"),
        ({"worker": TWO, "ps": ["b:1"]}, {"index": 0}, "and it has `ps`; parameter servers are not supported"),
        ({"chief": TWO}, {"type": "chief", "index": 0}, "there is one `chief` at most, and it has 2"),
        ([1], {"index": 0}, "`cluster` and `task` are objects"),
    ],
)
def test_what_is_wrong_with_a_cluster_is_said(cluster, task, said):
    message = refusal(cluster, task)
    assert said in message
    assert message.startswith("`TF_CONFIG` names the workers of a run, and which of them this process is: `{")
    assert message.endswith("Correct it for every process, or remove it to train in a single one.")


@pytest.mark.parametrize(("text", "said"), [("{", "it is no JSON: Expecting property name"), ("[]", "it is no object")])
def test_text_that_is_no_object_is_refused(text, said):
    with pytest.raises(FinetuneError, match=said):
        read_tf_config({"TF_CONFIG": text})


def test_what_a_resolver_has_found_is_checked_alike():
    assert cluster_of({"worker": TWO}, "worker", 1, "SLURM") == Cluster(tuple(TWO), 1, "SLURM")
    with pytest.raises(
        FinetuneError, match=r"SLURM names the workers of a run\. What it names cannot be taken: .*below the 2"
    ):
        cluster_of({"worker": TWO}, "worker", 2, "SLURM")


def test_an_address_of_ipv6_has_brackets():
    assert host_and_port("[::1]:80") == ("::1", 80)
