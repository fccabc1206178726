"""Channels of several workers in threads of this process, over real sockets."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from finetune.distribution.channel import Channel, Limits
from finetune.distribution.greeting import open_channel
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
