"""What other code froze before the layer groups were resolved, and why: it stays frozen unless a selector opens it.

LoRA freezes the kernel that it adapts, a quantized layer has no kernel that could train, and users freeze layers and
single variables themselves. `finetune.freeze` and the phases freeze, too; what they froze is marked, so that groups
that are resolved again later do not take it for the decision of other code. The mark is in no file of Keras and in no
copy: there a layer is frozen, and nothing says on whose behalf. It stays frozen, with a warning.
"""

from collections.abc import Iterable
from typing import Any

import keras
import tensorflow as tf

from finetune.errors import quote
from finetune.groups.batch_norm import is_batch_norm
from finetune.groups.layer_tree import Leaf
from finetune.keras_private import layer_variables, sublayers, was_made_frozen

BY_LORA = "frozen by LoRA"
QUANTIZED = "quantized"
BY_HAND = "not trainable when resolved"
LORA_FREEZES = ("kernel", "embeddings")  # names of the weights that LoRA adapts
_MARK = "_finetune_froze"  # an attribute of variables and layers
_FROM_FILE = "_finetune_froze_again"  # an attribute of variables


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
        is_frozen = leaf.came_frozen or not layer.trainable
        return BY_HAND if is_batch_norm(leaf) and is_frozen and not _is_marked(layer) else ""
    if leaf.variable.trainable:
        return BY_HAND if leaf.came_frozen else ""
    if getattr(layer, "lora_enabled", False) and leaf.variable.name in LORA_FREEZES:
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


def mark_from_file(variable: Any) -> None:
    """Notes that a variable is frozen because a file says so: Keras' files hold that of layers alone."""
    vars(variable)[_FROM_FILE] = True


def advice_on_frozen_in_file(model: keras.layers.Layer, leaves: Iterable[Leaf]) -> list[str]:
    """Returns a sentence about weights that came frozen with the model, out of a file or a copy; none without such.

    What the user has frozen in this process needs no advice.

    Args:
        model: The model.
        leaves: Weights in groups for which the user has not said whether they are frozen.
    """
    came_frozen = _made_frozen(model, None)
    names = [
        leaf.layer or leaf.name
        for leaf in leaves
        if leaf.frozen_by == BY_HAND
        and (leaf.came_frozen or id(leaf.variable) in came_frozen or vars(leaf.variable).get(_FROM_FILE))
    ]
    if not names:
        return []
    return [
        f"What came frozen stays frozen, and {quote(dict.fromkeys(names))} came with `trainable = False` from a file, "
        "a copy, or how they were made; a file does not say whether layer groups of an earlier stage froze them. To "
        "train them, set `frozen=False` in their `Selector`, or their `layer.trainable = True` before "
        "`resolve_groups`; if they must not train, set `frozen=True`."
    ]


def _made_frozen(layer: keras.layers.Layer, outer: bool | None) -> set[int]:
    """Returns the ids of the variables at and below a layer that was made with `trainable=False`, or may have been."""
    frozen = was_made_frozen(layer)
    frozen = outer if frozen is None else frozen
    own = [variable for part in layer_variables(layer) for variable in part]
    ids = {id(variable) for variable in own if frozen is not False}
    return ids.union(*(_made_frozen(part, frozen) for part in sublayers(layer, recursive=False)))


def _is_marked(thing: Any) -> bool:
    return bool(vars(thing).get(_MARK))


def _mark(thing: Any, value: bool) -> None:
    if not isinstance(thing, tf.Variable):  # which cannot be frozen
        vars(thing)[_MARK] = value  # not an attribute of a layer that Keras would track
