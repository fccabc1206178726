"""What `--allow-code` allows: packages, graphs of SavedModels, and operations of graphs that reach outside of them.

`my_package` allows a package and what is below it, `hub:HANDLE` the graph that a handle or path names, and `op:NAME` an
operation of an allowed graph that reaches files, other machines, Python or the process.
"""

from collections.abc import Sequence
from pathlib import Path

from finetune.errors import RecipeError
from finetune.recipe.loader import place_of, resolve_place
from finetune.recipe.schema import Recipe

GRAPH, OPERATION = "hub:", "op:"


def names_graph(allowed: Sequence[str], written: str, handle: str) -> bool:
    """Returns whether a graph is allowed.

    Args:
        allowed: What `--allow-code` names.
        written: The handle as the recipe or the command line has it.
        handle: The handle with an absolute path, if it is a path.
    """
    for text in (entry.removeprefix(GRAPH) for entry in allowed if entry.startswith(GRAPH)):
        if text.rstrip("/") in (written.rstrip("/"), handle.rstrip("/")):
            return True
        if text and "://" not in text + handle and Path(text).expanduser().resolve() == Path(handle).resolve():
            return True
    return False


def check_graph_allowed(recipe: Recipe, allowed: Sequence[str]) -> None:
    """Checks that the user has allowed the graph that a recipe names, without looking into it.

    Raises:
        RecipeError: The graph is not allowed.
    """
    hub = recipe.model.hub
    if hub and not names_graph(allowed, hub, resolve_place(recipe, hub)):
        raise RecipeError(
            f"{place_of(recipe, 'model', 'hub')}: `model.hub: {hub}` names a SavedModel, whose graph is code, and a "
            f"recipe may come from anywhere. `finetune inspect` lists what is in a local one, and `finetune plan` what "
            f"it would do. Add `--allow-code {GRAPH}{hub}` if you trust it."
        )
