"""The wall time of the stages of a command."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


class StageClock:
    """Adds up the wall time of named stages."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._running = ("", 0.0)

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        self._running = stage, time.monotonic()
        yield
        self.seconds, self._running = self.so_far(), ("", 0.0)

    def so_far(self) -> dict[str, float]:
        """Returns the seconds of each stage, also of the one that has not ended."""
        stage, start = self._running
        if not stage:
            return self.seconds
        return self.seconds | {stage: round(self.seconds.get(stage, 0.0) + time.monotonic() - start, 3)}
