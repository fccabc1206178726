"""Starts TensorFlow without the messages that it prints at start-up."""

import gc
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# Lines of information and warnings as Abseil writes them, before TensorFlow has read the log level.
_LOG_LINE = re.compile(rb"(?:WARNING: All log messages before absl::InitializeLog|[IW]\d{4} )")


def start_tensorflow(prepare: Callable[[], object] = lambda: None) -> None:
    """Imports TensorFlow and starts its runtime, with their output to the terminal suppressed.

    If the start fails, everything that was suppressed is printed; not so after Ctrl-C.

    Args:
        prepare: Called between the two, for what must be done before the first operation.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    with _held_output():
        import tensorflow as tf

        prepare()
        tf.constant(0)  # the first operation starts the runtime, which looks for devices


def divide_cpu(count: int) -> None:
    """Divides the CPU into several devices, before TensorFlow has begun.

    Args:
        count: How many, >= 2.

    Raises:
        FinetuneError: TensorFlow has begun with another number.
    """
    import tensorflow as tf

    from finetune.errors import FinetuneError

    cpu = tf.config.list_physical_devices("CPU")[0]
    try:
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * count)
    except RuntimeError as error:
        present = len(tf.config.list_logical_devices("CPU"))
        if present != count:
            raise FinetuneError(
                f"`cpu_devices` divides the CPU before the first operation of TensorFlow. Received {count}, and "
                f"TensorFlow has begun with {present}. Begin a new process, as `finetune run` does."
            ) from error


@contextmanager
def lasting_imports() -> Iterator[None]:
    """Imports modules in the block that stay until the process ends: nothing of them is garbage.

    Python searches all objects for garbage again and again while their number grows, which is a quarter of the time
    that TensorFlow and Keras take to be imported. It does not do so in the block, nor among these objects later.
    For a process of our own: what a program of the user's holds is left to Python.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        if was_on:
            gc.enable()


@contextmanager
def quiet_import() -> Iterator[None]:
    """Imports TensorFlow in the block without the log lines that the environment asks it not to print.

    For programs of the user's: all other output of the block is kept, and the runtime is not started, since a program
    may configure its devices after the import.
    """
    if "tensorflow" in sys.modules or os.environ.get("TF_CPP_MIN_LOG_LEVEL") not in ("2", "3"):  # 2 hides warnings, too
        yield
        return
    with _held_output() as held:
        yield
    kept = [line for line in b"".join(held).splitlines(keepends=True) if not _LOG_LINE.match(line)]
    os.write(2, b"".join(kept))


@contextmanager
def _held_output() -> Iterator[list[bytes]]:
    """Holds back what is written to the terminal as errors in the block, and gives it to the caller afterwards.

    TensorFlow's C++ writes some of its messages before it reads a log level, so the file descriptor itself is
    redirected meanwhile.
    """
    output: list[bytes] = []
    sys.stderr.flush()
    terminal = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield output
        except Exception:  # `KeyboardInterrupt` is not an `Exception`
            held.seek(0)
            os.write(terminal, held.read())
            raise
        finally:
            os.dup2(terminal, 2)
            os.close(terminal)
            held.seek(0)
            output.append(held.read())
