"""A functional model as a list of steps, so that a part of it can be run alone.

Keras can run a functional or Sequential model only as a whole. Here its graph is read into steps in the order in which
Keras runs them. Values have numbers: the inputs of the model are 0, 1, ..., and every step reads some numbers and
writes new ones. Nested functional and Sequential models are opened up, so that a part may end inside of one.

    x -> Dense -> (backbone: Dense -> Dense) -> Dense        0 -> 1 -> 2 -> 3 -> 4

The steps call the model's own layers with the arguments that Keras calls them with; nothing is copied or built, and the
model is not changed. A reader interested in where a model is cut can skip this file: `cut.py` uses only `Step` and
`Graph`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
from keras import ops

from finetune import keras_private

Values = dict[int, Any]


@dataclass(frozen=True, eq=False)
class Step:
    """A call of a layer or operation in a model.

    Attributes:
        name: Names of the models around it and of the layer, e.g. `backbone/conv1`.
        operation: The layer or operation; `None` where a model converts one of its inputs.
        reads: Numbers of the values that it reads.
        writes: Numbers of the values that it returns.
        call: Computes the values that it returns from those that it reads and from `training`.
        constants: The other arguments of the call, such as an axis.
    """

    name: str
    operation: keras.Operation | None
    reads: tuple[int, ...]
    writes: tuple[int, ...]
    call: Callable[[Sequence[Any], bool], list[Any]]
    constants: tuple[Any, ...] = ()


@dataclass(frozen=True, eq=False)
class Graph:
    """A whole model; its inputs have the numbers from 0 on.

    Attributes:
        model: The model.
        steps: All calls, in the order in which Keras makes them.
        outputs: Numbers of the values that the model returns.
    """

    model: keras.Model
    steps: tuple[Step, ...]
    outputs: tuple[int, ...]

    def inputs_of(self, x: Any) -> Values:
        """Returns the inputs of the model by number.

        Args:
            x: What the model is called with: inputs in its own structure, or by name.
        """
        if isinstance(x, Mapping):
            # A model of named inputs takes them in alphabetical order, other models in the order of their inputs.
            model = self.model
            structure = None if isinstance(model, keras.Sequential) else model.input
            is_named = isinstance(structure, Mapping)
            x = [x[key] for key in (sorted(structure) if is_named else [tensor.name for tensor in model.inputs])]
        return dict(enumerate(keras.tree.flatten(x)))

    def outputs_of(self, values: Values) -> Any:
        """Returns the outputs in the structure in which the model returns them."""
        outputs = [values[number] for number in self.outputs]
        if isinstance(self.model, keras.Sequential):
            return outputs[0]
        packed = keras.tree.pack_sequence_as(self.model.output, outputs)
        return packed[0] if isinstance(packed, (list, tuple)) and len(packed) == 1 else packed


def run(steps: Iterable[Step], values: Values, *, training: bool, inference: frozenset[int] = frozenset()) -> Values:
    """Runs steps, in order.

    Args:
        steps: The steps.
        values: The values that they read and do not write, by number.
        training: The `training` argument of the layers.
        inference: `id`s of operations that run with `training=False` whatever `training` is.

    Returns:
        All values by number, `values` included.
    """
    values = dict(values)
    for step in steps:
        # `id`s, because one layer may be called in several steps and must run the same in each.
        is_training = training and id(step.operation) not in inference
        written = step.call([values[number] for number in step.reads], is_training)
        values.update(zip(step.writes, written, strict=True))
    return values


def can_open(layer: Any) -> bool:
    """Returns whether the layer is a graph of layers and nothing else: a functional or Sequential model.

    A subclass with its own `call` or `__call__` does more than its graph, and a Sequential model whose input shape is
    not known has none.
    """
    if not (isinstance(layer, keras.Model) and layer.built and type(layer).__call__ is keras.Model.__call__):
        return False
    if isinstance(layer, keras.Sequential):
        return type(layer).call is keras.Sequential.call and hasattr(layer, "inputs") and len(layer.outputs) == 1
    return keras_private.runs_its_graph(layer)


def open_graph(model: keras.Model) -> Graph:
    """Returns the steps of a model for which `can_open` is true."""
    numbers = _Numbers(len(model.inputs))
    steps: list[Step] = []
    outputs = _open(model, tuple(range(len(model.inputs))), None, "", numbers, steps)
    return Graph(model, tuple(steps), outputs)


class _Numbers:
    """Numbers new values; the first `used` numbers are the inputs."""

    def __init__(self, used: int):
        self.used = used

    def take(self, count: int) -> tuple[int, ...]:
        self.used += count
        return tuple(range(self.used - count, self.used))


def _open(
    model: keras.Model, inputs: Sequence[int], passed: Any, path: str, numbers: _Numbers, steps: list[Step]
) -> tuple[int, ...]:
    """Appends the steps of a model, nested models included, and returns the numbers of its outputs.

    Args:
        model: A model for which `can_open` is true.
        inputs: Numbers of the values that it is called with.
        passed: The symbolic tensors that a model around it passes to it; `None` for the outermost model.
        path: Names of the models around it, each with a `/`.
        numbers: Numbers for the new values.
        steps: The list to append to.
    """
    number_of: dict[int, int] = {}  # of the symbolic tensors of this model, by `id`
    for position, (tensor, number) in enumerate(zip(model.inputs, inputs, strict=True)):
        # A model converts its inputs to the types that it declares. Inside another model that is rarely needed.
        if passed is None or _differs(passed[position], tensor):
            reads, (number,) = (number,), numbers.take(1)
            steps.append(Step(f"{path}{tensor.name}", None, reads, (number,), _conversion(tensor), (tensor.dtype,)))
        number_of[id(tensor)] = number
    # A `Function` has exactly the calls between these inputs and outputs; the layers may also be called elsewhere.
    by_depth = keras_private.nodes_by_depth(keras.Function(model.inputs, model.outputs))
    for node in (node for depth in sorted(by_depth, reverse=True) for node in by_depth[depth]):
        if node.is_input or not node.operation:
            continue
        reads = tuple(number_of[id(tensor)] for tensor in node.input_tensors)
        name = f"{path}{node.operation.name}"
        # A nested model with other arguments, such as a mask, stays one step.
        if can_open(node.operation) and _takes_only_inputs(node):
            writes = _open(node.operation, reads, node.input_tensors, f"{name}/", numbers, steps)
        else:
            writes = numbers.take(len(node.outputs))
            steps.append(Step(name, node.operation, reads, writes, _call_of(node), _constants(node)))
        number_of.update(zip(map(id, node.outputs), writes, strict=True))
    return tuple(number_of[id(tensor)] for tensor in model.outputs)


def _differs(passed: Any, declared: keras.KerasTensor) -> bool:
    return passed.dtype != declared.dtype or len(passed.shape) != len(declared.shape)


def _takes_only_inputs(node: Any) -> bool:
    """Returns whether a nested model was called with its inputs in their order and nothing else."""
    args, kwargs, model = node.arguments.args, node.arguments.kwargs, node.operation
    if len(args) != 1 or any(value is not None for value in keras.tree.flatten(kwargs)):  # such as a `mask`
        return False
    if isinstance(args[0], Mapping):
        structure = None if isinstance(model, keras.Sequential) else model.input
        if not isinstance(structure, Mapping) or sorted(structure) != sorted(args[0]):
            return False
    flat = keras.tree.flatten(args)
    return len(flat) == len(model.inputs) and list(map(id, flat)) == list(map(id, node.input_tensors))


def _constants(node: Any) -> tuple[Any, ...]:
    """Returns the arguments of a call, with each tensor replaced by its position among those that the call reads."""
    positions = {id(tensor): f"value {position}" for position, tensor in enumerate(node.input_tensors)}
    args, kwargs = node.arguments.fill_in(positions)
    return args, kwargs


def _call_of(node: Any) -> Callable[[Sequence[Any], bool], list[Any]]:
    # Keras records a call with symbolic tensors, and fills in the real ones by their `id`.
    keys = [id(tensor) for tensor in node.input_tensors]

    def call(values: Sequence[Any], training: bool) -> list[Any]:
        args, kwargs = node.arguments.fill_in(dict(zip(keys, values, strict=True)))
        return keras.tree.flatten(keras_private.with_training(node.operation, training)(*args, **kwargs))

    return call


def _conversion(tensor: keras.KerasTensor) -> Callable[[Sequence[Any], bool], list[Any]]:
    """Returns what `Functional.call` does to an input: its type, and an axis of length 1 at the end."""

    def call(values: Sequence[Any], training: bool) -> list[Any]:
        mask = keras_private.mask_of(values[0])
        x: Any = ops.convert_to_tensor(values[0], dtype=tensor.dtype, sparse=tensor.sparse)
        missing = len(tensor.shape) - len(x.shape)
        if missing == 1 and tensor.shape[-1] == 1:
            x = ops.expand_dims(x, -1)
        elif missing == -1 and x.shape[-1] == 1:
            x = ops.squeeze(x, -1)
        if mask is not None:  # the conversion makes a new tensor, and a mask is an attribute of a tensor
            keras_private.set_mask(x, mask)
        return [x]

    return call
