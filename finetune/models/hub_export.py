"""Models of our own as SavedModels in the form that TensorFlow Hub reuses."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from finetune.errors import FinetuneError, reason
from finetune.groups.layer_tree import LayerTree, layer_tree
from finetune.keras_private import sublayers
from finetune.models.heads import inputs_of
from finetune.models.hub import HubLayer


def export_hub(model: keras.Model, path: str | Path) -> Path:
    """Saves a model for others to fine-tune: with `HubLayer`, `hub.load` or `hub.KerasLayer`.

    What `model.export` writes serves, but cannot be trained on. This can: it is called with `training`, lists its
    variables under their names in the layer tree, and holds its regularization losses.

    Args:
        model: A functional or Sequential model.
        path: The folder to write, which must not exist or be empty.

    Returns:
        The folder.

    Raises:
        FinetuneError: If the folder holds something, or the model's inputs are not known.

    References:
        https://www.tensorflow.org/hub/reusable_saved_models
    """
    path = Path(path)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise FinetuneError(f"A SavedModel gets a folder of its own. `{path}` exists already. Choose another one.")
    if not isinstance(model, keras.Function | keras.Sequential) or not model.built:
        raise FinetuneError(
            f"A model is exported with the shapes of its inputs. Those of `{model.name}` are not known. Wrap it: "
            "`x = keras.Input(shape); keras.Model(x, model(x))`."
        )
    call = _traced(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=".writing-", dir=path.parent))
    try:
        tf.saved_model.save(_reusable(model, call), str(temporary), signatures=_signature(model, call))
        _name_variables(temporary / "saved_model.pb", layer_tree(model))
        temporary.chmod(0o755)
        os.replace(temporary, path)
    except (ValueError, AssertionError, TypeError) as error:
        raise FinetuneError(f"`{model.name}` cannot be exported. TensorFlow says: {reason(error)}.") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return path


def _specs(model: keras.Model) -> Any:
    def spec(one: Any) -> tf.TensorSpec:
        return tf.TensorSpec([None, *one.shape[1:]], one.dtype, name=one.name)

    return keras.tree.map_structure(spec, inputs_of(model))


def _traced(model: keras.Model) -> Any:
    def run(inputs: Any, training: bool = False) -> Any:
        return model(inputs, training=training)

    call = tf.function(run, autograph=False)
    for training in (False, True):
        call.get_concrete_function(_specs(model), training=training)
    return call


def _signature(model: keras.Model, call: Any) -> Any:
    specs = _specs(model)
    flat = keras.tree.flatten(specs)

    @tf.function(autograph=False, input_signature=flat)
    def serve(*tensors: Any) -> dict[str, Any]:
        outputs = call(keras.tree.pack_sequence_as(specs, list(tensors)), training=False)
        if isinstance(outputs, dict):
            return outputs
        several = isinstance(outputs, list | tuple)
        return {f"output_{n}": one for n, one in enumerate(outputs)} if several else {"outputs": outputs}

    return {"serving_default": serve}


def _reusable(model: keras.Model, call: Any) -> tf.train.Checkpoint:
    tree = layer_tree(model)
    root = _as_objects(tree)
    root.variables = [leaf.variable.value for leaf in tree.leaves]
    root.trainable_variables = [leaf.variable.value for leaf in tree.trainable]
    root.regularization_losses = list(_regularizers(model))
    # What the graph needs beside its weights: states of dropout's seeds, tables.
    listed = {id(leaf.variable) for leaf in tree.leaves}
    root.seeds = [variable.value for variable in model.variables if id(variable) not in listed]
    root.resources = list(_resources(model))
    root.__call__ = call
    return root


def _as_objects(tree: LayerTree) -> Any:
    """Makes an object for each layer, so that a variable's way from the root is its name."""
    root: Any = tf.train.Checkpoint()
    for leaf in tree.leaves:
        *scopes, name = leaf.name.split("/")
        place = root
        for scope in scopes:
            if not hasattr(place, scope):
                setattr(place, scope, tf.train.Checkpoint())
            place = getattr(place, scope)
        setattr(place, name, leaf.variable.value)
    return root


def _name_variables(path: Path, tree: LayerTree) -> None:
    """Gives the variables in the file the names of the layer tree; Keras' own change from one build to the next."""
    saved = saved_model_pb2.SavedModel.FromString(path.read_bytes())
    nodes = saved.meta_graphs[0].object_graph_def.nodes
    for leaf in tree.leaves:
        node = nodes[0]
        for part in leaf.name.split("/"):
            node = nodes[next(child.node_id for child in node.children if child.local_name == part)]
        node.variable.name = leaf.name
    path.write_bytes(saved.SerializeToString())


def _regularizers(model: keras.Model) -> Iterator[Any]:
    for variable in model.trainable_variables:
        if getattr(variable, "regularizer", None) is not None:
            loss = tf.function(partial(variable.regularizer, variable), autograph=False)
            loss.get_concrete_function()
            yield loss
    for layer in _hub_layers(model):
        yield from layer.module.regularizers


def _hub_layers(model: keras.Model) -> list[HubLayer]:
    return [layer for layer in sublayers(model, include_self=True) if isinstance(layer, HubLayer)]


def _resources(model: keras.Model) -> Iterator[Any]:
    for layer in sublayers(model, include_self=True):
        if isinstance(layer, HubLayer):
            yield layer.module.loaded
        for value in vars(layer).values():
            if isinstance(value, tf.saved_model.experimental.TrackableResource):
                yield value
