"""Weights in TensorFlow checkpoints: object graphs of TF2, and the flat names of TF1's `Saver`."""

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
from finetune.pretrained.formats.not_weights import in_books, is_counter, is_random_state, is_slot
from finetune.pretrained.formats.weight_file import Tensor, WeightFile
from finetune.pretrained.automatic_names import stem

_GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"
_TRACKED_LISTS = ("variables", "trainable_variables", "non_trainable_variables")


def read_checkpoint(path: Path) -> WeightFile:
    """Reads the checkpoint that an index file belongs to.

    Raises:
        RestoreError: A part of the checkpoint is missing.
    """
    prefix = path.with_suffix("") if path.suffix == ".index" else path
    if path.suffix == ".index":
        _require_shards(prefix)
    try:
        return _read_prefix(prefix)
    except tf.errors.OpError as error:
        raise ValueError(error.message) from error


def _read_prefix(prefix: Path) -> WeightFile:
    reader = tf.train.load_checkpoint(str(prefix))
    if _GRAPH in reader.get_variable_to_shape_map():
        return WeightFile(str(prefix), "tf-object-checkpoint", _unique_names(_object_tensors(reader)))
    return WeightFile(str(prefix), "tf1-checkpoint", tuple(_saver_tensors(reader)))


def _require_shards(prefix: Path) -> None:
    shards = [entry.name for entry in prefix.parent.iterdir() if entry.name.startswith(f"{prefix.name}.data-")]
    wanted = {int(shard.rpartition("-of-")[2]) for shard in shards} or {1}
    if len(shards) < max(wanted):
        raise RestoreError(
            f"A checkpoint is an index and its data. `{prefix}.index` is there, but {len(shards)} of {max(wanted)} "
            f"data files. Copy all files that begin with `{prefix.name}` to `{prefix.parent}`."
        )


def _tensor(reader: Any, key: str, name: str, aliases: tuple[str, ...] = (), places: tuple[str, ...] = ()) -> Tensor:
    in_keras3 = [re.sub("(^|/)depthwise_kernel$", r"\1kernel", known) for known in (name, *aliases)]
    aliases = tuple(alias for alias in dict.fromkeys([*aliases, *in_keras3]) if alias != name)
    shape = tuple(reader.get_variable_to_shape_map()[key])
    dtype = reader.get_variable_to_dtype_map()[key].name
    return Tensor(name, shape, dtype, partial(_read, reader, key), aliases=aliases, places=places)


def _read(reader: Any, key: str) -> np.ndarray:
    try:
        return np.asarray(reader.get_tensor(key))
    except tf.errors.OpError as error:
        raise ValueError(error.message) from error


# TF1: flat names


def _saver_tensors(reader: Any) -> Iterator[Tensor]:
    shapes, dtypes = reader.get_variable_to_shape_map(), reader.get_variable_to_dtype_map()
    for name in sorted(shapes):
        counts = not shapes[name] and is_counter(name)
        if dtypes[name] != tf.string and not counts and not is_slot(name, shapes):
            yield _tensor(reader, name, name)


# TF2: a graph of objects


def variable_paths(root: Any, children: Callable[[Any], Mapping[str, Any]]) -> dict[Any, tuple[str, ...]]:
    """Returns the shortest path of names to every object below `root` that no optimizer holds.

    Args:
        root: A hashable object, or the number of one.
        children: Gives the objects one holds by their names.
    """
    paths: dict[Any, tuple[str, ...]] = {root: ()}
    queue = [root]
    for node in queue:
        for name, child in sorted(children(node).items()):
            if child not in paths and not is_optimizer(children(child)):
                paths[child] = (*paths[node], name)
                queue.append(child)
    return paths


def is_optimizer(children: Mapping[str, Any]) -> bool:
    """Whether an object that holds these is an optimizer, of Keras or of TF1."""
    return not {"_iterations", "iter", "inner_optimizer", "beta1_power"}.isdisjoint(children)


def object_place(path: tuple[str, ...], full_name: str) -> str:
    """Returns where an object graph keeps a variable: its path, checked by the variable's own name.

    Where the path goes over numbers of layers, the whole name counts; where it is all attributes, its last part.
    """
    scope, _, own = full_name.rpartition("/")
    return f"object:{'/'.join(path)}|{'' if _by_attributes(path) else f'{scope}/'}{stem(own)}"


def _possible_places(path: tuple[str, ...], full_name: str) -> set[str]:
    """The places of a variable, since a file does not tell which numbers in a name Keras or TensorFlow counted."""
    parts = ({part, stem(part)} for part in full_name.split("/"))
    return {object_place(path, "/".join(chosen)) for chosen in itertools.islice(itertools.product(*parts), 64)}


def trainable_place(index: int, count: int, full_name: str) -> str:
    """Returns the place of a weight that is only known as one of the trainable ones in their order."""
    return f"trainable:{index}/{count}|{stem(full_name.rpartition('/')[2])}"


def _by_attributes(path: tuple[str, ...]) -> bool:
    return not any(re.fullmatch(r"_operations|_functional|layer(_with_weights)?-\d+", part) for part in path)


def _object_tensors(reader: Any) -> Iterator[tuple[str, Tensor]]:
    """The weights, each with the name of what holds it at the root."""
    graph = trackable_object_graph_pb2.TrackableObjectGraph()
    graph.ParseFromString(reader.get_tensor(_GRAPH))
    edges = [{child.local_name: child.node_id for child in node.children} for node in graph.nodes]
    if "variables" in edges[0]:
        edges[0].pop("_all_variables", None)  # Keras 3 exports every weight twice
    values = _values(graph)
    paths = {node: path for node, path in variable_paths(0, edges.__getitem__).items() if node in values}
    paths = {node: path for node, path in paths.items() if not _is_bookkeeping(reader, path, *values[node])}
    places = _object_places(edges, {node: values[node][0] for node in paths})
    roots = {path[0] for path in paths.values()} if all(len(path) > 1 for path in paths.values()) else set()
    scopes = {full_name.partition("/")[0] for full_name, _ in (values[node] for node in paths)}
    trained = edges[edges[0]["trainable_variables"]] if "trainable_variables" in edges[0] else {}
    for node, path in paths.items():
        full_name, key = values[node]
        name, *aliases = dict.fromkeys(_names(path, full_name, len(roots) == 1, len(scopes) == 1))
        listed = [] if path[0] != "trainable_variables" else [trainable_place(int(path[1]), len(trained), full_name)]
        root = "" if path[0] in _TRACKED_LISTS else path[0]
        yield root, _tensor(reader, key, name, aliases=tuple(aliases), places=(*places[node], *listed))
    yield from _only_in_optimizer(reader, edges, values, set(paths))


def _values(graph: Any) -> dict[int, tuple[str, str]]:
    """The variables' full names and keys by node. No name leads to the slots of older optimizers."""
    return {
        number: (value.full_name, value.checkpoint_key)
        for number, node in enumerate(graph.nodes)
        for value in node.attributes
        if value.name == "VARIABLE_VALUE"
    }


def _is_bookkeeping(reader: Any, path: tuple[str, ...], full_name: str, key: str) -> bool:
    if reader.get_variable_to_dtype_map()[key] == tf.string or in_books(path):
        return True
    counts = len(path) == 1 and not reader.get_variable_to_shape_map()[key] and is_counter(path[0])
    return counts or is_random_state("/".join(path)) or is_random_state(full_name)


def _object_places(edges: list[dict[str, int]], full_names: dict[int, str]) -> dict[int, list[str]]:
    """Places below the root and below whatever the root holds: any of them may be the model."""
    roots = [0, *(node for node in edges[0].values() if not is_optimizer(edges[node]))]
    below = [variable_paths(root, edges.__getitem__) for root in dict.fromkeys(roots)]
    return {
        node: [place for paths in below if paths.get(node) for place in _possible_places(paths[node], name)]
        for node, name in full_names.items()
    }


def _names(path: tuple[str, ...], full_name: str, one_root: bool, one_scope: bool) -> Iterator[str]:
    if path[0] in _TRACKED_LISTS:  # a SavedModel may list its weights, and nothing else leads to them
        yield from _names_by_name(full_name, one_scope)
        yield f"*/{full_name}"
        return
    below_root = path[1:] if len(path) > 1 else path
    attributes = [below_root, path] if one_root else [path, below_root]
    by_attributes = ["/".join(part.lstrip("_") for part in parts) for parts in attributes]
    by_name = list(_names_by_name(full_name, one_scope))
    yield from by_attributes + by_name if _by_attributes(path) else by_name
    yield from (f"{'/'.join(parts[:-1])}/{full_name.rpartition('/')[2]}".lstrip("/") for parts in attributes)
    if "/" in full_name:
        yield f"*/{full_name}"


def _names_by_name(full_name: str, one_scope: bool) -> Iterator[str]:
    scoped = full_name.partition("/")[2]
    if one_scope and scoped:
        yield scoped
    yield full_name


def _only_in_optimizer(
    reader: Any, edges: list[dict[str, int]], values: dict[int, tuple[str, str]], known: set[int]
) -> Iterator[tuple[str, Tensor]]:
    """Weights of layers in lists of a Keras 3 model: only its optimizer's list of variables leads to them."""
    optimizers = [held for held in edges if is_optimizer(held) and "_trainable_variables" in held]
    for held in optimizers:
        trained = edges[held["_trainable_variables"]]
        for index, node in sorted((int(index), node) for index, node in trained.items()):
            if node in values and node not in known:
                full_name, key = values[node]
                places = (trainable_place(index, len(trained), full_name),)
                yield "", _tensor(reader, key, full_name, aliases=(f"*/{full_name}",), places=places)


def _unique_names(tensors: Iterator[tuple[str, Tensor]]) -> tuple[Tensor, ...]:
    """Tells weights of one name apart by the root that holds them, `one/head/kernel`, or by numbers, `head/kernel~2`.

    A repeated name identifies nothing, so no other name made from it stays either.
    """
    every = list(tensors)
    repeated = {name for name, count in Counter(tensor.name for _, tensor in every).items() if count > 1}
    rooted = [f"{root}/{t.name}" if root and t.name in repeated else t.name for root, t in every]
    counts, seen, result = Counter(rooted), Counter[str](), []
    for name, (_, tensor) in zip(rooted, every, strict=True):
        seen[name] += 1
        unique = name if counts[name] == 1 else f"{name}~{seen[name]}"
        result.append(tensor if unique == tensor.name else replace(tensor, name=unique, aliases=()))
    return tuple(result)
