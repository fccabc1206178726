"""A run folder as a run of three classes writes it, in a few lines."""

import json

import pytest

RESULT = {
    "metrics": {"loss": 0.5, "accuracy": 0.8},
    "metrics_before": {"loss": 2.0, "accuracy": 0.3},
    "metrics_of_mean": {"loss": 1.1, "accuracy": 0.34},
    "classes": {
        "": {
            "cat": {"rows": 10, "recall": 1.0, "precision": 0.7},
            "dog": {"rows": 5, "recall": 0.0, "precision": None},
            "<i>owl</i>": {"rows": 5, "recall": 0.4, "precision": 0.9},
        }
    },
    "frozen_unchanged": True,
    "frozen_tensors": 6,
    "seconds": {"train": 2.0, "save": 0.5},
    "warnings": ["`a` warning"],
}
REPORT = {
    "format": 1,
    "rows": 20,
    "is_all": True,
    "about": "tiny, 187 parameters",
    "intervals": {"accuracy": [0.7, 0.9]},
    "peak_bytes": 5e8,
    "outputs": {
        "": {
            "kind": "classes",
            "rows": 20,
            "classes": [{"name": name, **of} for name, of in RESULT["classes"][""].items()],
            "confusion": [[10, 0, 0], [2, 0, 3], [3, 0, 2]],
            "calibration": {"error": 0.1, "bins": [{"confidence": 0.9, "share": 0.8, "rows": 20}]},
            "worst": [
                {"row": 3, "actual": "dog", "answer": "<i>owl</i>", "score": 0.9, "place": "a.csv:4",
                 "inputs": {"": {"text": "</p><script>alert(1)</script>"}, "image": {"picture": "aGk="}, "w": {"curve": [[0, 1]]}}}
            ],
        }
    },
}  # fmt: skip
PLAN = {
    "groups": ["stem", "head"],
    "weights": [
        {"name": "stem/kernel", "group": "stem", "parameters": 6, "learning_rate": None, "optimizer": None,
         "weight_decay": None, "restored_from": "stem/0"},
        {"name": "head/kernel", "group": "head", "parameters": 181, "learning_rate": [0.1, 0.05, 0.01],
         "optimizer": "adamw", "weight_decay": 0.01, "restored_from": None},
    ],
    "advice": ["Lower `a`."],
    "phases": [{"train": ["head"], "parameters": 181, "epochs": 2, "steps": 8}],
}  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    """The folder of a finished run."""
    run = tmp_path / "run-1"
    (run / "plots").mkdir(parents=True)
    rows = {"source": {"kind": "table", "file": "a.csv", "inputs": {"": {"age": {"kind": "number", "mean": 3.25}}}},
            "rows": {"train": 40, "test": 20}, "class_names": ["cat", "dog", "<i>owl</i>"],
            "rows_of_classes": {"train": [20, 10, 10], "test": [10, 5, 5]}}  # fmt: skip
    curve = {"rates": [1e-4, 1e-3, 1e-2], "smoothed": [1.0, 0.5, 90.0]}
    documents = {"result": RESULT, "report": REPORT, "plan": PLAN, "data": rows}
    documents["restore"] = {"path": "w.h5", "restored": [{}], "missing": [], "unused": [], "excluded": [{}]}
    documents["environment"] = {"versions": {"keras": "3.15.1"}, "devices": {"CPU:0": "CPU"}}
    documents["plots/lr_range"] = {"curves": {"all": curve}, "verdicts": {"all": {"learning_rate": 1e-3}}}
    for name, document in documents.items():
        (run / f"{name}.json").write_text(json.dumps(document))
    (run / "recipe.yaml").write_text("seed: 3 # <b>\n")
    (run / "plan.txt").write_text("")
    (run / "metrics.csv").write_text(
        "epoch,phase,loss,val_loss,accuracy,learning_rate/head\n1,1,2.0,2.5,0.3,0.1\n2,2,nan,0.5,0.8,\n"
    )
    return run
