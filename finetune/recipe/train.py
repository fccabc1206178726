"""The `train` of a recipe: how long and in which way all groups are trained together."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator, model_validator

from finetune.recipe.extensions import EXTEND, Extension
from finetune.recipe.fields import (
    Count,
    ListOf,
    OneOrMore,
    OpenShare,
    Part,
    Positive,
    Text,
    choice,
    fault,
    one_of,
    pick,
)
from finetune.recipe.losses import AUTO, Loss, Metrics, by_output
from finetune.recipe.phase_spec import PlateauSpec, UntilSpec


def _check_auto(value: Any) -> Any:
    if value not in (None, "auto", "search"):
        rule = "may only be `auto`, which measures it before training, or `search`, which tries three. Rates belong in"
        raise fault(f"{rule} the groups", received=value)
    return value


def _check_count_or_auto(value: Any) -> Any:
    if value == "auto" or (type(value) is int and value >= 1):
        return value
    raise fault("must be a whole number of at least 1, or `auto`, which measures it", received=value)


def _check_log_every_steps(value: Any) -> Any:
    value = "off" if value is False else value  # what YAML 1.1 makes of an unquoted `off`
    if value in ("auto", "off") or (type(value) is int and value >= 1):
        return value
    raise fault("must be a whole number of at least 1, `auto`, or `off`", received=value)


def _check_cache(value: Any) -> Any:
    modes = ("auto", "off", "memory", "disk")
    value = "off" if value is False else value  # what YAML 1.1 makes of an unquoted `off`
    if value not in modes:
        pick(value, modes)
    return value


class AverageSpec(Part):
    """The mean of the weights of several moments, taken if it is better on the validation rows.

    Attributes:
        best: How many of the best evaluations, >= 2; exactly one of `best` and `last`.
        last: How many of the last epochs, >= 2.
    """

    best: Annotated[Count, Field(ge=2)] | None = None
    last: Annotated[Count, Field(ge=2)] | None = None

    @field_validator("last")
    @classmethod
    def _check_one(cls, value: int | None, info: ValidationInfo) -> int | None:
        return one_of(value, info, "best")


class TrackerSpec(Part):
    """A service that gets what the run measures; its name alone stands for `{name: ...}`.

    Attributes:
        name: `wandb`, `mlflow`, or what an installed package offers as an entry point in `finetune.trackers`.
        project: The project of wandb, or the experiment of MLflow; by default what their own settings say.
        report: Whether `report.html` is sent at the end of the run, too.
    """

    name: Text
    project: Text | None = None
    report: bool = False

    @model_validator(mode="before")
    @classmethod
    def _read_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value


class Train(Part):
    """How long and in which way all groups are trained together.

    Attributes:
        epochs: Length of the run. Required without `phases`, and with a strategy that does not set its own `epochs`; a
            list of phases says itself how long it is.
        until: Ends a run without phases early, as `until` of a phase does.
        keep: Which weights the trained model has: those of the end (`last`), or those with which the metric that
            `until` watches, or else `val_loss`, was best (`best`).
        average: The trained model has the mean of the weights of several moments, if that is better on the validation
            rows. Each takes the memory of the weights, and room in the checkpoints.
        evaluate_every_steps: The validation rows are also evaluated within an epoch, every so many steps; `until` and
            `keep` then go by these evaluations, too.
        time_limit_seconds: The training ends after so many seconds, > 0; in the last tenth the rates fall to 0.
        reduce_on_plateau: Lowers the rates of a run without phases, as in a phase.
        batch_size: Rows in a batch, >= 1. `auto` takes the largest power of two up to 1,024 with at least 8 steps in
            an epoch of which steps fit into memory, and writes the number into the recipe of the run folder.
        learning_rate: `auto` lets an LR range test choose the rate of the last group before training; the rates of the
            groups then give only their ratios. `search` trains at a third of the rates, at the rates and at three times
            the rates, and takes those whose loss on the validation rows is lowest at the end.
        always_train: `normalization` trains gamma and beta of normalization layers in frozen groups, too.
        loss: A loss of Keras, or a loss for each output of the network by its name. `auto` chooses it by the targets.
        metrics: Metrics of Keras, or these for each output by its name. `auto` chooses them by the targets, which is
            the default where `loss` is `auto`.
        label_smoothing: Share of a label that is spread evenly over all classes, in [0, 1). The loss of test and
            validation rows is smoothed, too, as in Keras.
        clipnorm: Largest norm of each gradient. At most one of the three ways to clip may be set.
        clipvalue: Largest absolute value in a gradient.
        global_clipnorm: Largest norm of all gradients of all groups together.
        merge_rows: Whether gradients of the same row of an embedding are added up before they are squared or clipped,
            as in TF1; by default the pieces are squared one by one, as in Keras.
        gradient_accumulation_steps: Batches whose gradients are averaged for one update, >= 2.
        use_ema: Whether the model ends with a moving average of its weights.
        ema_momentum: Share of the old average that is kept in each step, in (0, 1).
        non_finite: What happens to a step whose gradients are not finite numbers: with `stop` the run ends with the
            weights before it, with `skip` the step is left out. By default it is made, and the run fails at the end of
            the epoch, or where the loss shows it.
        mixed_precision: The type in which layers compute; `false` computes in float32. `auto` makes a few steps in each
            before training, and takes `bfloat16` where the processor has it, steps are at least a tenth faster, and
            their loss is as good; the run folder's recipe has the type that was taken.
        steps_per_execution: Steps in a call, between which no callback is called; `auto` takes as many as last a
            twentieth of a second. The results are the same.
        cache: Where the output of a frozen first part of the network is kept, so that it runs once for every example.
        cache_passes: How many passes with different random numbers are kept, where that part augments the examples.
        jit_compile: Whether the step is compiled with XLA.
        kernels: `native` computes layers that TensorFlow has a single kernel for by that kernel, in training,
            evaluation and prediction: the same mathematics in less time, but other rounding than Keras'. `exact` has
            the bits of Keras.
        log_every_steps: Steps between two measurements of rate, gradients, updates and drift of each layer group, which
            go into `steps.csv` and TensorBoard, >= 1. `auto` takes at most 2 % of the time of the steps; `off` measures
            nothing. The weights are the same.
        trackers: Services that get the rows of `metrics.csv` and `steps.csv` while the run trains, the recipe and the
            metrics of the test rows: `wandb`, `mlflow`. Nothing is sent to one that is not named.
        evaluate_before: Whether the test rows are evaluated before training, too. `auto` takes at most a tenth as many
            as are trained on, epochs counted, but 1,000, evenly spaced.
        shuffle: Whether every epoch has its own order of the training rows.
        checkpoint_seconds: A checkpoint to go on from is written at least so often, > 0; more often where that takes at
            most a hundredth of the time.
        checkpoint_steps: Within an epoch, checkpoints are written after so many steps, and at no other time.
        checkpoint_optimizer: Whether checkpoints hold the slots of the optimizer. Without, they take the size of the
            weights alone, and a run that goes on begins with fresh slots: it does not end with the same bits.
        keep_checkpoints: Which checkpoints stay when the run is over: the last (`last`), from which the run can be
            extended; the last two (`true`); or none (`false`). Each holds the weights and all slots of the optimizer:
            with Adam, three times the size of the weights.
        extend: What the schedules do where a run is trained for longer than planned: `stretch` (they are those of a run
            of the new length, at the step that was reached), `append` (they are finished, and the last rate is held) or
            `cooldown` (from there on the rates fall in a straight line to 0).
        extensions: How a run was extended; `finetune resume` writes it.
        validation_fraction: Share of the training rows, taken off their end, that is used for validation, in [0, 1).
    """

    elsewhere: ClassVar[Mapping[str, str]] = {
        **dict.fromkeys(("optimizer", "prefixes"), "groups.<name>"),
        **dict.fromkeys(("weight_decay", "momentum", "rho", "epsilon"), "groups.<name>.optimizer"),
        **dict.fromkeys(
            ("schedule", "initial", "decay_rate", "decay_steps", "decay_epochs", "staircase", "end"),
            "groups.<name>.learning_rate",
        ),
        **dict.fromkeys(("exclude", "allow_missing", "from"), "restore"),
    }

    epochs: Count | None = None
    until: UntilSpec | None = None
    keep: Annotated[Literal["last", "best"], choice("last", "best")] = "last"
    average: AverageSpec | None = None
    evaluate_every_steps: Count | None = None
    time_limit_seconds: Positive | None = None
    reduce_on_plateau: PlateauSpec | None = None
    batch_size: Annotated[Count | Literal["auto"], BeforeValidator(_check_count_or_auto)] = 32
    learning_rate: Annotated[Literal["auto", "search"] | None, BeforeValidator(_check_auto)] = None
    always_train: Annotated[Literal["normalization"] | None, choice("normalization", None)] = None
    loss: Loss = AUTO
    metrics: Metrics = ()
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    clipnorm: Positive | None = None
    clipvalue: Positive | None = None
    global_clipnorm: Positive | None = None
    merge_rows: bool = False
    gradient_accumulation_steps: Annotated[Count, Field(ge=2)] | None = None
    use_ema: bool = False
    ema_momentum: OpenShare = 0.99
    non_finite: Annotated[Literal["stop", "skip"] | None, choice("stop", "skip", None)] = None
    mixed_precision: Annotated[
        Literal[False, "bfloat16", "float16", "auto"], choice(False, "bfloat16", "float16", "auto")
    ] = False
    steps_per_execution: Annotated[int | Literal["auto"], BeforeValidator(_check_count_or_auto)] = "auto"
    cache: Annotated[Literal["auto", "off", "memory", "disk"], BeforeValidator(_check_cache)] = "auto"
    cache_passes: Count = 1
    jit_compile: bool = False
    kernels: Annotated[Literal["exact", "native"], choice("exact", "native")] = "native"
    log_every_steps: Annotated[int | Literal["auto", "off"], BeforeValidator(_check_log_every_steps)] = "auto"
    trackers: OneOrMore[TrackerSpec] = ()
    evaluate_before: Annotated[bool | Literal["auto"], choice(True, False, "auto")] = "auto"
    shuffle: bool = True
    checkpoint_seconds: Positive = 300.0
    checkpoint_steps: Count | None = None
    checkpoint_optimizer: bool = True
    keep_checkpoints: Annotated[Literal["last"] | bool, choice("last", True, False)] = "last"
    extend: Annotated[Literal["stretch", "append", "cooldown"], choice(*EXTEND)] = "stretch"
    extensions: ListOf[Extension] = ()
    validation_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.0

    @model_validator(mode="before")
    @classmethod
    def _choose_metrics(cls, value: Any) -> Any:
        """Without `metrics`, those of a loss that is chosen are chosen, too."""
        if not isinstance(value, dict) or value.get("loss") not in (None, "auto"):
            return value
        return {"metrics": ["auto"]} | value

    @field_validator("trackers")
    @classmethod
    def _check_trackers(cls, value: tuple[TrackerSpec, ...]) -> tuple[TrackerSpec, ...]:
        names = [tracker.name for tracker in value]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice:
            raise fault(f"names `{twice}` twice. Remove one of the two", about="key")
        return value

    @field_validator("label_smoothing")
    @classmethod
    def _check_smoothing(cls, value: float, info: ValidationInfo) -> float:
        losses = by_output(info.data["loss"]) if value and "loss" in info.data else {}
        twice = next((named.name for named in losses.values() if "label_smoothing" in named.arguments), None)
        if twice:
            raise fault(f"is an argument of `loss: {twice}`, too. Remove one of the two", about="key")
        return value

    @field_validator("global_clipnorm")
    @classmethod
    def _check_clipping(cls, value: Any, info: ValidationInfo) -> Any:
        return one_of(value, info, "clipnorm", "clipvalue", default=None)
