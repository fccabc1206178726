"""Training fails as soon as an epoch ends with a weight or a statistic that is no finite number.

The loss does not show it: a frozen layer behind a ReLU swallows a NaN, and moving statistics are not read in training.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import keras

from finetune.errors import TrainingError
from finetune.groups.finite_values import listed, problems_in
from finetune.groups.layer_tree import Leaf, layer_tree
from finetune.groups.selectors import LayerGroup


def check_weights(leaves: Iterable[Leaf], groups: Sequence[LayerGroup], when: str) -> None:
    """Checks that weights are finite numbers and variances not negative.

    Args:
        leaves: The weights.
        groups: The layer groups, whose names are in the message.
        when: Since when a wrong weight is as it is, such as `after epoch 2`.

    Raises:
        TrainingError: A weight is not; which, in which group, and where.
    """
    names = {leaf.name: group.name for group in groups for leaf in group.leaves}
    wrong = problems_in(leaves, names)
    if wrong:
        count = "a weight has" if len(wrong) == 1 else f"{len(wrong)} weights have"
        raise TrainingError(
            f"Every weight and every moving statistic must be a finite number. {when[0].upper()}{when[1:]}, {count} "
            f"other values: {listed(wrong)}. Lower the learning rates or the weight decay of these groups, set "
            "`global_clipnorm`, or look for a layer whose statistics grow without end."
        )


class FiniteWeights(keras.callbacks.Callback):
    """Ends `fit` with an error when an epoch ends with a weight or statistic that is no finite number.

    All weights are checked before training and after every epoch, those that are frozen and moving statistics included;
    a negative variance counts, too. A step does not become slower; an epoch by one reading of all weights (ResNet50,
    two cores: 0.02 s). Put it before callbacks that save weights.

    Args:
        groups: All layer groups of the model, whose names are in the message.
        unless: Asked after every epoch; while it answers yes, nothing is checked.

    Attributes:
        failed: Whether the latest check has found such a weight.

    Raises:
        TrainingError: In `fit`: which weight, which group, and between which steps it happened.

    Examples:
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, name="head")])
        >>> model.compile(keras.optimizers.SGD(1e30), "mse")
        >>> x = keras.ops.ones((8, 2))
        >>> model.fit(x, 1e9 * x[:, :1], epochs=3, verbose=0, callbacks=[FiniteWeights()])  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        finetune.errors.TrainingError: Every weight and every moving statistic must be a finite number. ...
    """

    def __init__(self, groups: Sequence[LayerGroup] = (), *, unless: Callable[[], object] = lambda: False):
        super().__init__()
        self.groups, self.unless = tuple(groups), unless
        self._leaves: tuple[Leaf, ...] = ()
        self._known_good = ""
        self.failed = False

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        of_groups = tuple(leaf for group in self.groups for leaf in group.leaves)
        self._leaves = of_groups or layer_tree(self.model).leaves  # groups hold every weight of a model
        self._check("before training")
        self._known_good = "before training"

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        if self.unless():
            return
        self._check(f"since epoch {epoch + 1} (all were finite {self._known_good})")
        self._known_good = f"after epoch {epoch + 1}"

    def _check(self, when: str) -> None:
        self.failed = True
        check_weights(self._leaves, self.groups, when)
        self.failed = False
