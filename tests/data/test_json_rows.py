"""Tables in JSON: objects in lines, or an array of them."""

import pytest

from finetune.data.json_rows import json_rows
from finetune.errors import DataError


def rows_of(path, text):
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return list(json_rows(path))


@pytest.mark.parametrize("ending", ["json", "jsonl", "ndjson"])
@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ('{"a": 1}\n\n{"a": 2}\n', [1, 3]),
        ('[{"a": 1}, {"a": 2}]', [1, 2]),
        ('\ufeff\n [\n {"a": 1},\n {\n"a": 2}\n]\n', [1, 2]),
    ],
)
def test_rows_are_objects_in_lines_or_in_an_array(tmp_path, ending, text, numbers):
    assert rows_of(tmp_path / f"t.{ending}", text) == list(zip(numbers, [{"a": 1}, {"a": 2}], strict=True))


def test_a_single_object_of_values_is_a_row(tmp_path):
    assert rows_of(tmp_path / "t.json", '{\n"a": 1,\n"b": null}') == [(1, {"a": 1, "b": None})]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            '{"a": {"0": 1}, "b": {"0": 2}}',
            r"`.*t\.json` is an object with `a`, `b`\. Write it with `df\.to_json\(path, or",
        ),
        ('{"columns": ["a"], "data": [[1]]}', "is an object with `columns`, `data`"),
        ("[1, 2]", "is a `list` of other values"),
        ("3", r"is a `int`\. Write it"),
        ('[{"a": 1},\n{"a": }]', r"`t\.json:2` must be JSON\. It is not: Expecting value"),
        ('{"a": 1}\n{"a"\n', r"Every line must be JSON. `t\.json:2` is not"),
        (b'[{"a": "\xe9"}]', r"`t\.json:1` holds the byte 0xe9 at place 9"),
        ("[" * 100_000, r"`t\.json` must be JSON"),
    ],
)
def test_json_that_is_no_table_is_refused_with_how_to_write_it(tmp_path, text, said):
    with pytest.raises(DataError, match=said):
        rows_of(tmp_path / "t.json", text)
