"""A loaded SavedModel: what can be called in it, with which variables, and what else came with it."""

import inspect
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tensorflow as tf

from finetune.errors import FinetuneError, GroupError, did_you_mean, quote, reason
from finetune.groups.layer_tree import Leaf, layer_tree

_USUAL_SIGNATURES = ("serving_default", "default")


@dataclass(frozen=True, eq=False)
class SavedModule:
    """The part of a SavedModel that a layer runs.

    Attributes:
        loaded: What `tf.saved_model.load` returned; holds tables and assets that the function needs.
        function: A restored function or a signature.
        signature: Name of the signature; `None` for the module's own call.
        leaves: Every variable, with its name in the layer tree.
        regularizers: Functions without arguments that return the module's regularization losses.
        takes_training: Whether the function takes `training`.
    """

    loaded: Any
    function: Any
    signature: str | None
    leaves: tuple[Leaf, ...]
    regularizers: tuple[Any, ...]
    takes_training: bool

    def __call__(self, inputs: Any, *, training: bool) -> Any:
        """Runs the module; `inputs` is a tensor, or a list or dict of them."""
        if self.signature is not None:
            return self.function(**self._named(inputs))
        specs = self._first_spec(inputs)
        inputs = tf.nest.map_structure(_cast, inputs, specs) if specs is not None else inputs
        if not self.takes_training:
            return self.function(inputs)
        modes = self._training_modes()
        return self.function(inputs, training=training if training in modes or not modes else not training)

    def _training_modes(self) -> set[bool]:
        """Returns for which values of `training` the function was traced; empty if it takes it as a tensor."""
        at = self.function.function_spec.arg_names.index("training")
        signatures = [concrete.structured_input_signature for concrete in self.function.concrete_functions]
        given = [args[at] if at < len(args) else kwargs.get("training") for args, kwargs in signatures]
        return {value for value in given if isinstance(value, bool)}

    @property
    def inputs(self) -> Any:
        """Specs of what the function takes first: a `tf.TensorSpec`, or a list or dict of them."""
        return self.function.structured_input_signature[1] if self.signature else self._first_specs()[0]

    @property
    def outputs(self) -> Any:
        """Specs of what the function returns."""
        return (self.function if self.signature else self.function.concrete_functions[0]).structured_outputs

    def accepts(self) -> str:
        """Says what the function can be called with."""
        specs = [self.inputs] if self.signature else self._first_specs()
        return quote(dict.fromkeys(describe(spec) for spec in specs))

    def is_for_xla(self) -> bool:
        """Whether nothing in the graph is known to be beyond XLA: text, tables, Python."""
        concrete = self.function if self.signature else self.function.concrete_functions[0]
        graph = concrete.graph.as_graph_def()
        nodes = [*graph.node, *(node for function in graph.library.function for node in function.node_def)]
        return not any(_is_beyond_xla(node) for node in nodes)

    def _first_specs(self) -> list[Any]:
        return [concrete.structured_input_signature[0][0] for concrete in self.function.concrete_functions]

    def _named(self, inputs: Any) -> dict[str, Any]:
        # A SavedModel tells them in no fixed order: it changes from process to process.
        specs = dict(sorted(self.function.structured_input_signature[1].items()))
        if not isinstance(inputs, dict):
            given = list(inputs) if isinstance(inputs, list | tuple) else [inputs]
            inputs = dict(zip(specs, given, strict=False)) if len(given) == len(specs) else None
        if inputs is None or set(inputs) != set(specs):
            raise FinetuneError(
                f"A signature takes its inputs by name, or as a list in the order of names. `{self.signature}` takes "
                f"{quote(specs)}. Give a dict with these keys."
            )
        return {name: _cast(inputs[name], spec) for name, spec in specs.items()}

    def _first_spec(self, inputs: Any) -> Any:
        """Returns the specs that the module was saved with for its first argument, if these are all alike."""
        return next((spec for spec in self._first_specs() if _same_structure(spec, inputs)), None)


def _is_beyond_xla(node: Any) -> bool:
    types = {kind for value in node.attr.values() for kind in (value.type, *value.list.type)}
    return tf.string.as_datatype_enum in types or "PyFunc" in node.op or "Table" in node.op


def describe(spec: Any) -> str:
    """Returns specs in short.

    >>> describe({"x": tf.TensorSpec((None, 3), tf.float32)})
    '{x: float32 ?x3}'
    """
    if isinstance(spec, dict):
        return "{" + ", ".join(f"{key}: {describe(one)}" for key, one in sorted(spec.items())) + "}"
    if isinstance(spec, list | tuple):
        return "[" + ", ".join(describe(one) for one in spec) + "]"
    if not isinstance(spec, tf.TensorSpec):
        return str(spec)
    sizes = "of any shape" if spec.shape.rank is None else "x".join("?" if n is None else str(n) for n in spec.shape)
    return f"{spec.dtype.name} {sizes}".strip()


def _same_structure(spec: Any, inputs: Any) -> bool:
    try:
        tf.nest.assert_same_structure(spec, inputs)
    except (ValueError, TypeError):
        return False
    return True


def _cast(tensor: Any, spec: Any) -> Any:
    """Casts numbers to the type that the module was saved with: a graph takes no other."""
    if (
        isinstance(spec, tf.TensorSpec)
        and tensor.dtype != spec.dtype
        and spec.dtype.is_numeric
        and tensor.dtype.is_numeric
    ):
        return tf.cast(tensor, spec.dtype)
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
        signature: Which signature to run; by default the module's own call, or its usual or only signature.
        tags: Which graph to load, where there are several.
        name: What messages call it.
        warns: Whether to warn of what is lost of a module of TensorFlow 1.

    Raises:
        FinetuneError: If it cannot be loaded, has nothing to call or no variables, or lacks the signature.
    """
    name = name or str(folder)
    loaded = _load(str(folder), tags, name)
    calls_itself = signature is None and _is_callable(loaded)
    signature = None if calls_itself else _pick_signature(loaded, signature, name)
    function = loaded.__call__ if calls_itself else loaded.signatures[signature]
    if warns and not _is_callable(loaded) and hasattr(loaded, "graph"):
        _warn_about_tf1(name, signature)
    return SavedModule(
        loaded=loaded,
        function=function,
        signature=signature,
        leaves=_leaves(loaded, function, name),
        regularizers=tuple(getattr(loaded, "regularization_losses", ()) or ()) if calls_itself else (),
        takes_training=calls_itself and takes_training(function),
    )


def _load(folder: str, tags: Iterable[str] | None, name: str) -> Any:
    is_tf1_hub_module = tf.io.gfile.exists(f"{folder}/tfhub_module.pb")
    tags = list(tags) if tags is not None else [] if is_tf1_hub_module else None
    try:
        return tf.saved_model.load(folder, tags=tags)
    except Exception as error:  # TensorFlow's own kinds, protobuf's, OSError, KeyError, ...
        raise FinetuneError(
            f"A SavedModel is loaded with its graph and its variables. `{name}` cannot be: {reason(error)}. Get it "
            "again, or save it again with `tf.saved_model.save`."
        ) from error


def _is_callable(loaded: Any) -> bool:
    """Whether the module was saved with a traced `__call__`; an untraced one has nothing to run."""
    return callable(loaded) and bool(getattr(loaded.__call__, "concrete_functions", None))


def takes_training(function: Any) -> bool:
    """Whether a function, be it Python's, TensorFlow's or restored, takes an argument `training`."""
    spec = getattr(function, "function_spec", None)
    return "training" in (spec.arg_names if spec is not None else inspect.signature(function).parameters)


def _pick_signature(loaded: Any, wanted: str | None, name: str) -> str:
    known = list(getattr(loaded, "signatures", ()))
    usual = [one for one in _USUAL_SIGNATURES if one in known] or (known if len(known) == 1 else [])
    if wanted in known or (wanted is None and usual):
        return wanted if wanted is not None else usual[0]
    if wanted is not None:
        raise FinetuneError(
            f"A signature is one that the SavedModel has. `{name}` has no `{wanted}`; it has {quote(known) or 'none'}."
            f"{did_you_mean(wanted, known)}"
        )
    if known:
        raise FinetuneError(
            f"A SavedModel that cannot be called itself is run through a signature. `{name}` has {quote(known)}. Say "
            "which with `signature`."
        )
    raise FinetuneError(
        f"A SavedModel is run by calling it or through a signature. `{name}` can neither be called nor has it a "
        "signature. Save it again with a traced `__call__`, e.g. with `finetune.export_hub`, or with `signatures=...`."
    )


def _warn_about_tf1(name: str, signature: str | None) -> None:
    warnings.warn(
        f"`{name}` is of TensorFlow 1 and runs through its signature `{signature}`: its variables are trained, but its "
        "regularization losses are lost, its BatchNorm statistics stand still and dropout stays as it was saved.",
        stacklevel=4,
    )


def _leaves(loaded: Any, function: Any, name: str) -> tuple[Leaf, ...]:
    try:
        leaves = layer_tree(loaded).leaves
    except GroupError as error:
        raise FinetuneError(
            f"A network has variables to train. `{name}` has none: {_last_sentence(error)} Perhaps its weights were "
            "frozen into constants when it was saved."
        ) from error
    missing = _untracked(function, leaves)
    if missing:
        raise FinetuneError(
            f"A SavedModel lists the variables that it computes with. `{name}` leaves out {quote(missing)}. Save it "
            "again with them in its `variables`."
        )
    return leaves


def _last_sentence(error: Exception) -> str:
    return "it holds constants only." if "has none" in str(error) else str(error)


def _untracked(function: Any, leaves: Iterable[Leaf]) -> list[str]:
    listed = {id(leaf.variable) for leaf in leaves}
    concrete = getattr(function, "concrete_functions", None) or [function]
    used: Iterable[Any] = (variable for one in concrete for variable in one.variables)
    return [variable.name for variable in used if id(variable) not in listed and "seed_generator" not in variable.name]
