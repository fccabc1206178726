import os
import signal
import time

import pytest

from finetune.pretrained.formats import crash_probe
from finetune.pretrained.formats.crash_probe import survives


def test_work_that_ends_survives_also_with_an_error_that_python_knows():
    assert survives(lambda: None)
    assert survives(lambda: 1 / 0)


@pytest.mark.parametrize("end", [signal.SIGSEGV, signal.SIGABRT])
def test_work_that_crashes_its_process_does_not(end):
    assert not survives(lambda: os.kill(os.getpid(), end))


def test_work_that_hangs_is_given_up_and_leaves_no_process(monkeypatch):
    monkeypatch.setattr(probe, "_SECONDS", 0.1)
    assert not survives(lambda: time.sleep(60))
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def test_the_work_leaves_this_process_alone():
    held = []
    assert survives(lambda: held.append(1))
    assert held == []
