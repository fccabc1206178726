"""Files of `data` that may be several: patterns, lists, and those of each split; and features of records in them."""

from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field, GetPydanticSchema, model_validator
from pydantic_core import core_schema

from finetune.recipe.fields import Count, ListOf, Part, RecipePath, choice, fault

SPLITS = ("train", "test", "validation")
DTYPES = ("int64", "int32", "int8", "uint8", "bool", "float32", "float16", "string")
DECODERS = ("image", "jpeg", "png", "gif", "bmp", "webp", "none")
Dtype = Literal["int64", "int32", "int8", "uint8", "bool", "float32", "float16", "string"]
Decoder = Literal["image", "jpeg", "png", "gif", "bmp", "webp", "none"]


def _check_files(value: Any) -> Any:
    """Returns the files of each split by its name; the name of files that are still to be split is empty."""
    by_split = value if isinstance(value, dict) else {"": value}
    files = {name: [each] if isinstance(each, str) else each for name, each in by_split.items()}
    for names in files.values():
        if not isinstance(names, list | tuple) or not names or not all(isinstance(n, str) and n for n in names):
            rule = "must be a file or a pattern such as `train-*`, a list of these, or these for `train` and `test`"
            raise fault(rule, received=value)
    if list(files) != [""] and (not {"train", "test"} <= set(files) or not set(files) <= set(SPLITS)):
        raise fault("must name files for `train` and `test`, and may for `validation`", received=list(files))
    return {name: tuple(RecipePath(n, getattr(n, "folder", None)) for n in names) for name, names in files.items()}


Files = Annotated[
    dict[str, tuple[RecipePath, ...]],
    GetPydanticSchema(lambda source, handler: core_schema.no_info_plain_validator_function(_check_files)),
]


def _check_tables(value: Any) -> Any:
    """Returns a file or a pattern, or several in a tuple."""
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list | tuple) or not names or not all(isinstance(n, str) and n for n in names):
        raise fault("must be a file or a pattern such as `train-*.parquet`, or a list of these", received=value)
    paths = tuple(RecipePath(n, getattr(n, "folder", None)) for n in names)
    return paths[0] if isinstance(value, str) else paths


Tables = Annotated[
    RecipePath | tuple[RecipePath, ...],
    GetPydanticSchema(lambda source, handler: core_schema.no_info_plain_validator_function(_check_tables)),
]


class FeatureSpec(Part):
    """How a feature of a record is read; a type alone, such as `label: int64`, is a single value.

    Attributes:
        dtype: Type of its values.
        shape: Shape of its values; `[]` is a single value.
        length: For a list of any length: longer lists are cut, shorter ones are filled up with 0.
        decode: Whether the bytes are an image; all formats are told apart by their content.
        size: Height and width of the image; by default `data.size`, or what the network takes.
    """

    dtype: Annotated[Dtype, choice(*get_args(Dtype))] | None = None
    shape: ListOf[Count] = ()
    length: Count | None = None
    decode: Annotated[Decoder, choice(*get_args(Decoder))] | None = None
    size: Annotated[ListOf[Count], Field(min_length=2, max_length=2)] | None = None

    @model_validator(mode="after")
    def _check_together(self) -> "FeatureSpec":
        is_image = self.decode not in (None, "none")
        if is_image == (self.dtype is not None) and not (self.dtype == "string" and is_image):
            raise fault("needs either `dtype` or `decode`")
        if is_image and (self.shape or self.length):
            raise fault("is an image: its shape is `size`")
        if self.size and not is_image:
            raise fault("is for images: write `decode: image` beside it", at=("size",))
        if self.length and self.shape:
            raise fault("takes at most one of `shape`, `length`")
        return self


def _from_dtype(value: Any) -> Any:
    return {"dtype": value} if isinstance(value, str) else value


Feature = Annotated[FeatureSpec, BeforeValidator(_from_dtype)]
