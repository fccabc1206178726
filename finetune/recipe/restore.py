"""The `restore` of a recipe: which pretrained weights go back into which layers, and what is done to them."""

import re
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from finetune.errors import quote
from finetune.recipe.fields import (
    FilePath,
    Fraction,
    ListOf,
    OneOrMore,
    Part,
    Positive,
    Regex,
    Text,
    choice,
    fault,
)

_OPERATIONS = ("transpose", "reshape", "split", "concatenate", "add")
_JOINS = ("concatenate", "add")
_ONLY_WITH = {"order": ("reshape",), "axis": ("split", "concatenate")}

Axis = Annotated[int, Field(ge=-32, lt=32)]
Size = Annotated[int, Field(ge=-1)]


class TransformRule(Part):
    """A transformation of every weight whose whole name a pattern matches: exactly one operation, or a new name.

    Attributes:
        names: Regular expressions; several, in their order, only to concatenate and to add.
        to: New names; one for each part when splitting.
        transpose: The axes in their new order.
        reshape: The new shape; one number may be -1.
        order: How `reshape` counts: `C` (NumPy, PyTorch) or `F`.
        split: Number of equal parts, or the length of each part.
        concatenate: Concatenates the weights that the patterns match, one of each pattern.
        add: Adds them up.
        axis: Axis of `split` and `concatenate`.
    """

    names: OneOrMore[Regex]
    to: OneOrMore[Text] = ()
    transpose: ListOf[Annotated[int, Field(ge=0, lt=32)]] | None = None
    reshape: ListOf[Size] | None = None
    order: Annotated[Literal["C", "F"], choice("C", "F")] | None = None
    split: Any = None
    concatenate: Annotated[Literal[True], choice(True)] | None = None
    add: Annotated[Literal[True], choice(True)] | None = None
    axis: Axis | None = None

    @field_validator("split")
    @classmethod
    def _count_or_lengths(cls, value: Any) -> Any:
        sizes = value if isinstance(value, list | tuple) else [value]
        whole = all(type(size) is int and size > 0 for size in sizes)
        if value is None or (whole and (sizes is not value or len(sizes) > 1) and value != 1):
            return tuple(value) if isinstance(value, list) else value
        raise fault("must be a number of equal parts, or a list with the length of each, at least two", received=value)

    @field_validator("reshape")
    @classmethod
    def _check_open_size(cls, value: Any) -> Any:
        if value and list(value).count(-1) > 1:
            raise fault("may contain -1 only once", received=list(value))
        return value

    @model_validator(mode="after")
    def _check_operation(self) -> "TransformRule":
        used = [name for name in _OPERATIONS if getattr(self, name) is not None]
        if len(used) != 1 and (used or not self.to):
            rule = f"must have exactly one of {quote(_OPERATIONS)}, or a new name under `to`"
            raise fault(rule, received=used) if used else fault(rule)
        self._check_names(used[0] if used else "")
        for key, operations in _ONLY_WITH.items():
            if getattr(self, key) is not None and not set(used) & set(operations):
                raise fault(f"has `{key}`, which goes with `{'` or `'.join(operations)}`. Remove it")
        return self

    def _check_names(self, operation: str) -> None:
        if operation in _JOINS and (len(self.names) < 2 or len(self.to) != 1):
            raise fault(f"needs two or more patterns under `names`, and one name under `to`, to `{operation}`")
        if operation not in _JOINS and len(self.names) > 1:
            raise fault("takes several patterns under `names` only to `concatenate` or `add`. Write a rule for each")
        count = self.split if isinstance(self.split, int) else len(self.split or ())
        if operation == "split" and len(self.to) != count:
            raise fault(f"needs {count} names under `to`, one for each part", received=list(self.to))
        if operation not in (*_JOINS, "split") and len(self.to) > 1:
            raise fault("takes one name under `to`", received=list(self.to))


class Restore(Part):
    """Which pretrained weights go back into which layers.

    Attributes:
        source: The file, folder, archive or checkpoint prefix; written `from`.
        exclude: Prefixes of layers that keep their fresh weights.
        rename: Regular expressions over the file's names, and what replaces them.
        transform: Rules for the weights after renaming, applied in order.
        averages: Whether moving averages in the file are taken in place of its weights.
        allow_missing: Prefixes of layers that may lack weights in the file.
        allow_unused: Prefixes of the file's names that may go unused.
        min_coverage: Share of the parameters outside `exclude` that must come from the file, in (0, 1].
        verify: An npz file with inputs and the outputs that the restored model must produce.
        verify_rtol: Allowed difference of the outputs, as a share of the expected value.
        verify_atol: Allowed difference in addition to that.
    """

    source: FilePath = Field(alias="from")
    exclude: OneOrMore[Text] = ()
    rename: dict[Regex, str] = Field(default_factory=dict)
    transform: ListOf[TransformRule] = ()
    averages: bool = False
    allow_missing: OneOrMore[Text] = ()
    allow_unused: OneOrMore[Text] = ()
    min_coverage: Fraction | None = None
    verify: FilePath | None = None
    verify_rtol: Positive | None = None
    verify_atol: Positive | None = None

    @field_validator("rename")
    @classmethod
    def _check_replacements(cls, value: dict[str, str]) -> dict[str, str]:
        for pattern, replacement in value.items():
            try:
                re.sub(pattern, replacement, "")  # reads the replacement even if nothing matches
            except (re.error, IndexError) as error:
                raise fault(f"is not a valid replacement: {error}", received=replacement, at=(pattern,)) from None
        return value

    @field_validator("verify_rtol", "verify_atol")
    @classmethod
    def _check_verify(cls, value: Any, info: ValidationInfo) -> Any:
        if value is not None and info.data.get("verify", "invalid") is None:
            raise fault("is only for `verify`, which is not set. Remove it")
        return value
