"""`finetune suggest`: measures how hard each layer group is pulled, and writes groups with rates in proportion."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from finetune.build.data import build_batches, precision
from finetune.build.layout import Prepared, load_allowed, prepare
from finetune.commands.plan import tell_network
from finetune.errors import FinetuneError, quote
from finetune.groups.selectors import LayerGroup, resolve_groups
from finetune.recipe.groups import GroupSpec, Strategy
from finetune.recipe.groups_block import groups_block
from finetune.recipe.loader import load_recipe
from finetune.recipe.rate_edits import scaled, tidy
from finetune.recipe.schema import Recipe
from finetune.results.run_folder import replacing
from finetune.results.tables import norms_table
from finetune.training.callbacks import progress_bar
from finetune.training.freezing import freeze
from finetune.training.gradient_norms import auto_rgn, relative_gradient_norms


@dataclass(frozen=True)
class SuggestedGroups:
    """What was measured and what follows from it.

    Attributes:
        block: The `groups:` block as YAML, its evidence as comments.
        relative_gradient_norms: Mean and standard deviation over the batches for every group, frozen ones included.
        learning_rates: The rate of every group that is trained.
        num_batches: Batches measured over.
    """

    block: str
    relative_gradient_norms: dict[str, tuple[float, float]]
    learning_rates: dict[str, float]
    num_batches: int


def suggest_groups(
    recipe: str | Path,
    *,
    by: str | None = None,
    peak: float | None = None,
    num_batches: int = 20,
    out: str | Path | None = None,
    overwrite: bool = False,
    overrides: Sequence[str] = (),
    allow_code: Sequence[str] = (),
    console: Console | None = None,
) -> SuggestedGroups:
    """Measures |gradient| / |weights| of every layer group, and gives each a rate in proportion to it (Auto-RGN).

    Args:
        recipe: Path of the recipe.
        by: Measures a group for each `layer` or `block` instead of the recipe's own groups.
        peak: Rate of the group that is pulled hardest; by default the highest of the recipe.
        num_batches: Batches to measure over, >= 1.
        out: A new recipe file that extends `recipe` with the suggested groups.
        overwrite: Whether `out` may exist.
        overrides: Changes to the recipe such as `"train.batch_size=64"`.
        allow_code: Packages whose code the recipe may run.
        console: Where to tell what happens; `None` stays silent.

    Raises:
        FinetuneError: If the input is wrong; nothing is written then.
        TrainingError: If a group gets no gradient.

    References:
        Lee et al. (2023), Surgical Fine-Tuning, https://arxiv.org/abs/2210.11466
    """
    console = console or Console(quiet=True)
    _check(by, peak, num_batches, out, recipe, overwrite)
    wanted = load_allowed(recipe, overrides, allow_code)
    if by is None and isinstance(wanted.groups, Strategy):
        by = wanted.groups.by
    with precision(wanted):
        ready = prepare(wanted)
        tell_network(ready, console)
        groups = resolve_groups(ready.model, by=by) if by else ready.groups
        norms = _measure(wanted, ready, groups, num_batches, console)
    rates = auto_rgn({name: mean for name, (mean, _) in norms.items()}, peak or max(ready.peaks.values()))
    trained = {group.name: tidy(rates[group.name]) for group in groups if group.name in rates and not group.frozen}
    listed = _listed(wanted, groups, trained) if by else _rescaled(wanted, ready, trained)
    block = groups_block(listed, _reasons(norms), _header(num_batches, wanted))
    console.print(norms_table(norms, trained))
    frozen = [group.name for group in ready.groups if group.frozen]
    if by and frozen:
        console.print(f"note: the recipe freezes {quote(frozen)}; the groups suggested here train everything")
    if out is not None:
        _write_extending(Path(recipe), Path(out), block)
        console.print(f"written: {out}, which extends {recipe}")
    return SuggestedGroups(block, norms, trained, num_batches)


def _check(
    by: str | None, peak: float | None, num_batches: int, out: str | Path | None, recipe: str | Path, overwrite: bool
) -> None:
    if by not in (None, "layer", "block") or not 0 < (peak or 1.0) < float("inf") or num_batches < 1:
        raise FinetuneError(
            "Relative gradient norms are measured `by` layer or block over at least 1 batch, for a `peak` rate above "
            f"0. Received by={by!r}, peak={peak}, {num_batches} batches."
        )
    if out is None:
        return
    if Path(out).resolve() == Path(recipe).resolve():
        raise FinetuneError(f"The suggestion is a recipe that extends `{recipe}`. `--out` must be another file.")
    if os.path.lexists(out) and not overwrite:
        raise FinetuneError(f"A suggestion never writes over what is there. `{out}` exists. Say `--overwrite`.")
    if not Path(out).parent.is_dir():
        raise FinetuneError(f"`--out {out}` must lie in a folder that exists. There is no `{Path(out).parent}`.")


def _measure(
    wanted: Recipe, ready: Prepared, groups: Sequence[LayerGroup], num_batches: int, console: Console
) -> dict[str, tuple[float, float]]:
    batches = build_batches(wanted, ready.examples).repeat().take(num_batches)
    freeze(ready.model, groups)
    with progress_bar(console, "gradients") as tell:
        ratios = relative_gradient_norms(ready.model, groups, batches, on_batch=lambda done: tell(done, num_batches))
    freeze(ready.model, ready.groups)
    return {name: (float(np.mean(column)), float(np.std(column))) for name, column in ratios.items()}


def _rescaled(wanted: Recipe, ready: Prepared, rates: Mapping[str, float]) -> tuple[GroupSpec, ...]:
    groups = scaled(wanted, {name: rate / ready.peaks[name] for name, rate in rates.items()}).groups
    assert isinstance(groups, tuple)
    return groups


def _listed(wanted: Recipe, groups: Sequence[LayerGroup], rates: Mapping[str, float]) -> list[GroupSpec]:
    """Writes every group with the optimizer and the schedule of the recipe's last group that is trained."""
    model = (
        wanted.groups if isinstance(wanted.groups, Strategy) else [one for one in wanted.groups if not one.frozen][-1]
    )
    shape: Any = model.learning_rate if getattr(model.learning_rate, "rate_field", "") else None
    return [
        GroupSpec(
            name=group.name,
            prefixes=_prefixes(group),
            optimizer=model.optimizer,
            learning_rate=shape.with_rate(rates[group.name]) if shape else rates[group.name],
            decay_bias_and_norm=model.decay_bias_and_norm,
        )
        for group in groups
    ]


def _prefixes(group: LayerGroup) -> tuple[str, ...]:
    return tuple(dict.fromkeys(leaf.layer or leaf.name for leaf in group.trainable))


def _reasons(norms: Mapping[str, tuple[float, float]]) -> dict[str, str]:
    largest = max(mean for mean, _ in norms.values())
    return {
        name: f"|gradient| / |weights| = {mean:.2e} ± {deviation:.0e}, {mean / largest:.3f} of the largest"
        for name, (mean, deviation) in norms.items()
    }


def _header(num_batches: int, wanted: Recipe) -> str:
    return f"Rates in proportion to relative gradient norms, over {num_batches} batches of {wanted.train.batch_size}."


def _write_extending(recipe: Path, out: Path, block: str) -> None:
    base = os.path.relpath(recipe, out.parent)
    with replacing(out) as temporary:
        temporary.write_text(f"extends: {base}\n\n{block}", encoding="utf-8")
        load_recipe(temporary)
