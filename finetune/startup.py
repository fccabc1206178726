"""Starts TensorFlow without its start-up noise."""

import os
import sys
import tempfile


def start_tensorflow() -> None:
    """Imports TensorFlow and wakes its runtime while what both write to the terminal is held back.

    TensorFlow's C++ writes some of its greetings before any log level is read, so the file descriptor itself is turned
    away meanwhile. Should the start fail, everything held back is printed; Ctrl-C is no failure.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    sys.stderr.flush()
    terminal = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            import tensorflow as tf

            tf.constant(0)
        except Exception:
            held.seek(0)
            os.write(terminal, held.read())
            raise
        finally:
            os.dup2(terminal, 2)
            os.close(terminal)
