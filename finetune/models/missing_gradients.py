"""Finds out before training that the graph of a SavedModel cannot be differentiated.

The gradient of a `tf.custom_gradient` function is Python code, which a SavedModel holds only if it was saved with
`tf.saved_model.SaveOptions(experimental_custom_gradients=True)` (the default since TensorFlow 2.16, not before, and
never in TensorFlow 1). Without it TensorFlow ends the first training step with "No gradient defined for operation", or,
worse, uses a gradient of the running process that happens to have the same number, `CustomGradient-103`. Other
operations have no gradient in any file, such as those of quantized networks.
"""

from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf

from finetune.errors import quote
from finetune.keras_private import has_gradient, has_registered_gradient, parse_saved_model

_NUMBERED = "CustomGradient-"  # TensorFlow counts these names in the process that saves


def unsaved_gradients(folder: str) -> frozenset[str]:
    """Returns the names of the custom gradients that the operations of a SavedModel refer to and that it does not hold.

    Args:
        folder: The folder of the SavedModel.
    """
    unsaved: set[str] = set()
    for meta_graph in parse_saved_model(folder).meta_graphs:
        graph = meta_graph.graph_def
        saved = {each.registered_op_type for each in graph.library.registered_gradients}
        nodes = [*graph.node, *(node for function in graph.library.function for node in function.node_def)]
        unsaved |= {name for node in nodes if (name := _custom_gradient(node))} - saved
    return frozenset(unsaved)


def missing_gradients(traces: Any, unsaved: frozenset[str], call: Callable[[Any], Any], inputs: Any) -> list[str]:
    """Returns the operations for which a function cannot be differentiated; none if it can.

    Args:
        traces: Its concrete functions.
        unsaved: From `unsaved_gradients`.
        call: Runs the function in training.
        inputs: Specs of the inputs of `call`.

    Returns:
        Text such as `cond/IdentityN (CustomGradient-836)`.
    """
    wrong, suspects = [], []
    for graph in (trace.graph.as_graph_def() for trace in traces):
        for function, node in _nodes(graph):
            name = _custom_gradient(node)
            text = f"{node.name} ({name or node.op}{f', in {function}' if function else ''})"
            if name in unsaved and name.startswith(_NUMBERED) and has_registered_gradient(name):
                wrong.append(text)  # the gradient of this number is another one, and would be used
            elif not has_registered_gradient(name) if name else not has_gradient(node):
                suspects.append(text)
    if wrong or not suspects:
        return list(dict.fromkeys(wrong))
    # Perhaps no output depends on them: TensorFlow is asked, without computing anything.
    return list(dict.fromkeys(suspects)) if _fails(call, inputs) else []


def refusal(name: str, missing: list[str]) -> str:
    """Returns the message for a SavedModel that cannot be trained.

    Args:
        name: What the message calls it.
        missing: From `missing_gradients`.
    """
    is_custom = any("CustomGradient" in each for each in missing)
    save = (
        "Save it again with `options=tf.saved_model.SaveOptions(experimental_custom_gradients=True)`, or freeze it "
        if is_custom
        else "Take a version that was saved for training, or freeze it "
    )
    return (
        f"To train a network, TensorFlow needs the gradient of each of its operations. The SavedModel of `{name}` was "
        f"saved without those of {quote(missing)}. {save}and train what comes after it (`frozen: true`, "
        "`trainable=False`)."
    )


def _fails(call: Callable[[Any], Any], inputs: Any) -> bool:
    def gradients(x: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch([each for each in tf.nest.flatten(x, expand_composites=True) if each.dtype.is_floating])
            outputs = tf.nest.flatten(call(x), expand_composites=True)
            total = [tf.reduce_sum(each) for each in outputs if each.dtype.is_floating]
        return tape.gradient(total, tape.watched_variables())

    try:
        tf.function(gradients, autograph=False).get_concrete_function(inputs)
    except LookupError:
        return True
    return False


def _custom_gradient(node: Any) -> str:
    return node.attr["_gradient_op_type"].s.decode() if "_gradient_op_type" in node.attr else ""


def _nodes(graph: Any) -> Iterator[tuple[str, Any]]:
    """Yields every operation of a graph and of the functions that it calls, with the name of its function.

    Gradients of custom gradients are in the library of a graph, too. They are called by second derivatives alone.
    """
    functions = {function.signature.name: function for function in graph.library.function}
    reached = dict.fromkeys([""])
    for name in (queue := [""]):  # the list grows while it is iterated
        for node in functions[name].node_def if name else graph.node:
            yield name, node
            held = [each for a in node.attr.values() for each in (a.func.name, *(f.name for f in a.list.func))]
            more = dict.fromkeys(each for each in (node.op, *held) if each in functions and each not in reached)
            reached |= more
            queue += more
