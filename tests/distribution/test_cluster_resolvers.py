import json

import pytest

from finetune.distribution.cluster import Cluster
from finetune.distribution.cluster_resolvers import find_cluster, in_environment
from finetune.errors import FinetuneError

SLURM = {
    "SLURM_STEP_NUM_TASKS": "3",
    "SLURM_PROCID": "2",
    "SLURM_STEP_NODELIST": "node[01-02]",
    "SLURM_STEP_TASKS_PER_NODE": "2,1",
}
SAGEMAKER = {"SM_HOSTS": '["algo-1", "algo-2"]', "SM_CURRENT_HOST": "algo-2"}
TF_CONFIG = {"TF_CONFIG": json.dumps({"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": 0}})}


@pytest.fixture
def environment(monkeypatch):
    for name in ("TF_CONFIG", *SLURM, *SAGEMAKER):
        monkeypatch.delenv(name, raising=False)

    def change(**values):
        for name, value in values.items():
            monkeypatch.setenv(name, value)

    return change


def test_a_process_alone_finds_nobody(environment):
    assert find_cluster() is None
    environment(SLURM_STEP_NUM_TASKS="1", SM_HOSTS='["algo-1"]')
    assert find_cluster() is None


def test_workers_are_found_where_the_environment_names_them(environment):
    environment(**SLURM)
    assert find_cluster() == Cluster(("node01:8888", "node01:8889", "node02:8888"), 2, "SLURM")
    environment(**SAGEMAKER)
    assert find_cluster("slurm").source == "SLURM"
    assert find_cluster() == Cluster(("algo-1:2223", "algo-2:2223"), 1, "SageMaker")
    environment(**TF_CONFIG)
    assert find_cluster() == Cluster(("a:1", "b:1"), 0, "TF_CONFIG")


@pytest.mark.parametrize(
    ("named", "said"),
    [
        (
            "slurm",
            "SLURM names the workers of a run to each of its processes. Here it does not: SLURM_PROCID not found in environment",
        ),
        ("sagemaker", "SageMaker names the workers of a run to each of its processes. Here it does not: "),
        (
            "tf_config",
            "TF_CONFIG names the workers of a run to each of its processes. Here it does not: `TF_CONFIG` is not set.",
        ),
    ],
)
def test_what_is_named_must_be_there(environment, named, said):
    with pytest.raises(FinetuneError) as caught:
        find_cluster(named)
    assert str(caught.value).startswith(said)
    assert str(caught.value).endswith("or set `TF_CONFIG` in each.")


def test_what_cannot_be_read_is_not_passed_over(environment):
    assert in_environment({"SM_HOSTS": "["}) == "sagemaker"
    environment(**SLURM | {"SLURM_STEP_NODELIST": "node[01", "SLURM_STEP_TASKS_PER_NODE": "x"})
    with pytest.raises(FinetuneError, match="SLURM names the workers"):
        find_cluster()
