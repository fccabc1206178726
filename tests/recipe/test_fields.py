"""The types that the schema is built from: what each accepts, and what its errors say."""

import math
from pathlib import Path
from typing import Annotated, Any

import pytest
from pydantic import ValidationError, field_validator
from pydantic_core import PydanticCustomError

from finetune.recipe.fields import (
    Count,
    FilePath,
    Length,
    Part,
    RecipePath,
    choice,
    fault,
    length_of,
    matched,
    offer,
    one_of,
    pick,
    show,
)


class Span(Part):
    """A length with two spellings, at most one of which may be used."""

    long_steps: Count | None = None
    long_epochs: float | None = None
    seed: int = 0
    note: str = ""

    @field_validator("long_epochs")
    @classmethod
    def _check(cls, value, info):
        return one_of(value, info, "long_steps", default=None)


class Strict(Part):
    """A length of which exactly one spelling must be used."""

    short_steps: Count | None = None
    short_epochs: float | None = None

    @field_validator("short_epochs")
    @classmethod
    def _check(cls, value, info):
        return one_of(value, info, "short_steps")


class Kinds(Part):
    path: FilePath | None = None
    mode: Annotated[Any, choice(False, 1, "auto")] = "auto"
    code: Annotated[str, matched(r"[a-z]+", "must be lower-case letters")] = "a"


def predicate(model, **keys):
    with pytest.raises(ValidationError) as caught:
        model.model_validate(keys)
    [error] = caught.value.errors()
    return error["ctx"]["predicate"]


def test_null_in_an_optional_key_means_its_default(read):
    assert read("train", "batch_size", to=None).train.batch_size == 32
    assert read("restore", to=None).restore is None


def test_a_choice_compares_types_so_zero_does_not_count_as_false(complaint, read):
    known = "Choose from `false`, `bfloat16`, `float16`, `auto`."
    said = [f"`train.mixed_precision` is not a known value. Received: `0`. {known}"]
    assert complaint("train", "mixed_precision", to=0) == said
    assert read("train", "mixed_precision", to=False).train.mixed_precision is False
    assert read("train", "mixed_precision", to="bfloat16").train.mixed_precision == "bfloat16"


def test_a_single_text_is_read_as_a_list_with_one_entry(read):
    assert read("restore", "exclude", to="head").restore.exclude == ("head",)
    assert [metric.name for metric in read("train", "metrics", to="accuracy").train.metrics] == ["accuracy"]
    assert read("groups", 0, to={"name": "a", "variables": 4, "frozen": True}).groups[0].variables == (4,)


def test_an_identifier_cannot_name_code(complaint):
    said = ['`train.loss.name` must be a name of letters, digits and `_`. Received: `"os.system"`.']
    assert complaint("train", "loss", to={"name": "os.system"}) == said


def test_a_regular_expression_that_does_not_compile_is_an_error_with_the_reason(complaint):
    [said] = complaint("groups", 0, to={"name": "a", "regex": "conv(", "frozen": True})
    assert said.startswith("`groups.a.regex` is not a regular expression: missing )")


def test_a_value_is_shown_as_one_short_line_of_yaml():
    assert show(None) == "`null`"
    assert show({"a": [1, True]}) == '`{"a": [1, true]}`'
    assert (show(math.inf), show(-math.inf), show(math.nan)) == ("`.inf`", "`-.inf`", "`.nan`")
    assert show("x" * 100) == '`"' + "x" * 56 + "...`"
    assert show({(1, 2): 3}) == "`dict`"


def test_a_fault_carries_its_rule_its_value_and_the_way_to_it():
    context = fault("must be odd", received=2, at=("a", 0), about="key").context
    assert context == {"predicate": "must be odd. Received: `2`", "at": ("a", 0), "about": "key"}
    assert fault("is missing").context["predicate"] == "is missing"


def test_an_unknown_name_gets_the_nearest_names_or_all_of_them():
    assert pick("min", ["min", "max"]) == "min"
    assert offer("mim", ["min", "max"]) == " Did you mean `min`?"
    assert offer("x", ["min", "max"]) == " Choose from `min`, `max`."
    with pytest.raises(PydanticCustomError) as caught:
        pick(3, ["min", "max"], at=("mode",))
    assert caught.value.context["at"] == ("mode",)
    assert caught.value.context["predicate"] == "is not a known value. Received: `3`. Choose from `min`, `max`."


def test_a_misspelt_key_gets_the_nearest_key():
    assert predicate(Span, nota=3) == "is not a known key. Did you mean `note`?"


def test_a_key_that_was_renamed_tells_its_new_name(monkeypatch):
    monkeypatch.setattr(Span, "renamed", {"remark": "note"})
    assert predicate(Span, remark="long") == "is now called `note`. Rename it"


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("n", "is not a known key. It is called `note`"),
        ("other", "is not a known key here: it is one of `there`. Write `there.other`"),
        ("o", "is not a known key here: it is called `other` and is one of `there`. Write `there.other`"),
        ("train_dir", "is not a known key. The folder of a run is named on the command line: `finetune run recipe.yaml --out FOLDER`"),
    ],
)  # fmt: skip
def test_a_key_as_other_programs_call_it_tells_its_name_and_its_part(monkeypatch, key, said):
    monkeypatch.setattr(Span, "elsewhere", {"other": "there"})
    monkeypatch.setattr("finetune.recipe.fields.CALLED", {"n": "note", "o": "other"})
    assert predicate(Span, **{key: "a"}) == said


def test_a_length_is_read_from_whichever_spelling_was_used():
    assert length_of(Span(long_steps=3), "long") == Length(3, "steps")
    assert length_of(Span(long_epochs=0.5), "long") == Length(0.5, "epochs")
    assert length_of(Span(), "long") is None


def test_of_several_spellings_at_most_one_or_exactly_one_may_be_used():
    assert predicate(Span, long_steps=1, long_epochs=1.0) == (
        "takes at most one of `long_steps`, `long_epochs`. Received: `long_steps`, `long_epochs`"
    )
    assert predicate(Strict) == "needs exactly one of `short_steps`, `short_epochs`. All are missing"


def test_a_spelling_with_a_wrong_value_counts_as_used():
    with pytest.raises(ValidationError) as caught:
        Strict.model_validate({"short_steps": 0})
    assert [error["type"] for error in caught.value.errors()] == ["greater_than_equal"]


def test_a_dump_leaves_out_what_has_its_default_but_keeps_numbers():
    assert Span().model_dump() == {"seed": 0}
    assert Span(long_steps=2, note="x").model_dump() == {"long_steps": 2, "seed": 0, "note": "x"}


def test_a_path_remembers_the_folder_of_the_file_that_wrote_it():
    path = Kinds.model_validate({"path": RecipePath("a.npz", Path("/runs"))}).path
    assert (path, path.folder) == ("a.npz", Path("/runs"))
    assert Kinds.model_validate({"path": "a.npz"}).path.folder is None


@pytest.mark.parametrize("mode", [False, 1, "auto"])
def test_a_choice_accepts_each_of_its_values(mode):
    assert Kinds.model_validate({"mode": mode}).mode is mode


@pytest.mark.parametrize("mode", [0, True, 1.0, "Auto"])
def test_a_choice_rejects_values_that_are_equal_only_in_python(mode):
    assert predicate(Kinds, mode=mode).startswith("is not a known value. Received: ")


@pytest.mark.parametrize("code", ["", "ab1", "ab\n", "é"])
def test_a_pattern_must_match_the_whole_text(code):
    assert predicate(Kinds, code=code).startswith("must be lower-case letters. Received: ")
