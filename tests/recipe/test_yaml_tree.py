"""Trees of nodes are merged, changed and searched without losing where things were written."""

import pytest

from finetune.errors import RecipeError
from finetune.recipe.text import Node, Place, Problem
from finetune.recipe.yaml_tree import follow, merged, name_of, report, tree_of, with_value

FILE, OTHER = Place("a.yaml", 1, 1), Place("--set x")
GROUPS = {"groups": [{"name": "stem", "rate": 1}, {"name": "head", "rate": 2}], "train": {"epochs": 3}}


def tree():
    return tree_of(GROUPS, FILE)


def test_plain_data_becomes_a_tree_and_back():
    assert tree().plain() == GROUPS
    assert tree().child("train").child("epochs").place is FILE


def test_mappings_are_merged_key_by_key_and_lists_are_replaced():
    top = tree_of({"groups": [{"name": "all"}], "train": {"batch": 8}}, OTHER)
    together = merged(tree(), top)
    assert together.plain() == {"groups": [{"name": "all"}], "train": {"epochs": 3, "batch": 8}}
    assert together.child("train").child("epochs").place is FILE
    assert together.child("train").child("batch").place is OTHER


@pytest.mark.parametrize("key", ["head", "1", 1])
def test_a_list_entry_is_reached_by_its_name_or_its_index(key):
    changed = with_value(tree(), ["groups", key, "rate"], Node(9, OTHER))
    assert [group["rate"] for group in changed.plain()["groups"]] == [1, 9]
    assert tree().plain() == GROUPS, "the tree itself is not changed"


def test_missing_mappings_are_created_on_the_way():
    assert with_value(tree(), ["model", "head", "units"], Node(4, OTHER)).plain()["model"] == {"head": {"units": 4}}


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["groups", "hed", "rate"], "`groups` has 2 entries, counted from 0: `stem`, `head`. Received: `hed`. Did you mean `head`?"),
        (["groups", "2", "rate"], "`groups` has 2 entries, counted from 0: `stem`, `head`. Received: `2`."),
        (["train", "epochs", "x"], "`train.epochs` is `3`, not a mapping, so it has no `x`. Set it as a whole."),
    ],
)  # fmt: skip
def test_a_path_that_leads_nowhere_is_an_error_that_says_what_is_there(keys, message):
    with pytest.raises(RecipeError) as caught:
        with_value(tree(), keys, Node(9, OTHER))
    assert str(caught.value) == message


def test_following_keys_gives_the_last_node_and_names_list_entries_by_their_name():
    node, passed, names = follow(tree(), ["groups", 1, "optimizer", "name"])
    assert name_of(node) == "head"
    assert len(passed) == 3
    assert names == ["groups", "head", "optimizer"]


def test_a_report_is_in_the_order_of_the_file_without_repetition_and_counts_what_it_leaves_out():
    problems = [Problem(Place("a.yaml", line, 1), f"problem {line}.") for line in (9, 2, 2, 5, 7, 3, 8)]
    assert str(report([Problem(OTHER, "problem."), *problems])).splitlines() == [
        *(f"a.yaml:{line}:1: problem {line}." for line in (2, 3, 5, 7, 8)),
        "and 2 more",
    ]
