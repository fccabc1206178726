"""The learning rates that a recipe contains: read them, scale them, and write new rates into its text.

Text is edited in place, number by number, so that comments, order and spelling of the recipe stay. Where a rate is not
written as a plain number in the file itself, nothing is changed and the error says what to do by hand.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from finetune.errors import RecipeError, quote
from finetune.recipe.extends import read_text
from finetune.recipe.groups import Strategy
from finetune.recipe.learning_rates import PolynomialDecay
from finetune.recipe.loader import load_recipe, with_values
from finetune.recipe.schema import Recipe
from finetune.recipe.text import Node, Place
from finetune.recipe.yaml_tree import follow

Keys = tuple[str | int, ...]
_TOKEN = re.compile(r"[^\s,\]}#]+")  # an unquoted scalar, to its end


def peak_of(learning_rate: Any) -> float:
    """Returns the rate of a group, or of a schedule the `initial`, the `peak`, or the largest of several rates."""
    if isinstance(learning_rate, int | float):
        return float(learning_rate)
    if learning_rate.rate_field:
        return float(getattr(learning_rate, learning_rate.rate_field))
    # A chain has schedules, `piecewise_constant_decay` has numbers; a chain may contain chains.
    parts = getattr(learning_rate, "schedules", None) or learning_rate.values
    return max(map(peak_of, parts))


def tidy(rate: float) -> float:
    """Rounds a rate to three digits, as rates are written into a recipe."""
    return float(f"{rate:.2e}")


def scaled(recipe: Recipe, factors: Mapping[str, float]) -> Recipe:
    """Returns the recipe with every rate of some groups times a factor; their schedules keep their shapes.

    Args:
        recipe: A recipe that was loaded from a file.
        factors: A factor > 0 for each group to change, by its name. The groups of a strategy share one.

    Raises:
        RecipeError: The groups of a strategy have different factors.
    """
    return with_values(recipe, {keys: tidy(rate) for keys, rate in _new_rates(recipe, factors).items()})


def scaled_text(recipe: Recipe, path: Path, factors: Mapping[str, float]) -> tuple[str, dict[str, tuple[float, float]]]:
    """Returns the text of a recipe's file with its rates scaled, every comment kept.

    Args:
        recipe: The recipe, loaded from `path` without overrides of the rates.
        path: Its file.
        factors: As for `scaled`.

    Returns:
        The text, and the old and the new rate at every place that was changed.

    Raises:
        RecipeError: A rate is not written as a plain number in this file.
    """
    # All edits are collected before the text is touched, so that an error leaves no half-changed text.
    text = read_text(path)
    edits: dict[Place, tuple[float, float]] = {}
    for keys, new in _new_rates(recipe, factors).items():
        node = _written(recipe, keys, path)
        # Groups share a place when their rates come from a YAML alias: a single number cannot become two.
        if edits.setdefault(node.place, (float(node.value), tidy(new)))[1] != tidy(new):
            raise RecipeError(
                f"{node.place}: several groups share this rate, and they need different ones: {edits[node.place][1]:g} "
                f"and {tidy(new):g}. Write a number for each group, then try again."
            )
    lines = text.splitlines(keepends=True)
    # Last column first: an edit moves what comes after it on the line.
    for place in sorted(edits, key=lambda place: (place.line, -place.column)):
        lines[place.line - 1] = _replaced(lines[place.line - 1], place, *edits[place])
    return "".join(lines), {str(place): rates for place, rates in edits.items()}


def check_text(text: str, path: Path, expected: Recipe) -> None:
    """Checks that a changed text loads as the expected recipe, in a temporary file beside the recipe.

    Args:
        text: The changed text.
        path: The recipe's file, which is not touched.
        expected: The recipe that the text should load as.

    Raises:
        RecipeError: It loads as another recipe.
    """
    # In the same folder, so that `extends` and relative paths lead to the same files as in the recipe.
    trial = path.with_name(f".writing-{path.name}")
    try:
        trial.write_text(text, encoding="utf-8")
        same = load_recipe(trial) == expected
    finally:
        trial.unlink(missing_ok=True)
    if not same:
        raise RecipeError(
            f"`{path}` cannot be changed safely: the changed text would not load as this recipe. Nothing was written."
        )


def _new_rates(recipe: Recipe, factors: Mapping[str, float]) -> dict[Keys, float]:
    if isinstance(recipe.groups, Strategy):
        return _of_strategy(recipe.groups, factors)
    return {
        ("groups", index, "learning_rate", *keys): rate * factors[group.name]
        for index, group in enumerate(recipe.groups)
        if group.name in factors
        for keys, rate in _rates(group.learning_rate)
    }


def _of_strategy(strategy: Strategy, factors: Mapping[str, float]) -> dict[Keys, float]:
    different = sorted({f"{tidy(factor):g}" for factor in factors.values()})
    if len(different) > 1:
        raise RecipeError(
            "In a strategy the ratios between the rates are fixed. The groups would need different factors: "
            f"{quote(different)}. List the groups instead: `finetune suggest` writes such a list."
        )
    # `decay` or the ratio in `spread` stays: scaling the peak, or both ends, scales the rate of every group equally.
    factor = next(iter(factors.values()), 1.0)
    if strategy.spread:
        return {("groups", "spread", index): rate * factor for index, rate in enumerate(strategy.spread)}
    assert strategy.peak is not None
    return {("groups", "peak"): strategy.peak * factor}


def _rates(learning_rate: Any) -> Iterator[tuple[Keys, float]]:
    """Yields every rate below `learning_rate`, with the keys that lead to it."""
    if isinstance(learning_rate, int | float):
        yield (), float(learning_rate)
    elif learning_rate.schedule == "chain":
        for index, part in enumerate(learning_rate.schedules):
            yield from ((("schedules", index, *keys), rate) for keys, rate in _rates(part))
    elif learning_rate.schedule == "piecewise_constant_decay":
        yield from ((("values", index), rate) for index, rate in enumerate(learning_rate.values))
    else:
        yield (learning_rate.rate_field,), getattr(learning_rate, learning_rate.rate_field)
        # `end` is a rate, unlike `alpha` of a cosine, which is a fraction of the first rate and scales with it.
        if isinstance(learning_rate, PolynomialDecay) and learning_rate.end:
            yield ("end",), learning_rate.end


def _written(recipe: Recipe, keys: Keys, path: Path) -> Node:
    """Returns the node of a rate that is written in the file of the recipe itself."""
    node, passed, names = follow(recipe._tree, keys)
    about = f"The rate `{'.'.join(names)}`"
    if len(passed) != len(keys) + 1:
        raise RecipeError(f"{node.place}: {about} has its default value. Write it into `{path}`, then try again.")
    # Line 0 is an override; another source is a file that this recipe extends, which other recipes may extend, too.
    if not node.place.line or node.place.source != str(path):
        raise RecipeError(
            f"{about} comes from `{node.place}`, and only `{path}` itself is changed. Write the rate there, or "
            "change it by hand."
        )
    return node


def _replaced(line: str, place: Place, old: float, new: float) -> str:
    # Columns count from 1.
    before, after = line[: place.column - 1], line[place.column - 1 :]
    token = _TOKEN.match(after)
    # The place of an anchored or quoted value is that of `&` or of the quote, where no number starts.
    if token is None or not _is_number(token[0], old):
        raise RecipeError(
            f"{place}: a rate is changed only where it is a plain number, not behind an anchor or in quotes. "
            "Write it as a plain number, then try again."
        )
    return f"{before}{_spelled(new)}{after[token.end() :]}"


def _is_number(token: str, value: float) -> bool:
    try:
        return float(token) == value
    except ValueError:
        return False


def _spelled(rate: float) -> str:
    """Writes a rate as `2.3e-3`.

    >>> [_spelled(rate) for rate in (0.0023, 0.5, 1e-05, 12.0)]
    ['2.3e-3', '0.5', '1.0e-5', '12.0']
    """
    if 0.1 <= rate < 1000:
        return repr(float(rate))
    # YAML 1.1 readers such as PyYAML take `1e-5` for text, and `1.0e-5` for a number.
    digits, _, power = f"{rate:.2e}".partition("e")
    digits = digits.rstrip("0")
    return f"{digits}0e{int(power)}" if digits.endswith(".") else f"{digits}e{int(power)}"
