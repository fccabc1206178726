"""Where a network can be cut in two: in front what is frozen and always gives the same output, behind it the rest."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import keras
from keras import layers
from keras.src.backend.common.masking import get_keras_mask, set_keras_mask

from finetune.errors import quote
from finetune.groups.layer_tree import layer_tree
from finetune.training.features.graph import Graph, Step, can_open, open_graph, run

_RATES = ("rate", "dropout", "recurrent_dropout", "stddev")
_STANDS_STILL = layers.Normalization


@dataclass(frozen=True)
class NoCut:
    """There is nothing to gain.

    Attributes:
        reason: Why, as a sentence.
    """

    reason: str


@dataclass(frozen=True, eq=False)
class Cut:
    """A model in two parts that share its layers and weights.

    Attributes:
        graph: The steps of the whole model.
        steps: Those in front of the cut.
        behind: Those behind it.
        crossing: Numbers of the values that the rest needs; those that are inputs of the model among them.
        inference: Ids of layers that run with `training=False`, on both sides.
        random: Names of layers in front of the cut that draw random numbers.
        stopped_by: Why frozen layers behind the cut are not in front of it.
    """

    graph: Graph
    steps: tuple[Step, ...]
    behind: tuple[Step, ...]
    crossing: tuple[int, ...]
    inference: frozenset[int] = frozenset()
    random: tuple[str, ...] = ()
    stopped_by: tuple[str, ...] = ()

    @property
    def computed(self) -> tuple[int, ...]:
        """Numbers of the values to keep: those of `crossing` that are no inputs."""
        return tuple(number for number in self.crossing if number >= len(self.graph.model.inputs))

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers with weights in front of the cut."""
        return tuple(dict.fromkeys(step.name for step in self.steps if _weights(step)))

    def __str__(self) -> str:
        if len(self.layers) == 1:
            return f"1 layer with weights, `{self.layers[0]}`"
        return f"{len(self.layers)} layers with weights, the last of them `{self.layers[-1]}`"


class Front(layers.Layer):
    """Runs what lies in front of one or more cuts of a model; returns the values wanted, by number, and their masks."""

    def __init__(self, cut: Cut, wanted: Sequence[int], steps: Sequence[Step] | None = None):
        super().__init__(name="front", autocast=False, dtype="float32")
        self.model, self._cut, self.built = cut.graph.model, cut, True
        self._wanted = tuple(wanted)
        self.steps = needed(cut.steps if steps is None else steps, wanted)

    def call(self, x: Any, training: bool = True) -> tuple[dict[str, Any], dict[str, Any]]:
        cut = self._cut
        values = run(self.steps, cut.graph.inputs_of(x), training=training, inference=cut.inference)
        found = {str(number): values[number] for number in self._wanted}
        masks = {number: get_keras_mask(value) for number, value in found.items()}
        return found, {number: mask for number, mask in masks.items() if mask is not None}


class Rest(layers.Layer):
    """Runs what lies behind a cut: returns the outputs of the model for what crosses the cut.

    It is called as the model is, `rest((values, masks), training=True)`. The losses that its layers add are found in
    `model.losses`, as after a call of the model.
    """

    def __init__(self, cut: Cut):
        super().__init__(name="rest", autocast=False, dtype="float32")
        self.model, self._cut, self.built = cut.graph.model, cut, True

    def call(self, features: tuple[dict[str, Any], dict[str, Any]], training: bool = False) -> Any:
        values, masks = features
        for number, mask in masks.items():
            set_keras_mask(values[number], mask)
        known = {int(number): value for number, value in values.items()}
        found = run(self._cut.behind, known, training=training, inference=self._cut.inference)
        return self._cut.graph.outputs_of(found)


def find_cut(
    model: keras.Model,
    *,
    trained: Collection[Any] | None = None,
    inference: Collection[keras.layers.Layer] = (),
    allow_random: bool = False,
) -> Cut | NoCut:
    """Finds the largest part of a model that is frozen and needs to be run but once for every example.

    A layer is in front of the cut if it trains no weight, moves no statistics, adds no loss, draws no random numbers in
    training, and if all it reads comes from such layers. Nested functional and Sequential models are opened up; a
    layer that is used twice may be on both sides.

    Args:
        model: A built model, frozen as it will be trained.
        trained: The variables to train; by default those that are trainable now.
        inference: Layers that the caller runs with `training=False`, so that their dropout does not count.
        allow_random: Whether layers that draw random numbers may be in front of the cut, for several passes.

    Returns:
        The cut, or why there is none.
    """
    if why := _not_as_keras_does(model):
        return NoCut(why)
    graph = open_graph(model)
    live = frozenset(map(id, model.trainable_variables if trained is None else trained))
    moving = _moving(model) if model.weights else frozenset()
    off = frozenset(id(part) for layer in inference for part in _parts(layer))
    reached, front, random, stopped = set(range(len(model.inputs))), [], [], []
    for step in graph.steps:
        if not reached.issuperset(step.reads):
            continue
        draws = _draws(step, off)
        why = _stays_behind(step, live, moving) or ("" if allow_random else draws)
        if not why:
            front.append(step)
            reached.update(step.writes)
            random += [step.name] * bool(draws)
        elif not _trains(step, live):
            stopped.append(f"`{step.name}` {why}")
    ahead = _without_cheap_ends(graph, front)
    crossing = _crossing(graph, ahead)
    front = needed(front, crossing)
    names = {step.name for step in front}
    if not any(_weights(step) for step in front):
        because = f": {'; '.join(stopped[:3])}" if stopped else ", for what stands in front is trained"
        return NoCut(f"no frozen layer with weights can be run beforehand{because}")
    return Cut(
        graph=graph,
        steps=front,
        behind=_behind(graph, ahead),
        crossing=crossing,
        inference=_silenced(graph, live, off),
        random=tuple(name for name in random if name in names),
        stopped_by=tuple(stopped),
    )


def _not_as_keras_does(model: keras.Model) -> str:
    if not can_open(model):
        return f"`{model.name}` has a `call` of its own: only functional and Sequential models can be cut"
    own = [
        name for name in ("train_step", "compute_loss") if getattr(type(model), name) is not getattr(keras.Model, name)
    ]
    return f"`{model.name}` has {quote(own)} of its own, which may want the inputs themselves" if own else ""


def _silenced(graph: Graph, live: frozenset[int], off: frozenset[int]) -> frozenset[int]:
    """Ids of the operations that draw random numbers if they are not told otherwise, and are to be told."""
    silent = (s for s in graph.steps if not _trains(s, live) and _draws(s, frozenset()) and not _draws(s, off))
    return frozenset(id(step.operation) for step in silent)


def needed(steps: Iterable[Step], wanted: Iterable[int]) -> tuple[Step, ...]:
    """Returns the steps that lead to the values wanted."""
    found, open_numbers = [], set(wanted)
    for step in reversed(list(steps)):
        if open_numbers.intersection(step.writes):
            found.append(step)
            open_numbers.update(step.reads)
    return tuple(reversed(found))


def _behind(graph: Graph, front: Sequence[Step]) -> tuple[Step, ...]:
    ahead = set(map(id, front))
    return needed((step for step in graph.steps if id(step) not in ahead), graph.outputs)


def _crossing(graph: Graph, front: Sequence[Step]) -> tuple[int, ...]:
    behind = _behind(graph, front)
    made = {number for step in behind for number in step.writes}
    read = {number for step in behind for number in step.reads} | set(graph.outputs)
    return tuple(sorted(read - made))


def _without_cheap_ends(graph: Graph, front: list[Step]) -> list[Step]:
    """Leaves to the rest what it can as well do itself on values it gets anyway.

    That is operations without weights that would make one more value cross the cut, and dropout at the very end.
    """
    for step in reversed(front):
        less = [other for other in front if other is not step]
        is_operation = not isinstance(step.operation, layers.Layer)
        is_last = not any(set(step.writes).intersection(other.reads) for other in less)
        if is_operation or (is_last and not _weights(step) and _draws(step, frozenset())):
            gain = len(_kept(graph, front)) - len(_kept(graph, less))
            if gain >= int(is_operation):
                front = less
    return front


def _kept(graph: Graph, front: Sequence[Step]) -> set[int]:
    return set(_crossing(graph, front)) - set(range(len(graph.model.inputs)))


def _stays_behind(step: Step, live: frozenset[int], moving: frozenset[int]) -> str:
    if _trains(step, live):
        return "is trained"
    parts = _parts(step.operation)
    if any(id(part) in moving for part in parts):
        return "moves its statistics in training"
    if any(part.activity_regularizer is not None or isinstance(part, layers.ActivityRegularization) for part in parts):
        return "adds to the loss"
    return ""


def _draws(step: Step, off: frozenset[int]) -> str:
    kinds = [type(part).__name__ for part in _parts(step.operation) if id(part) not in off and _is_random(part)]
    return f"draws random numbers in training ({quote(dict.fromkeys(kinds))})" if kinds else ""


def _trains(step: Step, live: frozenset[int]) -> bool:
    return any(id(variable) in live for variable in _weights(step))


def _weights(step: Step) -> list[Any]:
    return step.operation.weights if isinstance(step.operation, layers.Layer) else []


def _parts(operation: Any) -> list[layers.Layer]:
    return list(operation._flatten_layers()) if isinstance(operation, layers.Layer) else []


def _moving(model: keras.Model) -> frozenset[int]:
    """Ids of the layers that move statistics in training: those that own some and are not frozen."""
    owners = {id(leaf.owner): leaf.owner for leaf in layer_tree(model).leaves if not leaf.trainable}
    # The statistics of `Normalization` move in `adapt` alone.
    live = (one for one in owners.values() if getattr(one, "trainable", True) and not isinstance(one, _STANDS_STILL))
    return frozenset(map(id, live))


def _is_random(layer: layers.Layer) -> bool:
    """Whether the layer has a seed of its own, and no rate of 0 that makes it idle."""
    known = {id(weight) for weight in layer.weights}
    known |= {id(one) for part in layer._flatten_layers(include_self=False) for one in part.variables}
    if all(id(variable) in known for variable in layer.variables):
        return False
    rates = [getattr(layer, name) for name in _RATES if isinstance(getattr(layer, name, None), (int, float))]
    return not rates or any(rates)
