"""`finetune launch`: the workers of a run as processes of this machine. TensorFlow is loaded in them alone."""

import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from finetune.commands.check import check
from finetune.distribution.worker_processes import finetune_command, launch
from finetune.errors import FinetuneError, printable
from finetune.recipe.loader import load_recipe, place_of
from finetune.results.run_folder import check_can_resume, new_run_folder

LOGS = "workers"  # the folder of the logs in the run folder


def launch_run(
    recipe: Path,
    workers: int,
    out: Path | None = None,
    *,
    overrides: Sequence[str] = (),
    allow_code: Sequence[str] = (),
    overwrite: bool = False,
    recalibrate: bool = False,
    resume: bool = False,
    show: Callable[[str, bool], None] | None = None,
) -> int:
    """Fine-tunes by a recipe in several processes, which sum their gradients.

    Args:
        recipe: The recipe.
        workers: How many processes, >= 2.
        out: The run folder; by default the first free `runs/<recipe>-<number>`.
        overrides: Changes to the recipe.
        allow_code: Packages whose code it may run.
        overwrite: Whether `out` may be a folder that is not empty.
        recalibrate: Whether moving statistics are estimated again after training.
        resume: Whether the run in `out` goes on.
        show: Called with each line of a worker; by default it is printed.

    Returns:
        The exit code.

    Raises:
        FinetuneError: The input is wrong; no process is started then.
        TrainingError: A worker was killed.
    """
    if resume:
        check_can_resume(out, overwrite=overwrite)
    check(recipe, overrides=overrides, allow_code=allow_code, out=out, overwrite=overwrite, resume=resume)
    devices = (loaded := load_recipe(recipe, overrides=overrides)).distribute.devices
    if devices not in ("auto", "multi_worker"):
        raise FinetuneError(
            f"{place_of(loaded, 'distribute', 'devices')}: several workers train with `distribute.devices: "
            f"multi_worker`, or `auto`. Received `{devices}`. Remove it, or use `finetune run`."
        )
    folder = out or new_run_folder(recipe.stem)
    options = [part for each in overrides for part in ("--set", each)]
    options += [part for each in allow_code for part in ("--allow-code", each)]
    flags = {"--overwrite": overwrite, "--recalibrate": recalibrate, "--resume": resume}
    options += [flag for flag, is_set in flags.items() if is_set]
    command = finetune_command("run", str(recipe), "--out", str(folder), *options)
    begun = time.time()

    def is_written() -> bool:
        """Whether the chief has begun the run in the folder, which must hold nothing else before."""
        with suppress(OSError):
            return (folder / "plan.txt").stat().st_mtime >= begun - 1 or resume
        return False

    try:
        return launch(command, workers, logs=folder / LOGS, is_ready=is_written, show=show or _Printed())
    finally:
        if out is None:
            with suppress(OSError):
                folder.rmdir()  # where nothing was written


class _Printed:
    """Prints the lines of the workers: those of the chief, and what the others print as errors, each once."""

    def __init__(self) -> None:
        self._said: set[str] = set()

    def __call__(self, line: str, is_error: bool) -> None:
        number, _, text = line.partition(": ")
        if is_error and text in self._said:
            return
        if is_error:
            self._said.add(text)
        if is_error or number == "0":
            print(printable(line), file=sys.stderr if is_error else sys.stdout, flush=True)
