"""Asks before the graph of a SavedModel runs: it is code of whoever made it."""

import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path

from finetune.errors import FinetuneError, quote
from finetune.models.graph_operations import read_operations
from finetune.models.hub_handles import is_remote, resolve_handle
from finetune.recipe.code_consent import GRAPH, OPERATION, names_graph


def require_consent(handle: str | Path, allow_code: Sequence[str], *, written: str | None = None) -> None:
    """Checks that the user has allowed a graph that a recipe or a command line names.

    A local SavedModel is looked into first, so that the message can say what it contains. Nothing is downloaded before
    the user allows it.

    Args:
        handle: What `finetune.models.hub_handles.resolve_handle` takes.
        allow_code: What `--allow-code` names: `hub:HANDLE` for the graph, `op:NAME` for each operation that reaches
            outside of it.
        written: The handle as the recipe has it; by default `handle`.

    Raises:
        FinetuneError: The graph, or an operation in it, is not allowed; or the handle cannot be resolved.
    """
    handle, written = str(handle), written or str(handle)
    is_named = names_graph(allow_code, written, handle)
    option = f"--allow-code {shlex.quote(GRAPH + written)}"
    if is_remote(handle) and not is_named:
        raise FinetuneError(
            f"The graph of a SavedModel is code, which runs with your rights. `{written}` is not downloaded before you "
            f"allow it. If you trust its author, add `{option}`; operations on files, other machines and Python are "
            "refused even then, until you name them."
        )
    operations = read_operations(resolve_handle(handle))
    missing = [name for name in operations.outside if OPERATION + name not in allow_code]
    if is_named and not missing:
        return
    options = [option, *(f"--allow-code {OPERATION}{name}" for name in operations.outside)]
    raise FinetuneError(
        f"The graph of a SavedModel is code, which runs with your rights. That of `{written}` has "
        f"{operations.summary(limit=9)}. If you trust it, add `{' '.join(options)}`."
    )


def require_operations(folder: str, name: str, allowed: Iterable[str]) -> None:
    """Checks that a graph which Python code names has no operations that reach outside of it, except allowed ones.

    Args:
        folder: The folder of the SavedModel.
        name: What messages call it.
        allowed: Names of operations.

    Raises:
        FinetuneError: It has others.
    """
    allowed = set(allowed)
    refused = [f"{each} ({kind})" for each, kind in read_operations(folder).outside.items() if each not in allowed]
    if refused:
        names = [each.partition(" ")[0] for each in refused]
        raise FinetuneError(
            f"The graph of a SavedModel computes outputs from inputs. That of `{name}` also reaches outside of it, by "
            f"{quote(refused)}, with your rights. If you trust it, name them: `allow_operations={names}`."
        )
