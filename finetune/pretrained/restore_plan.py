"""The plan of a restore: which weights of the model get which of the file, which get none, and what is wrong."""

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod

from finetune.errors import RestoreError
from finetune.groups.layer_tree import Leaf
from finetune.pretrained.formats.weight_file import StoredTensor
from finetune.pretrained.matching_rules import Pair


@dataclass(frozen=True)
class RestorePlan:
    """What restoring a file would do to a model.

    Attributes:
        path: The file.
        kind: Its format.
        restored: Pairs of weights that fit.
        missing: Weights of the model that the file lacks.
        unused: Weights of the file that the model lacks.
        shape_conflict: Pairs that belong together but differ in shape, or of which one holds integers and one floats.
        excluded: Weights of the model that keep their fresh values.
        problems: Why the file must not be restored, one text for each kind of problem; empty if it fits.
        others: What else the file holds: slots of optimizers, averages, counters and so on.
        copies: Weights that the file holds once more: Keras saves a weight with each layer that has it.
    """

    path: str
    kind: str
    restored: tuple[Pair, ...]
    missing: tuple[Leaf, ...]
    unused: tuple[StoredTensor, ...]
    shape_conflict: tuple[Pair, ...]
    excluded: tuple[Leaf, ...]
    problems: tuple[str, ...] = ()
    others: tuple[StoredTensor, ...] = ()
    copies: tuple[Pair, ...] = ()

    @property
    def coverage(self) -> float:
        """Share of the model's parameters that would be restored, 0 to 1. Excluded weights do not count."""
        restored = sum(prod(shape_of(pair.leaf)) for pair in self.restored)
        others = [*self.missing, *(pair.leaf for pair in self.shape_conflict)]
        # A model without parameters outside `exclude` has a coverage of 0 and not an error.
        return restored / max(1, restored + sum(prod(shape_of(leaf)) for leaf in others))

    def check(self) -> None:
        """Raises one error that lists every problem.

        Raises:
            RestoreError: There are problems.
        """
        if self.problems:  # in the order of `matching.match`, one line each
            listed = "".join(f"\n- {problem}" for problem in self.problems)
            raise RestoreError(f"`{self.path}` ({self.kind}) does not fit the model; nothing was restored.{listed}")


def is_under(name: str, prefixes: Iterable[str]) -> bool:
    """Whether a name begins with one of the prefixes, at a `/` boundary: `a` covers `a` and `a/b`, not `ab`."""
    return any(name == prefix.rstrip("/") or name.startswith(f"{prefix.rstrip('/')}/") for prefix in prefixes)


def shape_of(leaf: Leaf) -> tuple[int, ...]:
    """Returns the shape of a weight of the model."""
    return tuple(leaf.variable.shape)


def dtype_of(leaf: Leaf) -> str:
    """Returns the type of a weight of the model, as NumPy spells it: `float32`."""
    return getattr(leaf.variable.dtype, "name", str(leaf.variable.dtype))  # of a tf.Variable, or Keras' text
