"""The story of a run: load, build, restore, plan, train, prove, save."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import keras
from rich.console import Console

from finetune.build.data import build_rows, precision
from finetune.build.layout import Prepared, load_allowed, prepare
from finetune.commands.lr_range import with_measured_rates, write_range_test
from finetune.commands.plan import tell_plan
from finetune.errors import DataError, TrainingError
from finetune.recipe.loader import dump_recipe
from finetune.recipe.schema import Recipe
from finetune.results.run_folder import check_run_folder, make_run_folder, replacing, write_json, write_text
from finetune.results.tables import plan_text
from finetune.training.check_examples import explained
from finetune.training.fit import SEE_WHERE, FitOptions, check_finite, train
from finetune.training.phases.phase import Phase, frozen_in_all
from finetune.training.phases.records import PhaseRecord
from finetune.training.proof import FrozenProof
from finetune.training.recalibrate import recalibrate as recalibrate_statistics


@dataclass(frozen=True)
class RunResult:
    """What came out of a run.

    Attributes:
        folder: The run folder.
        metrics: Loss and metrics on the test examples after training, by name.
        metrics_before: The same before training.
        frozen_unchanged: Whether every frozen tensor is bit-identical to before.
        frozen_tensors: How many tensors that is said of, moving statistics included.
        seconds: Wall time of each stage.
        phases: What came of each phase; empty where all groups are trained all the time.
        model: The fine-tuned model.
    """

    folder: Path
    metrics: dict[str, float]
    metrics_before: dict[str, float]
    frozen_unchanged: bool
    frozen_tensors: int
    seconds: dict[str, float]
    phases: tuple[PhaseRecord, ...] = field(repr=False)
    model: keras.Model = field(repr=False)


def run(
    recipe: str | Path,
    out: str | Path | None = None,
    *,
    overrides: Sequence[str] = (),
    allow_code: Sequence[str] = (),
    overwrite: bool = False,
    recalibrate: bool = False,
    console: Console | None = None,
) -> RunResult:
    """Fine-tunes as a recipe says and writes the run folder.

    Args:
        recipe: Path of the recipe.
        out: The run folder; by default the first free `runs/<recipe>-<number>`.
        overrides: Changes to the recipe such as `"train.epochs=3"`.
        allow_code: Packages whose code the recipe may run.
        overwrite: Whether `out` may be a folder that holds something.
        recalibrate: Whether moving statistics are estimated anew after training, as the mean over all training rows.
        console: Where to tell what happens; `None` stays silent.

    Raises:
        FinetuneError: If the input is wrong; nothing is written then.
        TrainingError: If training fails.
    """
    console, clock, out = console or Console(quiet=True), _Clock(), None if out is None else Path(out)
    with clock("load"):
        wanted = load_allowed(recipe, overrides, allow_code)
        check_run_folder(out, overwrite=overwrite)
    with precision(wanted):
        with clock("prepare"):
            ready = prepare(wanted)
        found = None
        if ready.rates_to_measure:
            with clock("lr_range"):
                wanted, ready, found = with_measured_rates(wanted, ready, console)
        tell_plan(ready, console)
        with clock("evaluate"), explained(DataError, "The test examples must go through the model.", SEE_WHERE):
            metrics_before = _evaluate(ready)
        folder = make_run_folder(out, name=Path(recipe).stem, overwrite=overwrite)
        _write_plan(folder, wanted, ready)
        if found:
            write_range_test(found, folder / "plots")
        # A run without phases is one phase of all groups, in which frozen groups keep their dropout.
        phases = ready.phases or (
            Phase(epochs=ready.length.epochs, dropout_groups=[group.name for group in ready.groups]),
        )
        proof, frozen = FrozenProof(), frozen_in_all(ready.model, ready.groups, phases)
        checksums_before = proof.begin(frozen)
        with clock("train"):
            records = train(
                ready.model,
                ready.groups,
                phases,
                ready.examples,
                _fit_options(wanted, ready),
                folder=folder,
                console=console,
                proof=proof,
            )
        if recalibrate:
            with clock("recalibrate"):
                number = recalibrate_statistics(ready.model, ready.groups, build_rows(wanted, ready.examples))
            console.print(f"recalibrated: the statistics of {number} BatchNormalization layers", highlight=False)
        with clock("evaluate"):
            metrics = _evaluate(ready)
            check_finite(metrics["loss"], "on the test examples after training", folder)
        with clock("save"):
            _save(ready.model, folder)
        of_run = proof.end("the run", frozen, checksums_before)
    result = RunResult(
        folder=folder,
        metrics=metrics,
        metrics_before=metrics_before,
        frozen_unchanged=proof.holds,
        frozen_tensors=of_run.tensors,
        seconds=clock.seconds,
        phases=records if ready.phases else (),
        model=ready.model,
    )
    _write_result(result)
    proof.check()
    return result


def _fit_options(wanted: Recipe, ready: Prepared) -> FitOptions:
    names = ("batch_size", "shuffle", "cache", "cache_passes", "steps_per_execution")
    return FitOptions(
        epochs=ready.length.epochs,
        steps_per_epoch=ready.length.steps_per_epoch,
        seed=wanted.seed,
        announce_phases=wanted.phases is not None,  # else there may be one, because a group asks for what phases do
        **{name: getattr(wanted.train, name) for name in names},
    )


def _evaluate(ready: Prepared) -> dict[str, float]:
    metrics = ready.model.evaluate(ready.examples.x_test, ready.examples.y_test, verbose=0, return_dict=True)
    return {name: float(metrics[name]) for name in sorted(metrics, key=lambda name: name != "loss")}


def _save(model: keras.Model, folder: Path) -> None:
    weights = folder / "checkpoints" / "last.weights.h5"
    advice = f"Its weights are in `{weights}`; mend the model's `get_config` to have it whole."
    rule = "A trained model is saved whole, for plain Keras to open."
    with explained(TrainingError, rule, advice), replacing(folder / "model.keras") as path, _without_optimizer(model):
        model.save(path)


@contextmanager
def _without_optimizer(model: keras.Model) -> Iterator[None]:
    """Lets the model be saved without its optimizer, so that plain Keras opens it anywhere."""
    optimizer, model.optimizer, model.compiled = model.optimizer, None, False
    try:
        yield
    finally:
        model.optimizer, model.compiled = optimizer, True


def _write_plan(folder: Path, wanted: Recipe, ready: Prepared) -> None:
    plan = ready.plan.to_json()
    write_text(folder / "recipe.yaml", dump_recipe(wanted, absolute_paths=True))
    write_text(folder / "plan.txt", plan_text(plan))
    write_json(folder / "plan.json", plan)
    write_json(folder / "restore.json", ready.restored.to_json() if ready.restored else None)


def _write_result(result: RunResult) -> None:
    names = ("metrics", "metrics_before", "frozen_unchanged", "frozen_tensors", "seconds")
    phases = {"phases": [phase.to_json() for phase in result.phases]} if result.phases else {}
    write_json(result.folder / "result.json", {**{name: getattr(result, name) for name in names}, **phases})


class _Clock:
    """Adds up the wall time of named stages."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        start = time.monotonic()
        yield
        self.seconds[stage] = round(self.seconds.get(stage, 0.0) + time.monotonic() - start, 3)
