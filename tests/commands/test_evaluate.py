import io

from rich.console import Console

from finetune.commands.evaluate import print_evaluation
from finetune.inference.evaluation import Evaluation

SHARE = {"rows": 3, "recall": 2 / 3, "precision": None}


def printed(result):
    out = io.StringIO()
    print_evaluation(result, Console(file=out, width=100))
    return [line.rstrip() for line in out.getvalue().splitlines() if line.strip(" ─")]


def of_classes(names, confusion, **more):
    classes = [SHARE | {"name": name} for name in names]
    return {"kind": "classes", "classes": classes, "confusion": confusion, "calibration": {"error": 0.125}} | more


def test_figures_have_their_intervals_and_classes_what_they_are_taken_for():
    facts = of_classes(["[b]", "cat"], [[2, 1], [0, 3]])
    intervals = {"accuracy": [0.5, 1.0]}
    result = Evaluation(6, "test", {"loss": 0.25, "accuracy": 5 / 6}, intervals, {"": {"[b]": SHARE}}, {"": facts})
    assert printed(result) == [
        "6 rows of test",
        "loss: 0.2500",
        "accuracy: 0.8333  (0.5000 to 1.0000)",
        "in brackets: where 95 of 100 such sets of rows would lie (bootstrap)",
        " class  rows  recall  precision",
        " [b]       3   0.667",
        " is / taken for  [b]  cat",
        " [b]               2    1",
        " cat                    3",
        "calibration error: 0.125  (how far probabilities are from the share that is right)",
    ]


def test_of_many_classes_the_pairs_taken_for_each_other_are_shown():
    names = [f"c{number}" for number in range(11)]
    facts = of_classes(names, [[0] * 11] * 11, confused=[("c1", "c2", 1200)])
    lines = printed(Evaluation(6, "new.csv", {"loss": 0.25}, {}, {}, {"kind": facts}))
    assert lines[2:4] == [" is of kind  taken for   rows", " c1          c2         1,200"]
    assert lines[4].startswith("calibration error of kind: 0.125")


def test_outputs_of_numbers_show_how_far_off_they_are():
    column = {"name": "price", "mean_absolute_error": 1.5, "root_mean_squared_error": 2.0, "bias": -0.25, "r2": None}
    lines = printed(Evaluation(6, "test", {"loss": 4.0}, {}, {}, {"": {"kind": "numbers", "columns": [column]}}))
    assert lines[2:] == [
        " number  mean absolute error  root mean square  bias   R2",
        " price   1.5                  2                 -0.25",
    ]
