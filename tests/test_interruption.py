import importlib
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from finetune.interruption import Stopped, deferred, stoppable, stopped

ROOT = Path(__file__).resolve().parent.parent
SIGNALS = [(signal.SIGINT, 130, "stopped by Ctrl-C"), (signal.SIGTERM, 143, "stopped by SIGTERM")]
SIGNALS += [(signal.SIGHUP, 129, "stopped by SIGHUP")]


def send(*numbers):
    for number in numbers or (signal.SIGTERM,):
        os.kill(os.getpid(), number)
        time.sleep(0.01)


@pytest.mark.parametrize(("number", "code", "text"), SIGNALS)
def test_a_signal_raises_stopped_with_the_exit_code_of_shells(number, code, text):
    handler = signal.getsignal(number)
    with pytest.raises(Stopped) as stop, stoppable():
        send(number)
    assert (stop.value.exit_code, str(stop.value)) == (code, text)
    assert isinstance(stop.value, KeyboardInterrupt)
    assert signal.getsignal(number) is handler


@pytest.mark.parametrize(("way", "is_whole"), [("statement", False), ("importlib", False), ("C", True)])
def test_an_import_that_was_begun_in_c_is_finished_first(tmp_path, monkeypatch, way, is_whole):
    """Unpickling imports a module by a call in C, as `tf.nest` does, where an exception would be printed and lost."""
    name = f"stopped_in_{way}"
    text = "import os, signal, time\nos.kill(os.getpid(), signal.SIGTERM)\ntime.sleep(0.05)\nvalue = 1\n"
    (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    ways = {
        "statement": lambda: exec(f"import {name}"),
        "importlib": lambda: importlib.import_module(name),
        "C": lambda: pickle.loads(f"c{name}\nvalue\n.".encode()),
    }
    handler = signal.getsignal(signal.SIGALRM)

    def work():
        ways[way]()
        time.sleep(1)

    with pytest.raises(Stopped), stoppable():
        work()
    assert (name in sys.modules) == is_whole
    assert signal.getsignal(signal.SIGALRM) is handler


@pytest.mark.parametrize(("seconds", "is_whole"), [(0.2, True), (3, False)])
def test_a_function_of_tensorflow_is_finished_first_unless_it_takes_long(tmp_path, seconds, is_whole):
    """What TensorFlow calls in C++ may lose an exception, so the place of the code counts."""
    path, done = tmp_path / "tensorflow" / "python" / "nest.py", []
    text = "import os, time\nos.kill(os.getpid(), 15)\nwhile time.monotonic() < end: pass\ndone.append(1)"
    code = compile(text, path, "exec")

    def work():
        exec(code, {"done": done, "end": time.monotonic() + seconds})
        time.sleep(1)

    with pytest.raises(Stopped), stoppable():
        work()
    assert done == [1] * is_whole


def test_what_was_kept_is_part_of_the_text():
    stop = Stopped(signal.SIGINT)
    stop.kept = "The weights are in `a`."
    assert str(stop) == "stopped by Ctrl-C. The weights are in `a`."


def test_a_deferred_signal_can_be_asked_for_and_is_raised_at_the_end_of_the_block():
    done = []

    def work():
        with deferred():
            send()
            assert isinstance(stopped(), Stopped)
            done.append("inside")
        done.append("behind")

    with pytest.raises(Stopped), stoppable():
        work()
    assert done == ["inside"]


def test_an_error_in_a_deferred_block_is_not_replaced_by_the_signal():
    def fail():
        send()
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"), stoppable(), deferred():
        fail()


def test_the_same_signal_twice_at_once_is_a_single_one():
    with pytest.raises(Stopped), stoppable(), deferred():
        send(signal.SIGINT, signal.SIGINT)


def test_a_later_block_knows_nothing_of_an_earlier_signal():
    with pytest.raises(Stopped), stoppable():
        send()
    assert stopped() is None  # what trains without such a block, as `fit` in a notebook, would stop at once
    with stoppable():
        assert stopped() is None


def test_blocks_can_be_nested_and_only_the_outer_one_gives_the_signals_back():
    handler = signal.getsignal(signal.SIGTERM)
    with stoppable():
        with stoppable():
            pass
        assert signal.getsignal(signal.SIGTERM) is not handler
    assert signal.getsignal(signal.SIGTERM) is handler


def test_handlers_of_others_and_ignored_signals_stay():
    calls = []
    before = [signal.signal(signal.SIGTERM, lambda *_: calls.append(1)), signal.signal(signal.SIGHUP, signal.SIG_IGN)]
    try:
        with stoppable():
            send(signal.SIGTERM)
            send(signal.SIGHUP)
            assert stopped() is None
    finally:
        signal.signal(signal.SIGTERM, before[0])
        signal.signal(signal.SIGHUP, before[1])
    assert calls == [1]


def test_outside_of_the_main_thread_nothing_is_changed():
    handler, seen = signal.getsignal(signal.SIGTERM), []

    def work():
        with stoppable():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [handler]


BUSY = """
import hashlib
from finetune.interruption import deferred, stoppable
with stoppable(), deferred():
    print("busy", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)  # a single call: no handler of Python runs before its end
"""


def test_a_second_signal_ends_the_process_at_once():
    process = subprocess.Popen(
        [sys.executable, "-c", BUSY],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "busy\n"
    process.send_signal(signal.SIGTERM)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.5)
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=10) == ("", "")
    assert process.returncode == 143
