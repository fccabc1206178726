"""Metrics that see targets and outputs in the form they were written for.

A metric of Keras takes one form of targets: numbers of classes (`sparse_categorical_accuracy`) or a target for each
output (everything else: `precision`, `f1_score`, `auc`). A model has one form, that of its loss. With the other form
Keras fails, or spreads one array over the other and returns a number that means nothing. The same holds for logits:
`precision` compares them with 0.5 as if they were probabilities.

`fit_metric` is the story: a metric is refused where another fits the task, or gets its targets and outputs converted.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import keras
import numpy as np
from keras import metrics

from finetune.errors import DataError, reason
from finetune.machine_failures import raise_machine_failure

ops: Any = keras.ops  # whose declared types are those of every backend

_LARGE = (metrics.F1Score, metrics.FBetaScore, metrics.R2Score)  # take exactly two axes, rows and outputs
# Take the class with the largest output, so logits are as good as probabilities; or have hinges at -1 and 1.
_TAKES_LOGITS = ("categoricalaccuracy", "topkcategoricalaccuracy", "hinge", "squaredhinge", "categoricalhinge")
_CROSSENTROPIES = ("binarycrossentropy", "categoricalcrossentropy", "sparsecategoricalcrossentropy")
_OF_VALUES = ("metric", "mean", "sum", "meanmetricwrapper")  # average numbers, and know no targets
_COUNTS = ("precision", "recall", "truepositives", "truenegatives", "falsepositives", "falsenegatives")
_BINARY = ("binaryaccuracy", "binarycrossentropy", "binaryiou")
# Take targets from 0 to 1. `accuracy` is resolved to one of these before.
_OF_CLASSES = (
    *("binaryaccuracy", "categoricalaccuracy", "topkcategoricalaccuracy", "auc", "f1score", "fbetascore", *_COUNTS),
    *("precisionatrecall", "recallatprecision", "sensitivityatspecificity", "specificityatsensitivity"),
    *("binarycrossentropy", "categoricalcrossentropy", "binaryiou", "iou", "meaniou", "onehotiou", "onehotmeaniou"),
)


@dataclass(frozen=True)
class Task:
    """The form of the targets and the outputs of a model with one output.

    Attributes:
        outputs: Size of the last axis of the output; 1 for a binary task or a single number.
        axes: Axes of the output, the batch included.
        is_sparse: Whether targets are numbers of classes, where the output has a value for each class.
        target_axes: Axes of the targets.
        outside: A target that is not from 0 to 1, so that it is no label of a class; else `None`.
        probabilities: `sigmoid` or `softmax`, what makes probabilities of outputs that are logits; else `None`.
    """

    outputs: int
    axes: int
    is_sparse: bool
    target_axes: int
    outside: float | None = None
    probabilities: str | None = None


def task_of(y: Any, outputs: Any, *, loss: str, logits: bool) -> Task | None:
    """Returns the task of a model, or `None` for several outputs, targets of no shape, or outputs of one axis.

    Args:
        y: Targets, of all rows where they are in memory.
        outputs: Outputs for some rows.
        loss: Name of the loss.
        logits: Whether the outputs are logits.
    """
    target, output = (tuple(getattr(each, "shape", ())) for each in (y, outputs))
    if not target or len(output) < 2:
        return None
    classes = output[-1]
    is_sparse = classes > 1 and (len(target) == len(output) - 1 or (len(target) == len(output) and target[-1] == 1))
    outside = None
    if not is_sparse and (values := np.asarray(y)).dtype.kind in "iuf":
        outside = next((float(value) for value in (values.min(), values.max()) if not 0 <= value <= 1), None)
    to_probabilities = "sigmoid" if classes == 1 or loss.lower().startswith("binary") else "softmax"
    return Task(classes, len(output), is_sparse, len(target), outside, to_probabilities if logits else None)


def accuracy_of(task: Task) -> type[metrics.Metric]:
    """Returns the class that `accuracy` stands for, chosen by the form of targets and outputs as Keras chooses it."""
    if task.outputs == 1:
        return metrics.BinaryAccuracy
    return metrics.SparseCategoricalAccuracy if task.is_sparse else metrics.CategoricalAccuracy


@dataclass(frozen=True)
class Conversion:
    """Converts targets, outputs and weights of rows into the form that a metric takes.

    Attributes:
        outputs: Size of the last axis of the output.
        one_hot: Whether targets are numbers of classes, and the metric takes a target for each output.
        add_axis: Whether targets lack the last axis of the outputs.
        probabilities: `sigmoid` or `softmax`, applied to the outputs; `None` leaves them.
        flatten_to_rows: Axes of the output, of which all but the last become one; 0 leaves them.
    """

    outputs: int
    one_hot: bool = False
    add_axis: bool = False
    probabilities: str | None = None
    flatten_to_rows: int = 0

    def __call__(self, y_true: Any, y_pred: Any, sample_weight: Any) -> tuple[Any, Any, Any]:
        """Returns targets, outputs and weights of rows, which may be `None`, as the metric takes them."""
        if self.one_hot:
            labels = ops.reshape(ops.cast(y_true, "int32"), ops.shape(y_pred)[:-1])
            y_true = ops.one_hot(labels, self.outputs, dtype=y_pred.dtype)
        if self.add_axis and len(y_true.shape) < len(y_pred.shape):  # Keras gives arrays that axis, but not datasets
            y_true = ops.expand_dims(y_true, -1)
        if self.probabilities:
            y_pred = {"sigmoid": ops.sigmoid, "softmax": ops.softmax}[self.probabilities](y_pred)
        if axes := self.flatten_to_rows:
            if sample_weight is not None and len(sample_weight.shape) < axes - 1:  # of rows: for all positions
                extra = (1,) * (axes - 1 - len(sample_weight.shape))
                sample_weight = ops.reshape(sample_weight, (*ops.shape(sample_weight), *extra))
            if sample_weight is not None:
                sample_weight = ops.reshape(ops.broadcast_to(sample_weight, ops.shape(y_pred)[:-1]), (-1,))
            y_true, y_pred = (ops.reshape(each, (-1, self.outputs)) for each in (y_true, y_pred))
        return y_true, y_pred, sample_weight


@keras.saving.register_keras_serializable("finetune")
class FittedMetric(metrics.Metric):
    """A metric with targets and outputs converted before it sees them; everything else is that of the metric.

    Args:
        metric: A metric of Keras.
        convert: Converts what `metric` is updated with.
        name: By default that of the metric.
    """

    def __init__(self, metric: metrics.Metric, convert: Conversion, name: str | None = None):
        super().__init__(name=name or metric.name, dtype=metric.dtype)
        self.metric, self.convert = metric, convert

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        """Updates the metric with the targets, outputs and weights of a batch, converted.

        Args:
            y_true: Targets, as the model has them.
            y_pred: Outputs of the model.
            sample_weight: Weights of the rows, or `None`.
        """
        y_true, y_pred, sample_weight = self.convert(y_true, y_pred, sample_weight)
        return self.metric.update_state(y_true, y_pred, sample_weight=sample_weight)

    def result(self) -> Any:
        """Returns the value of the metric."""
        return self.metric.result()

    def reset_state(self) -> None:
        """Makes the state of the metric new again."""
        self.metric.reset_state()

    def get_config(self) -> dict[str, Any]:
        """Returns the config: a compiled model that has this metric can be saved and loaded."""
        metric = keras.saving.serialize_keras_object(self.metric)
        return {"name": self.name, "metric": metric, "convert": asdict(self.convert)}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "FittedMetric":
        """Makes the metric again."""
        metric: Any = keras.saving.deserialize_keras_object(config["metric"])
        return cls(metric, Conversion(**config["convert"]), config["name"])


def fit_metric(identifier: str, make: Callable[..., Any], arguments: Mapping[str, Any], task: Task) -> metrics.Metric:
    """Makes a metric that is right for a task.

    Args:
        identifier: Its name, as the user wrote it.
        make: The class of the metric, or a function of targets and outputs.
        arguments: Keyword arguments for `make`.
        task: The form of targets and outputs.

    Returns:
        The metric, its targets and outputs converted where it takes them in another form. Its name is not yet unique.

    Raises:
        DataError: The metric is not one for this task; the message names one that is.
    """
    is_class = isinstance(make, type)
    plain = (make.__name__ if is_class else identifier).lower().replace("_", "")
    _refuse_unfit(identifier, plain, arguments, task)
    arguments = {**_fitting_arguments(plain, task), **arguments}
    metric = make(**arguments) if is_class else metrics.MeanMetricWrapper(make, name=identifier, **arguments)
    convert = _conversion(plain, metric, arguments, task)
    return FittedMetric(metric, convert) if convert else metric


def try_metric(metric: metrics.Metric, y: Any, outputs: Any) -> None:
    """Sends some rows through a metric, whose state is as new afterwards.

    Args:
        metric: The metric.
        y: Targets of the rows.
        outputs: Outputs for them.

    Raises:
        DataError: The metric does not take the rows, or gives several numbers.
    """
    try:
        metric.update_state(y, outputs)
        result = metric.result()
    except Exception as error:
        raise_machine_failure(error, "Trying a metric on a few rows")
        raise DataError(
            f"does not fit the targets and the outputs of the network: {type(error).__name__}: {reason(error)}. Choose "
            "a metric for targets of this form, or change its arguments."
        ) from error
    metric.reset_state()
    if len(getattr(result, "shape", ())):
        advice = (
            "Add `average: macro`" if hasattr(getattr(metric, "metric", metric), "average") else "Give it one threshold"
        )
        raise DataError(f"gives {result.shape[0]} numbers, and a metric of a run is a single number. {advice}.")


def notes_on(identifier: str, arguments: Mapping[str, Any], task: Task, loss: str) -> str:
    """Returns what a user should know about a metric that is computed as Keras does, or an empty text.

    Args:
        identifier: Its name, as the user wrote it.
        arguments: Its arguments.
        task: The form of targets and outputs.
        loss: Name of the loss.
    """
    plain = identifier.lower().replace("_", "")
    is_multilabel = task.outputs > 1 and not task.is_sparse and loss.lower().startswith("binary")
    if plain in ("accuracy", "acc") and is_multilabel:
        return (
            f"Metric `{identifier}` compares the largest of the {task.outputs} outputs with the largest target, as "
            "Keras does. To count every label by itself, use `binary_accuracy`."
        )
    if plain in _COUNTS and task.outputs > 1 and not is_multilabel and "class_id" not in arguments:
        return (
            f"Metric `{identifier}` counts all {task.outputs} classes together. For one class, add `class_id`; for a "
            "mean over the classes, use `{name: f1_score, average: macro}`."
        )
    return ""


def _refuse_unfit(identifier: str, plain: str, arguments: Mapping[str, Any], task: Task) -> None:
    """Raises a DataError for a metric whose value would mean nothing, and names one that fits."""
    is_sparse_metric = plain.startswith("sparse")
    rule, fitting = "", ""
    if plain in _OF_VALUES:
        rule, fitting = "is the mean or sum of numbers, and compares no targets with outputs", "accuracy"
    elif task.outside is not None and plain in _OF_CLASSES:
        rule = f"takes labels from 0 to 1, and the targets hold `{task.outside:g}`"
        fitting = "mean_absolute_error` for targets that are quantities, and labels 0 and 1 for classes"
        raise DataError(f"{rule}. Use `{fitting}.")
    elif task.outputs == 1 and (is_sparse_metric or "categorical" in plain):
        rule, fitting = "needs an output for each class, and the network has a single output", "binary_accuracy"
        fitting = "binary_crossentropy" if "crossentropy" in plain else fitting
        fitting = "hinge" if "hinge" in plain else fitting
    elif is_sparse_metric and not task.is_sparse:
        rule = f"takes the number of the class as the target, and here a target has {task.outputs} values"
        fitting = identifier.removeprefix("sparse_").removeprefix("Sparse")
    elif task.is_sparse and plain in _BINARY:
        rule = f"compares a target with every output, and here a target is the number of one of {task.outputs} classes"
        fitting = {"binarycrossentropy": "sparse_categorical_crossentropy", "binaryiou": "one_hot_io_u"}.get(
            plain, "sparse_categorical_accuracy"
        )
    elif task.outputs == 1 and plain in ("iou", "meaniou", "onehotiou", "onehotmeaniou"):
        rule, fitting = "takes the numbers of classes, and the network has a single output", "binary_io_u"
    elif task.outputs == 1 and plain in ("f1score", "fbetascore") and arguments.get("threshold") is None:
        # Keras takes the largest output of a row as positive, and a single output is always the largest.
        rule = "needs a threshold where the network has a single output: without, every row counts as positive"
        fitting = f"{{name: {identifier}, threshold: 0.5}}"
    elif task.outputs == 1 and plain in ("pearsoncorrelation", "concordancecorrelation") and "axis" not in arguments:
        rule = "compares the values within a row, and here a row has a single value"
        fitting = f"{{name: {identifier}, axis: 0}}` for the mean over batches, or `r2_score"
    elif "class_id" in arguments and not 0 <= int(arguments["class_id"] or 0) < task.outputs:
        rule = f"has `class_id: {arguments['class_id']}`, and the network has {task.outputs} outputs, counted from 0"
    if rule:
        raise DataError(f"{rule}. {f'Use `{fitting}`.' if fitting else 'Choose another `class_id`.'}")


def _fitting_arguments(plain: str, task: Task) -> dict[str, Any]:
    """Returns what the task says about a metric's arguments; what the user wrote counts more."""
    fitting: dict[str, Any] = {}
    if plain in ("iou", "meaniou"):
        fitting |= {"sparse_y_true": task.is_sparse, "sparse_y_pred": False}
    if plain in ("f1score", "fbetascore") and task.outputs == 1:
        fitting["average"] = "macro"  # of a single class: a number instead of a list with one
    # More accurate than to take the logarithm of what a softmax or sigmoid has rounded.
    own = "sigmoid" if plain == "binarycrossentropy" else "softmax"
    if plain in _CROSSENTROPIES and task.probabilities == own:
        fitting["from_logits"] = True
    return fitting


def _conversion(plain: str, metric: metrics.Metric, arguments: Mapping[str, Any], task: Task) -> Conversion | None:
    """Returns what converts targets, outputs and weights for a metric; `None` where it takes them as they are."""
    takes_numbers = plain.startswith("sparse") or arguments.get("sparse_y_true") is True
    takes_logits = plain.removeprefix("sparse") in _TAKES_LOGITS or "from_logits" in arguments
    needs_two_axes = isinstance(metric, _LARGE) and task.axes != 2
    conversion = Conversion(
        task.outputs,
        one_hot=task.is_sparse and not takes_numbers,
        # Keras' own metrics spread `(rows,)` over `(rows, 1)`: hinge then compares each target with every output.
        add_axis=task.outputs == 1 and task.target_axes == task.axes - 1 and plain != "binaryaccuracy",
        probabilities=None if takes_logits else task.probabilities,
        flatten_to_rows=task.axes if needs_two_axes else 0,
    )
    return None if conversion == Conversion(task.outputs) else conversion
