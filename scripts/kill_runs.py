"""Kills runs at random moments, lets them go on, and compares their ends with those of runs that were left alone.

    python scripts/kill_runs.py                     every case once, with up to 3 kills each
    python scripts/kill_runs.py --kills 1000        goes round until so many processes were killed
    python scripts/kill_runs.py --only until        cases whose name has this in it
    python scripts/kill_runs.py --work FOLDER       where the runs are kept; called again, it goes on there

Every run is a process of its own, killed with SIGKILL: at a moment drawn evenly from the time that the run which was
left alone took from its first step to its end. A case is a strategy of phases together with options of training. At
the end of a run must be equal, bit for bit: the weights, moving statistics, slots, accumulators, averages, clocks and
rates in the last checkpoint, the random state, the rows of `metrics.csv`, the scalars for TensorBoard, the phases and
figures of `result.json`, and the tensors of `model.keras`. After every kill the newest checkpoint must be whole and
hold every step of the epochs that are over but those since the checkpoint before. Exits 1 where anything differs.

Processes are forked from one that has imported TensorFlow and has not used it, which saves seconds for each.
"""

import argparse
import csv
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

RECIPE = f"""
seed: 3
model: {{builder: finetune.examples.digits:small_cnn}}
data: {{builder: finetune.examples.digits:uci_digits, arguments: {{train_rows: 120, test_rows: 200}}}}
restore: {{from: {ROOT}/recipes/weights/mnist_cnn.weights.h5, exclude: [head]}}
groups:
  - {{name: stem, prefixes: [conv1, bn1], optimizer: adam, learning_rate: 1.0e-4}}
  - name: body
    prefixes: [conv2, bn2, conv3, bn3]
    optimizer: {{name: sgd, momentum: 0.9}}
    learning_rate: {{schedule: exponential_decay, initial: 3.0e-3, decay_epochs: 2, decay_rate: 0.5, staircase: true}}
  - {{name: head, rest: true, optimizer: {{name: adamw, weight_decay: 0.01}}, learning_rate: 1.0e-2}}
train:
  epochs: 6
  batch_size: 4
  validation_fraction: 0.1
  checkpoint_steps: 5
  steps_per_execution: 2
  keep_checkpoints: true
  loss: sparse_categorical_crossentropy
  metrics: [accuracy]
"""
STEPS_PER_EPOCH = 27
CHECKPOINT_STEPS = 6  # every 5 steps, at the end of a call of 2
STRATEGIES = {
    "one phase": [],
    "gradual unfreezing": ["phases=gradual_unfreezing"],
    "chain thaw": ["phases={strategy: chain_thaw, epochs_per_group: 1}"],
    "lp-ft": ["phases={strategy: lp_ft, probe_epochs: 2}"],
    "freeze then all": ["phases=freeze_then_all"],
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
OPTIONS = {
    "": [],
    "no cache": ["train.cache=off"],
    "ema": ["train.use_ema=true"],
    "accumulation": ["train.gradient_accumulation_steps=3"],
    "bfloat16": ["train.mixed_precision=bfloat16"],
    "float16": ["train.mixed_precision=float16", "train.global_clipnorm=1.0"],
    "frozen stem": ["groups.stem.frozen=true", "groups.stem.optimizer=null", "groups.stem.learning_rate=null"],
}


@dataclass(frozen=True)
class Case:
    """A strategy with an option."""

    name: str
    overrides: tuple[str, ...]


def cases() -> Iterator[Case]:
    """Yields every strategy with every option."""
    for strategy, of_strategy in STRATEGIES.items():
        for option, of_option in OPTIONS.items():
            yield Case(f"{strategy}, {option}" if option else strategy, (*of_strategy, *of_option))


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

        finetune.run(recipe, out=out, overrides=case.overrides, resume=True)
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
        time.sleep(0.002)


def end_of(folder: Path) -> dict[str, Any]:
    """Reads everything that must be equal at the end of a run."""
    from finetune.training.checkpoints.checkpoint_file import read_newest

    result = json.loads((folder / "result.json").read_text())
    result.pop("seconds")
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
        "metrics": list(csv.DictReader((folder / "metrics.csv").open())),
        "steps": (folder / "steps.csv").read_text() if (folder / "steps.csv").exists() else "",
        "tensorboard": tensorboard(folder / "tensorboard"),
        "model": weights_of(folder / "model.keras"),
    }


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


@dataclass
class Count:
    """What was tried and what came of it."""

    kills: int = 0
    ends: int = 0
    different: int = 0
    lost: int = 0
    damaged: int = 0


def torture(case: Case, work: Path, kills: int, seed: int, count: Count) -> str:
    """Runs a case alone, unless that was done before, and again with kills; returns what differs."""
    name = case.name.replace(", ", "+").replace(" ", "-")
    alone, killed = work / f"{name}-alone", work / f"{name}-killed"
    recipe, timing = work / "recipe.yaml", work / f"{name}-alone.json"
    if not timing.exists():
        shutil.rmtree(alone, ignore_errors=True)
        pid = start(case, recipe, alone)
        while not (alone / "recipe.yaml").exists() and (code := ends_within(pid, 0.01)) is None:
            pass
        begun = time.monotonic()
        code = ends_within(pid, 600)
        if code:
            raise SystemExit(f"{case.name}: the run that was left alone failed; see {alone}.log")
        timing.write_text(json.dumps(time.monotonic() - begun))
    seconds = json.loads(timing.read_text())
    shutil.rmtree(killed, ignore_errors=True)
    killed.with_suffix(".log").unlink(missing_ok=True)
    draw, problems = random.Random(f"{case.name} {seed}"), []
    for _ in range(kills):
        pid = start(case, recipe, killed)
        # Building the model takes longer than training it: the clock of the kill starts when the run folder is there,
        # or, where the run goes on, after half of the time that building has taken.
        while not (killed / "recipe.yaml").exists() and ends_within_still(pid):
            time.sleep(0.002)
        code = ends_within(pid, draw.random() * seconds * 1.2)
        if code is None:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            count.kills += 1
        elif code:
            problems.append(f"exit code {code}")
        try:
            lost = lost_steps(killed) if (killed / "recipe.yaml").exists() else 0
        except AssertionError as error:
            count.damaged += 1
            problems.append(str(error))
        else:
            if lost > CHECKPOINT_STEPS:
                count.lost += 1
                problems.append(f"{lost} steps lost")
        if code is None and (killed / "result.json").exists():
            code = 0  # killed after its last file: there is nothing to go on with
        if code == 0:
            break
    else:
        code = ends_within(start(case, recipe, killed), 600)
    if code:
        problems.append(f"exit code {code} at the end; see {killed}.log")
    else:
        wanted, got = end_of(alone), end_of(killed)
        problems += [f"other {part}" for part in wanted if wanted[part] != got[part]]
    count.ends += 1
    count.different += bool(problems)
    return "; ".join(dict.fromkeys(problems))


def ends_within_still(pid: int) -> bool:
    """Returns whether a process runs, without waiting for it."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None


def main() -> int:
    """Tries the cases; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=0, help="go round until so many processes were killed")
    parser.add_argument("--per-run", type=int, default=3, help="kills of a run")
    parser.add_argument("--only", default="", help="a part of the name of a case")
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    parser.add_argument("--work", type=Path, help="where the runs are kept; called again, it goes on there")
    options = parser.parse_args()
    import finetune.commands.run  # noqa: F401 - imports TensorFlow, before the first fork

    work = options.work or Path(tempfile.mkdtemp())
    work.mkdir(parents=True, exist_ok=True)
    (work / "recipe.yaml").write_text(RECIPE)
    state = work / "state.json"
    saved = json.loads(state.read_text()) if state.exists() else {"round": options.seed, "done": [], "count": {}}
    count = Count(**saved["count"])
    chosen = [case for case in cases() if options.only in case.name]
    while True:
        for case in chosen:
            if options.kills and count.kills >= options.kills:
                break
            if case.name in saved["done"]:
                continue
            problems = torture(case, work, options.per_run, saved["round"], count)
            print(f"{case.name:36} {count.kills:5} kills  {problems or 'identical'}", flush=True)
            saved["done"].append(case.name)
            state.write_text(json.dumps({**saved, "count": vars(count)}))
        if count.kills >= options.kills:
            break
        saved |= {"round": saved["round"] + 1, "done": []}
    print(
        f"{count.kills} kills, {count.ends} runs, {count.different} ends with another bit, {count.lost} times more "
        f"steps lost than those since the last checkpoint, {count.damaged} damaged files"
    )
    if options.work is None:
        shutil.rmtree(work)
    return 1 if count.different or count.lost or count.damaged else 0


if __name__ == "__main__":
    sys.exit(main())
