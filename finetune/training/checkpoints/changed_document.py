"""What of the document of a checkpoint no longer holds where another training goes on from it."""

from typing import Any


def begin_patience_anew(document: dict[str, Any]) -> None:
    """Lets callbacks that have ended the training wait again."""
    for state in document["callbacks"].values():
        if "stopped_epoch" in state:  # a patience that was used up
            state |= {"wait": 0, "stopped_epoch": 0}


def undo_time_limit(document: dict[str, Any]) -> None:
    """Gives the rates back what a time limit has taken off them at its end."""
    state = document["callbacks"].get("TimeLimit-1")
    if state and state["reached"]:
        for group in document["model"]["optimizer"]["groups"].values():
            group["scale"] /= state["factor"]
        state |= {"factor": 1.0, "reached": False, "cools": None}


def forget_best(document: dict[str, Any]) -> list[str]:
    """Removes the best values so far, and the weights of them; returns the callbacks that had some."""
    states = document["callbacks"]
    forgotten = [key for key, state in states.items() if {"best", "kept"} & state.keys()]
    for key in forgotten:
        del states[key]
    return forgotten
