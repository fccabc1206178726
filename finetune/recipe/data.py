"""The `data` of a recipe: where the examples come from, and which of them train, test and validate."""

from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator, model_validator

from finetune.errors import quote
from finetune.recipe.fields import (
    Arguments,
    Count,
    FilePath,
    ListOf,
    Part,
    Text,
    choice,
    fault,
    one_of,
)
from finetune.recipe.model import Builder

_SOURCES = ("builder", "npz", "images")
_KEYS_OF = {  # keys that only some sources have
    "arguments": ("builder",),
    "size": ("images",),
    "resize": ("images",),
    "value_range": ("images",),
    "class_names": ("images",),
    "class_names_file": ("images",),
    "split": ("images",),
}
Resize = Literal["pad", "crop", "stretch"]
SplitBy = Literal["random", "stratified", "hash"]


class SplitSpec(Part):
    """How rows are divided into those to train, test and validate on.

    Attributes:
        test: Share of the rows to test on.
        validation: Share of the rows to validate on.
        by: `random`; `stratified`, each class in the same shares; or `hash`, by the name of the file, so that a row
            stays in its split when others are added. By default `stratified` where there are classes.
    """

    test: Annotated[float, Field(gt=0, lt=1)] = 0.2
    validation: Annotated[float, Field(ge=0, lt=1)] = 0.0
    by: Annotated[SplitBy, choice(*get_args(SplitBy))] | None = None

    @model_validator(mode="after")
    def _check_shares(self) -> "SplitSpec":
        if self.test + self.validation >= 1:
            rule = "leaves no rows to train on: `test` and `validation` together must be less than 1"
            raise fault(rule, received=round(self.test + self.validation, 6))
        return self


def _check_class_weight(value: Any) -> Any:
    if value is None or value == "balanced":
        return value
    weights = value if isinstance(value, dict) else {}
    if weights and all(type(weight) in (int, float) and 0 <= weight < float("inf") for weight in weights.values()):
        return {str(name): float(weight) for name, weight in weights.items()}
    raise fault(
        "must be `balanced`, or a number of at least 0 for each class by its name, e.g. `{cat: 2.0, dog: 1.0}`",
        received=value,
    )


class DataSource(Part):
    """Where the examples come from: exactly one of the first three keys.

    Attributes:
        builder: A function that returns examples, as `package.module:function`.
        npz: A file with the arrays `x_train`, `y_train`, `x_test`, `y_test`, and optionally validation rows.
        images: A folder with a folder of images for each class; or with `train`, `test` and, optionally, `validation`,
            of which each has folders of classes.
        arguments: Keyword arguments of the builder.
        size: Height and width of the images; by default those that the network takes.
        resize: `pad` keeps the whole image and its proportions; `crop` keeps the proportions and fills the size;
            `stretch` does not keep the proportions.
        value_range: What black and white become.
        class_names: Names of the classes in the order of their numbers; by default sorted.
        class_names_file: A text file with such a name in each line.
        split: Which rows test and validate.
        class_weight: `balanced`, or the weight of each class in the loss, by its name.
        limit: At most so many rows, taken evenly from the source before it is split.
    """

    builder: Builder | None = None
    npz: FilePath | None = None
    images: FilePath | None = None
    arguments: Arguments = Field(default_factory=dict)
    size: Annotated[ListOf[Count], Field(min_length=2, max_length=2)] | None = None
    resize: Annotated[Resize, choice(*get_args(Resize))] = "pad"
    value_range: Annotated[ListOf[float], Field(min_length=2, max_length=2)] = (0.0, 255.0)
    class_names: ListOf[Text] = ()
    class_names_file: FilePath | None = None
    split: SplitSpec | None = None
    class_weight: Annotated[Any, BeforeValidator(_check_class_weight)] = None
    limit: Count | None = None

    @field_validator("images")
    @classmethod
    def _check_source(cls, value: Any, info: ValidationInfo) -> Any:
        return one_of(value, info, *_SOURCES[:-1])

    @model_validator(mode="after")
    def _check_keys_of_source(self) -> "DataSource":
        source = next(name for name in _SOURCES if getattr(self, name) is not None)
        for key, sources in _KEYS_OF.items():
            if getattr(self, key) != type(self).model_fields[key].get_default(call_default_factory=True):
                if source in sources:
                    continue
                raise fault(f"is for data from {quote(sources)}, and these are from `{source}`. Remove it", at=(key,))
        if self.class_names and self.class_names_file:
            raise fault("takes at most one of `class_names`, `class_names_file`. Remove one of the two")
        return self
