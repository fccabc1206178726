"""Channels of several workers in threads of this process, over real sockets; and two workers in real processes."""

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from finetune.distribution.channel import Channel, Limits
from finetune.distribution.greeting import open_channel
from finetune.distribution.worker_processes import launch
from finetune.errors import FinetuneError


@pytest.fixture
def together():
    """Opens the channels of several clusters at once; returns each, or the error that it met."""
    opened = []

    def open_all(clusters, limits=Limits(start=20, answer=20, silence=20)) -> list:  # noqa: B008 - it is frozen
        def begin(cluster):
            try:
                return open_channel(cluster, limits)
            except FinetuneError as error:
                return error

        with ThreadPoolExecutor(len(clusters)) as pool:
            results = list(pool.map(begin, clusters))
        opened.extend(result for result in results if isinstance(result, Channel))
        return results

    yield open_all
    for channel in opened:
        channel.close()


@pytest.fixture(scope="session")
def two_workers(tmp_path_factory):
    """Runs `program_of_workers.py` in two processes; returns what each has seen."""
    folder, lines = tmp_path_factory.mktemp("workers"), []
    command = [sys.executable, str(Path(__file__).with_name("program_of_workers.py")), str(folder)]
    code = launch(command, 2, logs=folder / "logs", show=lambda line, is_error: lines.append(line))
    assert code == 0, "\n".join(lines[-40:])
    return [json.loads((folder / f"{index}.json").read_text()) for index in range(2)]
