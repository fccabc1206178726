"""A file of JSON that was changed is refused where it is read, with the name of the value that is wrong."""

import json
import math

import pytest

from finetune.plain_shapes import ANY, COUNT, FINITE, POSITIVE, SIZE, fault, parse, read_document

SHAPE = {
    "rows": {str: COUNT},
    "rate": FINITE,
    "loss": float,
    "name?": (str, None),
    "pairs": [[str, (COUNT, None)]],
    "phase": (None, {"number": COUNT}),
    "rest": ANY,
    "kind?": frozenset({"b", "a"}),
    "size?": SIZE,
    "over?": POSITIVE,
}
SOUND = {
    "rows": {"test": 3},
    "rate": 0.1,
    "loss": math.nan,
    "pairs": [["a", 1], ["b", None]],
    "phase": {"number": 1},
    "rest": [{}],
}


def test_what_has_the_shape_has_no_fault_and_other_names_are_left_alone():
    assert fault(SOUND, SHAPE) == ""
    assert fault(SOUND | {"later": 1, "name": None, "phase": None, "rate": 2, "loss": -math.inf}, SHAPE) == ""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": {"test": -1}}, "`rows.test` must be a whole number from 0 on, and is -1"),
        ({"rows": {"test": 2**63}}, "`rows.test` must be a whole number from 0 on, and is 9223372036854775808"),
        ({"rows": {"test": True}}, "`rows.test` must be a whole number from 0 on, and is true"),
        ({"rows": [3]}, "`rows` must be a mapping, and is a list of 1"),
        ({"rate": math.nan}, "`rate` must be a finite number, and is NaN"),
        ({"rate": "0.1"}, '`rate` must be a finite number, and is "0.1"'),
        ({"loss": 10**400}, f"`loss` must be a number, and is 1{'0' * 55} ..."),
        ({"name": 3}, "`name` must be a text or null, and is 3"),
        ({"pairs": [["a", 1], ["b"]]}, "`pairs.1` must be a list of 2 values, and is a list of 1"),
        ({"pairs": [["a", "x"]]}, '`pairs.0.1` must be a whole number from 0 on or null, and is "x"'),
        ({"phase": {"number": None}}, "`phase.number` must be a whole number from 0 on, and is null"),
        ({"phase": 3}, "`phase` must be null or a mapping, and is 3"),
        ({"phase": {}}, "`phase.number` is missing"),
        ({"kind": "c"}, '`kind` must be `a` or `b`, and is "c"'),
        ({"kind": []}, "`kind` must be `a` or `b`, and is a list of 0"),
        ({"size": 0}, "`size` must be a whole number from 1 on, and is 0"),
        ({"over": 0.0}, "`over` must be a finite number above 0, and is 0.0"),
        ({"over": math.inf}, "`over` must be a finite number above 0, and is Infinity"),
    ],
)
def test_a_value_of_another_kind_is_named_with_what_it_must_be(change, message):
    assert fault(SOUND | change, SHAPE) == message


def test_a_name_that_is_missing_is_said_and_control_characters_are_escaped():
    assert fault({}, SHAPE) == "`rows` is missing"
    assert fault({"\x1b[31m": 1}, {str: str}) == "`\\x1b[31m` must be a text, and is 1"
    assert fault([], SHAPE) == "its content must be a mapping, and is a list of 0"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "Expecting value"),
        (b'{"a": 1', "Expecting ',' delimiter"),
        (b'{"a": "\xff"}', "it is not UTF-8: byte 7 is 0xff"),
        (b"[" * 100_000, "it is nested too deeply"),
        (b"[" * 200 + b"]" * 200, "it is nested too deeply"),
        (b"1" * 5000, "Exceeds the limit"),
        (b"[]", "its content must be a mapping, and is a list of 0"),
    ],
)
def test_a_file_that_is_no_such_json_is_refused_with_a_reason(content, message, tmp_path):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_document(tmp_path / "a.json", {"a": int})


def test_a_sound_file_is_read(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(SOUND | {"loss": 0.5}))
    assert read_document(tmp_path / "a.json", SHAPE) == SOUND | {"loss": 0.5}
    assert parse('{"größe": 1}') == {"größe": 1}
