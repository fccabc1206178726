from finetune.training.checkpoints.changed_document import begin_patience_anew, forget_best, undo_time_limit


def test_a_patience_that_was_used_up_begins_anew():
    document = {"callbacks": {"A-1": {"wait": 3, "stopped_epoch": 4, "best": 0.5}, "B-1": {"wait": 2}}}
    begin_patience_anew(document)
    assert document["callbacks"] == {"A-1": {"wait": 0, "stopped_epoch": 0, "best": 0.5}, "B-1": {"wait": 2}}


def test_best_values_and_the_weights_of_them_are_removed_and_named():
    document = {
        "callbacks": {"KeepBest-1": {"best": 1}, "CollectWeights-1": {"kept": []}, "MetricsFile-1": {"rows": []}}
    }
    assert forget_best(document) == ["KeepBest-1", "CollectWeights-1"]
    assert document["callbacks"] == {"MetricsFile-1": {"rows": []}}


def test_what_a_time_limit_has_taken_off_the_rates_is_given_back():
    groups = {"head": {"scale": 0.25}}
    limit = {"reached": True, "factor": 0.5, "cools": 3.0}
    document = {"callbacks": {"TimeLimit-1": limit}, "model": {"optimizer": {"groups": groups}}}
    undo_time_limit(document)
    assert groups == {"head": {"scale": 0.5}}
    assert limit == {"reached": False, "factor": 1.0, "cools": None}
    undo_time_limit(document)
    assert groups == {"head": {"scale": 0.5}}
