"""A single name is a sequence of one wherever the API takes names."""

import keras
import pytest

from finetune import Phase, Selector, Transform, resolve_groups
from finetune.sequences import one_or_more


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, ()),
        ("head", ("head",)),
        (b"head", (b"head",)),
        (3, (3,)),
        (["a", "b"], ("a", "b")),
        ((), ()),
        (iter("ab"), ("a", "b")),
    ],
)
def test_a_single_value_is_a_tuple_of_one_and_a_sequence_a_tuple(value, expected):
    assert one_or_more(value) == expected


def test_selectors_phases_and_transforms_take_a_single_name():
    assert Selector("a", prefixes="head", layers=3) == Selector("a", prefixes=("head",), layers=(3,))
    assert Phase("head", 1, dropout_groups="body") == Phase(["head"], 1, dropout_groups=["body"])
    assert Transform("kernel", "weight") == Transform(("kernel",), ("weight",))


def test_a_phase_of_one_group_does_not_train_a_group_whose_name_is_part_of_the_name():
    parts = [keras.layers.Dense(2, name=name) for name in ("he", "head")]
    model = keras.Sequential([keras.Input((2,)), *parts])
    assert Phase("head", 1).names(resolve_groups(model, by="layer")) == ("head",)
