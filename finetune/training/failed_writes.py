"""What a file that cannot be written means while training goes on: a sentence, said once, and another try later."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from finetune.errors import WriteError, reason


class FailedWrites:
    """Reports the first of several errors in a row, after each of which training goes on.

    Args:
        report: Called with a sentence.
    """

    def __init__(self, report: Callable[[str], None]):
        self.report = report
        self.failing = False

    @contextmanager
    def of(self, *kinds: type[Exception]) -> Iterator[None]:
        """Takes errors of these kinds for reasons to try again after a later epoch."""
        try:
            yield
        except kinds as error:
            if not self.failing:
                said = str(error) if isinstance(error, WriteError) else reason(error) + "."
                self.report(f"warning: {said} Training goes on; a later epoch tries again.")
            self.failing = True
        else:
            self.failing = False
