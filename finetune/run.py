"""The story of a run: load, build, restore, plan, train, prove, save."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path

import keras
from rich.console import Console

from finetune.build import precision
from finetune.errors import DataError, TrainingError
from finetune.measure import with_measured_rates, write_range_test
from finetune.prepare import Prepared, load_allowed, prepare, tell_plan
from finetune.recipe.loader import dump_recipe
from finetune.recipe.schema import Recipe
from finetune.results.artifacts import check_run_folder, make_run_folder, replacing, write_json, write_text
from finetune.results.tables import plan_text
from finetune.training.freezing import checksums, prove_unchanged
from finetune.training.monitor import LastWeights, LearningRateLogger, MetricsFile, ProgressLine, StopAtNonFiniteLoss
from finetune.training.trial import explained

_SEE_WHERE = "The option `--debug` shows where."


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
        model: The fine-tuned model.
    """

    folder: Path
    metrics: dict[str, float]
    metrics_before: dict[str, float]
    frozen_unchanged: bool
    frozen_tensors: int
    seconds: dict[str, float]
    model: keras.Model = field(repr=False)


def run(
    recipe: str | Path,
    out: str | Path | None = None,
    *,
    overrides: Sequence[str] = (),
    allow_code: Sequence[str] = (),
    overwrite: bool = False,
    console: Console | None = None,
) -> RunResult:
    """Fine-tunes as a recipe says and writes the run folder.

    Args:
        recipe: Path of the recipe.
        out: The run folder; by default the first free `runs/<recipe>-<number>`.
        overrides: Changes to the recipe such as `"train.epochs=3"`.
        allow_code: Packages whose code the recipe may run.
        overwrite: Whether `out` may be a folder that holds something.
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
        with clock("evaluate"), explained(DataError, "The test examples must go through the model.", _SEE_WHERE):
            metrics_before = _evaluate(ready)
        folder = make_run_folder(out, name=Path(recipe).stem, overwrite=overwrite)
        _write_plan(folder, wanted, ready)
        if found:
            write_range_test(found, folder / "plots")
        frozen_before = checksums(ready.groups, frozen=True)
        with clock("train"):
            _train(wanted, ready, folder, console)
        with clock("evaluate"):
            metrics = _evaluate(ready)
            _check_finite(metrics["loss"], "on the test examples after training", folder)
        with clock("save"):
            _save(ready.model, folder)
        frozen_after = checksums(ready.groups, frozen=True)
    result = RunResult(
        folder, metrics, metrics_before, frozen_before == frozen_after, len(frozen_before), clock.seconds, ready.model
    )
    _write_result(result)
    prove_unchanged(frozen_before, frozen_after)
    return result


def _train(wanted: Recipe, ready: Prepared, folder: Path, console: Console) -> None:
    examples, train = ready.examples, wanted.train
    progress = ProgressLine(console, epochs=train.epochs, steps_per_epoch=ready.length.steps_per_epoch)
    guard = StopAtNonFiniteLoss()
    has_validation = examples.x_validation is not None
    with (
        progress,
        explained(TrainingError, "Training broke off.", f"{_SEE_WHERE} What there is of it is in `{folder}`."),
    ):
        ready.model.fit(
            examples.x_train,
            examples.y_train,
            epochs=train.epochs,
            batch_size=train.batch_size,
            shuffle=train.shuffle,
            validation_data=(examples.x_validation, examples.y_validation) if has_validation else None,
            validation_split=0.0 if has_validation else train.validation_fraction,
            verbose=0,
            callbacks=[
                LearningRateLogger(),
                guard,
                progress,
                MetricsFile(folder / "metrics.csv"),
                keras.callbacks.TensorBoard(str(folder / "tensorboard"), write_graph=False),
                LastWeights(folder / "checkpoints" / "last.weights.h5"),
            ],
        )
    if guard.stopped_at:
        epoch, step, loss = guard.stopped_at
        _check_finite(loss, f"in epoch {epoch}, step {step}", folder)


def _check_finite(loss: float, where: str, folder: Path) -> None:
    if not isfinite(loss):
        raise TrainingError(
            f"A loss is a finite number. It became `{loss}` {where}. Lower the learning rates, or set "
            f"`train.global_clipnorm: 1.0`. What was measured is in `{folder / 'metrics.csv'}`."
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
    write_json(result.folder / "result.json", {name: getattr(result, name) for name in names})


class _Clock:
    """Adds up the wall time of named stages."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        start = time.monotonic()
        yield
        self.seconds[stage] = round(self.seconds.get(stage, 0.0) + time.monotonic() - start, 3)
