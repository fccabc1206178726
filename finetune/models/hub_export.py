"""Writes Keras models as SavedModels in the form that TensorFlow Hub calls reusable.

A reusable SavedModel is a callable object with `__call__(inputs, training)`, `variables`, `trainable_variables` and
`regularization_losses`: what is needed to train it further. See https://www.tensorflow.org/hub/reusable_saved_models.

What a layer group has frozen is trainable in it again: whoever trains it further decides that anew, and a graph traced
while a BatchNormalization was frozen could never update its moving statistics. Single weights that are frozen in a
layer that trains, such as the kernel below a LoRA adapter, are not among the trainable variables.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from finetune.errors import FinetuneError, reason
from finetune.files.temporary_folders import TemporaryFolder
from finetune.groups.frozen_by import LORA_FREEZES
from finetune.groups.layer_tree import LayerTree, Leaf, layer_tree, layers_in_order
from finetune.keras_private import sublayers
from finetune.models.heads import inputs_of
from finetune.models.hub import HubLayer


def export_hub(model: keras.Model, path: str | Path) -> Path:
    """Saves a model for others to fine-tune with `HubLayer`, `hub.load` or `hub.KerasLayer`.

    What `model.export` writes can run, but not be trained further. This can: it is called with `training`, lists its
    variables under their names in the layer tree, and includes its regularization losses.

    Args:
        model: A functional or Sequential model.
        path: The folder to write. Must not exist, or be empty.

    Returns:
        The folder.

    Raises:
        FinetuneError: If the folder is not empty, the shapes of the model's inputs are not known, or TensorFlow cannot
            save the model.

    References:
        https://www.tensorflow.org/hub/reusable_saved_models
    """
    path = Path(path)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise FinetuneError(
            f"A SavedModel must be written to a folder that does not exist or is empty. `{path}` exists. Choose "
            "another "
            "folder."
        )
    check_exportable(model)
    # Traced before anything is written: most models that cannot be exported fail here.
    call = traced_call(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Written next to its place and renamed when complete, so that an error leaves nothing half-written.
    folder = TemporaryFolder(path.parent, ".exporting-")
    temporary = folder.path
    try:
        write_saved_model(model, call, temporary, _signature(model, call))
        temporary.chmod(0o755)  # a temporary folder is the user's alone
        os.replace(temporary, path)
    except (ValueError, AssertionError, TypeError) as error:
        raise FinetuneError(f"`{model.name}` cannot be exported. TensorFlow says: {reason(error)}.") from error
    finally:
        folder.remove()
    return path


def _specs(model: keras.Model) -> Any:
    """Returns the specs of the model's inputs for any batch size, in their structure."""

    def spec(tensor: Any) -> tf.TensorSpec:
        return tf.TensorSpec([None, *tensor.shape[1:]], tensor.dtype, name=tensor.name)

    return keras.tree.map_structure(spec, inputs_of(model))


def check_exportable(model: keras.Model) -> None:
    """Checks that the shapes of a model's inputs are known.

    Raises:
        FinetuneError: They are not.
    """
    if not isinstance(model, keras.Function | keras.Sequential) or not model.built:
        raise FinetuneError(
            f"A model is exported with the shapes of its inputs. Those of `{model.name}` are not known. Wrap it in a "
            "functional model: `x = keras.Input(shape); keras.Model(x, model(x))`."
        )


def write_saved_model(model: keras.Model, call: Any, folder: Path, signatures: Mapping[str, Any]) -> None:
    """Writes a SavedModel.

    Args:
        model: The model.
        call: What `traced_call` returned, for a SavedModel that can be trained further; `None` for one that has
            signatures alone.
        folder: The folder to write.
        signatures: Traced functions by the names of their signatures.
    """
    with unfrozen(model):  # saving traces the call once more
        tf.saved_model.save(_reusable(model, call), str(folder), signatures=dict(signatures))
    _name_variables(folder / "saved_model.pb", layer_tree(model))


def traced_call(model: keras.Model) -> Any:
    """Returns the model's call, traced for training and for inference: only traced functions are saved."""

    def run(inputs: Any, training: bool = False) -> Any:
        return model(inputs, training=training)

    call = tf.function(run, autograph=False)
    with unfrozen(model):
        for training in (False, True):  # `training` is a Python value, so each needs a trace
            call.get_concrete_function(_specs(model), training=training)
    return call


@contextmanager
def unfrozen(model: keras.Model) -> Iterator[None]:
    """Makes all layers trainable for the time of the block, without weights that `_trains_further` leaves out."""
    layers = [model, *layers_in_order(model)]  # each before its parts, which a setter reaches, too
    of_layers = [(layer, layer.trainable) for layer in layers]
    leaves = layer_tree(model).leaves
    of_variables = [(leaf.variable, leaf.variable.trainable) for leaf in leaves]
    fixed = [leaf.variable for leaf in leaves if leaf.trainable and not _trains_further(leaf)]
    try:
        for layer in layers:
            layer.trainable = True
        for variable in fixed:
            variable.trainable = False
        yield
    finally:
        for layer, trainable in of_layers:
            layer.trainable = trainable
        for variable, trainable in of_variables:
            variable.trainable = trainable


def _trains_further(leaf: Leaf) -> bool:
    """Whether a weight is trained where every layer is: it came trainable, and is not frozen alone or by LoRA."""
    if not leaf.trainable:
        return False
    layer = leaf.owner
    if getattr(layer, "lora_enabled", False) and leaf.variable.name in LORA_FREEZES:
        return False
    return leaf.variable.trainable or not layer.trainable


def _signature(model: keras.Model, call: Any) -> Any:
    """Returns the signature for serving: inference, inputs by name, and a dict of outputs."""
    # A signature takes tensors by name only, without nesting; the names are those of the model's inputs.
    specs = _specs(model)
    flat = keras.tree.flatten(specs)

    @tf.function(autograph=False, input_signature=flat)
    def serve(*tensors: Any) -> dict[str, Any]:
        outputs = call(keras.tree.pack_sequence_as(specs, list(tensors)), training=False)
        if isinstance(outputs, dict):
            return outputs
        if isinstance(outputs, list | tuple):
            return {f"output_{number}": output for number, output in enumerate(outputs)}
        return {"outputs": outputs}

    return {"serving_default": serve}


def _reusable(model: keras.Model, call: Any) -> tf.train.Checkpoint:
    """Returns the object to save; with `call`, it has the attributes that TensorFlow Hub asks for."""
    tree = layer_tree(model)
    root = _as_objects(tree)
    root.variables = [leaf.variable.value for leaf in tree.leaves]
    trainable = [leaf for leaf in tree.leaves if _trains_further(leaf)]
    root.trainable_variables = [leaf.variable.value for leaf in trainable]
    root.regularization_losses = list(_regularizers(model, trainable)) if call else []
    # TensorFlow saves only what is reachable from the object: the graph also uses dropout's seeds and lookup tables.
    listed = {id(leaf.variable) for leaf in tree.leaves}
    root.seeds = [variable.value for variable in model.variables if id(variable) not in listed]
    root.resources = list(_resources(model))
    if call:
        root.__call__ = call
    return root


def _as_objects(tree: LayerTree) -> Any:
    """Makes an object for each layer, nested so that the attributes from the root to a variable spell its name."""
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
    """Renames the variables in the file to their names in the layer tree, and says which of them are trained.

    TensorFlow writes the names of the `tf.Variable`s, whose numbers change from one build of the model to the next, and
    knows nothing of what Keras froze.
    """
    saved = saved_model_pb2.SavedModel.FromString(path.read_bytes())
    nodes = saved.meta_graphs[0].object_graph_def.nodes
    for leaf in tree.leaves:
        node = nodes[0]  # the root; each child edge carries the name of an attribute
        for part in leaf.name.split("/"):
            node = nodes[next(child.node_id for child in node.children if child.local_name == part)]
        node.variable.name = leaf.name
        node.variable.trainable = _trains_further(leaf)
    path.write_bytes(saved.SerializeToString())


def _regularizers(model: keras.Model, trainable: Sequence[Leaf]) -> Iterator[Any]:
    """Yields traced functions without arguments that return the regularization losses of weights that are trained."""
    for variable in [leaf.variable for leaf in trainable]:
        if getattr(variable, "regularizer", None) is not None:
            # Bound to the variable, not its value: the restored function reads what the weight is by then.
            loss = tf.function(partial(variable.regularizer, variable), autograph=False)
            loss.get_concrete_function()
            yield loss
    for layer in sublayers(model, include_self=True):
        if isinstance(layer, HubLayer):
            yield from layer.module.regularizers


def _resources(model: keras.Model) -> Iterator[Any]:
    """Yields the lookup tables and other resources of the layers, and the SavedModels inside `HubLayer`s."""
    for layer in sublayers(model, include_self=True):
        if isinstance(layer, HubLayer):
            yield layer.module.loaded
        for value in vars(layer).values():
            if isinstance(value, tf.saved_model.experimental.TrackableResource):
                yield value
