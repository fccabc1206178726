"""Kills runs at random moments, lets them go on, and compares their ends with those of runs that were left alone.

    python scripts/kill_runs.py                     every case once, with up to 4 kills each
    python scripts/kill_runs.py --kills 1000        goes round until so many processes were killed
    python scripts/kill_runs.py --only until        cases whose name has this in it
    python scripts/kill_runs.py --work FOLDER       where the runs are kept; called again, it goes on there
    python scripts/kill_runs.py --jobs 2            runs at a time

A case is a strategy of phases with the cache on or off, with and without moving averages, with and without gradient
accumulation, and in a precision: all of their combinations. Every run is a process of its own, killed with SIGKILL.
Half of the moments are drawn evenly from the processor time of a run that was left alone, from its first line to its
last; the others fall within 50 ms after a checkpoint was written. At the end of a run must be equal, bit for bit: the
weights, moving statistics, slots, accumulators, averages, clocks and rates in the last checkpoint, all rows of
`metrics.csv` and `steps.csv`, the random state, the scalars for TensorBoard, the phases and figures of `result.json`,
what the report is made of, the predictions, and the tensors of `model.keras`. After every kill the newest checkpoint
must be whole and hold every step of the epochs that are over but those since the checkpoint before; at the end every
file must have its hash. Exits 1 where anything differs.

Processes are forked from one that has imported TensorFlow and has not used it, which saves seconds for each.
"""

import argparse
import csv
import itertools
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

# Small, as most of a process's time goes into building and tracing; with random layers, statistics and three rules.
RECIPE = """
seed: 3
model: {builder: kill_runs:network}
data: {npz: rows.npz}
restore: {from: pretrained.weights.h5, exclude: [head]}
groups:
  - {name: stem, prefixes: [stem, stem_norm], optimizer: adam, learning_rate: 1.0e-3}
  - name: body
    prefixes: [body, body_norm]
    optimizer: {name: sgd, momentum: 0.9}
    learning_rate: {schedule: exponential_decay, initial: 3.0e-3, decay_epochs: 2, decay_rate: 0.5, staircase: true}
  - {name: head, rest: true, optimizer: {name: adamw, weight_decay: 0.01}, learning_rate: 1.0e-2}
train:
  epochs: 6
  batch_size: 4
  validation_fraction: 0.1
  checkpoint_steps: 5
  keep_checkpoints: true
  log_every_steps: off
  loss: sparse_categorical_crossentropy
  metrics: [accuracy]
"""
TRAIN_ROWS, STEPS_PER_EPOCH = 120, 27
FROZEN_STEM = ["groups.stem.frozen=true", "groups.stem.optimizer=null", "groups.stem.learning_rate=null"]
STRATEGIES = {
    "one phase": [],
    "frozen stem": FROZEN_STEM,
    "gradual unfreezing": ["phases=gradual_unfreezing"],
    "chain thaw": ["phases={strategy: chain_thaw, epochs_per_group: 1}"],
    "lp-ft": ["phases={strategy: lp_ft, probe_epochs: 2}"],
    "freeze then all": ["phases=freeze_then_all"],
    "surgical": ["phases={strategy: surgical, train: first}"],
    "own rates": [
        "train.epochs=null",
        "phases=[{train: [head], epochs: 1}, {train: [body, head], steps: 40, warmup_steps: 6, clock: phase, rates: "
        "{body: {schedule: cosine_decay, initial: 1.0e-3, decay_steps: 40}}}, {train: all, epochs: 2}]",
    ],
    "until": [
        "train.epochs=null",
        "phases=[{train: [head], epochs: 6, until: {monitor: val_loss, patience: 1, restore_best: true}}, "
        "{train: all, epochs: 3, until: {monitor: loss, patience: 0}}]",
    ],
    "plateau": [
        "train.epochs=null",
        "phases=[{train: all, epochs: 5, reduce_on_plateau: {monitor: val_loss, factor: 0.5, patience: 0}}]",
    ],
    "auto-rgn": ["train.epochs=null", "phases=[{train: [head], epochs: 1}, {train: all, epochs: 3, auto_rgn: 1.0e-3}]"],
}
OPTIONS = (
    {"": [], "no cache": ["train.cache=off"]},
    {"": [], "ema": ["train.use_ema=true"]},
    {"": [], "accumulation": ["train.gradient_accumulation_steps=3"]},
    {
        "": [],
        "bfloat16": ["train.mixed_precision=bfloat16"],
        "float16": ["train.mixed_precision=float16", "train.global_clipnorm=1.0"],
    },
)
# In turn, as they multiply nothing: steps in a call, and measurements of the groups within an epoch.
IN_TURN = (
    ["train.steps_per_execution=2"],
    ["train.steps_per_execution=1", "train.log_every_steps=7"],
    ["train.steps_per_execution=3", "train.evaluate_every_steps=9"],
)
MOST_STEPS_LOST = 6  # checkpoints are written every 5 steps, at the end of a call of up to 3


@dataclass(frozen=True)
class Case:
    """A strategy with options."""

    name: str
    overrides: tuple[str, ...]


@dataclass
class Outcome:
    """What came of one run: how often it was killed, how often steps or files were lost, and what differs."""

    case: str
    round: int
    kills: int = 0
    lost: int = 0
    damaged: int = 0
    problems: list[str] = field(default_factory=list)


def cases() -> list[Case]:
    """Returns every strategy with every combination of the options, in an order that mixes them."""
    every: list[Case] = []
    for number, (strategy, *options) in enumerate(itertools.product(STRATEGIES, *OPTIONS)):
        of_options = [part[name] for part, name in zip(OPTIONS, options, strict=True)]
        overrides = [*STRATEGIES[strategy], *itertools.chain(*of_options), *IN_TURN[number % len(IN_TURN)]]
        every.append(Case(", ".join([strategy, *filter(None, options)]), tuple(overrides)))
    return sorted(every, key=lambda case: random.Random(case.name).random())


def network() -> Any:
    """Builds the network that the recipe names."""
    import keras
    from keras import layers

    return keras.Sequential(
        [
            keras.Input((8,)),
            layers.Dense(8, activation="relu", name="stem"),
            layers.BatchNormalization(momentum=0.9, name="stem_norm"),
            layers.Dense(8, activation="relu", name="body"),
            layers.BatchNormalization(momentum=0.9, name="body_norm"),
            layers.Dropout(0.2, name="dropout"),
            layers.Dense(3, activation="softmax", dtype="float32", name="head"),
        ]
    )


def write_inputs(work: Path) -> None:
    """Writes the recipe, the network and the rows, in a process of its own: this one must not use TensorFlow."""
    if (work / "recipe.yaml").exists() or ends_within(pid := os.fork() or _write_inputs(work), 60) == 0:
        return
    raise SystemExit(f"the process {pid} that makes the network failed")


def _write_inputs(work: Path) -> int:
    import keras
    import numpy as np

    keras.utils.set_random_seed(1)
    network().save_weights(work / "pretrained.weights.h5")
    x = np.random.default_rng(0).normal(size=(TRAIN_ROWS + 40, 8)).astype("float32")
    y = (x[:, 0] > 0).astype("int64") + (x[:, 1] > 0)
    parts = {"train": slice(TRAIN_ROWS), "test": slice(TRAIN_ROWS, None)}
    arrays = {f"{name}_{part}": rows[of] for part, of in parts.items() for name, rows in (("x", x), ("y", y))}
    np.savez(work / "rows.npz", **arrays)
    (work / "recipe.yaml").write_text(RECIPE)
    os._exit(0)


def start(case: Case, recipe: Path, out: Path) -> int:
    """Starts a process that runs a case, or goes on with it, and returns its process id."""
    if pid := os.fork():
        return pid
    log = os.open(out.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    code = 1
    try:
        import finetune

        finetune.run(recipe, out=out, overrides=case.overrides, allow_code=["kill_runs"], resume=True)
        code = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(code)


def ends_within(pid: int, seconds: float) -> int | None:
    """Waits for a process; returns its exit code, negative for a signal, or `None` if it still runs."""
    end = time.monotonic() + seconds
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() >= end:
            return None
        time.sleep(0.001)


def processor_seconds(pid: int) -> float:
    """Returns how long a process has computed, which does not depend on what else the machine does."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def kill_at(pid: int, draw: random.Random, seconds: float, checkpoints: Path) -> int | None:
    """Kills a process at a random moment; returns its exit code if it ended before, otherwise `None`.

    Args:
        pid: The process.
        draw: Draws the moment.
        seconds: Processor time of the run that was left alone.
        checkpoints: Where the process writes them.
    """
    if draw.random() < 0.5:
        due = draw.random() * seconds * 1.1
        is_due = lambda: processor_seconds(pid) >= due  # noqa: E731
    else:
        begun, count = newest_number(checkpoints), draw.randint(1, 12)
        is_due = lambda: newest_number(checkpoints) >= begun + count  # noqa: E731
    while (code := ends_within(pid, 0.002)) is None and not is_due():
        pass
    # Waits for the disk take no processor time, and would otherwise never be hit.
    code = ends_within(pid, draw.random() * 0.05) if code is None else code
    if code is None:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    return code


def newest_number(checkpoints: Path) -> int:
    """Returns the number of the newest checkpoint; 0 where there is none."""
    names = os.listdir(checkpoints) if checkpoints.exists() else []
    return max((int(name.split("-")[2]) for name in names if name.startswith("step-")), default=0)


def end_of(folder: Path) -> dict[str, Any]:
    """Reads everything that must be equal at the end of a run."""
    import numpy as np

    from finetune.results.hashes import check_hashes
    from finetune.training.checkpoints.checkpoint_file import read_newest

    result, facts = (json.loads((folder / name).read_text()) for name in ("result.json", "report.json"))
    result.pop("seconds")
    facts.pop("peak_bytes")
    for phase in result.get("phases", []):
        phase.pop("seconds")
    _, saved, damaged = read_newest(folder / "checkpoints")
    assert saved is not None
    assert not damaged, "the last checkpoint is damaged"
    document = {name: saved.document[name] for name in ("position", "model")}
    return {
        "arrays": {
            name: array.tobytes() for name, array in saved.arrays.items() if not name.startswith("callbacks/Progress")
        },
        "state": document,
        "result": result,
        "report": facts,
        "predictions": {name: array.tobytes() for name, array in np.load(folder / "predictions.npz").items()},
        "metrics": list(csv.DictReader((folder / "metrics.csv").open())),
        "steps": text_of(folder / "steps.csv"),
        "evaluations": text_of(folder / "evaluations.csv"),
        "tensorboard": tensorboard(folder / "tensorboard"),
        "model": weights_of(folder / "model.keras"),
        "hashes": check_hashes(folder).holds,
    }


def text_of(path: Path) -> str:
    """Returns the text of a file, or an empty one where there is no file."""
    return path.read_text() if path.exists() else ""


def weights_of(path: Path) -> dict[str, bytes]:
    """Returns the tensors of a `.keras` file; the file itself holds the time of its writing."""
    import io
    import zipfile

    import h5py

    tensors: dict[str, bytes] = {}
    with h5py.File(io.BytesIO(zipfile.ZipFile(path).read("model.weights.h5"))) as file:
        file.visititems(
            lambda name, item: tensors.update({name: item[()].tobytes()}) if isinstance(item, h5py.Dataset) else None
        )
    return tensors


def tensorboard(folder: Path) -> list[Any]:
    """Returns tag, step and value of every scalar of a run.

    By the tag: a process that goes on writes the epochs before it first, and then the steps before it.
    """
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    scalars = [
        (path.parent.name, event.step, value.tag, value.tensor.SerializeToString())
        for path in sorted(folder.glob("*/*"))
        for event in EventFileLoader(str(path)).Load()
        for value in event.summary.value
    ]
    return sorted(scalars, key=lambda scalar: (scalar[0], scalar[2]))  # stable: steps of a tag stay in their order


def lost_steps(folder: Path) -> int:
    """Returns how many steps of finished epochs the newest checkpoint of a killed run does not hold."""
    from finetune.training.checkpoints.checkpoint_file import read_newest

    rows = list(csv.DictReader((folder / "metrics.csv").open())) if (folder / "metrics.csv").exists() else []
    _, saved, damaged = read_newest(folder / "checkpoints")
    assert not damaged, f"damaged: {damaged}"
    if saved is None:
        return 0 if not rows else STEPS_PER_EPOCH
    position = saved.document["position"]
    return max(0, (len(rows) - position["epoch"]) * STEPS_PER_EPOCH - position["step"])


def run_alone(case: Case, recipe: Path, alone: Path) -> float:
    """Runs a case without a kill, unless that was done before, and returns the processor time in seconds."""
    timing = alone.with_suffix(".json")
    if not timing.exists():
        shutil.rmtree(alone, ignore_errors=True)
        pid = start(case, recipe, alone)
        deadline, seconds = time.monotonic() + 600, 0.0
        while (code := ends_within(pid, 0.1)) is None and time.monotonic() < deadline:
            seconds = processor_seconds(pid)
        if code != 0:
            raise SystemExit(f"{case.name}: the run that was left alone failed; see {alone}.log")
        timing.write_text(json.dumps(seconds))
    return float(json.loads(timing.read_text()))


def torture(case: Case, work: Path, kills: int, turn: int) -> Outcome:
    """Runs a case with kills until it ends, and compares that with its end without."""
    from finetune.results.run_folder import is_finished

    name = case.name.replace(", ", "+").replace(" ", "-")
    alone, killed, recipe = work / f"{name}-alone", work / f"{name}-killed", work / "recipe.yaml"
    seconds, outcome = run_alone(case, recipe, alone), Outcome(case.name, turn)
    shutil.rmtree(killed, ignore_errors=True)
    killed.with_suffix(".log").unlink(missing_ok=True)
    draw = random.Random(f"{case.name} {turn}")
    for _ in range(kills):
        code = kill_at(start(case, recipe, killed), draw, seconds, killed / "checkpoints")
        outcome.kills += code is None
        if code:
            outcome.problems.append(f"exit code {code}")
        check_killed(killed, outcome)
        if code is None and is_finished(killed):
            code = 0  # killed after its last file: there is nothing to go on with
        if code == 0:
            break
    else:
        code = ends_within(start(case, recipe, killed), 600)
    if code:
        outcome.problems.append(f"exit code {code} at the end; see {killed}.log")
    else:
        expected, actual = end_of(alone), end_of(killed)
        outcome.problems += [f"other {part}" for part in expected if expected[part] != actual[part]]
    if not outcome.problems:
        shutil.rmtree(killed)
    return outcome


def check_killed(folder: Path, outcome: Outcome) -> None:
    """Looks at what a killed process has left."""
    try:
        lost = lost_steps(folder) if (folder / "recipe.yaml").exists() else 0
    except AssertionError as error:
        outcome.damaged += 1
        outcome.problems.append(str(error))
    else:
        if lost > MOST_STEPS_LOST:
            outcome.lost += 1
            outcome.problems.append(f"{lost} steps lost")


def outcomes(work: Path) -> Iterator[Outcome]:
    """Yields what came of the runs so far."""
    for line in text_of(work / "outcomes.jsonl").splitlines():
        yield Outcome(**json.loads(line))


def work_on(chosen: list[Case], work: Path, options: argparse.Namespace) -> None:
    """Tries cases in turn until there were enough kills; the outcomes go into a file."""
    done = {(outcome.round, outcome.case) for outcome in outcomes(work)}
    for turn in itertools.count(options.seed):
        for case in chosen:
            kills = sum(outcome.kills for outcome in outcomes(work))
            if options.kills and kills >= options.kills:
                return
            if (turn, case.name) in done:
                continue
            outcome = torture(case, work, options.per_run, turn)
            with (work / "outcomes.jsonl").open("a") as file:  # a line at once, as others write it, too
                file.write(json.dumps(vars(outcome)) + "\n")
            problems = "; ".join(dict.fromkeys(outcome.problems))
            print(f"{case.name:48} {kills + outcome.kills:5} kills  {problems or 'identical'}", flush=True)
        if not options.kills:
            return


def main() -> int:
    """Tries the cases; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=0, help="go round until so many processes were killed")
    parser.add_argument("--per-run", type=int, default=4, help="kills of a run")
    parser.add_argument("--only", default="", help="a part of the name of a case")
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    parser.add_argument("--work", type=Path, help="where the runs are kept; called again, it goes on there")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    options = parser.parse_args()
    # Before the first fork, so that no process has to do it again; none of them starts a thread or uses TensorFlow.
    import matplotlib.pyplot  # noqa: F401
    import tensorboard.backend.event_processing.event_file_loader  # noqa: F401

    import finetune.commands.run  # noqa: F401

    work = options.work or Path(tempfile.mkdtemp())
    work.mkdir(parents=True, exist_ok=True)
    write_inputs(work)
    chosen = [case for case in cases() if options.only in case.name]
    workers = []
    for number in range(options.jobs):
        if not (pid := os.fork()):
            work_on(chosen[number :: options.jobs], work, options)
            os._exit(0)
        workers.append(pid)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in workers]
    every = list(outcomes(work))
    different, lost, damaged = (
        sum(bool(outcome.problems) for outcome in every),
        sum(outcome.lost for outcome in every),
        sum(outcome.damaged for outcome in every),
    )
    print(
        f"{sum(outcome.kills for outcome in every)} kills, {len({outcome.case for outcome in every})} cases, "
        f"{len(every)} runs, {different} ends with another bit, {lost} times more steps lost than those since the last "
        f"checkpoint, {damaged} damaged files"
    )
    if options.work is None:
        shutil.rmtree(work)
    return 1 if any(codes) or different or lost or damaged else 0


if __name__ == "__main__":
    sys.exit(main())
