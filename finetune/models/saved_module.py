"""A loaded SavedModel: the function that a layer runs, its variables and its regularization losses.

SavedModels come in three forms. A *reusable* one (`export_hub`, `hub.KerasLayer.save`) has a restored `__call__` that
takes `training`; one written by `model.export` or `tf.saved_model.save` may have signatures alone; a module of
TensorFlow 1 always has signatures alone, and keeps its training graph in a second graph with the tag `train`.
"""

import inspect
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import tensorflow as tf

from finetune.errors import FinetuneError, GroupError, did_you_mean, quote, reason
from finetune.files.checkpoint_index import check_index
from finetune.groups.layer_tree import Leaf, layer_tree
from finetune.machine_failures import raise_machine_failure
from finetune.models.missing_gradients import missing_gradients, unsaved_gradients
from finetune.sequences import one_or_more

_USUAL_SIGNATURES = ("serving_default", "default")


@dataclass(frozen=True, eq=False)
class SavedModule:
    """The part of a SavedModel that a layer runs.

    Attributes:
        loaded: What `tf.saved_model.load` returned; keeps alive the tables and assets that the function needs.
        function: A restored function or a signature.
        signature: Name of the signature; `None` if `function` is the module's `__call__`.
        leaves: Every variable, with its name in the layer tree.
        regularizers: Functions without arguments that return the module's regularization losses.
        takes_training: Whether the function takes `training`.
        unsaved_gradients: Names of custom gradients that its operations refer to and the SavedModel does not hold.
    """

    loaded: Any
    function: Any
    signature: str | None
    leaves: tuple[Leaf, ...]
    regularizers: tuple[Any, ...]
    takes_training: bool
    unsaved_gradients: frozenset[str] = frozenset()

    def __call__(self, inputs: Any, *, training: bool) -> Any:
        """Runs the module; `inputs` is a tensor, or a list or dict of them."""
        if self.signature is not None:  # signatures have no `training`: it was decided when they were saved
            return self.function(**self._named(inputs))
        specs = next((specs for specs in self._input_specs() if _is_alike(specs, inputs)), None)
        inputs = tf.nest.map_structure(_cast, inputs, specs) if specs is not None else inputs
        if not self.takes_training:
            return self.function(inputs)
        # A function that was traced for one mode only runs in that mode.
        modes = self._training_modes()
        return self.function(inputs, training=training if training in modes or not modes else not training)

    def _training_modes(self) -> set[bool]:
        """Returns for which values of `training` the function was traced; empty if it takes a tensor."""
        position = self.function.function_spec.arg_names.index("training")
        signatures = [concrete.structured_input_signature for concrete in self.function.concrete_functions]
        values = [args[position] if position < len(args) else kwargs.get("training") for args, kwargs in signatures]
        return {value for value in values if isinstance(value, bool)}

    @property
    def inputs(self) -> Any:
        """Specs of the inputs: a `tf.TensorSpec`, or a list or dict of them."""
        return self.function.structured_input_signature[1] if self.signature else self._input_specs()[0]

    @property
    def outputs(self) -> Any:
        """Specs of what the function returns."""
        return (self.function if self.signature else self.function.concrete_functions[0]).structured_outputs

    def accepts(self) -> str:
        """Returns, for messages, what the function can be called with."""
        specs = [self.inputs] if self.signature else self._input_specs()
        return quote(dict.fromkeys(describe(spec) for spec in specs))

    @cached_property
    def missing_gradients(self) -> list[str]:
        """The operations for which the function cannot be differentiated; none if it can."""
        traces = [self.function] if self.signature else self.function.concrete_functions
        return missing_gradients(traces, self.unsaved_gradients, lambda x: self(x, training=True), self.inputs)

    def is_for_xla(self) -> bool:
        """Returns whether XLA can compile the graph: it cannot if there are strings, lookup tables or Python code."""
        concrete = self.function if self.signature else self.function.concrete_functions[0]
        # Calls of other functions are nodes that name them; their bodies are in the library.
        graph = concrete.graph.as_graph_def()
        nodes = [*graph.node, *(node for function in graph.library.function for node in function.node_def)]
        return not any(_is_beyond_xla(node) for node in nodes)

    def _input_specs(self) -> list[Any]:
        """Returns the specs of the first argument, one for each trace of the function."""
        return [concrete.structured_input_signature[0][0] for concrete in self.function.concrete_functions]

    def _named(self, inputs: Any) -> dict[str, Any]:
        """Returns the inputs by the names of the signature's arguments."""
        # Sorted: the order in which a loaded SavedModel lists them changes from process to process.
        specs = dict(sorted(self.function.structured_input_signature[1].items()))
        if any(not isinstance(spec, tf.TensorSpec) for spec in tf.nest.flatten(specs_of(inputs))):
            raise FinetuneError(
                f"A signature takes dense tensors. `{self.signature}` takes `{describe(specs)}`; received "
                f"`{describe(specs_of(inputs))}`. Run the module's `__call__`, which can take others (no "
                "`signature`), or make the input dense: `.to_tensor()` or `tf.sparse.to_dense`."
            )
        if not isinstance(inputs, dict):
            tensors = list(inputs) if isinstance(inputs, list | tuple) else [inputs]
            inputs = dict(zip(specs, tensors, strict=True)) if len(tensors) == len(specs) else {}
        if set(inputs) != set(specs):
            raise FinetuneError(
                f"A signature takes its inputs by name, or as a list in alphabetical order of the names. "
                f"`{self.signature}` takes {quote(specs)}. Pass a dict with these keys."
            )
        return {name: _cast(inputs[name], spec) for name, spec in specs.items()}


def _is_beyond_xla(node: Any) -> bool:
    # Enum values of `tf.DType`s, single or in lists, in whatever attribute they are.
    types = {kind for value in node.attr.values() for kind in (value.type, *value.list.type)}
    return tf.string.as_datatype_enum in types or "PyFunc" in node.op or "Table" in node.op


def describe(spec: Any) -> str:
    """Returns specs as short text.

    >>> describe({"x": tf.TensorSpec((None, 3), tf.float32)})
    '{x: float32 ?x3}'
    """
    if isinstance(spec, dict):
        return "{" + ", ".join(f"{key}: {describe(value)}" for key, value in sorted(spec.items())) + "}"
    if isinstance(spec, list | tuple):
        return "[" + ", ".join(map(describe, spec)) + "]"
    if not isinstance(spec, tf.TensorSpec | tf.RaggedTensorSpec | tf.SparseTensorSpec):
        return str(spec)
    sizes = "of any shape" if spec.shape.rank is None else "x".join("?" if n is None else str(n) for n in spec.shape)
    kind = {tf.RaggedTensorSpec: "ragged ", tf.SparseTensorSpec: "sparse "}.get(type(spec), "")
    return f"{kind}{spec.dtype.name} {sizes}".strip()


def specs_of(inputs: Any) -> Any:
    """Returns the specs of tensors, ragged and sparse ones included, in the structure that they are in."""
    return tf.nest.map_structure(tf.type_spec_from_value, inputs)


def _is_alike(spec: Any, inputs: Any) -> bool:
    """Whether inputs have the structure of a trace, and ragged and sparse tensors where it has them."""
    try:
        tf.nest.assert_same_structure(spec, inputs)
    except (ValueError, TypeError):
        return False
    pairs = zip(tf.nest.flatten(spec), tf.nest.flatten(specs_of(inputs)), strict=True)
    return all(type(expected) is type(received) for expected, received in pairs)


def _cast(tensor: Any, spec: Any) -> Any:
    """Casts numbers to the type that the module was saved with, the only one that a graph takes."""
    dtype = getattr(spec, "dtype", None)
    if isinstance(dtype, tf.DType) and tensor.dtype != dtype and dtype.is_numeric and tensor.dtype.is_numeric:
        tensor = tf.cast(tensor, dtype)
    if isinstance(spec, tf.RaggedTensorSpec) and isinstance(tensor, tf.RaggedTensor):
        return tensor.with_row_splits_dtype(getattr(spec, "row_splits_dtype"))  # noqa: B009 not in TensorFlow's stubs
    return tensor


def load_saved_module(
    folder: str | Path,
    *,
    signature: str | None = None,
    tags: Iterable[str] | None = None,
    name: str | None = None,
    warns: bool = True,
) -> SavedModule:
    """Loads a SavedModel to run and train it.

    Args:
        folder: The folder with `saved_model.pb`.
        signature: Which signature to run; by default the module's `__call__`, or if it has none, its usual signature
            (`serving_default` or `default`) or its only one.
        tags: Which graph to load, where there are several.
        name: What messages call it; by default its folder.
        warns: Whether to warn about what a module of TensorFlow 1 loses.

    Raises:
        FinetuneError: If it cannot be loaded, has nothing to call, no variables, or no such signature.
    """
    name = name or str(folder)
    loaded = _load(str(folder), tags, name)
    # The call is preferred to a signature: it knows `training`, and the losses and statistics that go with it.
    calls_itself = signature is None and _is_callable(loaded)
    signature = None if calls_itself else _pick_signature(loaded, signature, name)
    function = loaded.__call__ if calls_itself else loaded.signatures[signature]
    # Only TensorFlow's loader of version 1 SavedModels returns an object with a `graph`.
    if warns and not _is_callable(loaded) and hasattr(loaded, "graph"):
        _warn_about_tf1(name, signature)
    return SavedModule(
        loaded=loaded,
        function=function,
        signature=signature,
        leaves=_leaves(loaded, function, name),
        regularizers=tuple(getattr(loaded, "regularization_losses", ()) or ()) if calls_itself else (),
        takes_training=calls_itself and takes_training(function),
        unsaved_gradients=unsaved_gradients(str(folder)),
    )


def _load(folder: str, tags: Iterable[str] | None, name: str) -> Any:
    # A hub module of TensorFlow 1 has no tag on the graph for inference; without tags TensorFlow asks which to load.
    is_tf1_hub_module = tf.io.gfile.exists(f"{folder}/tfhub_module.pb")
    tags = list(one_or_more(tags)) if tags is not None else [] if is_tf1_hub_module else None
    index = Path(folder) / "variables" / "variables.index"
    try:
        if index.is_file():  # an address of another machine is left to TensorFlow
            check_index(index)
        return tf.saved_model.load(folder, tags=tags)
    except Exception as error:  # classes of TensorFlow and protobuf, OSError, KeyError, ...
        raise_machine_failure(error, f"Loading `{name}`")
        raise FinetuneError(
            f"A SavedModel is loaded with its graph and its variables. `{name}` cannot be loaded: "
            f"{reason(error)}. Copy or download it again, or save it again with `tf.saved_model.save`."
        ) from error


def _is_callable(loaded: Any) -> bool:
    """Returns whether the module was saved with a traced `__call__`; an untraced one cannot run."""
    return callable(loaded) and bool(getattr(loaded.__call__, "concrete_functions", None))


def takes_training(function: Any) -> bool:
    """Returns whether a Python function, `tf.function` or restored function has an argument `training`."""
    spec = getattr(function, "function_spec", None)
    return "training" in (spec.arg_names if spec is not None else inspect.signature(function).parameters)


def _pick_signature(loaded: Any, signature: str | None, name: str) -> str:
    known = list(getattr(loaded, "signatures", ()))
    if signature is not None:
        if signature in known:
            return signature
        raise FinetuneError(
            f"`signature` is the name of a signature of the SavedModel. `{name}` has no `{signature}`; it has "
            f"{quote(known) or 'none'}.{did_you_mean(signature, known)}"
        )
    usual = [key for key in _USUAL_SIGNATURES if key in known] or (known if len(known) == 1 else [])
    if usual:
        return usual[0]
    if known:
        raise FinetuneError(
            f"A SavedModel that cannot be called is run through a signature. `{name}` has {quote(known)}. Select one "
            "with `signature`."
        )
    raise FinetuneError(
        f"A SavedModel is run by calling it or through a signature. `{name}` has neither a traced `__call__` nor a "
        "signature. Save it again with one, e.g. with `finetune.export_hub`, or with `signatures=...`."
    )


def _warn_about_tf1(name: str, signature: str | None) -> None:
    warnings.warn(
        f"`{name}` was saved by TensorFlow 1 and runs through its signature `{signature}`: its variables are trained, "
        "but its regularization losses are lost, its BatchNorm statistics are fixed, and dropout stays as it was "
        "saved.",
        stacklevel=4,
    )


def _leaves(loaded: Any, function: Any, name: str) -> tuple[Leaf, ...]:
    """Returns the variables under their names, after a check that the function uses no others."""
    try:
        leaves = layer_tree(loaded).leaves
    except GroupError as error:
        cause = "it contains constants only." if "has none" in str(error) else str(error)
        raise FinetuneError(
            f"A network has variables to train. `{name}` has none: {cause} Perhaps its weights were turned into "
            "constants when it was saved."
        ) from error
    listed = {id(leaf.variable) for leaf in leaves}
    traces: Iterable[Any] = getattr(function, "concrete_functions", None) or [function]
    unlisted = [v for trace in traces for v in trace.variables if id(v) not in listed]
    # The states of dropout's random generators are variables too, but not weights.
    missing = [variable.name for variable in unlisted if "seed_generator" not in variable.name]
    if missing:
        raise FinetuneError(
            f"A SavedModel lists the variables that it computes with. `{name}` does not list {quote(missing)}. Save it "
            "again with them in its `variables`."
        )
    return leaves
