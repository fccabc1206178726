"""What all checks of `scripts/torture.py` share: the list of checks, processes, and a small model to run."""

import functools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py

ROOT = Path(__file__).resolve().parents[2]
RECIPE = ROOT / "recipes" / "digits.yaml"


@dataclass(frozen=True)
class Check:
    """A way to torture a run.

    Attributes:
        kind: `disk`, `signals`, `locks` ...
        name: What is done, as words.
        function: Called with an empty folder and a variant; raises where something was lost.
        variants: What it is tried with.
    """

    kind: str
    name: str
    function: Callable[[Path, Any], None]
    variants: Sequence[Any]


CHECKS: list[Check] = []


def check(kind: str, variants: Sequence[Any] = (None,)) -> Callable[[Callable[[Path, Any], None]], Any]:
    """Registers a check; its name is that of the function."""

    def register(function: Callable[[Path, Any], None]) -> Any:
        CHECKS.append(Check(kind, function.__name__.replace("_", " "), function, variants))
        return function

    return register


def environment(folder: Path, **more: str) -> dict[str, str]:
    """Returns the environment of a process with a folder `tmp` of its own for temporary files."""
    (folder / "tmp").mkdir(exist_ok=True)
    own = {"PYTHONPATH": str(ROOT), "TMPDIR": str(folder / "tmp"), "TF_CPP_MIN_LOG_LEVEL": "3"}
    return {**os.environ, **own, **more}


def start(folder: Path, *arguments: object, **more: Any) -> subprocess.Popen[str]:
    """Starts `finetune run` of the digits in a folder."""
    command = [sys.executable, "-m", "finetune", "run", str(RECIPE), "--out", "out", *map(str, arguments)]
    more.setdefault(
        "preexec_fn", lambda: signal.signal(signal.SIGINT, signal.default_int_handler)
    )  # ignored behind `&`
    pipes: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=folder, env=environment(folder), **pipes, **more)


def epochs(folder: Path) -> int:
    """The epochs in `metrics.csv`."""
    path = folder / "out" / "metrics.csv"
    return path.read_text().count("\n") - 1 if path.exists() else 0


def wait_for(condition: Callable[[], object], seconds: float = 120) -> None:
    """Waits until a condition holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"nothing within {seconds} seconds"
        time.sleep(0.02)


def ended(process: subprocess.Popen[str], *codes: int) -> str:
    """Waits for a process to end with one of the exit codes and without a traceback; returns what it said."""
    error = process.communicate(timeout=1200)[1]
    assert process.returncode in codes, f"exit {process.returncode}: {error}"
    assert "Traceback" not in error, error
    return error


def steps_in(path: Path) -> int:
    """The steps that the optimizer in a file of weights has made."""
    with h5py.File(path) as file:
        return int(file["optimizer/vars/0"][()])  # pyright: ignore[reportIndexIssue] - h5py is untyped


def finetune(
    folder: Path, *arguments: object, codes: Sequence[int] = (0,), env: dict[str, str] | None = None, **more: Any
) -> str:
    """Runs `finetune` in a folder to its end; returns what it printed.

    Args:
        folder: The folder.
        arguments: Those of the command.
        codes: The exit codes that are right.
        env: The environment.
        more: Arguments of `subprocess.run`.
    """
    command = [sys.executable, "-P", "-m", "finetune", *map(str, arguments)]
    more.setdefault("stdin", subprocess.DEVNULL)
    more |= {"cwd": folder, "env": env or environment(folder), "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    done: Any = subprocess.run(command, check=False, timeout=1200, **more)
    said = (done.stdout or b"").decode("utf-8", "replace")
    assert done.returncode in codes, f"exit {done.returncode}: {said[-1500:]}"
    assert "Traceback" not in said, said
    assert "please report it" not in said, said
    return said


_TINY = """
import keras, numpy as np
random = np.random.default_rng(0)
x, y = random.normal(size=(40, 4)).astype("f4"), np.arange(40) % 3
np.savez("d.npz", x_train=x, y_train=y, x_test=x[:20], y_test=y[:20])
L = keras.layers
keras.utils.set_random_seed(0)
net = keras.Sequential([keras.Input((4,)), L.Dense(8, activation="relu", name="stem"), L.BatchNormalization(name="bn"),
                        L.Dense(8, activation="relu", name="body"), L.Dense(3, activation="softmax", name="head")])
net.save("net.keras")
net.save_weights("sound.weights.h5")
"""
_RECIPE = """seed: 1
model: {keras_file: net.keras}
data: {npz: d.npz}
groups:
  - {name: stem, prefixes: [stem, bn], frozen: true}
  - {name: head, rest: true, optimizer: sgd, learning_rate: 1.0e-2}
train: {epochs: 2, batch_size: 8, loss: sparse_categorical_crossentropy}
"""


@functools.cache
def _tiny() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="torture-tiny-"))
    subprocess.run([sys.executable, "-c", _TINY], cwd=folder, env=environment(folder), check=True, capture_output=True)
    return folder


def tiny(folder: Path, *, extra: str = "") -> Path:
    """Puts a small network, its weights, data and a recipe into a folder; returns the recipe."""
    for path in _tiny().iterdir():
        if path.is_file():
            shutil.copy(path, folder)
    (folder / "r.yaml").write_text(_RECIPE + extra)
    return folder / "r.yaml"


def python(folder: Path, code: str) -> None:
    """Runs code in a folder."""
    subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment(folder), check=True, capture_output=True)
