from finetune.recipe.changes import Change, changes_of, changes_of_text


def test_every_key_that_differs_is_named_with_both_values():
    before = "seed: 3\ntrain: {epochs: 2, batch_size: 16}\ngroups: [{name: body}, {name: head}]\n"
    now = "seed: 3\ntrain: {epochs: 4, batch_size: 16, use_ema: true}\ngroups: [{name: stem}]\n"
    assert [str(change) for change in changes_of_text(before, now)] == [
        "`train.epochs`: was 2, is 4",
        "`groups.0.name`: was body, is stem",
        "`groups.1.name`: was head, is nothing",
        "`train.use_ema`: was nothing, is True",
    ]


def test_equal_mappings_differ_in_nothing():
    assert changes_of({"rows": {"train": 10}}, {"rows": {"train": 10}}) == []
    assert changes_of({"rows": 1}, {"rows": 2}) == [Change("rows", 1, 2)]
