"""A block of groups can be pasted into a recipe."""

from finetune.recipe.groups import GroupSpec
from finetune.recipe.groups_block import groups_block
from finetune.recipe.text import parse

GROUPS = [
    GroupSpec(name="stem", prefixes=["conv", "bn"], frozen=True),
    GroupSpec(name="head", rest=True, optimizer={"name": "sgd", "momentum": 0.9}, learning_rate=1e-3),
]


def test_every_group_has_its_reason_above_it_and_lists_stay_on_a_line():
    block = groups_block(GROUPS, {"stem": "too small", "head": "the largest"}, "Measured over 3 batches.")
    assert block.splitlines() == [
        "# Measured over 3 batches.",
        "groups:",
        "  # stem: too small",
        "  - name: stem",
        "    prefixes: [conv, bn]",
        "    frozen: true",
        "  # head: the largest",
        "  - name: head",
        "    rest: true",
        "    optimizer: {name: sgd, momentum: 0.9}",
        "    learning_rate: 0.001",
    ]


def test_the_block_reads_back_as_the_groups():
    problems = []
    tree = parse(groups_block(GROUPS, {"stem": "a", "head": "b"}, "c"), lambda line, column: None, problems)
    assert not problems
    assert [GroupSpec.model_validate(group) for group in tree.plain()["groups"]] == GROUPS
