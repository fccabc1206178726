"""Label smoothing for numbers of classes, which Keras' sparse loss does not have."""

from typing import Any

import keras

ops: Any = keras.ops  # whose declared types are those of every backend


class SmoothedSparseCategoricalCrossentropy(keras.losses.Loss):
    """The cross-entropy of numbers of classes with smoothed labels: that of Keras for the same labels as one-hot.

    With `K` classes the target of the row's class is `1 - smoothing + smoothing / K`, that of every other class
    `smoothing / K`. Since the cross-entropy is linear in the target, its value is

        (1 - smoothing) * crossentropy(label) + smoothing / K * sum over classes of -log(probability)

    Args:
        label_smoothing: Share of the label that is spread over all classes, in [0, 1).
        from_logits: Whether outputs are logits.
        ignore_class: A label whose rows count 0, as in Keras; or `None`.
        axis: Axis of the classes.
        **options: `name`, `reduction` and `dtype` of a loss of Keras.

    References:
        Szegedy et al. (2016), Rethinking the Inception Architecture, section 7, https://arxiv.org/abs/1512.00567
    """

    def __init__(
        self,
        label_smoothing: float,
        *,
        from_logits: bool = False,
        ignore_class: int | None = None,
        axis: int = -1,
        **options: Any,
    ):
        super().__init__(**{"name": "sparse_categorical_crossentropy", **options})
        self.label_smoothing, self.from_logits = label_smoothing, from_logits
        self.ignore_class, self.axis = ignore_class, axis

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Returns the loss of each row.

        Args:
            y_true: Numbers of the classes, shape `(rows, ...)` or `(rows, ..., 1)`.
            y_pred: Outputs, shape `(rows, ..., classes)`.
        """
        options = {"from_logits": self.from_logits, "axis": self.axis}
        y_pred = ops.convert_to_tensor(y_pred)
        if len(y_true.shape) == len(y_pred.shape) and y_true.shape[-1] == 1:
            y_true = ops.squeeze(y_true, -1)
        of_label: Any = keras.losses.sparse_categorical_crossentropy(
            y_true, y_pred, ignore_class=self.ignore_class, **options
        )
        even = ops.ones_like(y_pred) / y_pred.shape[self.axis]
        of_all: Any = keras.losses.categorical_crossentropy(even, y_pred, **options)
        if self.ignore_class is not None:
            of_all = ops.where(ops.equal(ops.cast(y_true, "int64"), self.ignore_class), ops.zeros_like(of_all), of_all)
        return (1.0 - self.label_smoothing) * of_label + self.label_smoothing * of_all

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments that make this loss again."""
        names = ("label_smoothing", "from_logits", "ignore_class", "axis")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}
