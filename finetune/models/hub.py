"""TensorFlow Hub modules and other SavedModels as a Keras 3 layer that trains.

`hub.KerasLayer` is a layer of Keras 2, and `keras.layers.TFSMLayer` trains with few optimizers
(https://github.com/tensorflow/hub/issues/920, https://github.com/tensorflow/tensorflow/issues/63849). The layer here
makes a Keras variable on the storage of each variable of the loaded module: what the optimizer writes, the graph reads.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from finetune.errors import FinetuneError, did_you_mean, quote
from finetune.groups.layer_tree import Leaf, layers_in_order
from finetune.keras_private import is_recorded, is_safe_mode, without_arguments
from finetune.models.graph_consent import require_operations
from finetune.models.hub_handles import cache_folder, resolve_handle
from finetune.models.missing_gradients import refusal
from finetune.models.saved_graph import pack_graph, unpack_graph
from finetune.models.saved_module import SavedModule, describe, load_saved_module, specs_of
from finetune.sequences import one_or_more


class HubPart(keras.layers.Layer):
    """The variables of a scope of a module, e.g. of `block_1/conv`. It is never called.

    Parts make the module look like nested layers to the layer tree, to `freeze` and to Keras: freezing a part freezes
    its variables.

    Attributes:
        learned: Variables that were trainable when the module was saved.
        statistics: The other variables, such as moving means.
        parts: The scopes below this one.
    """

    def __init__(self, **kwargs: Any):
        # Under a mixed policy Keras would cast the inputs to half precision, which the saved graph does not take.
        super().__init__(dtype="float32", **kwargs)
        self.learned: list[keras.Variable] = []
        self.statistics: list[keras.Variable] = []
        self.parts: list[HubPart] = []
        self.built = True  # `place` makes the variables; there is no shape to wait for

    def place(self, leaf: Leaf) -> None:
        """Adds a variable to the part for the scopes in its name, and makes the parts that are missing."""
        *scopes, name = leaf.name.split("/")
        part: HubPart = self
        for scope in scopes:
            below = next((below for below in part.parts if below.name == scope), None)
            if below is None:
                part.parts.append(below := HubPart(name=scope))
            part = below
        # A Keras variable made from a `tf.Variable` keeps its storage; it copies the values of anything else.
        dtype = leaf.variable.dtype.name
        variable = keras.Variable(leaf.variable, trainable=leaf.trainable, dtype=dtype, name=name)
        (part.learned if leaf.trainable else part.statistics).append(variable)

    def every_part(self) -> "Iterator[HubPart]":
        """Yields this part and all parts below it."""
        yield self
        for part in self.parts:
            yield from part.every_part()

    @property
    def holds_layers(self) -> bool:
        """Whether the layer tree counts the parts below as layers of their own."""
        return bool(self.parts)

    @property
    def has_fixed_statistics(self) -> bool:
        """Whether the part has moving statistics that must not be updated, since a weight beside them is frozen."""
        return bool(self.statistics) and not (self.trainable and all(variable.trainable for variable in self.learned))


@keras.saving.register_keras_serializable("finetune")
class HubLayer(HubPart):
    """A TensorFlow Hub module, or any SavedModel with a call or a signature, as a layer that trains under `fit`.

    The layer's weights are the module's variables under the names that they were saved with, so that layer groups,
    prefixes and `restore` can select them: `hub/conv2d_1/kernel`. The layer computes in the types that the module was
    saved with, also under a mixed precision policy. Where any part with moving statistics is frozen, the whole module
    runs in inference mode: a SavedModel has a single switch for all of its BatchNormalization and dropout.

    A saved model contains the module, its graph and assets included. To load such a file, import `HubLayer` from
    `finetune` and call `keras.models.load_model(path, safe_mode=False)`, since a graph is code.

    Args:
        handle: A local folder, archive or `file://` address, or a handle of TensorFlow Hub; see `resolve_handle`.
        signature: Name of the signature to run; by default the module's `__call__`, or if it has none, its usual
            signature (`serving_default` or `default`) or its only one.
        output_key: Which of several outputs to return; by default the one named `default`, or else a dict of all.
        output_shape: Shape of the output without the batch, where the SavedModel does not contain it.
        tags: Which graph to load, where there are several, as in modules of TensorFlow 1.
        allow_operations: Operations of the graph that may reach files, other machines, Python or the process, by name;
            `None` allows all. The graph runs with your rights.
        kwargs: `name` and `trainable` of the layer.

    Raises:
        FinetuneError: If the handle cannot be resolved, the graph has other operations that reach outside of it, the
            SavedModel has no variables or nothing to call, or it has no such signature or output.

    Examples:
        >>> layer = HubLayer("https://tfhub.dev/google/nnlm-en-dim50/2", name="hub")  # doctest: +SKIP
        >>> model = keras.Sequential([keras.Input((), dtype="string"), layer, keras.layers.Dense(2)])  # doctest: +SKIP
    """

    def __init__(
        self,
        handle: str | Path,
        *,
        signature: str | None = None,
        output_key: str | None = None,
        output_shape: Sequence[int | None] | None = None,
        tags: Iterable[str] | None = None,
        allow_operations: Iterable[str] | None = (),
        **kwargs: Any,
    ):
        graph = kwargs.pop(
            "graph", None
        )  # from `get_config`: the SavedModel itself, so `handle` need not exist any more
        kwargs.pop("dtype", None)  # the graph's types are fixed
        super().__init__(**kwargs)
        self._graph = graph
        self._folder = unpack_graph(graph, cache_folder() / "graphs") if graph else resolve_handle(handle)
        if allow_operations is not None:
            require_operations(self._folder, str(handle), one_or_more(allow_operations))
        settings = {"signature": signature, "tags": tags, "name": str(handle), "warns": graph is None}
        module = load_saved_module(self._folder, **settings)
        self._module = module
        self._output_key = _pick_output(module.outputs, output_key, str(handle))
        self._settings = {
            "handle": str(handle),
            "signature": signature,
            "output_key": output_key,
            "output_shape": list(output_shape) if output_shape is not None else None,
            "tags": list(one_or_more(tags)) if tags is not None else None,
        }
        self.supports_jit = module.is_for_xla()  # read by `compile(jit_compile="auto")`
        for leaf in module.leaves:
            self.place(leaf)
        # For `tf.train.Checkpoint`, which does not look into the lists of a Keras layer.
        self.checkpointed: Any = tf.Module(name="checkpointed")
        self.checkpointed.by_name = {leaf.name: leaf.variable for leaf in module.leaves}
        if not self.trainable:
            # The setter freezes what was made above; TensorFlow's `AutoTrackable` skips it where the value is the same.
            self.trainable = True
            self.trainable = False

    @property
    def module(self) -> SavedModule:
        """The loaded SavedModel: its inputs, outputs and variables."""
        return self._module

    def call(self, inputs: Any, training: bool = False) -> Any:
        try:
            return self._run(inputs, bool(training))
        except FinetuneError as error:
            raise without_arguments(error) from None

    def _run(self, inputs: Any, training: bool) -> Any:
        # Keras collects the losses of a call anew each time; those in the SavedModel are functions of the weights.
        for loss in self._trained_regularizers():
            self.add_loss(loss())
        trained = self.trainable_variables
        # Asked only where a tape is open: it looks through the whole graph.
        is_without_gradient = is_recorded([]) and bool(self._module.missing_gradients)
        if is_without_gradient and (trained or is_recorded(_numbers(inputs))):
            raise FinetuneError(refusal(self.name, self._module.missing_gradients))
        is_frozen = not trained or any(part.has_fixed_statistics for part in self.every_part())
        try:
            outputs = self._module(inputs, training=training and not is_frozen)
        except ValueError as error:
            # TensorFlow's message lists every trace of the function, which fills a page.
            if "Could not find matching concrete function" not in str(error):
                raise
            is_dense = all(isinstance(spec, tf.TensorSpec) for spec in tf.nest.flatten(specs_of(inputs)))
            dense = "" if is_dense else " Make the input dense: `.to_tensor()` or `tf.sparse.to_dense`."
            raise ValueError(
                f"A SavedModel takes inputs of the kinds and shapes it was saved with. `{self.name}` takes "
                f"{self._module.accepts()}; received `{describe(specs_of(inputs))}`.{dense}"
            ) from None
        outputs = self._shaped(outputs if self._output_key is None else outputs[self._output_key])
        # A tape differentiates frozen layers too, and Keras drops the result.
        return (
            tf.nest.map_structure(tf.stop_gradient, outputs, expand_composites=True) if is_without_gradient else outputs
        )

    def compute_output_spec(self, inputs: Any, training: bool = False) -> Any:
        """Returns the outputs as symbols; Keras itself would call the module with a dense tensor for a ragged one."""
        if not any(tensor.ragged for tensor in keras.tree.flatten(inputs)):
            return super().compute_output_spec(inputs, training=training)
        specs = keras.tree.map_structure(_spec, inputs)
        with keras.StatelessScope():
            traced = tf.function(self.call, autograph=False).get_concrete_function(specs, training=training)
        return tf.nest.map_structure(_symbol, traced.structured_outputs)

    def _trained_regularizers(self) -> Iterator[Any]:
        """Yields the regularization losses of weights that are trained; Keras, too, drops those of frozen layers."""
        trained = {id(variable.value) for variable in self.trainable_variables}
        for loss in self._module.regularizers:
            if any(id(variable) in trained for trace in loss.concrete_functions for variable in trace.variables):
                yield loss

    def _shaped(self, outputs: Any) -> Any:
        """Returns the outputs with the shape that the user gave: Keras needs at least the number of axes."""
        shape = self._settings["output_shape"]
        if shape is not None and not isinstance(outputs, Mapping):
            return tf.ensure_shape(outputs, [None, *shape])
        if not tf.executing_eagerly() and any(output.shape.rank is None for output in tf.nest.flatten(outputs)):
            raise ValueError(
                f"The output of a layer has a known number of axes. The SavedModel of `{self.name}` was saved without "
                "it. Add `output_shape`, without the batch, e.g. `output_shape=[128]`."
            )
        return outputs

    def get_config(self) -> dict[str, Any]:
        """Returns the config, with the graph in it: a saved model needs neither the handle nor its folder."""
        if self._graph is None:  # packed at the first save, and kept: the folder may be gone at the next
            self._graph = pack_graph(self._folder)
        config = {key: value for key, value in super().get_config().items() if key != "dtype"}
        return {**config, **self._settings, "graph": self._graph}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "HubLayer":
        """Makes the layer from its config, with zeros for weights; Keras loads those afterwards.

        Raises:
            FinetuneError: In Keras' safe mode, as `keras.layers.TFSMLayer` does, since the graph in the file would run.
        """
        # `HubLayer(handle)` needs no such check: there the user names the graph, here a file contains it.
        if is_safe_mode():
            raise FinetuneError(
                "The graph of a SavedModel is code, which Keras' safe mode does not load. The file contains a "
                f"`HubLayer` made from `{config.get('handle')}`. If you trust the file, load it with "
                "`safe_mode=False`; in a recipe, name the SavedModel under `hub` and the file under `restore`."
            )
        # Whoever turns the safe mode off has allowed all code in the file.
        return cls(**config, allow_operations=None)

    def _trackable_children(self, save_type: str = "checkpoint", **kwargs: Any) -> dict[str, Any]:
        # TensorFlow calls this to learn what to save. A SavedModel needs the tables and assets of the module; in a
        # checkpoint the module would contain every weight a second time.
        children = super()._trackable_children(save_type, **kwargs)
        return {**children, "loaded": self._module.loaded} if save_type == "savedmodel" else children


def _numbers(inputs: Any) -> list[tf.Tensor]:
    return [each for each in tf.nest.flatten(inputs, expand_composites=True) if each.dtype.is_floating]


def _spec(tensor: keras.KerasTensor) -> Any:
    if tensor.ragged:
        return tf.RaggedTensorSpec(tensor.shape, tensor.dtype, tensor.ragged_rank)
    return (tf.SparseTensorSpec if tensor.sparse else tf.TensorSpec)(tensor.shape, tensor.dtype)


def _symbol(tensor: Any) -> keras.KerasTensor:
    ragged, sparse = isinstance(tensor, tf.RaggedTensor), isinstance(tensor, tf.SparseTensor)
    return keras.KerasTensor(tensor.shape, tensor.dtype.name, sparse=sparse, ragged=ragged)


def check_gradients(model: keras.layers.Layer) -> None:
    """Checks that every `HubLayer` of a model that is trained can be.

    Args:
        model: A model in which what is frozen is frozen already.

    Raises:
        FinetuneError: TensorFlow cannot differentiate the graph of one.
    """
    for layer in (model, *layers_in_order(model)):
        if isinstance(layer, HubLayer) and layer.trainable_variables and layer.module.missing_gradients:
            raise FinetuneError(refusal(layer.name, layer.module.missing_gradients))


def _pick_output(outputs: Any, key: str | None, name: str) -> str | None:
    """Returns the key of the output to return; `None` for all of them, or where there is a single one without a key."""
    known = sorted(outputs) if isinstance(outputs, Mapping) else []  # a restored dict has no fixed order
    if key is None:
        return "default" if "default" in known else known[0] if len(known) == 1 else None
    if key not in known:
        exist = f"it has {quote(known)}" if known else "it has a single output without a name. Remove `output_key`"
        raise FinetuneError(
            f"`output_key` is the name of an output of the module. `{name}` has no `{key}`; {exist}."
            f"{did_you_mean(key, known)}"
        )
    return key
