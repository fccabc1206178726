"""What other code froze before the layer groups were resolved, and why: it stays frozen unless a selector opens it.

LoRA freezes the kernel that it adapts, a quantized layer has no kernel that could train, and users freeze layers and
single variables themselves. `finetune.freeze` and the phases freeze, too; what they froze is marked, so that groups
that are resolved again later do not take it for the decision of other code.
"""

from collections.abc import Iterable
from typing import Any

import keras
import tensorflow as tf

from finetune.groups.batch_norm import is_batch_norm
from finetune.groups.layer_tree import Leaf

BY_LORA = "frozen by LoRA"
QUANTIZED = "quantized"
BY_HAND = "not trainable when resolved"
_MARK = "_finetune_froze"  # an attribute of variables and layers


def reason_frozen(leaf: Leaf) -> str:
    """Returns why a weight does not train at present, though no layer group froze it; empty where nothing prevents it.

    Moving statistics that are updated count as weights that nothing prevents from changing.
    """
    layer = leaf.owner
    if not isinstance(layer, keras.layers.Layer):
        return ""  # the variables of a `tf.Module` cannot be frozen after they were made
    if not leaf.trainable:
        if getattr(layer, "quantization_mode", None) and not is_batch_norm(leaf):
            return QUANTIZED
        return BY_HAND if is_batch_norm(leaf) and not layer.trainable and not _is_marked(layer) else ""
    if leaf.variable.trainable:
        return ""
    if getattr(layer, "lora_enabled", False) and leaf.variable.name in ("kernel", "embeddings"):
        return BY_LORA
    return "" if _is_marked(leaf.variable) else BY_HAND


def mark_frozen(leaves: Iterable[Leaf], frozen: Iterable[Leaf]) -> None:
    """Notes which weights, and which layers with them, are frozen on behalf of the layer groups.

    Args:
        leaves: All weights of the model.
        frozen: Those that the groups freeze, without what other code froze.
    """
    marked = {id(leaf.variable) for leaf in frozen}
    for leaf in leaves:
        _mark(leaf.variable, id(leaf.variable) in marked)
        if not leaf.trainable:  # BatchNormalization is frozen as a layer, statistics included
            _mark(leaf.owner, id(leaf.variable) in marked)


def _is_marked(thing: Any) -> bool:
    return bool(vars(thing).get(_MARK))


def _mark(thing: Any, value: bool) -> None:
    if not isinstance(thing, tf.Variable):  # which cannot be frozen
        vars(thing)[_MARK] = value  # not an attribute of a layer that Keras would track
