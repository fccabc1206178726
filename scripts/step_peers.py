"""Peers of other frameworks for `bench_step.py`: each runs in a process of its own and makes steps when it is asked to.

A server of `scripts/peers` is started with a workload, a system and a number of groups. It warms up and answers
`ready`, processor seconds so far, peak memory in MB; then for every line with a number of steps the seconds that they
took, and the processor seconds.
"""

import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from step_workloads import Workload

FOLDER = Path(__file__).resolve().parent / "peers"
HOW_TO = """\
peers of other frameworks run in environments of their own, given as --peers NAME=PYTHON:
  python -m venv torch-env && torch-env/bin/pip install torch numpy fastcore fastprogress fasttransform plum-dispatch \\
      && torch-env/bin/pip install --no-deps fastai
  python -m venv jax-env && jax-env/bin/pip install jax optax
  python scripts/bench_step.py --peers torch=torch-env/bin/python --peers jax=jax-env/bin/python
"""


@dataclass(frozen=True)
class PeerSystem:
    """A system of another framework.

    Attributes:
        environment: What `--peers` calls the Python that runs it; TF1 needs nothing but ours.
        server: File in `scripts/peers`.
        workloads: What it has a network for.
        most_groups: Beyond which it is not measured.
        other_compiler: Whether it compiles the step with something else than TensorFlow's own graphs.
    """

    environment: str
    server: str
    workloads: tuple[str, ...]
    most_groups: int = 100
    other_compiler: bool = False


PEERS = {
    "TF1, tf.group of minimize": PeerSystem("tf1", "tf1_server.py", ("small layers", "transformer"), most_groups=10),
    "torch, fused Adam": PeerSystem("torch", "torch_server.py", ("small layers", "resnet", "transformer")),
    "torch, compiled": PeerSystem(
        "torch", "torch_server.py", ("small layers", "resnet", "transformer"), other_compiler=True
    ),
    "fastai": PeerSystem("torch", "torch_server.py", ("small layers", "resnet", "transformer")),
    "JAX, optax multi_transform": PeerSystem(
        "jax", "jax_server.py", ("small layers", "transformer"), other_compiler=True
    ),
}


class MissingPeerError(Exception):
    """A peer cannot run here; the message says what it lacks."""


class Peer:
    """A peer's process, warmed up.

    Attributes:
        startup_cpu_seconds: Its processor time up to its fifth step.
        peak_rss_mb: Its peak memory up to there.
    """

    def __init__(self, python: str, name: str, workload: str, groups: int):
        command = [python, str(FOLDER / PEERS[name].server), workload, name, str(groups)]
        # What it says on stderr is shown only if it does not start.
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        answer = self._read()
        while answer and not answer.startswith("ready"):
            answer = self._read()
        if not answer:
            told = (self._process.communicate()[1].strip() or "nothing").splitlines()[-1]
            raise MissingPeerError(f"`{name}` did not start with `{python}`: {told}")
        self.startup_cpu_seconds, self.peak_rss_mb = (float(word) for word in answer.split()[1:3])

    def step(self, steps: int, *, processor: bool = False) -> float:
        """Returns the seconds that some steps took, or the processor seconds."""
        stdin: IO[str] | None = self._process.stdin
        assert stdin is not None
        stdin.write(f"{steps}\n")
        stdin.flush()
        return float(self._read().split()[processor])

    def _read(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()

    def close(self) -> None:
        self._process.communicate()  # the end of its input is its end


def wanted_peers(workload: Workload, groups: int | None = None) -> list[tuple[str, int]]:
    """Returns the peers that have a workload, with their numbers of groups; where steps are long, they need memory."""
    having = {name: peer for name, peer in PEERS.items() if workload.peers in peer.workloads}
    most = 10 if workload.has_long_steps else 100
    return [
        (name, n)
        for name, peer in having.items()
        for n in workload.groups
        if n <= min(most, peer.most_groups) and groups in (None, n)
    ]


@contextmanager
def running(wanted: Sequence[tuple[str, int]], pythons: Mapping[str, str], workload: str) -> Iterator[dict]:
    """Starts peers one after the other; yields those that run, by name and groups, and says what the others lack."""
    peers: dict[tuple[str, int], Peer] = {}
    pythons = {"tf1": sys.executable, **pythons}
    missing: set[str] = set()
    try:
        for name, groups in wanted:
            try:
                if name not in missing:
                    peers[name, groups] = Peer(_python(name, pythons), name, workload, groups)
            except MissingPeerError as error:
                missing.add(name)
                print(f"without {name}: {error}", file=sys.stderr)
        yield peers
    finally:
        for peer in peers.values():
            peer.close()


def _python(name: str, pythons: Mapping[str, str]) -> str:
    environment = PEERS[name].environment
    if environment not in pythons:
        raise MissingPeerError(f"it needs `--peers {environment}=PYTHON`; see `--help`")
    if not Path(pythons[environment]).is_file():
        raise MissingPeerError(f"`--peers {environment}={pythons[environment]}` is no file")
    return pythons[environment]
