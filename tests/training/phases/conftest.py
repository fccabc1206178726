"""The tiny model, made ready to be trained in phases, and its rates, noted before every step."""

import keras
import pytest

from finetune.groups.selectors import Selector, resolve_groups
from finetune.optimizers.grouped import GroupedOptimizer
from finetune.training.phases.train_phases import train_phases


@pytest.fixture
def three_groups():
    """Returns the groups of the tiny model: stem (with `bn`), body, head."""
    return groups_of


@pytest.fixture
def prepared():
    """Compiles the tiny model, by default with SGD at 0.1 in every group, and returns its three groups."""

    def compiled(model, optimizers=None, **more):
        groups = groups_of(model)
        made = optimizers or {group.name: keras.optimizers.SGD(0.1) for group in groups}
        grouped = GroupedOptimizer({group.name: (made[group.name], group) for group in groups})
        model.compile(grouped, loss="sparse_categorical_crossentropy", **more)
        return groups

    return compiled


@pytest.fixture
def train():
    """Trains in phases, in batches of 30 rows: 3 steps an epoch."""

    def trained(model, groups, phases, rows, **more):
        return train_phases(model, groups, phases, *rows, batch_size=30, **more)

    return trained


@pytest.fixture
def note_rates():
    """Makes a callback that notes the rates before every step."""
    return NotesRates


def groups_of(model, *, frozen=()):
    selectors = [("stem", ("stem", "bn")), ("body", ("body",)), ("head", ("head",))]
    return resolve_groups(model, [Selector(name, prefixes=p, frozen=name in frozen) for name, p in selectors])


class NotesRates(keras.callbacks.Callback):
    def on_train_begin(self, logs=None):
        self.seen = getattr(self, "seen", [])

    def on_train_batch_begin(self, batch, logs=None):
        self.seen.append(self.model.optimizer.learning_rates)

    def of(self, name):
        return [rates[name] for rates in self.seen]
