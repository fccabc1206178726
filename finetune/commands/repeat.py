"""`finetune repeat`: runs the recipe of a run again, in another process, and compares the weights bit for bit."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from finetune.commands.run import run
from finetune.errors import FinetuneError, quote
from finetune.results.hashes import FILE, check_hashes
from finetune.results.model_weights import checksums_of_model
from finetune.results.run_documents import read_of_run, read_rows_of_run
from finetune.results.run_folder import is_finished


@dataclass(frozen=True)
class Repetition:
    """A run beside its repetition.

    Attributes:
        tensors: How many tensors of the model were compared, with the states of its optimizer.
        different: Names of those that differ.
        epoch: The first epoch whose figures differ; `None` where all are equal.
        figures: Test metrics that differ: before and now.
        surroundings: What differs in versions, machine, devices, settings, and files of data and weights.
    """

    tensors: int
    different: tuple[str, ...]
    epoch: int | None
    figures: Mapping[str, tuple[Any, Any]]
    surroundings: tuple[str, ...]

    @property
    def holds(self) -> bool:
        """Whether the repetition has the same bits."""
        return not self.different and self.epoch is None and not self.figures


def repeat(
    folder: str | Path,
    *,
    out: Path | None = None,
    allow_code: Sequence[str] = (),
    console: Console | None = None,
) -> Repetition:
    """Runs a finished run again and compares the two.

    Args:
        folder: The run folder, which is left as it is.
        out: Where the repetition is kept; by default it is removed.
        allow_code: Packages whose code the recipe may run.
        console: Where the progress of the repetition is printed.

    Raises:
        FinetuneError: The folder holds no finished run, or the recipe cannot be run.
    """
    folder = Path(folder)
    if not is_finished(folder):
        raise FinetuneError(
            f"A run that has ended is repeated. `{folder}` holds none: it has no `result.json`. End it with "
            f"`finetune resume {folder}`, or name another folder."
        )
    if (folder / "former").is_dir():
        raise FinetuneError(
            f"A run is repeated from its beginning. The run in `{folder}` was extended or changed on its way, which "
            "one recipe does not say. Run its recipe in another folder, and go on with it in the same way."
        )
    changed, options = _changed_files(folder)
    with tempfile.TemporaryDirectory(prefix="finetune-repeat-") as temporary:
        again = out or Path(temporary) / folder.name
        run(
            folder / "recipe.yaml",
            again,
            allow_code=allow_code,
            recalibrate=bool(options.get("recalibrate")),
            console=console,
        )
        return _compared(folder, again, changed)


def repetition_lines(result: Repetition) -> list[str]:
    """Returns what a repetition has shown, a line each.

    Args:
        result: What `repeat` has returned.
    """
    around = [f"differs: {each}" for each in result.surroundings]
    if result.holds:
        same = f"all {result.tensors} tensors, the metrics of every epoch and those on the test rows"
        return [*around, f"bit-identical: {same}"]
    lines = [f"{len(result.different)} of {result.tensors} tensors differ: {quote(result.different)}"]
    lines += [f"the figures differ from epoch {result.epoch} on"] if result.epoch is not None else []
    lines += [f"test {name}: was {before}, is {now}" for name, (before, now) in result.figures.items()]
    if not around:
        around = [
            "versions, machine, settings and files are the same: code of your own may draw numbers without a seed"
        ]
    return lines + around


def _changed_files(folder: Path) -> tuple[list[str], Mapping[str, Any]]:
    if not (folder / FILE).is_file():  # a run of an older version
        return [], {}
    audit = check_hashes(folder)
    changed = [f"`{name}` was changed" for name in audit.changed]
    return [*changed, *(f"`{name}` is gone" for name in audit.missing)], audit.options


def _compared(before: Path, now: Path, changed: Sequence[str]) -> Repetition:
    old, new = (checksums_of_model(folder / "model.keras") for folder in (before, now))
    names = list(dict.fromkeys([*old, *new]))
    metrics = [read_of_run(folder / "result.json")["metrics"] for folder in (before, now)]
    surroundings = [read_of_run(folder / "environment.json") for folder in (before, now)]
    return Repetition(
        tensors=len(names),
        different=tuple(name for name in names if old.get(name) != new.get(name)),
        epoch=_first_difference(before / "metrics.csv", now / "metrics.csv"),
        figures={
            name: (value, metrics[1].get(name)) for name, value in metrics[0].items() if value != metrics[1].get(name)
        },
        surroundings=(*changed, *_differences(*surroundings)),
    )


def _first_difference(before: Path, now: Path) -> int | None:
    rows = [read_rows_of_run(path) for path in (before, now)]
    shared = min(map(len, rows))
    for number in range(shared):
        if rows[0][number] != rows[1][number]:
            return number + 1
    return None if len(rows[0]) == len(rows[1]) else shared + 1


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    if not before:
        return ["the run has not kept its environment"]
    before = {part: of for part, of in before.items() if isinstance(of, Mapping)}  # an older version had lists
    return [
        f"{part}, {name}: was {before.get(part, {}).get(name, 'nothing')}, is {now.get(part, {}).get(name, 'nothing')}"
        for part in now
        for name in dict.fromkeys([*before.get(part, {}), *now[part]])
        if before.get(part, {}).get(name) != now[part].get(name)
    ]
