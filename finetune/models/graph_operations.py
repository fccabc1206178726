"""Looks into the graph of a SavedModel without running it: which operations it has, and which reach outside of it.

Two uses of files do not count. Every SavedModel has functions that save and restore its variables. And a lookup table
may read its words from the SavedModel's own folder `assets`.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from tensorflow.core.protobuf import meta_graph_pb2

from finetune.errors import FinetuneError, reason
from finetune.keras_private import parse_saved_model
from finetune.machine_failures import raise_machine_failure
from finetune.models.outside_operations import READS, RESTORES, SAVES, reaches

_CALLS = ("PartitionedCall", "StatefulPartitionedCall")


@dataclass(frozen=True)
class GraphOperations:
    """What the graph of a SavedModel consists of.

    Attributes:
        counts: How often each operation occurs, the most frequent first.
        outside: What an operation reaches outside of the graph, by its name; only those that do.
    """

    counts: Mapping[str, int]
    outside: Mapping[str, str]

    def summary(self, *, limit: int | None = None) -> str:
        """Returns the operations in a line, those that reach outside apart; at most `limit` of the others."""
        shown = [f"{name} x{count}" if count > 1 else name for name, count in self.counts.items()]
        more = [f"and {len(shown) - limit} more kinds"] if limit and len(shown) > limit else []
        names = ", ".join([*shown[:limit], *more])
        outside = ", ".join(f"{name} ({kind})" for name, kind in self.outside.items())
        return f"{sum(self.counts.values()):,} operations: {names}; reach outside of it: {outside or 'none'}"


def read_operations(folder: str) -> GraphOperations:
    """Reads the operations of all graphs and functions of a SavedModel; nothing of it runs.

    Args:
        folder: The folder of the SavedModel; any address that TensorFlow can read.

    Raises:
        FinetuneError: The graph cannot be read.
    """
    try:
        saved = parse_saved_model(folder)
    except Exception as error:  # classes of TensorFlow and protobuf, OSError
        raise_machine_failure(error, f"Reading `{folder}`")
        raise FinetuneError(
            f"A SavedModel is a folder with a graph that can be read. `{folder}` cannot: {reason(error)}. "
            "Copy it again."
        ) from error
    counts: Counter[str] = Counter()
    outside: dict[str, str] = {}
    for meta_graph in saved.meta_graphs:
        graph = _Graph(meta_graph)
        counts.update(node.op for _, node in graph.nodes() if node.op not in graph.functions)
        outside |= {node.op: kind for node, kind in graph.outside()}
    return GraphOperations(dict(counts.most_common()), dict(sorted(outside.items())))


class _Graph:
    """A meta graph: the main graph, whose owner is the empty name, and functions, each the owner of its nodes."""

    def __init__(self, meta_graph: Any):
        self.meta = meta_graph
        self.main = {node.name: node for node in meta_graph.graph_def.node}
        self.library = meta_graph.graph_def.library
        self.functions = {function.signature.name: function for function in self.library.function}
        self.inner = {name: {node.name: node for node in f.node_def} for name, f in self.functions.items()}
        self.object_graph = meta_graph.object_graph_def
        self.asset_files = _asset_files(meta_graph)
        self.assets = {asset.tensor_info.name for asset in self.asset_files if _is_inside(asset.filename)}
        # Which nodes call a function, or hand it to an operation that does.
        self.users: dict[str, list[tuple[str, Any]]] = defaultdict(list)
        for owner, node in self.nodes():
            for name in self.functions_of(node):
                self.users[name].append((owner, node))

    def nodes(self) -> Iterator[tuple[str, Any]]:
        yield from (("", node) for node in self.main.values())
        for name, function in self.functions.items():
            yield from ((name, node) for node in function.node_def)

    def functions_of(self, node: Any) -> set[str]:
        """Returns the functions that a node names, by an attribute or as its operation."""
        names = {node.op}
        for value in node.attr.values():
            names |= {value.func.name, value.s.decode("utf-8", "replace"), *(each.name for each in value.list.func)}
        return names & set(self.functions)

    def outside(self) -> Iterator[tuple[Any, str]]:
        """Yields the nodes that reach outside, each with what it reaches."""
        save, restore = self.meta.saver_def.save_tensor_name, self.meta.saver_def.restore_op_name
        elsewhere = self.above(self.used_elsewhere(self.above([save, restore])))
        # Loading a SavedModel of TensorFlow 1 runs what restores: an operation that saves has no place there.
        restoring = self.above([restore]) - elsewhere
        saving = self.above([save]) - elsewhere - restoring
        of_saver = dict.fromkeys(self.called_only_by(saving), SAVES)
        of_saver |= dict.fromkeys(self.called_only_by(restoring), RESTORES)
        for owner, node in self.nodes():
            kind = reaches(node) if node.op not in self.functions else ""
            of_main = SAVES if node.name in saving else RESTORES if node.name in restoring else frozenset()
            allowed = of_saver.get(owner, frozenset()) if owner else of_main
            if kind and node.op not in allowed and not self.reads_asset(owner, node):
                yield node, kind

    def above(self, names: Iterable[str]) -> set[str]:
        """Returns the nodes of the main graph that lead to some of its tensors, those included."""
        reached, queue = set(), [_node(name) for name in names]
        while queue:
            name = queue.pop()
            if name in self.main and name not in reached:
                reached.add(name)
                queue += map(_node, self.main[name].input)
        return reached

    def used_elsewhere(self, of_saver: set[str]) -> set[str]:
        """Returns what is run beside the saver: every other node, and what signatures and collections name."""
        signatures = self.meta.signature_def.values()
        outputs = [info.name for signature in signatures for info in signature.outputs.values()]
        listed = [name for each in self.meta.collection_def.values() for name in each.node_list.value]
        return {*(self.main.keys() - of_saver), *map(_node, outputs), *map(_node, listed)}

    def called_only_by(self, nodes: set[str]) -> set[str]:
        """Returns the functions that nothing calls but some nodes of the main graph, and the functions so called."""
        others = {*self.object_graph.concrete_functions, *(each.gradient_func for each in self.library.gradient)}
        others |= {each.gradient_func for each in self.library.registered_gradients}
        called: set[str] = set()
        while True:
            more = {
                name
                for name, users in self.users.items()
                if name not in others and all(n.name in nodes if not owner else owner in called for owner, n in users)
            }
            if more == called:
                return called
            called = more

    def reads_asset(self, owner: str, node: Any) -> bool:
        """Whether an operation reads a file of the SavedModel's own folder `assets`."""
        position = READS.get(node.op)
        return position is not None and self.is_asset(owner, node.input[position], set())

    def is_asset(self, owner: str, tensor: str, seen: set[tuple[str, str]]) -> bool:
        """Whether a tensor is the path of an asset, wherever it comes from: follows it through functions."""
        name = _node(tensor)
        if (owner, name) in seen or len(seen) > 1000:
            return False
        seen = seen | {(owner, name)}
        if owner:
            arguments = [argument.name for argument in self.functions[owner].signature.input_arg]
            if name in arguments:
                return self.is_asset_argument(owner, arguments.index(name), len(arguments), seen)
        elif name in map(_node, self.assets):
            return True
        node = (self.inner[owner] if owner else self.main).get(name)
        if node is None:
            return False
        if node.op == "Identity":
            return self.is_asset(owner, node.input[0], seen)
        if node.op == "ReadVariableOp" and not owner:  # the main graph keeps the path in a variable
            variable = self.main.get(_node(node.input[0]))
            values = self.assigned(variable) if variable is not None else []
            return bool(values) and all(self.is_asset(owner, value, seen) for value in values)
        return False

    def assigned(self, variable: Any) -> list[str]:
        """Returns the tensors that are assigned to a variable of the main graph, under whatever name of a node."""
        shared = variable.attr["shared_name"].s
        same = {n.name for n in self.main.values() if n.op == "VarHandleOp" and n.attr["shared_name"].s == shared}
        assigns = [n for n in self.main.values() if n.op.startswith("Assign") and _node(n.input[0]) in same]
        return [node.input[1] for node in assigns]

    def is_asset_argument(self, function: str, index: int, count: int, seen: set[tuple[str, str]]) -> bool:
        """Whether every caller of a function passes the path of an asset; what nobody calls is never run."""
        for owner, node in self.users[function]:
            if node.op not in (*_CALLS, function) or not self.is_asset(owner, node.input[index], seen):
                return False
        saved = self.object_graph.concrete_functions
        if function not in saved:
            return True
        # What the object graph binds to a function are its last arguments.
        bound = list(saved[function].bound_inputs)
        number = index - (count - len(bound))
        if number < 0:  # the caller passes the path
            return False
        held = self.object_graph.nodes[bound[number]]
        files = self.asset_files
        place = held.asset.asset_file_def_index if held.HasField("asset") else -1
        return 0 <= place < len(files) and _is_inside(files[place].filename)


def _asset_files(meta_graph: Any) -> list[Any]:
    """Returns the list of assets; TensorFlow 1 keeps it in a collection, which counts if there is no other list."""
    packed = meta_graph.collection_def["saved_model_assets"].any_list.value
    return list(meta_graph.asset_file_def) or [meta_graph_pb2.AssetFileDef.FromString(each.value) for each in packed]


def _node(tensor: str) -> str:
    """Returns the node of a tensor: `Const:0` of the main graph, `Const:output:0` in a function, `^Const`."""
    return tensor.lstrip("^").partition(":")[0]


def _is_inside(name: str) -> bool:
    """Whether the name of an asset leads into the folder `assets`, and not up or anywhere else."""
    path = PurePosixPath(name)
    return bool(name) and not path.is_absolute() and ".." not in PureWindowsPath(name).parts and ":" not in name
