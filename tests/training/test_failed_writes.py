import pytest

from finetune.errors import WriteError
from finetune.training.failed_writes import FailedWrites


def failing(writes, error):
    with writes.of(WriteError, OSError):
        if error:
            raise error


def test_the_first_failure_of_a_row_is_reported_and_the_next_row_again():
    said = []
    writes = FailedWrites(said.append)
    for error in (WriteError("No room."), WriteError("No room."), None, OSError("gone")):
        failing(writes, error)
    assert said == [
        "warning: No room. Training goes on; a later epoch tries again.",
        "warning: gone. Training goes on; a later epoch tries again.",
    ]


def test_other_errors_end_the_training():
    with pytest.raises(ValueError, match="wrong"):
        failing(FailedWrites(print), ValueError("wrong"))
