"""The shape of what a grouped optimizer keeps beside its variables, as `SavedState.document` writes it.

Needs no TensorFlow: a checkpoint is looked at before that starts.
"""

from typing import Any

from finetune.plain_shapes import ANY, COUNT, FINITE, SIZE, fault

_SCHEDULE = {
    "rate": float,
    "initial?": bool,
    "config?": {"class_name": str},
    "function?": str,
    "samples?": [[COUNT, float]],
}
_FOLLOWS = {"schedule": _SCHEDULE, "from_now": bool, "warmup_steps": FINITE, "since": (COUNT, None)}
_GROUP = {
    "made_with": str,
    "follows": (None, _FOLLOWS),
    "value": FINITE,
    "base": FINITE,
    "whole": (FINITE, None),
    "unfloored": (FINITE, None),
    "written": FINITE,
    "scale": FINITE,
    "start": COUNT,
}
_STATE = {
    "version": ANY,
    "groups": {str: _GROUP},
    "phase": (None, {"number": SIZE, "epoch": COUNT, "step": COUNT, "": None}),
}


def fault_in_state(document: Any, place: str = "") -> str:
    """Returns what is wrong with a document; an empty text where nothing is, as with `None`, of an older file.

    Args:
        document: The document.
        place: The names that lead to it, separated by dots.
    """
    wrong = fault(document, (None, _STATE), place)
    if wrong or document is None:
        return wrong
    start = f"{place}." if place else ""
    for name, group in document["groups"].items():
        schedule = (group["follows"] or {}).get("schedule", {"initial": True})
        described = "config" in schedule or "function" in schedule
        if not (described or (schedule.get("initial") and (not group["follows"] or group["made_with"] == "schedule"))):
            return f"`{start}groups.{name}.follows.schedule` must say which schedule it is"
    return ""
