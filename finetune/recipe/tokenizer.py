"""The `data.tokenizer` of a recipe: how text becomes token ids."""

from typing import Annotated, Any, Literal, get_args

from pydantic import model_validator

from finetune.recipe.fields import Count, FilePath, Part, Text, choice, fault

Padding = Literal["auto", "buckets", "longest", "length"]


class TokenizerSpec(Part):
    """How text becomes token ids.

    Attributes:
        file: A `tokenizer.json`, or the `vocab.txt` of an uncased BERT. A KerasHub preset brings its own.
        length: Tokens of a row at most, special tokens included. Longer texts are cut, of a pair the longer text first.
            Required with `file`.
        padding: To how many tokens the rows of a batch are filled up: `length`, as many as that for every batch;
            `buckets`, the first of 16, 24, 32, 48, 64, 96 and so on that holds its longest row; `longest`, the longest
            row itself. `auto` takes `buckets` where the outputs of the network do not depend on the padding, and
            `length` elsewhere.
        pad_token: The token that rows are filled up with; by default the padding token of the tokenizer.
        cache: A folder in which token ids are kept, for the next run with the same texts, tokenizer and length.
    """

    file: FilePath | None = None
    length: Count | None = None
    padding: Annotated[Padding, choice(*get_args(Padding))] = "auto"
    pad_token: Text | None = None
    cache: FilePath | None = None

    @model_validator(mode="before")
    @classmethod
    def _check_form(cls, value: Any) -> Any:
        if isinstance(value, str):
            raise fault(f"has keys of its own: write `tokenizer: {{file: {value}, length: 64}}`", about="mapping")
        return value

    @model_validator(mode="after")
    def _check_together(self) -> "TokenizerSpec":
        if self.file and self.length is None:
            raise fault("is missing. Add it under `data.tokenizer`", at=("length",))
        if self.pad_token and not self.file:
            raise fault("is for a `file`: a preset knows its own. Remove it", at=("pad_token",))
        return self
