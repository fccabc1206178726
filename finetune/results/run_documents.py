"""The files of JSON in a run folder, as everything that reads a run needs them: each is looked at when it is read.

Somebody may have changed a file since the run wrote it, or copied half of it. What is wrong is then said with the name
of the file and of the value, and nothing behind the reader has to look again. What a later version adds is left alone.
"""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from finetune.errors import FinetuneError, reason
from finetune.machine_failures import raise_machine_failure
from finetune.plain_shapes import ANY, COUNT, FINITE, POSITIVE, SIZE, check_depth, fault, read_document

_NUMBER = (FINITE, None)  # what is no number is written as `null`
_METRICS = {str: _NUMBER}
_NAMES = [(str, float, bool)]
_OF_CLASS = {"rows?": COUNT, "recall": _NUMBER, "precision?": _NUMBER}
_RESULT = {
    "metrics": _METRICS,
    "metrics_before?": _METRICS,
    "metrics_of_mean?": _METRICS,
    "classes?": {str: {str: _OF_CLASS}},
    "frozen_unchanged?": bool,
    "frozen_tensors?": COUNT,
    "seconds": {str: FINITE},
    "warnings?": [str],
    "data_wait?": _NUMBER,
    "keras_loop?": str,
    "thresholds?": {str: {str: FINITE}},
}
_SHARES = {"name": ANY, "rows": COUNT, "recall": _NUMBER, "precision": _NUMBER}
_BIN = {"confidence": _NUMBER, "share": _NUMBER, "rows": SIZE}
_INPUT = {"picture?": str, "curve?": [[FINITE, FINITE]], "text?": str, "values?": str}
_WORST = {
    "row": COUNT,
    "actual": ANY,
    "answer": ANY,
    "score?": _NUMBER,
    "place?": (str, None),
    "inputs?": (None, {str: _INPUT}),
}
_OF_COLUMN = {
    "name": ANY,
    **dict.fromkeys(("mean_absolute_error", "root_mean_squared_error", "bias", "r2"), _NUMBER),
    "histogram": {"counts": [COUNT], "edges": [FINITE]},
    "points": [[_NUMBER, _NUMBER]],
}
_OF_OUTPUT = {
    "kind": str,
    "rows": COUNT,
    "classes?": [_SHARES],
    "confusion?": [[COUNT]],
    "confused?": [[ANY, ANY, COUNT]],
    "calibration?": {"error": _NUMBER, "bins": [_BIN]},
    "threshold?": FINITE,
    "columns?": [_OF_COLUMN],
    "worst?": [_WORST],
}
_REPORT = {
    "intervals?": {str: [_NUMBER, _NUMBER]},
    "outputs?": {str: _OF_OUTPUT},
    "is_all?": bool,
    "about?": str,
    "problem?": str,
    "peak_bytes?": _NUMBER,
    "allowed_code?": [str],
    "command?": (str, None),
}
_NEEDED = {"classes": ("classes",), "labels": ("classes", "threshold"), "numbers": ("columns",)}  # by kind
_WEIGHT = {
    "group": str,
    "learning_rate": ([FINITE], None),
    "weight_decay": _NUMBER,
    "optimizer": (str, None),
    "parameters": COUNT,
    "restored_from": (str, None),
}
_PHASE = {"train": [str], "parameters": COUNT, "epochs": ANY, "steps": ANY}
_PLAN = {"groups": [str], "weights": [_WEIGHT], "phases?": ([_PHASE], None), "advice?": [str]}
_RESTORED = {
    "path?": str,
    "restored": list,
    "missing?": (list, dict, None),
    "unused?": (list, dict, None),
    "excluded?": (list, dict, None),
}
_PICTURES = {"size": [SIZE, SIZE], "channels": SIZE, "resize": str, "value_range": [FINITE, FINITE]}
_SOUNDS = {"sample_rate": SIZE, "length": SIZE}
# What was fitted to a column of a table, by its kind.
_FITTED = {
    "number": {"mean": FINITE, "variance": FINITE},
    "category": {"categories": [str]},
    "image": _PICTURES,
    "audio": _SOUNDS,
    "text": {"tokenizer?": str, "length?": SIZE, "pad_id?": COUNT, "vocabulary?": COUNT, "cut?": COUNT},
}
_TARGET = {"kind?": frozenset({"classes", "labels", "numbers", "one_hot"}), "columns?": [str], "class_names?": _NAMES}
_OF_ROWS = {
    "class_names?": _NAMES,
    "rows_of_classes?": {str: [COUNT]},
    "numbers?": {str: {str: _NUMBER}},
}
_DATA = {
    "source?": ({"kind?": str, "padding?": str, "inputs?": (dict, list, None), "warnings?": [ANY]}, None),
    "rows?": {str: COUNT},
    "outputs?": {str: _OF_ROWS},
    **_OF_ROWS,
}
_RANGE_TEST = {
    "curves?": {str: {"rates": [POSITIVE], "smoothed": [_NUMBER]}},
    "verdicts?": {str: {"learning_rate?": (POSITIVE, None)}},
}
_LOSS = (str, {"name": str}, {str: (str, {"name": str})})
RECIPE = {  # of a run that answers for new rows
    "data": {
        "inputs?": (None, {str: [str]}),
        "missing?": (None, [str]),
        "quotes?": ANY,
        "tokenizer?": (None, {"file?": (str, None), "pad_token?": (str, None)}),
        "types?": (None, {str: str}),
    },
    "train": {"loss": _LOSS},
    "model?": (dict, None),
}
_HASHES = {"options": dict, "files": {str: str}, "outside": {str: str}}


def fault_in_run(name: str, document: Any) -> str:
    """Returns what is wrong with a file of JSON of a run; an empty text where nothing is.

    Args:
        name: The name of the file.
        document: Its content.
    """
    shapes: dict[str, Any] = {
        "result.json": _RESULT,
        "report.json": _REPORT,
        "plan.json": _PLAN,
        "restore.json": (_RESTORED, None),
        "data.json": _DATA,
        "environment.json": {str: (dict, list)},
        "lr_range.json": _RANGE_TEST,
        "hashes.json": _HASHES,
    }
    if name == "report.json" and isinstance(document, dict) and document.get("format", 1) != 1:
        return ""  # of a later version, which who reads it says
    wrong = fault(document, shapes[name])
    if not wrong and name == "data.json":
        wrong = _fault_in_counts(document)
    if not wrong and name == "report.json":
        outputs = document.get("outputs", {}).items()
        wrong = next(filter(None, (_fault_in_answers(of, f"outputs.{output}") for output, of in outputs)), "")
    return wrong


def read_of_run(path: Path, *, advice: str = "Copy the whole folder again.") -> dict[str, Any]:
    """Reads a file of JSON of a run; an empty dict where there is none, or where it says `null`.

    Args:
        path: The file.
        advice: What to do where it is damaged.

    Raises:
        FinetuneError: It is not as a run writes it; says where.
        MachineError: Memory has run out, or the storage fails.
    """
    try:
        document = read_document(path, ANY)
        if wrong := fault_in_run(path.name, document):
            raise ValueError(wrong)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise_machine_failure(error, f"reading `{path}`")
        raise FinetuneError(
            f"The files of a run folder are read as the run wrote them. `{path}` cannot be: "
            f"{str(error).rstrip('.')}. {advice}"
        ) from error
    return document or {}


def read_recipe_of_run(path: Path, text: str | None = None) -> dict[str, Any]:
    """Reads the recipe of a run as plain data; only `recipe.loader` says whether it can be run.

    Args:
        path: The file.
        text: Its content, where that is read already.

    Raises:
        FinetuneError: It is no recipe that a run has written.
        MachineError: Memory has run out, or the storage fails.
    """
    try:
        recipe = yaml.safe_load(path.read_text(encoding="utf-8") if text is None else text)
        check_depth(recipe)
        if wrong := fault(recipe, {}):
            raise ValueError(wrong)
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        raise_machine_failure(error, f"reading `{path}`")
        raise FinetuneError(
            f"The files of a run folder are read as the run wrote them. `{path}` cannot be: {reason(error)}. Copy the "
            "whole folder again."
        ) from error
    return recipe


def read_rows_of_run(path: Path) -> list[dict[str, Any]]:
    """Reads a table in CSV of a run as texts by the names of its columns; empty where there is no file.

    Args:
        path: The file.

    Raises:
        FinetuneError: It is no CSV.
    """
    if not path.is_file():
        return []
    try:
        with path.open(newline="", encoding="utf-8", errors="replace") as file:
            return [{str(key): value for key, value in row.items() if key} for row in csv.DictReader(file)]
    except (OSError, csv.Error) as error:
        raise_machine_failure(error, f"reading `{path}`")
        raise FinetuneError(
            f"The files of a run folder are read as the run wrote them. `{path}` cannot be: {reason(error)}. Copy the "
            "whole folder again."
        ) from error


def fault_in_fitted(data: Mapping[str, Any]) -> str:
    """Returns what is wrong with what `data.json` says of how inputs are made and outputs are named.

    Args:
        data: The content of `data.json`, which `fault_in_run` has looked at.
    """
    source, place = data.get("source") or {}, "source"
    kind = source.get("kind")
    if kind in ("images", "audio"):
        return fault(source, (_PICTURES if kind == "images" else _SOUNDS) | {"folder": str}, place)
    if kind != "table":
        return ""
    if wrong := fault(source, {"inputs": {str: {str: {"kind": frozenset(_FITTED)}}}, "target?": ANY}, place):
        return wrong
    for name, columns in source["inputs"].items():
        for column, about in columns.items():
            within = f"{place}.inputs.{name}.{column}"
            if wrong := fault(about, _FITTED[about["kind"]], within):
                return wrong
            if about.get("variance", 0) < 0:
                return f"`{within}.variance` must be 0 or more, and is {about['variance']}"
    target = source.get("target") or {}
    if isinstance(target, list):  # of an older version
        return fault(target, [str], f"{place}.target")
    is_single = not all(isinstance(of, Mapping) for of in target.values())
    return fault(target, _TARGET if is_single else {str: _TARGET}, f"{place}.target")


def _fault_in_counts(document: Mapping[str, Any]) -> str:
    for of in (document, *document.get("outputs", {}).values()):
        names = of.get("class_names", ())
        for split, counts in of.get("rows_of_classes", {}).items():
            if len(counts) < len(names):
                return f"`rows_of_classes.{split}` has {len(counts)} numbers, and there are {len(names)} classes"
    return ""


def _fault_in_answers(of: Mapping[str, Any], place: str) -> str:
    for name in _NEEDED.get(of["kind"], _NEEDED["numbers"]):
        if name not in of:
            return f"`{place}.{name}` is missing"
    classes, confusion = of.get("classes", ()), of.get("confusion", ())
    if confusion and not len(classes) == len(confusion) == min(map(len, confusion)) == max(map(len, confusion)):
        return f"`{place}.confusion` must have a row and a column for each of the {len(classes)} classes"
    if of.get("calibration", {"bins": [0]})["bins"] == []:
        return f"`{place}.calibration.bins` must not be empty"
    for number, column in enumerate(of.get("columns", ())):
        counts, edges = column["histogram"]["counts"], column["histogram"]["edges"]
        if len(edges) != len(counts) + 1:
            return f"`{place}.columns.{number}.histogram` must have one edge more than counts"
    return ""
