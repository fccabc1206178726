"""`finetune run --seeds N`: the same recipe with several seeds, a process each, and their comparison."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from finetune.errors import FinetuneError, TrainingError, quote
from finetune.recipe.loader import load_recipe

MOST = 1000
# Where the recipe says `auto`, what the first run has measured holds for all: memory and load at the time of another
# seed would give runs that differ in more than the seed.
_MEASURED = ("batch_size", "mixed_precision")


def run_seeds(
    recipe: Path, out: Path | None, count: int, *, overrides: Sequence[str] = (), options: Sequence[str] = ()
) -> Path:
    """Runs a recipe with as many seeds, from its own on; runs that are finished are kept, others go on.

    Args:
        recipe: Path of the recipe.
        out: The folder in which each seed has its run folder `seed-<seed>`; by default the first free
            `runs/<recipe>-seeds-<number>`.
        count: How many seeds, >= 2.
        overrides: Changes to the recipe.
        options: Further options of `finetune run`.

    Returns:
        The folder.

    Raises:
        FinetuneError: The recipe is wrong, or `count` is.
        TrainingError: A run has failed; those before it are kept.
    """
    if not 2 <= count <= MOST:
        raise FinetuneError(f"`--seeds` runs a recipe with 2 to {MOST} seeds. Received: {count}.")
    if any(override.partition("=")[0].strip() == "seed" for override in overrides):
        raise FinetuneError(
            "`--seeds` counts on from the `seed` of the recipe, and `--set seed` sets a single one. Remove it."
        )
    loaded = load_recipe(recipe, overrides=overrides)
    first, folder = loaded.seed, out or _first_free(recipe.stem)
    measured = [key for key in _MEASURED if getattr(loaded.train, key) == "auto"]
    settings = list(overrides)
    for seed in range(first, first + count):
        # A process each: what one leaves in memory would change the time and the memory of the next.
        place = str(folder / f"seed-{seed}")
        command = [sys.executable, "-m", "finetune", "run", str(recipe), "--out", place, "--resume"]
        changes = [part for each in (*settings, f"seed={seed}") for part in ("--set", each)]
        print(f"seed {seed}:", flush=True)
        if code := _ended([*command, *changes, *options]):
            raise TrainingError(
                f"The run with the seed {seed} has ended with the exit code {code}. What there is of all runs is in "
                f"`{folder}`, and the same command goes on there."
            )
        if seed == first and measured:
            values = load_recipe(folder / f"seed-{first}" / "recipe.yaml").train
            fixed = [f"train.{key}={json.dumps(getattr(values, key))}" for key in measured]
            settings += fixed
            print(f"as measured with seed {first}, for all seeds: {quote(fixed)}", flush=True)
    return folder


def _ended(command: Sequence[str]) -> int:
    """Runs a command and returns its exit code; a signal to this process lets it save what it has."""
    # In a session of its own, so that Ctrl-C reaches it once: a second signal ends a run at once.
    process = subprocess.Popen(command, start_new_session=True)
    try:
        return process.wait()
    except BaseException:
        process.terminate()
        process.wait()
        raise


def _first_free(name: str) -> Path:
    number = 1
    while (folder := Path("runs") / f"{name}-seeds-{number}").exists():
        number += 1
    return folder
