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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import trackable_object_graph_pb2

from finetune.errors import RestoreError
from finetune.files.checkpoint_index import check_index, check_single_file
from finetune.pretrained.automatic_names import without_number
from finetune.pretrained.formats.tensor_roles import (
    AVERAGE,
    COPY,
    COUNTER,
    OTHER,
    SEED,
    SLOT,
    TEXT,
    WEIGHT,
    is_counter,
    is_named_as_average,
    is_random_state,
    role_of_path,
    split_by_role,
    with_roles,
)
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
        check_index(path)
    else:
        check_single_file(path)
    try:
        reader = tf.train.load_checkpoint(str(prefix))
        if _GRAPH in reader.get_variable_to_shape_map():
            return WeightFile(str(prefix), "tf-object-checkpoint", *_object_tensors(reader))
        return WeightFile(str(prefix), "tf1-checkpoint", *_saver_tensors(reader))
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


def _saver_tensors(reader: Any) -> tuple[tuple[StoredTensor, ...], tuple[StoredTensor, ...]]:
    """Returns the weights, and the rest. There is no graph, only names: what cannot be anything else is a weight."""
    tensors = {name: _tensor(reader, name, name) for name in sorted(reader.get_variable_to_shape_map())}
    return split_by_role(with_roles(tensors))


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
        # Keras 2 holds a layer as `layer-4` and, if it has weights, as `layer_with_weights-2`, which is what counts.
        for name, child in sorted(children(node).items(), key=lambda item: (item[0].startswith("layer-"), item[0])):
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


def keras2_location(path: tuple[str, ...], layer: str) -> str:
    """Returns where Keras 2 keeps a variable of a model that was made by functions.

    Args:
        path: Names of the edges from the model: `layer_with_weights-0/3`, the first of three layers with weights,
            `cell`, `kernel`. Keras 3 holds `_kernel`.
        layer: The name of the layer in its model; empty where attributes alone lead to the variable.
    """
    attribute = "kernel" if path[-1] == "depthwise_kernel" else path[-1]
    return f"keras2:{'/'.join(part.lstrip('_') for part in (*path[:-1], attribute))}|{layer}"


def _possible_locations(path: tuple[str, ...], full_name: str) -> Iterable[str]:
    """Returns an `object_location` for every choice of numbers in the name that Keras or TensorFlow may have counted.

    `block_1/dense_7`: a file does not say that the user wrote `block_1` and Keras counted to `dense_7`.
    """
    parts = [dict.fromkeys([part, without_number(part)]) for part in full_name.split("/")]
    # Scopes are around the name of the layer in its model: `net/block/dense_7/kernel`.
    is_numbered = any(part.startswith("layer_with_weights-") for part in path)
    layers = itertools.chain(*parts[:-1]) if is_numbered else [""]
    names = ("/".join(chosen) for chosen in itertools.islice(itertools.product(*parts), 64))
    return dict.fromkeys(
        [*(keras2_location(path, layer) for layer in layers), *(object_location(path, name) for name in names)]
    )


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
    return not any(re.fullmatch(r"_operations|_functional|layer(_with_weights)?-\d+(/\d+)?", part) for part in path)


def _object_tensors(reader: Any) -> tuple[tuple[StoredTensor, ...], tuple[StoredTensor, ...]]:
    """Returns the weights, and the rest."""
    graph = trackable_object_graph_pb2.TrackableObjectGraph()
    graph.ParseFromString(reader.get_tensor(_GRAPH))
    edges = [_with_counts({child.local_name: child.node_id for child in node.children}) for node in graph.nodes]
    listed = list(_object_weights(reader, graph, edges))
    weights = _unique_names([(root, tensor) for _, root, tensor in listed])
    names = {key: tensor.name for (key, _, _), tensor in zip(listed, weights, strict=True)}
    return weights, tuple(_other_tensors(reader, graph, edges, names))


def _object_weights(reader: Any, graph: Any, edges: list[dict[str, int]]) -> Iterator[tuple[str, str, StoredTensor]]:
    """Yields the key of each weight, the name of the edge from the root that leads to it (empty for lists), and it."""
    below_root = dict(edges[0])
    if "variables" in below_root:
        below_root.pop("_all_variables", None)  # `export` of Keras 3 lists every weight twice
    edges = [below_root, *edges[1:]]
    variables = _variables(graph)
    paths = {node: path for node, path in variable_paths(0, edges.__getitem__).items() if node in variables}
    paths = {node: path for node, path in paths.items() if _role(reader, path, *variables[node]) == WEIGHT}
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
        yield key, root, _tensor(reader, key, name, aliases=tuple(aliases), locations=(*locations[node], *listed))
    yield from _weights_of_optimizers(reader, edges, variables, set(paths))


def _with_counts(children: dict[str, int]) -> dict[str, int]:
    """Adds to the numbers of Keras 2's layers how many there are: a part of a model must not look like another one."""
    count = sum(name.startswith("layer_with_weights-") for name in children)
    return {f"{name}/{count}" if name.startswith("layer_with_weights-") else name: n for name, n in children.items()}


def _variables(graph: Any) -> dict[int, tuple[str, str]]:
    """Returns the full name and the key of each variable, by its node."""
    return {
        number: (value.full_name, value.checkpoint_key)
        for number, node in enumerate(graph.nodes)
        for value in node.attributes
        if value.name == "VARIABLE_VALUE"
    }


def _role(reader: Any, path: tuple[str, ...], full_name: str, key: str) -> str:
    """Returns the role of a variable that no optimizer lists among its slots."""
    shape = tuple(reader.get_variable_to_shape_map()[key])
    if reader.get_variable_to_dtype_map()[key] == tf.string:
        return TEXT
    # A counter is beside the model, not in it: a scalar `step` inside a layer is its weight.
    if len(path) == 1 and not shape and is_counter(path[0]):
        return COUNTER
    if is_random_state(full_name):
        return SEED
    return AVERAGE if is_named_as_average(full_name) else role_of_path(path, shape)


def _other_tensors(
    reader: Any, graph: Any, edges: list[dict[str, int]], weights: Mapping[str, str]
) -> Iterator[StoredTensor]:
    """Yields every tensor of the file that is not a weight.

    Args:
        reader: Reads the file.
        graph: The graph of the objects.
        edges: For each of its nodes, the nodes that it holds by name.
        weights: The names of the weights by their keys.
    """
    variables = _variables(graph)
    slots = {
        variables[slot.slot_variable_node_id][1]: (slot.slot_name, variables[slot.original_variable_node_id][1])
        for node in graph.nodes
        for slot in node.slot_variables
        if slot.slot_variable_node_id in variables and slot.original_variable_node_id in variables
    }
    optimizers = [node for node, held in enumerate(edges) if is_optimizer(held)]
    slots |= {
        variables[average][1]: ("average", variables[weight][1])
        for node in optimizers
        for average, weight in _averages_of_keras(edges, edges[node])
        if average in variables and weight in variables
    }
    of_optimizers = {variables[node][1] for root in optimizers for node in _below(root, edges) if node in variables}
    by_full_name = {full_name: weights[key] for full_name, key in variables.values() if key in weights}
    full_names = {key: full_name for full_name, key in variables.values()}
    for key, shape in sorted(reader.get_variable_to_shape_map().items()):
        if key in weights:
            continue
        name, full_name = key.removesuffix("/.ATTRIBUTES/VARIABLE_VALUE"), full_names.get(key, "")
        slot, owner = slots.get(key, ("", ""))
        role, of = _role(reader, tuple(name.split("/")), full_name, key), weights.get(owner, "")
        if role == AVERAGE or slot == "average":  # `average` is the slot of tensorflow-addons' MovingAverage
            scope = full_name.rpartition("/")[0]
            role, of = AVERAGE, of or by_full_name.get(scope, scope)
        elif name.startswith("_all_variables/"):
            role, of = COPY, by_full_name.get(full_name, "")
        elif role == WEIGHT:
            is_state = slot or key in of_optimizers
            role = OTHER if not is_state else SLOT if shape else COUNTER
        yield replace(_tensor(reader, key, name), role=role, of=of)


def _averages_of_keras(edges: list[dict[str, int]], optimizer: Mapping[str, int]) -> Iterator[tuple[int, int]]:
    """Yields the averages that an optimizer of Keras 3 keeps with `use_ema`, each with the weight that it averages."""
    lists = [optimizer.get(name) for name in ("_model_variables_moving_average", "_trainable_variables")]
    averages, weights = ({} if node is None else edges[node] for node in lists)
    yield from ((node, weights[index]) for index, node in averages.items() if index in weights)


def _below(root: int, edges: list[dict[str, int]]) -> list[int]:
    """Returns all nodes that a node holds, itself included."""
    nodes = dict.fromkeys([root])
    for node in (queue := [root]):  # the list grows while it is iterated
        queue += [child for child in edges[node].values() if child not in nodes]
        nodes.update(dict.fromkeys(queue))
    return list(nodes)


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
) -> Iterator[tuple[str, str, StoredTensor]]:
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
                yield key, "", _tensor(reader, key, full_name, aliases=(f"*/{full_name}",), locations=locations)


def _unique_names(listed: Sequence[tuple[str, StoredTensor]]) -> tuple[StoredTensor, ...]:
    """Gives weights of the same name different ones: by their root, `one/head/kernel`, or by a number, `head/kernel~1`.

    A repeated name identifies nothing, so aliases made from it are dropped too.
    """
    repeated = {name for name, count in Counter(tensor.name for _, tensor in listed).items() if count > 1}
    rooted = [f"{root}/{t.name}" if root and t.name in repeated else t.name for root, t in listed]
    counts, seen, result = Counter(rooted), Counter[str](), []
    for name, (_, tensor) in zip(rooted, listed, strict=True):
        seen[name] += 1
        unique = name if counts[name] == 1 else f"{name}~{seen[name]}"
        result.append(tensor if unique == tensor.name else replace(tensor, name=unique, aliases=()))
    return tuple(result)
