"""TensorFlow Hub modules and other SavedModels as a Keras 3 layer that trains.

`hub.KerasLayer` is a layer of Keras 2, and `keras.layers.TFSMLayer` trains with few optimizers
(https://github.com/tensorflow/hub/issues/920, https://github.com/tensorflow/tensorflow/issues/63849). The layer here
makes Keras variables on the storage of the loaded module's: what the optimizer writes, the graph reads.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from finetune.errors import FinetuneError, did_you_mean, quote
from finetune.groups.layer_tree import Leaf
from finetune.keras_private import is_safe_mode
from finetune.models.handles import cache_folder, resolve_handle
from finetune.models.modules import SavedModule, load_saved_module
from finetune.models.saved_graph import pack_graph, unpack_graph


class HubPart(keras.layers.Layer):
    """The variables of one scope of a module. It is never called; it gives them their place in the layer tree."""

    def __init__(self, **kwargs: Any):
        super().__init__(dtype="float32", **kwargs)
        self.learned: list[keras.Variable] = []
        self.statistics: list[keras.Variable] = []
        self.parts: list[HubPart] = []
        self.built = True

    def place(self, leaf: Leaf) -> None:
        """Takes a variable, into the part that its name tells."""
        part = self
        for name in leaf.name.split("/")[:-1]:
            part = part._part(name)
        (part.learned if leaf.trainable else part.statistics).append(_shared(leaf))

    def _part(self, name: str) -> "HubPart":
        found = next((part for part in self.parts if part.name == name), None)
        if found is None:
            self.parts.append(found := HubPart(name=name))
        return found

    def every_part(self) -> "Iterator[HubPart]":
        yield self
        for part in self.parts:
            yield from part.every_part()

    @property
    def holds_layers(self) -> bool:
        """For the layer tree: whether what is below counts one by one."""
        return bool(self.parts)

    @property
    def stands_still(self) -> bool:
        """Whether the part has statistics that must not move, because what they belong to is frozen."""
        return bool(self.statistics) and not (self.trainable and all(variable.trainable for variable in self.learned))


@keras.saving.register_keras_serializable("finetune")
class HubLayer(HubPart):
    """A TensorFlow Hub module, or any SavedModel with a call or a signature, as a layer that trains under `fit`.

    The layer's weights are the module's own variables under their own names, so that layer groups, prefixes and
    restores reach into it: `hub/conv2d_1/kernel`. It computes in the types it was saved with, also under a mixed
    policy. Where any part with moving statistics is frozen, the module runs in inference mode: a SavedModel has one
    switch for all of its BatchNormalization and dropout.

    It is saved whole with the model, graph and assets included. To load such a file say `from finetune import
    HubLayer` and `keras.models.load_model(path, safe_mode=False)`, since a graph is code.

    Args:
        handle: A local folder, archive or `file://` address, or a handle of TensorFlow Hub, see `resolve_handle`.
        signature: Name of the signature to run; by default the module's own call, or if it has none, its usual
            signature (`serving_default` or `default`) or its only one.
        output_key: Which of several outputs to return; by default `default` where there is one, else a dict of all.
        output_shape: Shape of the output without the batch, where the SavedModel does not tell it.
        tags: Which graph to load, where there are several, as in modules of TensorFlow 1.
        kwargs: `name` and `trainable` of the layer.

    Raises:
        FinetuneError: If the handle leads nowhere, the SavedModel has no variables or nothing to call, or there is no
            such signature or output.

    Example:
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
        **kwargs: Any,
    ):
        graph = kwargs.pop("graph", None)
        kwargs.pop("dtype", None)  # the graph was saved with its own
        super().__init__(**kwargs)
        self._graph = graph
        self._folder = unpack_graph(graph, cache_folder() / "graphs") if graph else resolve_handle(handle)
        settings = {"signature": signature, "tags": tags, "name": str(handle), "warns": graph is None}
        module = load_saved_module(self._folder, **settings)
        self._module = module
        self._output_key = _pick_output(module.outputs, output_key, str(handle))
        self._wanted = {
            "handle": str(handle),
            "signature": signature,
            "output_key": output_key,
            "output_shape": list(output_shape) if output_shape is not None else None,
            "tags": list(tags) if tags is not None else None,
        }
        self.supports_jit = module.is_for_xla()
        for leaf in module.leaves:
            self.place(leaf)
        # tf.train.Checkpoint follows this attribute; it sees nothing in the lists of a Keras layer.
        self.checkpointed: Any = tf.Module(name="checkpointed")
        self.checkpointed.by_name = {leaf.name: leaf.variable for leaf in module.leaves}
        if not self.trainable:
            self.trainable = False  # of the parts, too

    @property
    def module(self) -> SavedModule:
        """The SavedModel behind the layer: what it takes, what it returns, its variables."""
        return self._module

    def call(self, inputs: Any, training: bool = False) -> Any:
        for loss in self._live_regularizers():
            self.add_loss(loss())
        try:
            outputs = self._module(inputs, training=bool(training) and not self._must_infer())
        except ValueError as error:
            if "Could not find matching concrete function" not in str(error):
                raise
            raise ValueError(
                f"A SavedModel takes what it was saved for. `{self.name}` takes {self._module.accepts()}; received "
                f"`{tf.nest.map_structure(lambda x: f'{x.dtype.name} {x.shape}', inputs)}`."
            ) from None
        return self._shaped(outputs if self._output_key is None else outputs[self._output_key])

    def _must_infer(self) -> bool:
        return not self.trainable_variables or any(part.stands_still for part in self.every_part())

    def _live_regularizers(self) -> Iterator[Any]:
        live = {id(variable.value) for variable in self.trainable_variables}
        for loss in self._module.regularizers:
            if any(id(variable) in live for one in loss.concrete_functions for variable in one.variables):
                yield loss

    def _shaped(self, outputs: Any) -> Any:
        wanted = self._wanted["output_shape"]
        if wanted is not None and not isinstance(outputs, Mapping):
            return tf.ensure_shape(outputs, [None, *wanted])
        unknown = [one for one in tf.nest.flatten(outputs) if one.shape.rank is None]
        if unknown and not tf.executing_eagerly():
            raise ValueError(
                f"A layer's output has a known number of axes. The SavedModel of `{self.name}` does not tell it: give "
                "`output_shape`, without the batch, e.g. `output_shape=[128]`."
            )
        return outputs

    def get_config(self) -> dict[str, Any]:
        """The config; it holds the graph, so that a saved model needs neither the handle nor its folder."""
        if self._graph is None:
            self._graph = pack_graph(self._folder)
        config = {key: value for key, value in super().get_config().items() if key != "dtype"}
        return {**config, **self._wanted, "graph": self._graph}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "HubLayer":
        """Makes the layer again, with zeros for weights.

        Raises:
            FinetuneError: In Keras' safe mode, as for `keras.layers.TFSMLayer`: the file's graph would be run.
        """
        if is_safe_mode():
            raise FinetuneError(
                "A SavedModel's graph is code, which Keras' safe mode does not load. The file holds a `HubLayer` made "
                f"from `{config.get('handle')}`. If you trust the file, load it with `safe_mode=False`; in a recipe "
                "name the SavedModel under `hub` and the file under `restore`."
            )
        return cls(**config)

    def _trackable_children(self, save_type: str = "checkpoint", **kwargs: Any) -> dict[str, Any]:
        # TensorFlow's own hook. A SavedModel needs the tables and assets of the module; in a checkpoint the module
        # would be every weight a second time.
        children = super()._trackable_children(save_type, **kwargs)
        return {**children, "loaded": self._module.loaded} if save_type == "savedmodel" else children


def _pick_output(outputs: Any, wanted: str | None, name: str) -> str | None:
    known = sorted(outputs) if isinstance(outputs, Mapping) else []  # restored dicts come in any order
    if wanted is None:
        return "default" if "default" in known else known[0] if len(known) == 1 else None
    if wanted not in known:
        has = f"it has {quote(known)}" if known else "it has a single one without a name. Leave `output_key` out"
        raise FinetuneError(
            f"`output_key` is one of the module's outputs. `{name}` has no `{wanted}`; {has}."
            f"{did_you_mean(wanted, known)}"
        )
    return wanted


def _shared(leaf: Leaf) -> keras.Variable:
    """Makes a Keras variable on the storage of a TensorFlow variable."""
    own = leaf.name.rpartition("/")[2]
    return keras.Variable(leaf.variable, trainable=leaf.trainable, dtype=leaf.variable.dtype.name, name=own)
