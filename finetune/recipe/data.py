"""The `data` of a recipe: where the examples come from."""

from typing import Any

from pydantic import Field, ValidationInfo, field_validator

from finetune.recipe.fields import Arguments, FilePath, Part, fault, one_of
from finetune.recipe.model import Builder


class DataSource(Part):
    """Where the examples come from: exactly one of `builder` and `npz`.

    Attributes:
        builder: A function that returns examples, as `package.module:function`.
        arguments: Keyword arguments of the builder.
        npz: A file with the arrays `x_train`, `y_train`, `x_test`, `y_test`, and optionally validation rows.
    """

    builder: Builder | None = None
    arguments: Arguments = Field(default_factory=dict)
    npz: FilePath | None = None

    @field_validator("arguments")
    @classmethod
    def _check_builder(cls, value: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        # A builder that is wrong itself is missing from `info.data`; its own error is enough.
        if value and info.data.get("builder", "invalid") is None:
            raise fault("are only for a `builder`, and none is set. Remove them")
        return value

    @field_validator("npz")
    @classmethod
    def _check_source(cls, value: Any, info: ValidationInfo) -> Any:
        return one_of(value, info, "builder")
