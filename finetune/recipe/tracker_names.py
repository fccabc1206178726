"""The trackers that a recipe names in `train.trackers`: whether there are such, and whether they are installed."""

from collections.abc import Iterator
from importlib.metadata import entry_points
from importlib.util import find_spec

from finetune.errors import did_you_mean, quote
from finetune.recipe.loader import place_of
from finetune.recipe.schema import Recipe

KNOWN = ("wandb", "mlflow")
ENTRY_POINTS = "finetune.trackers"  # in which an installed package offers a tracker of its own


def tracker_problems(recipe: Recipe) -> Iterator[str]:
    """Yields a sentence, with its place, for each tracker that is unknown or not installed; imports none of them."""
    others = [entry.name for entry in entry_points(group=ENTRY_POINTS)]
    for number, tracker in enumerate(recipe.train.trackers):
        name, known = tracker.name, [*KNOWN, *others]
        if name == "tensorboard":
            problem = (
                "need not be named: its files are always written, into `tensorboard/` of the run folder. Remove it."
            )
        elif name not in known:
            problem = f"is not a known tracker.{did_you_mean(name, known) or f' Choose from {quote(known)}.'}"
        elif name not in others and find_spec(name) is None:
            problem = (
                f"is not installed. Install it with `pip install 'discriminative-finetune[{name}]'`, or remove it."
            )
        else:
            continue
        place = place_of(recipe, "train", "trackers", number)
        yield f"{place}{': ' if place else ''}`train.trackers: {name}` {problem}"
