"""A functional network as a list of steps, which can be run in parts.

Nested functional and Sequential models are opened up, so that a part may end inside of one. The steps call the model's
own layers with the arguments that Keras calls them with; nothing is copied or built, and the model is not changed.

What stands here on Keras' private names: the nodes of a `keras.Function` (`_nodes_by_depth`), how `Functional.call`
passes `training` on, and masks. `tests/test_graph.py` holds them.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
from keras import ops
from keras.src.backend.common.masking import get_keras_mask, set_keras_mask
from keras.src.models.functional import Functional, operation_fn

Values = dict[int, Any]


@dataclass(frozen=True, eq=False)
class Step:
    """One call in the network.

    Attributes:
        name: Names of the models around it and of the layer, e.g. `backbone/conv1`.
        operation: The layer or operation; `None` where a model takes its inputs in.
        reads: Numbers of the values it reads.
        writes: Numbers of the values it returns.
        call: Computes the values it returns from those it reads; knows what `training` is.
        constants: What else the call is given.
    """

    name: str
    operation: keras.Operation | None
    reads: tuple[int, ...]
    writes: tuple[int, ...]
    call: Callable[[Sequence[Any], bool], list[Any]]
    constants: tuple[Any, ...] = ()


@dataclass(frozen=True, eq=False)
class Graph:
    """A whole network; its inputs are the values from 0 on.

    Attributes:
        model: The model.
        steps: All calls, in the order in which Keras makes them.
        outputs: Numbers of the values it returns.
    """

    model: keras.Model
    steps: tuple[Step, ...]
    outputs: tuple[int, ...]

    def inputs_of(self, x: Any) -> Values:
        """Returns what the model takes, numbered: inputs by name or in order."""
        if isinstance(x, Mapping):
            x = [x[key] for key in _input_keys(self.model)]
        return dict(enumerate(keras.tree.flatten(x)))

    def outputs_of(self, values: Values) -> Any:
        """Returns the outputs in the structure that the model gives them."""
        found = [values[number] for number in self.outputs]
        if isinstance(self.model, keras.Sequential):
            return found[0]
        packed = keras.tree.pack_sequence_as(self.model.output, found)
        return packed[0] if isinstance(packed, (list, tuple)) and len(packed) == 1 else packed


def run(steps: Iterable[Step], values: Values, *, training: bool, inference: frozenset[int] = frozenset()) -> Values:
    """Runs steps, in order.

    Args:
        steps: The steps.
        values: The values that they read and do not write, by number.
        training: What the layers are told.
        inference: Ids of operations that are told `training=False` all the same.

    Returns:
        All values, those given among them.
    """
    values = dict(values)
    for step in steps:
        found = step.call([values[number] for number in step.reads], training and id(step.operation) not in inference)
        values.update(zip(step.writes, found, strict=True))
    return values


def can_open(layer: Any) -> bool:
    """Whether the layer is a graph of layers and nothing else: a functional or Sequential model, as Keras calls it."""
    if not (isinstance(layer, keras.Model) and layer.built and type(layer).__call__ is keras.Model.__call__):
        return False
    if isinstance(layer, keras.Sequential):
        return type(layer).call is keras.Sequential.call and hasattr(layer, "inputs") and len(layer.outputs) == 1
    return isinstance(layer, Functional) and type(layer).call is Functional.call


def open_graph(model: keras.Model) -> Graph:
    """Returns the steps of a model for which `can_open` holds."""
    numbers = _Numbers(len(model.inputs))
    steps: list[Step] = []
    outputs = _open(model, tuple(range(len(model.inputs))), None, "", numbers, steps)
    return Graph(model, tuple(steps), outputs)


class _Numbers:
    """Hands out the numbers of values."""

    def __init__(self, used: int):
        self.used = used

    def take(self, count: int) -> tuple[int, ...]:
        self.used += count
        return tuple(range(self.used - count, self.used))


def _open(
    model: keras.Model, inputs: Sequence[int], given: Any, path: str, numbers: _Numbers, steps: list[Step]
) -> tuple[int, ...]:
    number_of: dict[int, int] = {}
    for position, (tensor, number) in enumerate(zip(model.inputs, inputs, strict=True)):
        if given is None or given[position].dtype != tensor.dtype or len(given[position].shape) != len(tensor.shape):
            step = Step(f"{path}{tensor.name}", None, (number,), numbers.take(1), _taking_in(tensor), (tensor.dtype,))
            steps.append(step)
            (number,) = step.writes
        number_of[id(tensor)] = number
    by_depth = keras.Function(model.inputs, model.outputs)._nodes_by_depth
    for node in (node for depth in sorted(by_depth, reverse=True) for node in by_depth[depth]):
        if node.is_input or not node.operation:
            continue
        reads = tuple(number_of[id(tensor)] for tensor in node.input_tensors)
        name = f"{path}{node.operation.name}"
        if can_open(node.operation) and _takes_inputs_alone(node):
            writes = _open(node.operation, reads, node.input_tensors, f"{name}/", numbers, steps)
        else:
            writes = numbers.take(len(node.outputs))
            steps.append(Step(name, node.operation, reads, writes, _calling(node), _constants(node)))
        number_of.update(zip(map(id, node.outputs), writes, strict=True))
    return tuple(number_of[id(tensor)] for tensor in model.outputs)


def _takes_inputs_alone(node: Any) -> bool:
    """Whether a nested model was called with its inputs in their order and nothing else."""
    args, kwargs, model = node.arguments.args, node.arguments.kwargs, node.operation
    if len(args) != 1 or any(value is not None for value in keras.tree.flatten(kwargs)):  # `mask` is, if any
        return False
    if isinstance(args[0], Mapping) and not _has_keys(model, args[0]):
        return False
    flat = keras.tree.flatten(args)
    return len(flat) == len(model.inputs) and list(map(id, flat)) == list(map(id, node.input_tensors))


def _has_keys(model: keras.Model, inputs: Mapping[str, Any]) -> bool:
    structure = None if isinstance(model, keras.Sequential) else model.input
    return isinstance(structure, Mapping) and sorted(structure) == sorted(inputs)


def _constants(node: Any) -> tuple[Any, ...]:
    """The whole call with the tensors it reads replaced by their place among them."""
    place = {id(tensor): f"value {position}" for position, tensor in enumerate(node.input_tensors)}
    args, kwargs = node.arguments.fill_in(place)
    return args, kwargs


def _calling(node: Any) -> Callable[[Sequence[Any], bool], list[Any]]:
    keys = [id(tensor) for tensor in node.input_tensors]

    def call(values: Sequence[Any], training: bool) -> list[Any]:
        args, kwargs = node.arguments.fill_in(dict(zip(keys, values, strict=True)))
        return keras.tree.flatten(operation_fn(node.operation, training=training)(*args, **kwargs))

    return call


def _taking_in(tensor: keras.KerasTensor) -> Callable[[Sequence[Any], bool], list[Any]]:
    """What `Functional.call` does to an input: to its type, and to its number of axes."""

    def call(values: Sequence[Any], training: bool) -> list[Any]:
        mask = get_keras_mask(values[0])
        x: Any = ops.convert_to_tensor(values[0], dtype=tensor.dtype, sparse=tensor.sparse)
        missing = len(tensor.shape) - len(x.shape)
        if missing == 1 and tensor.shape[-1] == 1:
            x = ops.expand_dims(x, -1)
        elif missing == -1 and x.shape[-1] == 1:
            x = ops.squeeze(x, -1)
        if mask is not None:
            set_keras_mask(x, mask)
        return [x]

    return call


def _input_keys(model: keras.Model) -> list[str]:
    structure = None if isinstance(model, keras.Sequential) else model.input
    return sorted(structure) if isinstance(structure, Mapping) else [tensor.name for tensor in model.inputs]
