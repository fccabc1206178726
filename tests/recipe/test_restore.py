import pytest

from finetune.errors import RecipeError
from finetune.recipe.loader import dump_recipe, load_recipe, resolve_path
from finetune.recipe.schema import Recipe

HEAD = "model: {builder: finetune.examples.digits:small_cnn}\ndata: {builder: finetune.examples.digits:uci_digits}\n"
TAIL = "groups: {by: layer, peak: 1.0e-3, decay: 2, optimizer: adam}\ntrain: {epochs: 1, loss: mse}\n"


def loaded(path, *lines):
    text = "restore:\n  from: m.npz\n" + "".join(f"  {line}\n" for line in lines)
    path.write_text(HEAD + text + TAIL)
    return load_recipe(path)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "r.yaml"


RULES = (
    r"- {names: '(.*)/qkv', split: 3, axis: 1, to: ['\1/q', '\1/k', '\1/v']}",
    "- {names: a, split: [1, 2], to: [b, c]}",
    "- {names: '.*/kernel', transpose: [1, 0]}",
    "- {names: '.*/q', reshape: [-1, 12, 32], order: F}",
    "- {names: [a, b], concatenate: true, axis: -1, to: c}",
    "- {names: [a, b], add: true, to: c}",
    "- {names: a, to: b}",
)


def test_rules_and_reference_outputs_are_read_and_written_as_they_are(path, tmp_path):
    lines = ("min_coverage: 0.9", "verify: sub/r.npz", "verify_atol: 1.0e-4", "transform:", *RULES)
    recipe = loaded(path, *lines)
    assert recipe.restore.transform[0].split == 3
    assert recipe.restore.transform[1].split == (1, 2)
    assert recipe.restore.transform[3].reshape == (-1, 12, 32)
    assert resolve_path(recipe, recipe.restore.verify) == tmp_path / "sub" / "r.npz"
    again = tmp_path / "again.yaml"
    again.write_text(dump_recipe(recipe))
    assert load_recipe(again) == recipe


ONE = "must have exactly one of `transpose`, `reshape`, `split`, `concatenate`, `add`, or a new name under `to`"


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("{names: a}", f"transform.0` {ONE}."),
        ("{names: a, transpose: [0], reshape: [1]}", f'transform.0` {ONE}. Received: `["transpose", "reshape"]`.'),
        ("{names: a, transpos: [0]}", "transform.0.transpos` is not a known key. Did you mean `transpose`?"),
        ("{names: '(', transpose: [0]}", "is not a regular expression: missing ), unterminated subpattern"),
        ("{names: [a, b], transpose: [0]}", "takes several patterns under `names` only to `concatenate` or `add`."),
        ("{names: a, reshape: [-1, -1]}", "transform.0.reshape` may contain -1 only once."),
        ("{names: a, reshape: [2], order: G}", "Choose from `C`, `F`."),
        ("{names: a, transpose: [0], order: F}", "has `order`, which goes with `reshape`. Remove it."),
        ("{names: a, reshape: [1], axis: 1}", "has `axis`, which goes with `split` or `concatenate`. Remove it."),
        ("{names: a, split: 1, to: b}", "transform.0.split` must be a number of equal parts, or a list"),
        ("{names: a, split: [1, 0], to: [b, c]}", "transform.0.split` must be a number of equal parts, or a list"),
        ("{names: a, split: 2, to: b}", 'needs 2 names under `to`, one for each part. Received: `["b"]`.'),
        (
            "{names: a, add: true, to: b}",
            "needs two or more patterns under `names`, and one name under `to`, to `add`.",
        ),
        ("{names: [a, b], concatenate: true}", "and one name under `to`, to `concatenate`."),
        ("{names: [a, b], add: false, to: c}", "Choose from `true`."),
        ("{names: a, transpose: [0], to: [b, c]}", 'takes one name under `to`. Received: `["b", "c"]`.'),
    ],
)
def test_a_faulty_rule_is_reported_at_its_place(rule, message, path):
    with pytest.raises(RecipeError) as caught:
        loaded(path, "transform:", f"- {rule}")
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"{path}:6:")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("verify_rtol: 1.0e-3", "`restore.verify_rtol` is only for `verify`, which is not set. Remove it."),
        ("min_coverage: 1.5", "`restore.min_coverage` must be 1 or less."),
        ("min_coverage: 0", "`restore.min_coverage` must be greater than 0."),
        ("verify: r.npz\n  verify_atol: 0", "`restore.verify_atol` must be greater than 0."),
    ],
)
def test_tolerances_and_the_share_are_checked(line, message, path):
    with pytest.raises(RecipeError) as caught:
        loaded(path, line)
    assert message in str(caught.value)


def test_a_renaming_that_cannot_work_is_an_error_before_any_weights_are_read(complaint):
    assert "not a regular expression" in complaint("restore", "rename", to={"(": "a"})[0]
    [said] = complaint("restore", "rename", to={"^a(.)": "\\2"})
    assert said.startswith(
        "`restore.rename.^a(.)` is not a valid replacement: invalid group reference 2 at position 1. Received: "
    )
    assert "unknown group name" in complaint("restore", "rename", to={"^a": "\\g<x>"})[0]


def test_from_is_read_into_source(valid):
    assert Recipe.model_validate(valid).restore.source == "weights.h5"
