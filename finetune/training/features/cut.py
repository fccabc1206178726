"""Where a model can be cut in two: in front, what is frozen and always computes the same; behind the cut, the tail.

The front is found by one walk over the steps of the model, from input to output. A step belongs to it if all that it
reads comes from the front, and if running it once for every example is as good as running it in every epoch: it trains
no weight, updates no statistics, adds nothing to the loss and draws no random numbers. Then steps at the end of the
front that cost nothing are given to the tail, so that fewer or smaller values cross the cut. What remains is a cut if
there is a layer with weights in front of it.

    Conv (frozen) -> BatchNorm (frozen) -> Pool -> Dropout -> Dense (trained)
    `------------ front ------------------------' `----- tail -----------'
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import keras
from keras import layers

from finetune import keras_private
from finetune.errors import quote
from finetune.groups.layer_tree import Leaf, layer_tree
from finetune.training.features.graph import Graph, Step, can_open, open_graph, run

_RATES = ("rate", "dropout", "recurrent_dropout", "stddev")  # the names under which Keras' random layers keep theirs


@dataclass(frozen=True)
class NoCut:
    """There is nothing in front of a cut, or nothing is gained by it.

    Attributes:
        reason: Why, as the end of a sentence: `there are none, because {reason}`.
    """

    reason: str


@dataclass(frozen=True, eq=False)
class Cut:
    """A model in two parts that share its layers and weights.

    Attributes:
        graph: The steps of the whole model.
        front: The steps in front of the cut.
        tail: The steps behind it.
        crossing: Numbers of the values that the tail reads and does not compute; inputs of the model may be among them.
        inference: `id`s of layers that run with `training=False`, on both sides.
        random: Names of layers in front of the cut that draw random numbers.
        stopped_by: Why frozen layers in the tail are not in front, each as a sentence.
        statistics: The weights of the whole model that were not created trainable.
    """

    graph: Graph
    front: tuple[Step, ...]
    tail: tuple[Step, ...]
    crossing: tuple[int, ...]
    inference: frozenset[int] = frozenset()
    random: tuple[str, ...] = ()
    stopped_by: tuple[str, ...] = ()
    statistics: tuple[Any, ...] = ()

    @property
    def computed(self) -> tuple[int, ...]:
        """Numbers of the values to keep: those of `crossing` that are not inputs."""
        return tuple(number for number in self.crossing if number >= len(self.graph.model.inputs))

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers with weights in front of the cut."""
        return tuple(dict.fromkeys(step.name for step in self.front if _weights(step)))

    def __str__(self) -> str:
        if len(self.layers) == 1:
            return f"1 layer with weights, `{self.layers[0]}`"
        return f"{len(self.layers)} layers with weights, the last of them `{self.layers[-1]}`"


class Front(layers.Layer):
    """Runs what is in front of one or more cuts of a model: returns values by number, and their masks.

    Args:
        cut: The cut, or one of several cuts of the same model.
        numbers: The numbers of the values to return.
        steps: The steps in front of all cuts; by default those of `cut`.
    """

    def __init__(self, cut: Cut, numbers: Sequence[int], steps: Sequence[Step] | None = None):
        super().__init__(name="front", autocast=False, dtype="float32")
        # Nothing to build and nothing to cast: the layers inside have their variables, and cast their own inputs.
        self.model, self._cut, self.built = cut.graph.model, cut, True
        self._numbers = tuple(numbers)
        self.steps = steps_to(numbers, cut.front if steps is None else steps)

    def call(self, x: Any, training: bool = True) -> tuple[dict[str, Any], dict[str, Any]]:
        cut = self._cut
        values = run(self.steps, cut.graph.inputs_of(x), training=training, inference=cut.inference)
        returned = {str(number): values[number] for number in self._numbers}
        masks = {number: keras_private.mask_of(value) for number, value in returned.items()}
        return returned, {number: mask for number, mask in masks.items() if mask is not None}


class Tail(layers.Layer):
    """Runs what is behind a cut: returns the outputs of the model for the values that cross the cut.

    It is called as the model is, `tail((values, masks), training=True)`. The losses that its layers add are in
    `model.losses`, as after a call of the model.

    Args:
        cut: The cut.
    """

    def __init__(self, cut: Cut):
        super().__init__(name="tail", autocast=False, dtype="float32")
        self.model, self._cut, self.built = cut.graph.model, cut, True

    def call(self, features: tuple[dict[str, Any], dict[str, Any]], training: bool = False) -> Any:
        by_name, masks = features
        for number, mask in masks.items():
            keras_private.set_mask(by_name[number], mask)
        values = {int(number): value for number, value in by_name.items()}
        values = run(self._cut.tail, values, training=training, inference=self._cut.inference)
        return self._cut.graph.outputs_of(values)


def find_cut(
    model: keras.Model,
    *,
    trained: Collection[Any] | None = None,
    inference: Collection[keras.layers.Layer] = (),
    allow_random: bool = False,
    leaves: Sequence[Leaf] | None = None,
) -> Cut | NoCut:
    """Finds the largest part of a model that is frozen and needs to be run only once for every example.

    Nested functional and Sequential models are opened up. A layer that is used twice may be on both sides.

    Args:
        model: A built model, frozen as it will be trained.
        trained: The variables to train; by default those that are trainable now.
        inference: Layers that the caller runs with `training=False`, so that their dropout does nothing.
        allow_random: Whether layers that draw random numbers may be in front of the cut. Their features differ from
            pass to pass, so several passes over the data should be kept.
        leaves: All weights of the model, where they are known already.

    Returns:
        The cut, or why there is none.
    """
    if reason := _does_more_than_its_graph(model):
        return NoCut(reason)
    graph = open_graph(model)
    trained_ids = frozenset(map(id, model.trainable_variables if trained is None else trained))
    if leaves is None:
        leaves = layer_tree(model).leaves if model.weights else ()
    updating = _updating(leaves)
    silent = frozenset(id(part) for layer in inference for part in _parts(layer))
    known, front, random, stopped_by = set(range(len(model.inputs))), [], [], []
    for step in graph.steps:
        # It depends on something behind the cut.
        if not known.issuperset(step.reads):
            continue
        randomness = _randomness(step, silent)
        reason = _reason_for_tail(step, trained_ids, updating) or ("" if allow_random else randomness)
        if not reason:
            front.append(step)
            known.update(step.writes)
            random += [step.name] * bool(randomness)
        # A trained layer needs no explanation; a frozen layer that cannot be in front does.
        elif not _trains(step, trained_ids):
            stopped_by.append(f"`{step.name}` {reason}")
    front = _without_cheap_ends(graph, front)
    tail = _tail(graph, front)
    crossing = _crossing(graph, tail)
    # Without the steps that lead only to what is not read behind the cut.
    needed = steps_to(crossing, front)
    if not any(_weights(step) for step in needed):
        because = f": {'; '.join(stopped_by[:3])}" if stopped_by else ", because the first layers are trained"
        return NoCut(f"there is no frozen layer with weights that can be run beforehand{because}")
    names = {step.name for step in needed}
    return Cut(
        graph=graph,
        front=needed,
        tail=tail,
        crossing=crossing,
        inference=_silenced(graph, trained_ids, silent),
        random=tuple(name for name in random if name in names),
        stopped_by=tuple(stopped_by),
        statistics=tuple(leaf.variable for leaf in leaves if not leaf.trainable),
    )


def steps_to(numbers: Iterable[int], steps: Iterable[Step]) -> tuple[Step, ...]:
    """Returns those of the steps that the values with these numbers depend on, in order."""
    needed, open_numbers = [], set(numbers)
    # From output to input: what a needed step reads is needed too.
    for step in reversed(list(steps)):
        if open_numbers.intersection(step.writes):
            needed.append(step)
            open_numbers.update(step.reads)
    return tuple(reversed(needed))


def _does_more_than_its_graph(model: keras.Model) -> str:
    if not can_open(model):
        return f"`{model.name}` has its own `call`: only functional and Sequential models can be cut"
    replaced = [
        name for name in ("train_step", "compute_loss") if getattr(type(model), name) is not getattr(keras.Model, name)
    ]
    return f"`{model.name}` has its own {quote(replaced)}, which may use the inputs themselves" if replaced else ""


def _silenced(graph: Graph, trained: frozenset[int], silent: frozenset[int]) -> frozenset[int]:
    """Returns the `id`s of the operations that must be called with `training=False` so that they draw nothing.

    Those are what the caller runs in inference mode: random by itself, not random with `silent`.
    """
    return frozenset(
        id(step.operation)
        for step in graph.steps
        if not _trains(step, trained) and _randomness(step, frozenset()) and not _randomness(step, silent)
    )


def _tail(graph: Graph, front: Sequence[Step]) -> tuple[Step, ...]:
    in_front = set(map(id, front))
    return steps_to(graph.outputs, (step for step in graph.steps if id(step) not in in_front))


def _crossing(graph: Graph, tail: Sequence[Step]) -> tuple[int, ...]:
    written = {number for step in tail for number in step.writes}
    read = {number for step in tail for number in step.reads} | set(graph.outputs)
    return tuple(sorted(read - written))


def _without_cheap_ends(graph: Graph, front: list[Step]) -> list[Step]:
    """Gives to the tail what costs it nothing: fewer values then cross the cut.

    From the end of the front: an operation without weights, if that leaves fewer values to keep; and a random layer
    without weights, such as dropout, if it is the last step and that leaves no more.
    """
    for step in reversed(front):
        fewer = [other for other in front if other is not step]
        is_operation = not isinstance(step.operation, layers.Layer)
        is_last = not any(set(step.writes).intersection(other.reads) for other in fewer)
        if is_operation or (is_last and not _weights(step) and _randomness(step, frozenset())):
            saved = len(_kept(graph, front)) - len(_kept(graph, fewer))
            if saved >= int(is_operation):
                front = fewer
    return front


def _kept(graph: Graph, front: Sequence[Step]) -> set[int]:
    """Returns the numbers of the values that would be kept for this front: those that cross and are not inputs."""
    return set(_crossing(graph, _tail(graph, front))) - set(range(len(graph.model.inputs)))


def _reason_for_tail(step: Step, trained: frozenset[int], updating: frozenset[int]) -> str:
    """Returns why a step must run in every epoch, whatever random numbers are; empty if it need not."""
    if _trains(step, trained):
        return "is trained"
    # Layers inside count too: a frozen block may contain a BatchNormalization that is not frozen.
    parts = _parts(step.operation)
    if any(id(part) in updating for part in parts):
        return "updates its statistics in training"
    if any(part.activity_regularizer is not None or isinstance(part, layers.ActivityRegularization) for part in parts):
        return "adds to the loss"
    return ""


def _trains(step: Step, trained: frozenset[int]) -> bool:
    return any(id(variable) in trained for variable in _weights(step))


def _weights(step: Step) -> list[Any]:
    return step.operation.weights if isinstance(step.operation, layers.Layer) else []


def _parts(operation: Any) -> list[Any]:
    """Returns a layer with all layers inside it; nothing for an operation."""
    return keras_private.sublayers(operation, include_self=True) if isinstance(operation, layers.Layer) else []


def _updating(leaves: Sequence[Leaf]) -> frozenset[int]:
    """Returns the `id`s of the layers that update statistics in training: those that have some and are not frozen."""
    owners = {id(leaf.owner): leaf.owner for leaf in leaves if not leaf.trainable}
    return frozenset(
        key
        for key, owner in owners.items()
        # `Normalization` updates its mean and variance in `adapt` alone.
        if getattr(owner, "trainable", True) and not isinstance(owner, layers.Normalization)
    )


def _randomness(step: Step, silent: frozenset[int]) -> str:
    """Returns how a step draws random numbers in training; empty if it does not. Layers in `silent` draw none."""
    random = [part for part in _parts(step.operation) if id(part) not in silent and _draws(part)]
    kinds = dict.fromkeys(type(part).__name__ for part in random)
    return f"draws random numbers in training ({quote(kinds)})" if kinds else ""


def _draws(layer: layers.Layer) -> bool:
    """Returns whether the layer has a seed of its own, and no rate of 0 that makes it idle.

    A seed is a variable that is not a weight and belongs to no layer inside. Keras has no public way to ask for it.
    """
    # `variables` are the weights of a layer and its seeds, those of all layers inside included.
    others = {id(weight) for weight in layer.weights}
    others |= {id(variable) for part in keras_private.sublayers(layer) for variable in part.variables}
    if all(id(variable) in others for variable in layer.variables):
        return False
    # A layer without any of these rates, such as RandomFlip, is always random.
    rates = [getattr(layer, name) for name in _RATES if isinstance(getattr(layer, name, None), (int, float))]
    return not rates or any(rates)
