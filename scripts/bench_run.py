#!/usr/bin/env python3
"""Measures what a run costs beside its training steps: against a plain Keras script, by callback, and from the shell.

Whole processes run in turns; `ratio` is the median over the rounds of `finetune run` by the plain script, `spread` the
middle half of these ratios. The plain script does the same work as `recipes/digits.yaml` as far as Keras can: the same
network, weights, frozen layers, batches, epochs and evaluations, one Adam instead of two optimizers, TensorBoard,
CSVLogger and weights after every epoch, the model saved. It writes neither a plan nor a proof. With `--job images` both
train MobileNetV2 on folders of photographs (`image_job.py`), the head alone first.

    python scripts/bench_run.py --json run.json
    python scripts/bench_run.py --job images --rounds 3 --job-only     # in about 5 minutes
"""

import argparse
import importlib
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RECIPE = ROOT / "recipes" / "digits.yaml"
PLAIN = """\
import keras

from finetune.examples.digits import small_cnn, uci_digits

keras.utils.set_random_seed(7)
model = small_cnn()
head = model.get_layer("head").get_weights()
model.load_weights("{weights}")
model.get_layer("head").set_weights(head)
for name in ("conv1", "bn1"):
    model.get_layer(name).trainable = False
data = uci_digits(train_rows=100, test_rows=1000)
rate = keras.optimizers.schedules.ExponentialDecay(1e-3, 25, 0.5, staircase=True)
model.compile(keras.optimizers.Adam(rate), loss="sparse_categorical_crossentropy", metrics=["accuracy"])
before = model.evaluate(data.x_test, data.y_test, verbose=0)
model.fit(data.x_train, data.y_train, epochs=20, batch_size=20, verbose=0, callbacks=[
    keras.callbacks.CSVLogger("metrics.csv"),
    keras.callbacks.TensorBoard("tensorboard", write_graph=False),
    keras.callbacks.ModelCheckpoint("last.weights.h5", save_weights_only=True),
])
after = model.evaluate(data.x_test, data.y_test, verbose=0)
model.save("model.keras")
print(before, after)
"""
COMMANDS = {
    "finetune --help": ["-m", "finetune", "--help"],
    "finetune check recipes/digits.yaml": ["-m", "finetune", "check", str(RECIPE)],
    "import finetune": ["-c", "import finetune"],
}


def timed(arguments: Sequence[str], folder: Path) -> tuple[float, float]:
    """Runs Python in a folder; returns its wall and processor seconds. Exits if it fails."""
    before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run([sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True)
    wall, after = time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(f"`python {' '.join(arguments)}` failed:\n{done.stderr[-2000:]}")
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def job_in(folder: Path, job: str) -> tuple[Path, Path]:
    """Returns the recipe of a job and the plain script that does the same; what they read is written to the folder."""
    recipe, plain = RECIPE, folder / "plain.py"
    if job == "digits":
        plain.write_text(PLAIN.format(weights=ROOT / "recipes" / "weights" / "mnist_cnn.weights.h5"))
        return recipe, plain
    images = importlib.import_module("image_job")
    images.write_photographs(folder / "photos")
    recipe = folder / "images.yaml"
    recipe.write_text(images.RECIPE)
    plain.write_text(images.PLAIN)
    return recipe, plain


def against_plain(rounds: int, folder: Path, job: str) -> Iterator[dict[str, Any]]:
    """Yields the wall and the processor time of a run against those of the plain script."""
    recipe, plain = job_in(folder, job)
    runs: list[tuple[float, float]] = []
    scripts: list[tuple[float, float]] = []
    for number in range(rounds):
        scripts.append(timed([str(plain)], folder))
        runs.append(timed(["-m", "finetune", "run", str(recipe), "--out", f"run-{number}"], folder))
    for at, kind in enumerate(("wall", "processor")):
        ratios = [run[at] / script[at] for run, script in zip(runs, scripts, strict=True)]
        low, middle, high = (round(value, 3) for value in statistics.quantiles(ratios, n=4))
        seconds = [round(statistics.median(times[at] for times in side), 2) for side in (runs, scripts)]
        yield {
            "name": f"finetune run{'' if job == 'digits' else f' of {job}'}, {kind}",
            "seconds": seconds[0],
            "plain_seconds": seconds[1],
        } | {
            "ratio": middle,
            "spread": (low, high),
        }


def from_the_shell(rounds: int, folder: Path) -> Iterator[dict[str, Any]]:
    """Yields the wall time of the commands that should answer at once."""
    for name, arguments in COMMANDS.items():
        walls = [timed(arguments, folder)[0] for _ in range(rounds + 1)][1:]  # the first run reads from disk
        yield {"name": name, "seconds": round(statistics.median(walls), 3)}


# -- What takes the time of training ----------------------------------------------------------------------------------


class Stopwatch:
    """Adds up the seconds that functions take, by name."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()

    def around(self, function: Callable[..., Any], name: Callable[[], str]) -> Callable[..., Any]:
        """Returns the function, timed; `name` is asked after each call."""

        def measured(*arguments: Any, **more: Any) -> Any:
            begun = time.perf_counter()
            try:
                return function(*arguments, **more)
            finally:
                self.seconds[name()] += time.perf_counter() - begun

        return measured


def training_time(recipe: Path, overrides: Sequence[str], folder: Path) -> dict[str, float]:
    """Runs a recipe in this process and times its `fit` and what `fit` calls.

    Args:
        recipe: The recipe file.
        overrides: Changes to it, as `--set` takes them.
        folder: Where the run folder goes.

    Returns:
        Seconds of `fit`, of the steps, of the first steps (which trace) and of each callback.
    """
    from finetune.startup import start_tensorflow

    start_tensorflow()
    import keras

    from finetune.training.fast.compiled_steps import FastFunction

    watch, in_fit = Stopwatch(), [False]
    model: Any = keras.Model
    fit = model.fit

    def measured_fit(self: Any, *arguments: Any, callbacks: Sequence[Any], **more: Any) -> Any:
        for callback in callbacks:
            for hook in (
                "on_train_begin",
                "on_train_batch_begin",
                "on_train_batch_end",
                "on_epoch_end",
                "on_train_end",
            ):
                setattr(callback, hook, watch.around(getattr(callback, hook), lambda c=callback: type(c).__name__))
        in_fit[0] = True
        return watch.around(fit, lambda: "fit")(self, *arguments, callbacks=callbacks, **more)

    model.fit = measured_fit
    untyped: Any = FastFunction
    untyped.__call__ = watch.around(FastFunction.__call__, lambda: "steps" if in_fit[0] else "first steps")
    importlib.import_module("finetune.commands.run").run(recipe, folder / "watched", overrides=overrides)
    return dict(watch.seconds)


def shares(seconds: dict[str, float]) -> Iterator[dict[str, Any]]:
    """Yields what `fit` spends outside of the steps, as shares of `fit`; the first steps, which trace, are before."""
    whole = seconds["fit"]
    beside = {name: value for name, value in seconds.items() if name not in ("fit", "first steps", "steps")}
    beside["Keras' own loop and batches"] = whole - seconds["steps"] - sum(beside.values())
    yield {"name": "training outside of its steps", "seconds": round(whole - seconds["steps"], 3)} | {
        "share": round(1 - seconds["steps"] / whole, 3),
        "share_of_callbacks": round(1 - (seconds["steps"] + beside["Keras' own loop and batches"]) / whole, 3),
    }
    yield {"name": "first steps, which trace", "seconds": round(seconds["first steps"], 3)}
    for name, value in sorted(beside.items(), key=lambda pair: -pair[1]):
        yield {"name": f"training, {name}", "seconds": round(value, 4), "share": round(value / whole, 4)}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures and prints a line for each figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="rounds, >= 2 (default %(default)s)")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument("--recipe", type=Path, default=RECIPE, help="the recipe whose training is timed in parts")
    parser.add_argument("--set", action="append", default=[], dest="overrides", help="a change to that recipe")
    parser.add_argument("--job", choices=("digits", "images"), default="digits", help="what runs beside plain Keras")
    parser.add_argument("--job-only", action="store_true", help="nothing but the job beside plain Keras")
    parser.add_argument("--training-only", action="store_true", help="only time the parts of the training")
    options = parser.parse_args(arguments)
    if options.rounds < 2:
        parser.error("--rounds is at least 2")
    figures: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if not (options.training_only or options.job_only):
            figures += from_the_shell(options.rounds, folder)
        if not options.training_only:
            figures += against_plain(options.rounds, folder, options.job)
        if not options.job_only:
            figures += shares(training_time(options.recipe, options.overrides, folder))
    for figure in figures:
        print("  ".join(f"{key}: {value}" if key != "name" else str(value) for key, value in figure.items()))
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
