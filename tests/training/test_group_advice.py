from finetune.training.group_advice import advice_on_divergence, advice_on_groups


def rows(count=3, norms=1.0, **ratios):
    row = {f"update_ratio/{name}": ratio for name, ratio in ratios.items()}
    return [row | {f"gradient_norm/{name}": norms for name in ratios}] * count


def test_groups_that_move_alike_are_not_mentioned():
    assert advice_on_groups(rows(body=1e-3, head=5e-2), ["body", "head"]) == {}


def test_a_group_that_does_not_move_is_named_with_what_to_do():
    assert advice_on_groups(rows(body=1e-9, head=1e-3), ["body", "head"]) == {
        "still/body": "group `body` is trained and does not move: an update changes its weights by 1.0e-09 of their size, "
        "which float32 hardly holds. Raise its learning rate, or freeze it, which costs less"
    }
    (sentence,) = advice_on_groups(rows(body=0.0, norms=0.0), ["body"]).values()
    assert sentence.endswith("Its gradients are 0: look for layers that pass none on, such as a saturated activation")


def test_a_group_that_moves_a_hundred_times_as_much_as_any_other_is_named():
    assert advice_on_groups(rows(stem=1e-6, body=1e-5, head=2e-3), ["stem", "body", "head"]) == {
        "fast/head": "group `head` moves 200 times as much as any other: an update changes its weights by 2.0e-03 of "
        "their size, those of `body` by 1.0e-05. Lower its learning rate or raise the others"
    }


def test_frozen_groups_and_too_few_measurements_say_nothing():
    assert advice_on_groups(rows(stem=None, head=1e-3), ["stem", "head"]) == {}
    assert advice_on_groups(rows(count=2, body=0.0), ["body"]) == {}


def test_a_peak_beyond_the_divergence_of_the_range_test_is_named():
    peaks = {"body": 1e-3, "head": 0.2}
    (sentence,) = advice_on_divergence({"all groups": 0.1}, peaks, "all groups")
    assert sentence == (
        "group `head` has a peak rate of 0.2, and in the LR range test the loss rises at 0.1: training may diverge. "
        "Lower it, to a tenth of that rate at most"
    )
    assert advice_on_divergence({"body": 1e-2, "head": None}, peaks, "all groups") == []
    assert [text[:12] for text in advice_on_divergence({"body": 1e-3, "stem": 1.0}, peaks, "all groups")] == [
        "group `body`"
    ]
