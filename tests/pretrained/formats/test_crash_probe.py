import os
import signal
import time

import pytest

from finetune.pretrained.formats import crash_probe
from finetune.pretrained.formats.crash_probe import runs_without_crash


def test_work_that_ends_survives_also_with_an_error_that_python_knows():
    assert runs_without_crash(lambda: None)
    assert runs_without_crash(lambda: 1 / 0)


@pytest.mark.parametrize("end", [signal.SIGSEGV, signal.SIGABRT])
def test_work_that_crashes_its_process_does_not(end):
    assert not runs_without_crash(lambda: os.kill(os.getpid(), end))


def test_work_that_hangs_is_killed_and_leaves_no_process(monkeypatch):
    monkeypatch.setattr(crash_probe, "_SECONDS", 0.1)
    assert not runs_without_crash(lambda: time.sleep(60))
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def test_the_work_leaves_this_process_alone():
    held = []
    assert runs_without_crash(lambda: held.append(1))
    assert held == []
