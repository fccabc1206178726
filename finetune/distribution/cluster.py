"""The workers of a run: their addresses, and which of them this process is. Read before TensorFlow starts.

Whatever starts the processes (`finetune launch`, Kubernetes, SLURM and so on) says the same to each of them: the
address of every worker, and its own number. TensorFlow's name for that is the environment variable `TF_CONFIG`:

    {"cluster": {"worker": ["10.0.0.1:2222", "10.0.0.2:2222"]}, "task": {"type": "worker", "index": 0}}

TensorFlow itself checks little of it: with a wrong number its processes wait for each other without end.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from finetune.errors import FinetuneError, printable, quote

VARIABLE = "TF_CONFIG"
_JOBS = ("chief", "worker")  # those that train; `chief` comes first where there is one
_SHAPE = '`{"cluster": {"worker": ["host:port", ...]}, "task": {"type": "worker", "index": 0}}`'


@dataclass(frozen=True)
class Cluster:
    """The workers of a run.

    Attributes:
        addresses: `host:port` of each worker; the first is the chief, which writes the run folder.
        index: The number of this process among them, from 0.
        source: What has named them, for messages: `TF_CONFIG`, `SLURM` and so on.
    """

    addresses: tuple[str, ...]
    index: int
    source: str = VARIABLE

    @property
    def is_chief(self) -> bool:
        """Whether this process writes the run folder."""
        return self.index == 0

    @property
    def workers(self) -> int:
        """How many there are."""
        return len(self.addresses)

    def name(self, index: int, *, begins: bool = False) -> str:
        """Returns what messages call a worker; with a capital letter where a sentence `begins` with it."""
        role = ", the chief" if index == 0 else ""
        return f"{'W' if begins else 'w'}orker {index} (`{self.addresses[index]}`{role})"

    def to_tf_config(self) -> str:
        """Returns the cluster as `TF_CONFIG` has it, with workers alone."""
        task = {"type": "worker", "index": self.index}
        return json.dumps({"cluster": {"worker": list(self.addresses)}, "task": task})


def read_tf_config(environment: Mapping[str, str] = os.environ) -> Cluster | None:
    """Reads the cluster that `TF_CONFIG` names.

    Args:
        environment: The environment variables.

    Returns:
        The cluster; `None` where there is none, or this process is its only worker.

    Raises:
        FinetuneError: The variable cannot be read, or breaks a rule.
    """
    text = environment.get(VARIABLE, "").strip()
    if not text:
        return None
    try:
        config = json.loads(text)
    except ValueError as error:
        raise _wrong(f"it is no JSON: {error}", text) from None
    if not isinstance(config, dict):
        raise _wrong("it is no object", text)
    jobs, task = config.get("cluster") or {}, config.get("task") or {}
    if not isinstance(jobs, dict) or not isinstance(task, dict):
        raise _wrong("`cluster` and `task` are objects", text)
    if not jobs:
        return None
    jobs = {job: _addresses(job, value, text) for job, value in jobs.items()}
    if others := [job for job in jobs if job not in (*_JOBS, "evaluator") and jobs[job]]:
        raise _wrong(
            f"the jobs of a training are `chief` and `worker`, and it has {quote(others)}; parameter servers are not "
            "supported",
            text,
        )
    if len(jobs.get("chief", ())) > 1:
        raise _wrong(f"there is one `chief` at most, and it has {len(jobs['chief'])}", text)
    every = [address for job in _JOBS for address in jobs.get(job, ())]
    if twice := [address for address in dict.fromkeys(every) if every.count(address) > 1]:
        raise _wrong(f"each worker has an address of its own, and {quote(twice)} is there more than once", text)
    if not task:
        raise _wrong("`task` is missing, which says which of the workers this process is", text)
    return _single_or(Cluster(tuple(every), _index(jobs, task, text)))


def cluster_of(jobs: Mapping[str, Any], task_type: str | None, task_id: int | None, source: str) -> Cluster | None:
    """Returns the cluster that one of TensorFlow's resolvers has found, checked as `TF_CONFIG` is.

    Args:
        jobs: The addresses of each job.
        task_type: The job of this process.
        task_id: The number of this process in it.
        source: What has named them, for messages.
    """
    task = {"type": task_type or "worker", "index": task_id}
    try:
        cluster = read_tf_config({VARIABLE: json.dumps({"cluster": dict(jobs), "task": task})})
    except FinetuneError as error:
        raise FinetuneError(f"{source} names the workers of a run. What it names cannot be taken: {error}") from error
    return cluster and Cluster(cluster.addresses, cluster.index, source)


def host_and_port(address: str) -> tuple[str, int]:
    """Returns the two parts of an address; the host of IPv6 without its brackets.

    >>> host_and_port("10.0.0.1:2222"), host_and_port("[::1]:2222")
    (('10.0.0.1', 2222), ('::1', 2222))
    """
    host, _, port = address.rpartition(":")
    return host.removeprefix("[").removesuffix("]"), int(port)


def _single_or(cluster: Cluster) -> Cluster | None:
    return cluster if cluster.workers > 1 else None


def _addresses(job: str, value: Any, text: str) -> list[str]:
    # A mapping of number to address is allowed, too, for clusters of which some tasks are not known.
    if isinstance(value, dict) and all(str(key).isdecimal() for key in value):
        value = [value[key] for key in sorted(value, key=int)]
    if not isinstance(value, list) or not all(isinstance(address, str) for address in value):
        raise _wrong(f"`cluster.{printable(job)}` is a list of addresses", text)
    for address in value:
        host, _, port = address.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
            raise _wrong(f"an address is `host:port` with a port from 1 to 65535, and it has `{address}`", text)
    return value


def _index(jobs: Mapping[str, list[str]], task: Mapping[str, Any], text: str) -> int:
    """Returns the number of this process among all workers."""
    job, number = task.get("type", "worker"), task.get("index")
    if job == "master":
        job = "chief"
    trains = [name for name in _JOBS if jobs.get(name)]
    if job not in trains:
        raise _wrong(f"`task.type` is one of the jobs that train, {quote(trains)}, and it is `{printable(job)}`", text)
    if isinstance(number, bool) or not str(number).isdecimal():
        raise _wrong(f"`task.index` is the number of this process, from 0, and it is `{printable(number)}`", text)
    here = len(jobs[job])
    if int(number) >= here:  # pyright: ignore[reportArgumentType] - it is decimal
        raise _wrong(f"`task.index` is below the {here} addresses of `cluster.{job}`, and it is {number}", text)
    return int(number) + (len(jobs.get("chief", ())) if job == "worker" else 0)  # pyright: ignore[reportArgumentType]


def _wrong(what: str, text: str) -> FinetuneError:
    shown = text if len(text) <= 300 else f"{text[:300]}..."
    return FinetuneError(
        f"`{VARIABLE}` names the workers of a run, and which of them this process is: {_SHAPE}. Received "
        f"`{printable(shown)}`: {what}. Correct it for every process, or remove it to train in a single one."
    )
