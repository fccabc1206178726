"""The `data` of a recipe has exactly one source."""

import pytest
from pydantic import ValidationError

from finetune.recipe.data import DataSource

BUILDER = "finetune.examples.digits:uci_digits"


def predicate(**keys):
    with pytest.raises(ValidationError) as caught:
        DataSource.model_validate(keys)
    [error] = caught.value.errors()
    return error["ctx"]["predicate"]


def test_a_builder_with_arguments_or_a_file_is_a_source():
    assert DataSource.model_validate({"builder": BUILDER, "arguments": {"seed": 1}}).arguments == {"seed": 1}
    assert DataSource.model_validate({"npz": "rows.npz"}).npz == "rows.npz"


def test_two_sources_and_none_are_errors():
    assert predicate(builder=BUILDER, npz="rows.npz") == (
        "needs exactly one of `builder`, `npz`. Received: `builder`, `npz`"
    )
    assert predicate() == "needs exactly one of `builder`, `npz`. All are missing"


def test_arguments_without_a_builder_are_an_error():
    assert predicate(npz="rows.npz", arguments={"seed": 1}) == "are only for a `builder`, and none is set. Remove them"


def test_arguments_belong_to_a_builder(complaint):
    said = ["`data.arguments` are only for a `builder`, and none is set. Remove them."]
    assert complaint("data", "arguments", to={"rows": 3}) == said
