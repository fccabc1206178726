"""Groups from a `keras.optimizers.OptimizerMap`, what Keras' `MultiOptimizer` takes: optimizers by paths."""

import re
from typing import Any

import keras

from finetune.errors import GroupError, did_you_mean, quote

_DEFAULT = "default"


def groups_of_map(
    model: Any, optimizer_map: keras.optimizers.OptimizerMap
) -> dict[str, tuple[keras.optimizers.Optimizer, list[Any]]]:
    """Returns the groups that a map makes of the trainable variables of a model, by Keras' rules.

    A key that is the path of a variable takes it; else the only key that matches the whole path as a regular
    expression; else the variable goes to the default optimizer. Keys with the same optimizer are one group, which has
    the name of the first of them.

    Args:
        model: A built model, or anything with `trainable_variables`.
        optimizer_map: The map.

    Returns:
        Optimizer and variables of each group by name, in the order of the variables.

    Raises:
        GroupError: It is no map, a key matches nothing, or two match one variable.
    """
    if not isinstance(optimizer_map, keras.optimizers.OptimizerMap):
        raise GroupError(
            "`from_optimizer_map` takes a model and a `keras.optimizers.OptimizerMap`. Received a "
            f"`{type(optimizer_map).__name__}`. Write `keras.optimizers.OptimizerMap(default_optimizer, {{...}})`, or "
            "pass pairs of an optimizer and layers to `GroupedOptimizer` itself."
        )
    variables = list(model.trainable_variables)
    if not variables:
        raise GroupError(
            f"Groups are made of the trainable variables of a model. `{getattr(model, 'name', model)}` has none yet. "
            "Build it first: `model.build(input_shape)`."
        )
    keys, optimizers = list(optimizer_map), dict(optimizer_map.items())
    groups: dict[int, tuple[str, list[Any]]] = {}
    used: set[str] = set()
    for variable in variables:
        path = variable.path
        matching = [path] if path in optimizers else [key for key in keys if re.fullmatch(key, path)]
        if len(matching) > 1:
            raise GroupError(
                f"A variable belongs to one optimizer. The keys {quote(matching)} all match `{path}`. Narrow all but "
                "one of them."
            )
        used |= {*matching}
        optimizer = optimizers[matching[0]] if matching else optimizer_map.default_optimizer
        name = re.sub(r"[^A-Za-z0-9_]+", "-", matching[0]).strip("-") or "group" if matching else _DEFAULT
        groups.setdefault(id(optimizer), (name, []))[1].append(variable)
    unused = [key for key in keys if key not in used]
    if unused:
        paths = [variable.path for variable in variables]
        layer = re.sub(r"^\W+|\W+$", "", unused[0])
        inside = next((path for path in paths if f"/{layer}/" in path), None)
        hint = f" There is `{inside}`: write `.*/{layer}/.*`." if inside else ""
        hint = hint or did_you_mean(layer, paths) or f" Paths are {quote(paths)}."
        raise GroupError(
            f"A key of an `OptimizerMap` is the path of a variable, or matches whole paths. {quote(unused)} "
            f"{'matches' if len(unused) == 1 else 'match'} nothing, and Keras would train these variables with the "
            f"default optimizer.{hint}"
        )
    by_id = {id(each): each for each in (*optimizers.values(), optimizer_map.default_optimizer)}
    named: dict[str, tuple[keras.optimizers.Optimizer, list[Any]]] = {}
    for identity, (name, members) in groups.items():
        unique = next(each for each in (name, *(f"{name}-{n}" for n in range(2, 99))) if each not in named)
        named[unique] = by_id[identity], members
    return named
