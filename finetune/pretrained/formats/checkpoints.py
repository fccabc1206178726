"""Reads weights from TensorFlow checkpoints: the flat names of TF1's `Saver`, and the object graphs of TF2.

**TF1** maps variable names to values: `bb/d0/kernel`, and beside it slots, `bb/d0/kernel/Adam`, and counters.

**TF2** (`tf.train.Checkpoint`, `save_weights` of tf_keras, SavedModels) maps keys such as
`model/_operations/1/_kernel/.ATTRIBUTES/VARIABLE_VALUE` to values. The graph of the objects is itself an entry,
`_CHECKPOINTABLE_OBJECT_GRAPH`: nodes with named edges to what they hold, and for each variable its key and its
`full_name`, the name that TensorFlow gave it. A path of attributes is a good name where a user wrote the attributes
(`encoder/kernel`), and a poor one where it counts layers (`layer_with_weights-3/kernel`); then the full name is better.
"""

import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import trackable_object_graph_pb2

from finetune.errors import RestoreError
from finetune.pretrained.automatic_names import without_number
from finetune.pretrained.formats.not_weights import is_counter, is_in_optimizer_or_metrics, is_random_state, is_slot
from finetune.pretrained.formats.weight_file import StoredTensor, WeightFile

_GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"
_TRACKED_LISTS = ("variables", "trainable_variables", "non_trainable_variables")


def read_checkpoint(path: Path) -> WeightFile:
    """Reads a checkpoint of TF1 or TF2.

    Args:
        path: Its index file, or the only file of a checkpoint in the first version of the format.

    Raises:
        RestoreError: A data file of the checkpoint is missing.
        ValueError: TensorFlow cannot read the checkpoint.
    """
    prefix = path.with_suffix("") if path.suffix == ".index" else path
    if path.suffix == ".index":
        _require_data_files(prefix)
    try:
        reader = tf.train.load_checkpoint(str(prefix))
        if _GRAPH in reader.get_variable_to_shape_map():
            return WeightFile(str(prefix), "tf-object-checkpoint", _unique_names(_object_tensors(reader)))
        return WeightFile(str(prefix), "tf1-checkpoint", tuple(_saver_tensors(reader)))
    except tf.errors.OpError as error:
        raise ValueError(error.message) from error


def _require_data_files(prefix: Path) -> None:
    files = [entry.name for entry in prefix.parent.iterdir() if entry.name.startswith(f"{prefix.name}.data-")]
    count = max({int(file.rpartition("-of-")[2]) for file in files} or {1})  # `ckpt.data-00000-of-00002`
    if len(files) < count:
        raise RestoreError(
            f"A checkpoint needs its index and all its data files. `{prefix}.index` is there, but {len(files)} of "
            f"{count} data files. Copy all files that begin with `{prefix.name}` to `{prefix.parent}`."
        )


def _tensor(
    reader: Any, key: str, name: str, aliases: tuple[str, ...] = (), locations: tuple[str, ...] = ()
) -> StoredTensor:
    # Keras 3 calls `kernel` what Keras 2 called `depthwise_kernel`.
    in_keras3 = [re.sub("(^|/)depthwise_kernel$", r"\1kernel", known) for known in (name, *aliases)]
    aliases = tuple(alias for alias in dict.fromkeys([*aliases, *in_keras3]) if alias != name)
    shape = tuple(reader.get_variable_to_shape_map()[key])
    dtype = reader.get_variable_to_dtype_map()[key].name
    return StoredTensor(name, shape, dtype, partial(_read, reader, key), aliases=aliases, locations=locations)


def _read(reader: Any, key: str) -> np.ndarray:
    try:
        return np.asarray(reader.get_tensor(key))
    except tf.errors.OpError as error:
        raise ValueError(error.message) from error


# TF1: flat names


def _saver_tensors(reader: Any) -> Iterator[StoredTensor]:
    shapes, dtypes = reader.get_variable_to_shape_map(), reader.get_variable_to_dtype_map()
    # There is no graph, only names: what is not a slot, a counter or a text is taken for a weight.
    for name in sorted(shapes):
        counts = not shapes[name] and is_counter(name)
        if dtypes[name] != tf.string and not counts and not is_slot(name, shapes):
            yield _tensor(reader, name, name)


# TF2: a graph of objects


def variable_paths(root: Any, children: Callable[[Any], Mapping[str, Any]]) -> dict[Any, tuple[str, ...]]:
    """Returns the shortest path of names from `root` to every object below it, except what an optimizer holds.

    Args:
        root: A hashable object, or the number of an object.
        children: Returns what an object holds, by name.
    """
    paths: dict[Any, tuple[str, ...]] = {root: ()}
    queue = [root]
    for node in queue:  # breadth first: the list grows while it is iterated
        for name, child in sorted(children(node).items()):
            if child not in paths and not is_optimizer(children(child)):
                paths[child] = (*paths[node], name)
                queue.append(child)
    return paths


def is_optimizer(children: Mapping[str, Any]) -> bool:
    """Whether an object that holds these children is an optimizer, of Keras 2 or 3 or of TF1."""
    return not {"_iterations", "iter", "inner_optimizer", "beta1_power"}.isdisjoint(children)


def object_location(path: tuple[str, ...], full_name: str) -> str:
    """Returns where an object graph keeps a variable: its path, and of its full name what confirms it.

    A path that counts layers is confirmed by the whole full name; a path of attributes only by its last part.

    Args:
        path: Names of the edges from the model to the variable.
        full_name: The variable's own name, `dense/kernel`, without the number at the end of its last part.
    """
    scope, _, last = full_name.rpartition("/")
    return f"object:{'/'.join(path)}|{'' if _is_of_attributes(path) else f'{scope}/'}{without_number(last)}"


def _possible_locations(path: tuple[str, ...], full_name: str) -> set[str]:
    """Returns an `object_location` for every choice of numbers in the name that Keras or TensorFlow may have counted.

    `block_1/dense_7`: a file does not say that the user wrote `block_1` and Keras counted to `dense_7`.
    """
    parts = ({part, without_number(part)} for part in full_name.split("/"))
    return {object_location(path, "/".join(chosen)) for chosen in itertools.islice(itertools.product(*parts), 64)}


def trainable_location(index: int, count: int, full_name: str) -> str:
    """Returns the location of a weight of which only its position among all trainable weights is known.

    Args:
        index: Its position in `trainable_variables`, from 0.
        count: How many trainable weights there are.
        full_name: The variable's own name, of which the last part confirms the position.
    """
    return f"trainable:{index}/{count}|{without_number(full_name.rpartition('/')[2])}"


def _is_of_attributes(path: tuple[str, ...]) -> bool:
    """Whether the path holds attributes that a user chose, and no list in which Keras counts layers."""
    return not any(re.fullmatch(r"_operations|_functional|layer(_with_weights)?-\d+", part) for part in path)


def _object_tensors(reader: Any) -> Iterator[tuple[str, StoredTensor]]:
    """Yields the weights, each with the name of the edge from the root that leads to it (empty for lists)."""
    graph = trackable_object_graph_pb2.TrackableObjectGraph()
    graph.ParseFromString(reader.get_tensor(_GRAPH))
    edges = [{child.local_name: child.node_id for child in node.children} for node in graph.nodes]
    if "variables" in edges[0]:
        edges[0].pop("_all_variables", None)  # `export` of Keras 3 lists every weight twice
    variables = _variables(graph)
    paths = {node: path for node, path in variable_paths(0, edges.__getitem__).items() if node in variables}
    paths = {node: path for node, path in paths.items() if not _is_not_weight(reader, path, *variables[node])}
    locations = _object_locations(edges, {node: variables[node][0] for node in paths})
    # `tf.train.Checkpoint(net=model)`: one root, whose name says nothing. With two models it tells them apart.
    roots = {path[0] for path in paths.values()} if all(len(path) > 1 for path in paths.values()) else set()
    scopes = {full_name.partition("/")[0] for full_name, _ in (variables[node] for node in paths)}
    trained = edges[edges[0]["trainable_variables"]] if "trainable_variables" in edges[0] else {}
    for node, path in paths.items():
        full_name, key = variables[node]
        name, *aliases = dict.fromkeys(_names(path, full_name, len(roots) == 1, len(scopes) == 1))
        is_listed = path[0] == "trainable_variables"
        listed = [trainable_location(int(path[1]), len(trained), full_name)] if is_listed else []
        root = "" if path[0] in _TRACKED_LISTS else path[0]
        yield root, _tensor(reader, key, name, aliases=tuple(aliases), locations=(*locations[node], *listed))
    yield from _weights_of_optimizers(reader, edges, variables, set(paths))


def _variables(graph: Any) -> dict[int, tuple[str, str]]:
    """Returns the full name and the key of each variable, by its node."""
    return {
        number: (value.full_name, value.checkpoint_key)
        for number, node in enumerate(graph.nodes)
        for value in node.attributes
        if value.name == "VARIABLE_VALUE"
    }


def _is_not_weight(reader: Any, path: tuple[str, ...], full_name: str, key: str) -> bool:
    if reader.get_variable_to_dtype_map()[key] == tf.string or is_in_optimizer_or_metrics(path):
        return True
    # A counter is beside the model, not in it: a scalar `step` inside a layer is its weight.
    counts = len(path) == 1 and not reader.get_variable_to_shape_map()[key] and is_counter(path[0])
    return counts or is_random_state("/".join(path)) or is_random_state(full_name)


def _object_locations(edges: list[dict[str, int]], full_names: dict[int, str]) -> dict[int, list[str]]:
    """Returns locations below the root and below each of its children: any of them may be the model.

    `tf.train.Checkpoint(net=model)` has the model at `net`, `tf.saved_model.save(model)` at the root.
    """
    roots = [0, *(node for node in edges[0].values() if not is_optimizer(edges[node]))]
    below = [variable_paths(root, edges.__getitem__) for root in dict.fromkeys(roots)]
    return {
        node: [
            location for paths in below if paths.get(node) for location in _possible_locations(paths[node], full_name)
        ]
        for node, full_name in full_names.items()
    }


def _names(path: tuple[str, ...], full_name: str, single_root: bool, single_scope: bool) -> Iterator[str]:
    """Yields the names that a model may give a variable, the likeliest first.

    Args:
        path: Names of the edges from the root of the graph to the variable.
        full_name: The variable's own name.
        single_root: Whether one child of the root, the model, leads to all weights.
        single_scope: Whether all full names begin with the same part.
    """
    if path[0] in _TRACKED_LISTS:  # a SavedModel may only list its weights: then the path is a number
        yield from _scoped_names(full_name, single_scope)
        yield f"*/{full_name}"
        return
    below_root = path[1:] if len(path) > 1 else path
    paths = [below_root, path] if single_root else [path, below_root]
    by_attributes = ["/".join(part.lstrip("_") for part in parts) for parts in paths]  # Keras holds `_kernel`
    by_full_name = list(_scoped_names(full_name, single_scope))
    yield from by_attributes + by_full_name if _is_of_attributes(path) else by_full_name
    yield from (f"{'/'.join(parts[:-1])}/{full_name.rpartition('/')[2]}".lstrip("/") for parts in paths)
    if "/" in full_name:
        yield f"*/{full_name}"


def _scoped_names(full_name: str, single_scope: bool) -> Iterator[str]:
    scoped = full_name.partition("/")[2]
    if single_scope and scoped:  # the scope is the name of the whole model
        yield scoped
    yield full_name


def _weights_of_optimizers(
    reader: Any, edges: list[dict[str, int]], variables: dict[int, tuple[str, str]], known: set[int]
) -> Iterator[tuple[str, StoredTensor]]:
    """Yields weights to which only the list of variables of an optimizer leads.

    Keras 3 does not track layers in lists and dicts for TensorFlow's checkpoints. What its optimizer trained is in the
    file nevertheless, in the order of `trainable_variables`.
    """
    for held in edges:
        if not (is_optimizer(held) and "_trainable_variables" in held):
            continue
        # The list holds the variables by their index: "0", "1", ..., "10".
        trained = edges[held["_trainable_variables"]]
        for index, node in sorted((int(index), node) for index, node in trained.items()):
            if node in variables and node not in known:
                full_name, key = variables[node]
                locations = (trainable_location(index, len(trained), full_name),)
                yield "", _tensor(reader, key, full_name, aliases=(f"*/{full_name}",), locations=locations)


def _unique_names(tensors: Iterator[tuple[str, StoredTensor]]) -> tuple[StoredTensor, ...]:
    """Gives weights of the same name different ones: by their root, `one/head/kernel`, or by a number, `head/kernel~1`.

    A repeated name identifies nothing, so aliases made from it are dropped too.
    """
    listed = list(tensors)
    repeated = {name for name, count in Counter(tensor.name for _, tensor in listed).items() if count > 1}
    rooted = [f"{root}/{t.name}" if root and t.name in repeated else t.name for root, t in listed]
    counts, seen, result = Counter(rooted), Counter[str](), []
    for name, (_, tensor) in zip(rooted, listed, strict=True):
        seen[name] += 1
        unique = name if counts[name] == 1 else f"{name}~{seen[name]}"
        result.append(tensor if unique == tensor.name else replace(tensor, name=unique, aliases=()))
    return tuple(result)
