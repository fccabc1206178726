"""Services beside the run folder that get what a run measures: wandb, MLflow, and those of other packages.

Nothing is sent to a service that the recipe does not name, and to those only the rows of `metrics.csv` and `steps.csv`,
the recipe, the metrics of the test rows at the end, and the report if that is asked for: no code, no state of a git
repository, no figures of the machine, no console. Their own settings hold, such as `WANDB_MODE=offline` and
`MLFLOW_TRACKING_URI`.
"""

import importlib
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Protocol, Self

import keras

from finetune.errors import TrainingError, reason
from finetune.plain_shapes import COUNT, read_document
from finetune.recipe.tracker_names import ENTRY_POINTS
from finetune.results.run_folder import write_json
from finetune.training.snapshot import unchanged_random_state

FILE = "trackers.json"
_SENT = {str: {"id": (str, None), "epochs": COUNT, "steps": COUNT, "": None}}
_SHARE = 0.01  # of the training time that sending takes at most
_LEAST_SECONDS = 1.0  # between two times


@dataclass(frozen=True)
class Row:
    """A row of `metrics.csv` or `steps.csv`.

    Attributes:
        axis: What its number counts: `epoch` or `step`, from 1.
        number: The number.
        values: The values by the names of the columns, those of steps with `steps/` before them.
    """

    axis: str
    number: int
    values: Mapping[str, float]


class Tracker(Protocol):
    """A run at a service.

    Attributes:
        id: What `open` needs to go on with the run in another process.
        place: Where a person can look at it.
    """

    id: str
    place: str

    def log(self, rows: Sequence[Row]) -> None:
        """Sends rows, each of which is sent once."""
        ...

    def end(self, state: str, figures: Mapping[str, float], page: Path | None) -> None:
        """Ends the run.

        Args:
            state: `finished`, `failed` or `stopped`.
            figures: The metrics of the test rows; empty where the run did not come to its end.
            page: The report, if it is sent.
        """
        ...


@dataclass(frozen=True)
class TrackerOptions:
    """What a run is opened with.

    Attributes:
        run: Name of the run.
        project: Where it belongs; `None` for what the settings of the service say.
        config: The resolved recipe.
        id: That of the run that goes on; `None` for a new one.
    """

    run: str
    project: str | None
    config: Mapping[str, Any]
    id: str | None


class _Wandb:
    """A run of wandb."""

    def __init__(self, options: TrackerOptions):
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # which would send errors to its makers
        wandb: Any = importlib.import_module("wandb")
        settings = wandb.Settings(
            console="off",
            disable_git=True,
            disable_code=True,
            disable_job_creation=True,
            save_code=False,
            silent=True,
            x_disable_stats=True,
            x_disable_meta=True,
            x_save_requirements=False,
        )
        self._run = wandb.init(
            project=options.project,
            name=options.run,
            config=dict(options.config),
            id=options.id,
            resume="allow",
            allow_val_change=True,
            settings=settings,
        )
        self._run.define_metric("*", step_metric="epoch")
        self._run.define_metric("steps/*", step_metric="steps/step")
        self.id: str = self._run.id
        # Asked for its address, a run that is offline warns.
        self.place: str = str(Path(self._run.dir).parent) if self._run.offline else self._run.url

    def log(self, rows: Sequence[Row]) -> None:
        for row in rows:
            self._run.log({**row.values, "epoch" if row.axis == "epoch" else "steps/step": row.number})

    def end(self, state: str, figures: Mapping[str, float], page: Path | None) -> None:
        self._run.summary.update(dict(figures))
        if page:
            self._run.log_artifact(str(page), name=f"{self.id}-report", type="report")
        self._run.finish(exit_code=0 if state == "finished" else 1)


class _MLflow:
    """A run of MLflow, through its client: the functions of the module would send names of the user and of files."""

    _METRICS, _PARAMS, _CHARACTERS = 1000, 100, 6000  # at most in a request, and in a value
    _STATES: Mapping[str, str] = {"finished": "FINISHED", "failed": "FAILED", "stopped": "KILLED"}

    def __init__(self, options: TrackerOptions):
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # which would go to its makers
        mlflow: Any = importlib.import_module("mlflow")
        self._client = mlflow.MlflowClient()
        self._entities: Any = importlib.import_module("mlflow.entities")
        self.id = options.id or self._create(options)
        experiment = self._client.get_run(self.id).info.experiment_id
        self._client.update_run(self.id, status="RUNNING")
        self.place = f"{mlflow.get_tracking_uri()}, experiment {experiment}, run {self.id}"

    def _create(self, options: TrackerOptions) -> str:
        name = options.project or os.environ.get("MLFLOW_EXPERIMENT_NAME")
        experiment = os.environ.get("MLFLOW_EXPERIMENT_ID", "0")
        if name:
            known = self._client.get_experiment_by_name(name)
            experiment = known.experiment_id if known else self._client.create_experiment(name)
        id = str(self._client.create_run(experiment, run_name=options.run).info.run_id)
        params = [
            self._entities.Param(_plain(key), str(value)[: self._CHARACTERS]) for key, value in _flat(options.config)
        ]
        for part in _parts(params, self._PARAMS):
            self._client.log_batch(id, params=part)
        return id

    def log(self, rows: Sequence[Row]) -> None:
        now = int(time.time() * 1000)
        metrics = [
            self._entities.Metric(_plain(name), value, now, row.number)
            for row in rows
            for name, value in row.values.items()
        ]
        for part in _parts(metrics, self._METRICS):
            self._client.log_batch(self.id, metrics=part)

    def end(self, state: str, figures: Mapping[str, float], page: Path | None) -> None:
        self.log([Row("epoch", 0, figures)])
        if page:
            self._client.log_artifact(self.id, str(page))
        self._client.set_terminated(self.id, self._STATES[state])


_KNOWN: Mapping[str, Callable[[TrackerOptions], Tracker]] = {"wandb": _Wandb, "mlflow": _MLflow}


class Trackers(keras.callbacks.Callback):
    """Sends the rows of a run to trackers after epochs, at most a hundredth of the time, each row once.

    What cannot be sent is told once, and sent after a later epoch; training goes on. Use it as a context: where an
    error leaves it, the runs at the services have failed.

    Args:
        names: Their names, each with its project.
        folder: The run folder, which notes in `trackers.json` what was sent, for a run that goes on.
        config: The resolved recipe.
        with_report: Those that get the report, too.
        report: Called with a sentence.

    Attributes:
        rows_of_epochs: Returns the rows of `metrics.csv`.
        rows_of_steps: Returns the rows of `steps.csv` from a number on.

    Raises:
        TrainingError: A tracker does not begin.
    """

    def __init__(
        self,
        names: Mapping[str, str | None],
        folder: Path,
        config: Mapping[str, Any],
        *,
        with_report: Sequence[str] = (),
        report: Callable[[str], None] = lambda sentence: None,
    ):
        super().__init__()
        self.rows_of_epochs: Callable[[], Sequence[Mapping[str, Any]]] = tuple
        self.rows_of_steps: Callable[[int], Sequence[Mapping[str, Any]]] = lambda start: ()
        self._path, self._with_report, self._report = folder / FILE, with_report, report
        self._sent = _read(self._path)
        self._trackers: dict[str, Tracker] = {}
        self._failing: set[str] = set()
        self._next = 0.0
        for name, project in names.items():
            before = self._sent.get(name, {"id": None, "epochs": 0, "steps": 0})
            with unchanged_random_state():
                tracker = _open(name, TrackerOptions(folder.name, project, config, before["id"]))
            self._trackers[name] = tracker
            self._sent[name] = {**before, "id": tracker.id}
            report(f"{name}: {tracker.place}")
        self._note()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        self.end("stopped" if kind and issubclass(kind, KeyboardInterrupt) else "failed")

    def end(self, state: str, metrics: Mapping[str, float] | None = None, page: Path | None = None) -> None:
        """Ends the runs at the services, unless they are ended.

        Args:
            state: `finished`, `failed` or `stopped`.
            metrics: Those of the test rows, where the run has come to its end.
            page: The report, if there is one.
        """
        self._send()
        figures = {f"test/{name}": value for name, value in (metrics or {}).items()}
        for name, tracker in self._trackers.items():
            sent = page if page and page.exists() and name in self._with_report else None
            with self._going_on(name, "The run is not ended there."):
                tracker.end(state, figures, sent)
        self._trackers = {}

    def state_to_resume(self) -> dict[str, Any]:
        """Returns nothing: what was sent stays sent, whatever a checkpoint says."""
        return {}

    def resume_state(self, state: Mapping[str, Any]) -> None:
        """Takes over nothing."""

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        if time.monotonic() >= self._next:
            begun = time.monotonic()
            self._send()
            now = time.monotonic()
            self._next = now + max(_LEAST_SECONDS, (now - begun) / _SHARE)

    def _send(self) -> None:
        for name, tracker in self._trackers.items():
            sent = self._sent[name]
            epochs, steps = self.rows_of_epochs()[sent["epochs"] :], self.rows_of_steps(sent["steps"])
            rows = [*(_row("step", row, "steps/") for row in steps), *(_row("epoch", row, "") for row in epochs)]
            if rows:
                with self._going_on(name, "Training goes on; it is tried again after a later epoch."):
                    tracker.log(rows)
                    sent |= {"epochs": sent["epochs"] + len(epochs), "steps": sent["steps"] + len(steps)}
                    self._failing.discard(name)
        if self._trackers:
            self._note()

    def _note(self) -> None:
        with self._going_on(FILE, "Where the run goes on, its rows are sent again."):
            write_json(self._path, self._sent)

    @contextmanager
    def _going_on(self, name: str, what: str) -> Iterator[None]:
        try:
            with unchanged_random_state():
                yield
        except Exception as error:  # of a network, a disk, or code that is not ours
            if name not in self._failing:
                self._report(f"warning: {name}: {type(error).__name__}: {reason(error)}. {what}")
            self._failing.add(name)


def _open(name: str, options: TrackerOptions) -> Tracker:
    others = {entry.name: entry for entry in entry_points(group=ENTRY_POINTS)}
    try:
        make = others[name].load() if name in others else _KNOWN[name]
        return make(options)
    except Exception as error:  # of a package that is not ours: no account, no network, another version
        advice = {
            "wandb": "Log in with `wandb login`, or set `WANDB_MODE=offline`, which sends nothing",
            "mlflow": "Set `MLFLOW_TRACKING_URI`, such as to a local `sqlite:///mlflow.db`",
        }.get(name, "See what it needs")
        raise TrainingError(
            f"A tracker must be able to begin. `{name}` does not: {type(error).__name__}: {reason(error)}. {advice}, "
            "or remove it from `train.trackers`. Then `finetune resume` begins the run."
        ) from error


def _read(path: Path) -> dict[str, dict[str, Any]]:
    """Returns what was sent by tracker; nothing where that is not known, and everything is sent again."""
    try:
        return read_document(path, _SENT)
    except (OSError, ValueError):
        return {}


def _row(axis: str, row: Mapping[str, Any], before: str) -> Row:
    values = {f"{before}{key}": float(value) for key, value in row.items() if key != axis and value is not None}
    return Row(axis, int(row[axis]), values)


def _flat(data: Any, before: str = "") -> Iterator[tuple[str, Any]]:
    items = data.items() if isinstance(data, Mapping) else enumerate(data) if isinstance(data, list | tuple) else None
    if items is None:
        yield before, data
        return
    for key, value in items:
        yield from _flat(value, f"{before}.{key}" if before else str(key))


def _plain(name: str) -> str:
    """Returns a name as MLflow takes it."""
    return re.sub(r"[^\w\-. /]", "_", name, flags=re.ASCII)[:250]


def _parts(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
