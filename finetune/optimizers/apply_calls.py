"""Notices a training step that calls `apply` once for each group, where every call counts as a step."""

import warnings
import weakref
from collections import deque
from collections.abc import Hashable, Iterable
from typing import Any

import tensorflow as tf

from finetune.keras_private import graph_of_step

_MOST_PARTS = 64  # of a step that are looked for in eager mode
_MESSAGE = (
    "`apply` was called more than once in a training step, for different variables. Each call counts as a step: "
    "schedules advance too fast, and `global_clipnorm`, gradient accumulation and averages see a part of the variables "
    "at a time. Call `apply` once, with the gradients and variables of all groups."
)


class ApplyCalls:
    """The latest calls of an optimizer's `apply`.

    Two calls in one function that is being traced, for different variables, are one step in two parts. Two calls for
    the same variables are two steps of an unrolled loop. Outside of a traced function nothing says where a step ends:
    there, parts that come again in the same order are a step in parts.
    """

    def __init__(self) -> None:
        self._graph: Any = None
        self._variables: frozenset[Hashable] = frozenset()
        self._eager: deque[frozenset[Hashable]] = deque(maxlen=2 * _MOST_PARTS)  # variables of each call
        self._warned = False  # in eager mode, where it would be in every step

    def note(self, variables: Iterable[Hashable]) -> None:
        """Warns if this is another part of the step that the call before began.

        Args:
            variables: Keys of the variables that have gradients in this call.
        """
        variables = frozenset(variables)
        if tf.executing_eagerly():
            self._graph = None
            self._note_eager(variables)
            return
        graph = graph_of_step()
        same_graph = self._graph is not None and self._graph() is graph
        if same_graph and variables and self._variables and not variables & self._variables:
            warnings.warn(_MESSAGE, stacklevel=4)
        self._graph = weakref.ref(graph)
        self._variables = variables | self._variables if same_graph else variables

    def _note_eager(self, variables: frozenset[Hashable]) -> None:
        calls = self._eager
        if self._warned or not variables:
            return
        parts = next((n for n, before in enumerate(reversed(calls), start=1) if before == variables), 0)
        calls.append(variables)
        latest = list(calls)[-parts:]
        # Twice the same parts, of which no two have a variable in common.
        if parts > 1 and len(calls) >= 2 * parts and list(calls)[-2 * parts : -parts] == latest:
            self._warned = sum(map(len, latest)) == len(frozenset().union(*latest))
            if self._warned:
                warnings.warn(_MESSAGE, stacklevel=5)
