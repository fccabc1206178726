"""Many short trainings of one network in one process: compiled once, started again from the same place.

`Trainer.fit` does what `finetune.train_phases` does with the same phases, and ends with its weights
(`tests/scripts/test_transfer_training.py`); but a function is compiled once for each set of trained groups and not for
each training, since the rates of all steps are an argument of it. Where the last group is trained alone, the frozen
part runs once, and the last layer is trained on its features.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import finetune
from finetune.groups.selectors import LayerGroup
from finetune.training.gradient_norms import auto_rgn, ratio_function
from finetune.training.phases.auto_rgn import AUTO_RGN_BATCHES
from finetune.training.snapshot import no_trace

LOSS = "sparse_categorical_crossentropy"
Rows = Any  # an array of inputs, or a tuple of arrays where the network has several


def orders(rows: int, epochs: int, steps: int, batch_size: int, seed: int) -> np.ndarray:
    """Returns the rows of each batch, shape `(epochs, steps, batch_size)`: shuffled passes over the rows.

    Args:
        rows: How many there are.
        epochs: Stretches of `steps` batches.
        steps: Batches in each of them.
        batch_size: Rows in a batch.
        seed: Of the order.
    """
    random, count = np.random.default_rng(seed), epochs * steps * batch_size
    passes = [random.permutation(rows) for _ in range(-(-count // rows))]
    return np.concatenate(passes)[:count].reshape(epochs, steps, batch_size)


def taken(x: Rows, rows: Any) -> Any:
    """Returns rows of inputs by their numbers."""
    return tf.nest.map_structure(lambda part: tf.gather(part, rows), x)


def decayed(rate: float, steps: int) -> Any:
    """Returns the schedule that `finetune new` writes: half the rate after every quarter of the run."""
    return finetune.exponential_decay(rate, decay_steps=max(steps // 4, 1), decay_rate=0.5, staircase=True)


class Trainer:
    """A network that is trained again and again.

    Args:
        model: The network, built; its last layer is the head.
        groups: Its layer groups, input to output; the last one is the head.
        steps_per_epoch: Batches in an epoch.
        batch_size: Rows in a batch.
    """

    def __init__(self, model: keras.Model, groups: Sequence[LayerGroup], steps_per_epoch: int, batch_size: int):
        self.model, self.groups = model, tuple(groups)
        self.steps_per_epoch, self.batch_size = steps_per_epoch, batch_size
        self.optimizer = finetune.GroupedOptimizer(
            {group.name: (keras.optimizers.AdamW(1.0), group) for group in groups}
        )
        self.optimizer.build(model.trainable_variables)
        self.optimizer.restart(self.names)  # from here on every group counts from a variable, in all functions
        self.fresh = [keras.ops.convert_to_numpy(variable) for variable in self.optimizer.variables]
        model.compile(self.optimizer, loss=LOSS)
        self.functions: dict[tuple[str, ...], Callable[..., Any]] = {}
        self.ratios: Callable[..., Any] | None = None
        head_input = model.layers[-1].input
        self.body = tf.function(keras.Model(model.inputs, head_input), reduce_retracing=True)
        self.outputs = tf.function(lambda x: model(x, training=False), reduce_retracing=True)

    @property
    def names(self) -> list[str]:
        """Names of the groups, input to output."""
        return [group.name for group in self.groups]

    def begin(self, weights: Sequence[np.ndarray]) -> None:
        """Puts the network and its optimizer where a training starts."""
        self.model.set_weights(weights)
        self.optimizer.set_weights(self.fresh)  # slots, and the steps from which groups count

    def fit(self, x: Rows, y: np.ndarray, phases: Sequence[finetune.Phase], seed: int) -> None:
        """Trains from where the network is.

        Args:
            x: Inputs.
            y: Classes.
            phases: What is trained in which epochs, with the rates of all trained groups, unless they are measured.
            seed: Of the order of the rows.
        """
        rows = len(y)
        x, targets = tf.nest.map_structure(tf.constant, x), tf.constant(y, tf.int64)
        epochs = sum(phase.epochs or 0 for phase in phases)
        order = orders(rows, epochs, self.steps_per_epoch, self.batch_size, seed)
        first, trained = 0, None
        for phase in phases:
            names = phase.names(self.groups)
            if trained is not None:
                self.optimizer.restart([name for name in names if name not in trained])
            of_phase = order[first : first + (phase.epochs or 0)]
            self._train(names, x, targets, of_phase, self._rates(phase, first * self.steps_per_epoch), phase.auto_rgn)
            first, trained = first + (phase.epochs or 0), names

    def measured_rate(self, x: Rows, y: np.ndarray) -> float | None:
        """Returns the rate that an LR range test of all groups suggests, as `train: {learning_rate: auto}` takes it.

        Args:
            x: Inputs to train on.
            y: Their classes.

        Returns:
            The rate; `None` where neither one sweep nor the mean of five gives a suggestion.
        """
        finetune.freeze(self.model, self.groups)
        for repeats in (1, 5):
            settings = {"batch_size": self.batch_size, "repeats": repeats, "base_rates": dict.fromkeys(self.names, 1.0)}
            result = finetune.lr_range_test(self.model, x, y, **settings)
            if result.learning_rates:
                return result.suggestion
        return None

    def judge(self, x: Rows, y: np.ndarray) -> tuple[float, np.ndarray]:
        """Returns the share of rows that are classified correctly, and the cross-entropy of each."""
        outputs = self.outputs(tf.nest.map_structure(tf.constant, x)).numpy()
        return float(np.mean(outputs.argmax(-1) == y)), -np.log(np.maximum(outputs[np.arange(len(y)), y], 1e-7))

    def _rates(self, phase: finetune.Phase, start: int) -> np.ndarray:
        """Returns the rate of each group at each step of a phase, shape `(steps, groups)`; 0 where it is frozen."""
        steps = np.arange((phase.epochs or 0) * self.steps_per_epoch) + (0 if phase.clock == "phase" else start)
        table = np.zeros((len(steps), len(self.groups)), "float32")
        at_steps = tf.constant(steps, tf.float32)  # schedules take all steps at once
        for place, name in enumerate(self.names):
            rate = phase.rates.get(name, 0.0)
            table[:, place] = rate(at_steps) if callable(rate) else rate
        return table

    def _train(
        self, names: tuple[str, ...], x: Any, y: Any, order: np.ndarray, rates: np.ndarray, auto: float | None
    ) -> None:
        function = self._function(names)
        epochs, steps, rows = order.shape
        if auto is None:
            inputs = self.body(x, training=False) if names == (self.names[-1],) else x
            function(inputs, y, tf.constant(order.reshape(epochs * steps, rows)), tf.constant(rates))
            return
        for batches in order:
            of_epoch = np.array([self._measured_rates(x, y, batches[:AUTO_RGN_BATCHES], auto)] * steps, "float32")
            function(x, y, tf.constant(batches), tf.constant(of_epoch))

    def _measured_rates(self, x: Any, y: Any, batches: np.ndarray, rate: float) -> list[float]:
        """Returns the rates of Auto-RGN: that of a group in proportion to its relative gradient norm."""
        self.ratios = self.ratios or ratio_function(self.model, self.groups)
        with no_trace(self.model):
            rows = [(taken(x, batch), tf.gather(y, batch)) for batch in batches]
            norms = np.mean([self.ratios(*batch).numpy() for batch in rows], axis=0)
        return [*auto_rgn(dict(zip(self.names, map(float, norms), strict=True)), rate).values()]

    def _function(self, names: tuple[str, ...]) -> Callable[..., Any]:
        """Returns the function that trains these groups, and freezes the others before it is traced or called."""
        opened = [replace(group, frozen=group.name not in names) for group in self.groups]
        finetune.freeze(self.model, opened)
        if names not in self.functions:
            trained: Any = self.model.layers[-1] if names == (self.names[-1],) else self.model
            self.functions[names] = self._compiled(trained, [group for group in opened if group.name in names])
        return self.functions[names]

    def _compiled(self, module: Any, groups: Sequence[LayerGroup]) -> Callable[..., Any]:
        step = finetune.grouped_train_step(module, LOSS, self.optimizer, variables=groups)
        inputs = [tf.TensorSpec([None, *part.shape[1:]], part.dtype) for part in tf.nest.flatten(module.input)]
        spec = tuple(inputs) if len(inputs) > 1 else inputs[0]
        order_and_rates = tf.TensorSpec([None, self.batch_size], tf.int64), tf.TensorSpec([None, len(self.groups)])

        @tf.function(input_signature=[spec, tf.TensorSpec([None], tf.int64), *order_and_rates])
        def train(x: Any, y: Any, order: Any, rates: Any) -> None:
            for number in tf.range(tf.shape(order)[0]):
                for place, name in enumerate(self.names):
                    self.optimizer.group_optimizers[name].learning_rate = rates[number, place]
                step(taken(x, order[number]), tf.gather(y, order[number]))

        return train
