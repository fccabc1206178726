import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.recipe.text import MAX_DEPTH, Place, dump, parse


def read(text):
    """Returns the root and what was complained about, as `line:column: message`."""
    problems = []
    root = parse(text, lambda line, column: Place("", line, column), problems)
    return root, [f"{problem.place}: {problem.message}"[1:] for problem in problems]


def value(text):
    root, said = read(text)
    assert not said
    return root.plain()


def only_complaint(text):
    [said] = read(text)[1]
    return said


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1e-4", 1e-4),
        ("1e3", 1000.0),
        (".5e-3", 0.0005),
        ("1.0e-5", 1e-5),
        ("1.", 1.0),
        ("-3", -3),
        ("10_000", 10_000),
        ("010", 10),
        (".inf", math.inf),
        ("-.inf", -math.inf),
        ("true", True),
        ("False", False),
        ("~", None),
        ("null", None),
        *((word, word) for word in ("yes", "no", "on", "off", "y", "4:12", "1:30:00", "2020-01-01", "1e", "inf")),
        ("'1e-4'", "1e-4"),
        ('"true"', "true"),
    ],
)  # fmt: skip
def test_an_unquoted_scalar_means_what_it_looks_like(text, expected):
    assert value(f"[{text}]") == [expected]
    assert type(value(f"[{text}]")[0]) is type(expected)


def test_every_value_and_key_knows_its_line_and_column():
    root, _ = read("a: 1\nb:\n  - {c: 2}\n")
    inner = root.child("b").child(0).child("c")
    assert (inner.place.line, inner.place.column) == (3, 9)
    assert (inner.key_place.line, inner.key_place.column) == (3, 6)
    assert root.child("b").key_place.line == 2


def test_a_key_that_is_used_twice_is_reported_with_both_lines():
    root, said = read("a: 1\nb: 2\na: 3\nb: 4\n")
    assert said == [
        "3:1: the key `a` was used before, at :1:1. Keep one of the two.",
        "4:1: the key `b` was used before, at :2:1. Keep one of the two.",
    ]
    assert root.plain() == {"a": 1, "b": 2}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a:\n\t- 1\n", "2:1: not valid YAML: a tab. Indent with spaces."),
        (
            'a: "C:\\Users\\me"\n',
            "1:9: not valid YAML: in double quotes `\\` begins an escape. Write a path with `/`, or in single quotes.",
        ),
        ("[\x85", "2:1: not valid YAML: while parsing a flow"),  # a line break of YAML alone
        (
            'a: "data\\my.csv"\n',
            "1:10: not valid YAML: in double quotes `\\` begins an escape. Write a path with `/`, or in single quotes.",
        ),
        ("a: [1\nb: 2\n", "2:2: not valid YAML: while parsing a flow sequence, expected ',' or ']', but got ':'."),
        ("a: 'x\n", "2:1: not valid YAML: while scanning a quoted scalar, found unexpected end of stream. Check the"),
        ("a: b: c", "1:5: not valid YAML: mapping values are not allowed here. Check the"),
        ("a:\n  v: 40:\n", '2:8: not valid YAML: a slice is text. Put it in quotes: `"40:"`.'),
        ("- {v: -2:, w: 1}", '1:9: not valid YAML: a slice is text. Put it in quotes: `"-2:"`.'),
        ("a: \x07", "1:4: character `#x0007` is not allowed. Remove it."),
        ("b: 1\na: \x07", "2:4: character `#x0007` is not allowed. Remove it."),
        ('a: "\\UFFFFFFFF"', "1:7: not valid YAML: "),
        ('a: "\\ud800"', "1:4: half a surrogate pair, which is not a character. Remove it."),
        ("a: !!python/object/apply:os.system [x]", "1:4: the tag `tag:yaml.org,2002:python/object/apply:os.system` is"),
        ("a: !mine 3", "1:4: the tag `!mine` is not allowed: a recipe is plain data. Remove it."),
        ("a: !!int 3", "1:4: the tag `tag:yaml.org,2002:int` is not allowed"),
        ("a: *b", "1:4: the alias `*b` has no finished anchor `&b` before it."),
        ("a: &b [*b]", "1:8: the alias `*b` has no finished anchor `&b` before it."),
        ("a: 1\n---\nb: 2", "2:1: a second YAML document. Remove the `---` and what follows."),
        ("? [a]\n: 1", "1:3: a key must be a name. Received a mapping or a list."),
        ("<<: 3", "1:5: `<<` must be followed by a mapping or a list of mappings, e.g. `<<: *base`."),
        ("", "1:1: empty. A recipe has at least `model`, `data`, `groups` and `train`."),
        ("# nothing\n", "1:1: empty."),
        (f"a: {'9' * 5000}", "1:4: a number of 5000 digits is too long."),
    ],
)  # fmt: skip
def test_text_that_is_not_plain_yaml_is_reported_with_its_position(text, said):
    assert only_complaint(text).startswith(said)


@pytest.mark.parametrize(
    "text", ["[" * 100_000, "a: " + "{a: " * 50_000, "\n".join(" " * indent + "a:" for indent in range(500))]
)
def test_deep_nesting_is_refused_and_exhausts_nothing(text):
    assert f"nested more than {MAX_DEPTH} levels deep. No recipe needs that." in only_complaint(text)


def test_aliases_that_multiply_are_refused():
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    assert "values, aliases counted. No recipe needs that." in only_complaint("\n".join(lines))
    merges = ["a0: &a0 {k: [x, x, x, x, x, x, x, x, x]}"]
    merges += [f"a{i}: &a{i} {{{', '.join(f'k{j}: *a{i - 1}' for j in range(9))}}}" for i in range(1, 12)]
    assert "values, aliases counted. No recipe needs that." in only_complaint("\n".join(merges))


def test_anchors_aliases_and_merges_work():
    text = "a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\nc: *a\nd: {<<: [*a, {z: 4}]}\n"
    assert value(text)["b"] == {"x": 1, "y": 3}
    assert value(text)["c"] == {"x": 1, "y": 2}
    assert value(text)["d"] == {"x": 1, "y": 2, "z": 4}


_SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False)
_ODD = st.sampled_from(["yes", "1e-4", "<<", "null", "4:12", "", " ", "-", "#", "a\n", "\x85"])
_WORDS = st.text(st.characters(exclude_categories=["Cs"])) | _ODD
_DATA = st.recursive(
    _SCALARS | _WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_WORDS, inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None)  # shared machines pause
@given(_DATA)
def test_plain_data_dumped_and_parsed_is_itself(data):
    assert value(dump([data])) == [data]


@settings(deadline=None)  # shared machines pause
@given(st.text(st.sampled_from("ab:-[]{}&*!|>'\"%@`#,?~<=. \n\t1e0") | st.characters(), max_size=60))
def test_any_text_is_read_or_complained_about(text):
    root, said = read(text)
    assert root is not None or said


def test_reading_ends_with_the_first_value_too_many():
    problems = []
    text = "".join(f"key_{n}: {n}\n" for n in range(200_000))
    assert parse(text, lambda line, column: Place("r.yaml", line, column), problems) is None
    assert [str(problem.place) for problem in problems] == ["r.yaml:10000:11"]
