"""TensorFlow starts quietly, and what it printed is shown when the start fails."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def started(code, **environment):
    variables = {
        key: value for key, value in os.environ.items() if key not in ("TF_CPP_MIN_LOG_LEVEL", "KERAS_BACKEND")
    }
    variables |= {"PYTHONPATH": str(ROOT), **environment}
    return subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True, check=False)


def test_nothing_is_printed_while_tensorflow_starts_and_the_terminal_works_again_afterwards():
    code = (
        "import os, sys; from finetune.startup import start_tensorflow; start_tensorflow()\n"
        "assert 'tensorflow' in sys.modules and os.environ['KERAS_BACKEND'] == 'tensorflow'\n"
        "print('after', file=sys.stderr)"
    )
    done = started(code)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "after\n")


def test_a_start_that_fails_shows_what_was_printed_meanwhile(tmp_path):
    (tmp_path / "tensorflow.py").write_text(
        "import os\nos.write(2, b'no such library\\n')\nraise ImportError('broken')\n"
    )
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\nfrom finetune.startup import start_tensorflow\n"
    done = started(code + "start_tensorflow()")
    assert done.returncode == 1
    assert "no such library\n" in done.stderr
    assert done.stderr.rstrip().endswith("ImportError: broken")


def test_an_interrupted_start_shows_nothing_of_it(tmp_path):
    (tmp_path / "tensorflow.py").write_text("import os\nos.write(2, b'noise\\n')\nraise KeyboardInterrupt\n")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\nfrom finetune.startup import start_tensorflow\n"
    assert "noise\n" not in started(code + "start_tensorflow()").stderr


def test_imports_that_last_are_not_searched_for_garbage_and_python_collects_as_before_afterwards():
    code = (
        "import gc; from finetune.startup import lasting_imports\n"
        "with lasting_imports():\n"
        "    import decimal\n"
        "    assert not gc.isenabled()\n"
        "assert gc.isenabled() and gc.get_freeze_count() > 1000\n"
        "try:\n"
        "    with lasting_imports(): raise ImportError\n"
        "except ImportError: assert gc.isenabled()\n"
        "gc.disable()\n"
        "with lasting_imports(): pass\n"
        "assert not gc.isenabled()"
    )
    done = started(code)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_package_imports_tensorflow_without_the_lines_that_the_environment_asks_it_not_to_print():
    code = (
        "import finetune, sys; finetune.GroupedOptimizer\n"
        "import tensorflow as tf; tf.config.set_logical_device_configuration(\n"
        "    tf.config.list_physical_devices('CPU')[0], [tf.config.LogicalDeviceConfiguration()] * 2\n"
        ")  # the runtime has not been started\n"
        "print('after', file=sys.stderr)"
    )
    done = started(code, TF_CPP_MIN_LOG_LEVEL="3")
    assert (done.returncode, done.stderr) == (0, "after\n")


def test_other_output_of_the_import_is_kept(tmp_path):
    lines = [
        b"WARNING: All log messages before absl::InitializeLog() is called",
        b"I0000 00:00 port.cc] oneDNN",
        b"theirs",
    ]
    (tmp_path / "tensorflow.py").write_text(
        f"import os\nos.write(2, {chr(10).encode().join(lines) + chr(10).encode()!r})\n"
    )
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from finetune.startup import quiet_import\n"
        "with quiet_import():\n    import tensorflow"
    )
    assert started(code, TF_CPP_MIN_LOG_LEVEL="3").stderr == "theirs\n"
    assert "oneDNN" in started(code, TF_CPP_MIN_LOG_LEVEL="1").stderr
