"""Starts TensorFlow without the messages that it prints at start-up."""

import os
import sys
import tempfile


def start_tensorflow() -> None:
    """Imports TensorFlow and starts its runtime, with their output to the terminal suppressed.

    TensorFlow's C++ writes some of its messages before it reads a log level, so the file descriptor itself is
    redirected meanwhile. If the start fails, everything that was suppressed is printed; not so after Ctrl-C.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    sys.stderr.flush()
    terminal = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            import tensorflow as tf

            tf.constant(0)  # the first operation starts the runtime, which looks for devices
        except Exception:  # `KeyboardInterrupt` is not an `Exception`
            held.seek(0)
            os.write(terminal, held.read())
            raise
        finally:
            os.dup2(terminal, 2)
            os.close(terminal)
