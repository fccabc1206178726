"""The door of the cached features: the batches on which `fit` trains a model, from examples or from their features.

A reader of `finetune.training.run_fit` can take `CachedBatches.batches` for `training_batches` of the examples: the
model is trained alike. Where a frozen first part of the model can be run once for all epochs, the batches are its
outputs, and the model's train function begins behind it.
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from finetune.data.augmentation import Augmentation
from finetune.data.batches import training_batches
from finetune.data.examples import Split
from finetune.distribution.workers import training_workers
from finetune.groups.layer_tree import Leaf
from finetune.training.fast.fast_loop import takes_forward, train_function
from finetune.training.features.cache import Features, cached_features
from finetune.training.features.cut import Cut, NoCut, find_cut
from finetune.training.features.store import DISK_MARGIN_BYTES, FeatureStore


class CachedBatches:
    """Makes the batches of each stretch of training of a model.

    Args:
        model: A compiled model.
        rows: The training rows.
        mode: Where features are kept: `auto`, `memory`, `disk` or `off`; see `cached_features`.
        passes: Passes over the examples that are kept where the frozen part has random layers.
        batch_size: Rows in a batch.
        shuffle: Whether every epoch has an order of its own.
        seed: Seed of the orders.
        folder: Where features on disk go.
        report: Called with a sentence that says what is kept, or why nothing is.
        leaves: All weights of the model, where they are known already.
        augmentation: How the rows are changed in every epoch, if they are. Nothing is cached then.
        share: The part of each batch that this process trains on, as for `training_batches`.

    Attributes:
        features: The features that the latest batches hold; `None` where they hold the rows themselves.
    """

    def __init__(
        self,
        model: keras.Model,
        rows: Split,
        *,
        mode: str,
        passes: int,
        batch_size: int,
        shuffle: bool,
        seed: int,
        folder: Path,
        report: Callable[[str], None],
        leaves: Sequence[Leaf] | None = None,
        augmentation: Augmentation | None = None,
        reserve: int = 0,
        share: tuple[int, int] = (0, 1),
    ):
        self._model: Any = model
        self._rows, self._mode, self._passes, self._report = rows, mode, passes, report
        self._options: dict[str, Any] = {"batch_size": batch_size, "shuffle": shuffle, "seed": seed}
        self._options |= {"sample_weight": rows.weights, "share": share}
        self._store = FeatureStore(folder, reserve=max(reserve, DISK_MARGIN_BYTES))
        self._leaves, self._augmentation = leaves, augmentation
        self._functions: dict[Any, Any] = {}
        self.features: Features | None = None

    def batches(
        self,
        *,
        first_epoch: int,
        epochs: int,
        first_step: int = 0,
        inference: Collection[keras.layers.Layer] = (),
        later: Iterable[tuple[Collection[Any], Collection[keras.layers.Layer]]] = (),
    ) -> tf.data.Dataset:
        """Returns the batches from `first_epoch` on, and gives the model the train function that takes them.

        Args:
            first_epoch: The number of the first epoch, from 0.
            epochs: How many epochs are trained on the same features; 0 where no step will be made.
            first_step: The batch of the first epoch to begin with, from 0.
            inference: Layers that run in inference mode.
            later: The trained variables and the layers in inference mode of each phase to come, as far as known: one
                pass over the examples can compute the features for all of them. Read only if it is needed.
        """
        options = {**self._options, "first_epoch": first_epoch, "first_step": first_step}
        features = self._features(epochs, inference, later)
        self.features = None if isinstance(features, NoCut) else features
        if isinstance(features, NoCut):
            return training_batches(self._rows.x, self._rows.y, augmentation=self._augmentation, **options)
        # On features the model begins behind the cut. That is another function to compile, which is kept for phases
        # that train the same weights.
        key = self._model.train_function, features.cut.computed
        if key not in self._functions:
            self._functions[key] = train_function(self._model, forward=features.tail)
        self._model.train_function = self._functions[key]
        return features.batches(self._rows.y, **options)

    def _features(self, epochs: int, inference: Any, later: Any) -> Features | NoCut:
        if self._mode == "off" or not epochs or not takes_forward(self._model):
            return NoCut("the cache is off")
        random, leaves = self._passes > 1, self._leaves
        cut = find_cut(self._model, inference=inference, allow_random=random, leaves=leaves)
        later_cuts: list[Cut | NoCut] = []
        if isinstance(cut, Cut):
            later_cuts = [
                find_cut(self._model, trained=trained, inference=layers, leaves=leaves) for trained, layers in later
            ]
        if self._augmentation and isinstance(cut, Cut):
            cut = NoCut("`data.augment` changes the rows in every epoch")
            self._report(f"cache: not used, because {cut.reason}")
            return cut
        features = cached_features(
            cut,
            self._rows.x,
            batch_size=self._options["batch_size"],
            mode=self._mode,
            epochs=epochs,
            passes=self._passes,
            later=later_cuts,
            store=self._store,
            report=lambda sentence: self._report(f"cache: {sentence}"),
            workers=training_workers(),
        )
        # A model without a frozen part is the usual case, of which `auto` says nothing.
        if isinstance(features, NoCut) and (self._mode != "auto" or isinstance(cut, Cut)):
            self._report(f"cache: not used, because {features.reason}")
        return features
