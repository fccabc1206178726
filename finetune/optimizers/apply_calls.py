"""Notices a training step that calls `apply` once for each group, where every call counts as a step."""

import warnings
import weakref
from collections.abc import Hashable, Iterable
from typing import Any

import tensorflow as tf


class ApplyCalls:
    """The latest call of an optimizer's `apply` in a function that is being traced.

    Two calls in one function for different variables are one step in two parts. Two calls for the same variables are
    two steps of an unrolled loop. Outside of a traced function the calls of different steps cannot be told apart.
    """

    def __init__(self) -> None:
        self._graph: Any = None
        self._variables: frozenset[Hashable] = frozenset()

    def note(self, variables: Iterable[Hashable]) -> None:
        """Warns if this is another part of the step that the call before began.

        Args:
            variables: Keys of the variables that have gradients in this call.
        """
        if tf.executing_eagerly():
            self._graph = None
            return
        graph = tf.compat.v1.get_default_graph()
        variables = frozenset(variables)
        same_graph = self._graph is not None and self._graph() is graph
        if same_graph and variables and self._variables and not variables & self._variables:
            warnings.warn(
                "`apply` was called more than once in a training step, for different variables. Each call counts as a "
                "step: schedules advance too fast, and `global_clipnorm`, gradient accumulation and averages see a "
                "part of the variables at a time. Call `apply` once, with the gradients and variables of all groups.",
                stacklevel=4,
            )
        self._graph = weakref.ref(graph)
        self._variables = variables | self._variables if same_graph else variables
