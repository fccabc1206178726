"""`finetune suggest`: measures |gradient| / |weights| of each layer group, and suggests rates in proportion."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from finetune.build.data import batch_rows, build_batches, precision
from finetune.build.layout import Layout, build_layout
from finetune.commands.plan import print_model
from finetune.errors import FinetuneError, quote
from finetune.groups.selectors import LayerGroup, resolve_groups
from finetune.recipe.fields import is_in_float32
from finetune.recipe.groups import GroupSpec, Strategy, groups_block
from finetune.recipe.loader import load_recipe
from finetune.recipe.rate_edits import scaled, tidy
from finetune.recipe.schema import Recipe
from finetune.results.new_files import check_new_file
from finetune.results.run_folder import replacing
from finetune.results.tables import norms_table
from finetune.training.callbacks import progress_bar
from finetune.training.freezing import freeze
from finetune.training.gradient_norms import auto_rgn, relative_gradient_norms


@dataclass(frozen=True)
class SuggestedGroups:
    """What was measured, and the groups suggested from it.

    Attributes:
        block: The `groups:` block as YAML, with the measured values as comments.
        relative_gradient_norms: Mean and standard deviation over the batches for every group, frozen ones included.
        learning_rates: The rate of every group that is trained.
        num_batches: The number of batches measured over.
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
        by: Measures a group for each `layer` or `block` instead of the groups of the recipe.
        peak: Rate of the group with the largest |gradient| / |weights|; by default the highest of the recipe.
        num_batches: Batches to measure over, >= 1.
        out: A new recipe file that extends `recipe` with the suggested groups.
        overwrite: Whether `out` may exist.
        overrides: Changes to the recipe such as `"train.batch_size=64"`.
        allow_code: Packages whose code the recipe may run.
        console: Where to print the result; `None` prints nothing.

    Raises:
        FinetuneError: The input is wrong; nothing is written then.
        TrainingError: A group gets no gradient.

    References:
        Lee et al. (2023), Surgical Fine-Tuning, https://arxiv.org/abs/2210.11466
    """
    console = console or Console(quiet=True)
    _check(by, peak, num_batches, out, recipe, overwrite)
    loaded = load_recipe(recipe, overrides=overrides, allow_code=allow_code)
    if by is None and isinstance(loaded.groups, Strategy):
        by = loaded.groups.by  # a strategy has no groups to put rates into, so its groups are listed
    with precision(loaded):
        layout = build_layout(loaded)
        print_model(layout, console)
        groups = resolve_groups(layout.tree, by=by) if by else layout.groups
        norms = _measure(layout, groups, num_batches, console)
    # Auto-RGN: rate = peak * norm / largest norm, so the group with the largest norm gets the peak.
    rates = auto_rgn({name: mean for name, (mean, _) in norms.items()}, peak or max(layout.peaks.values()))
    trained = {group.name: tidy(rates[group.name]) for group in groups if group.name in rates and not group.frozen}
    _check_rates(trained)
    specs = _new_specs(loaded, groups, trained) if by else scaled(loaded, layout.factors(trained)).groups
    assert isinstance(specs, tuple)
    size = batch_rows(layout.recipe)
    header = f"Rates in proportion to relative gradient norms, over {num_batches} batches of {size}."
    block = groups_block(specs, _reasons(specs, norms), header)
    console.print(norms_table(norms, trained))
    frozen = [group.name for group in layout.groups if group.frozen]
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
            f"0. Received by={by!r}, peak={peak}, num_batches={num_batches}."
        )
    if out is None:
        return
    if Path(out).resolve() == Path(recipe).resolve():
        raise FinetuneError(f"The suggestion is a recipe that extends `{recipe}`. `--out` must be another file.")
    check_new_file(Path(out), overwrite=overwrite)
    if not Path(out).parent.is_dir():
        raise FinetuneError(
            f"`--out {out}` must be in a folder that exists. There is no `{Path(out).parent}`. Create it first."
        )


def _check_rates(rates: Mapping[str, float]) -> None:
    outside = [f"`{name}`: {rate:g}" for name, rate in rates.items() if not is_in_float32(rate)]
    if outside:
        raise FinetuneError(
            "A learning rate must be between 1.2e-38 and 3.4e38: in float32, other numbers become 0 or infinite. In "
            f"proportion to the gradients the rates would be {', '.join(outside)}. Pass another rate for the largest "
            "with `--peak`."
        )


def _measure(
    layout: Layout, groups: Sequence[LayerGroup], num_batches: int, console: Console
) -> dict[str, tuple[float, float]]:
    """Returns mean and standard deviation of the relative gradient norm of each group over the batches."""
    batches = build_batches(layout.recipe, layout.examples).repeat().take(num_batches)
    freeze(layout.model, groups)
    with progress_bar(console, "gradients") as show:
        ratios = relative_gradient_norms(layout.model, groups, batches, on_batch=lambda done: show(done, num_batches))
    freeze(layout.model, layout.groups)  # as before: the groups measured may have been others
    return {name: (float(np.mean(column)), float(np.std(column))) for name, column in ratios.items()}


def _new_specs(recipe: Recipe, groups: Sequence[LayerGroup], rates: Mapping[str, float]) -> tuple[GroupSpec, ...]:
    """Describes every group, with the optimizer and the schedule of the recipe's last group that is trained."""
    groups_of_recipe = recipe.groups
    is_strategy = isinstance(groups_of_recipe, Strategy)
    model = groups_of_recipe if is_strategy else [spec for spec in groups_of_recipe if not spec.frozen][-1]
    schedule: Any = model.learning_rate if getattr(model.learning_rate, "rate_field", "") else None

    def training(group: LayerGroup) -> dict[str, Any]:
        if group.frozen:  # by other code: a strategy has no frozen groups itself
            return {"frozen": True}
        rate = rates[group.name]
        return {
            "optimizer": model.optimizer,
            "learning_rate": schedule.with_rate(rate) if schedule else rate,
            "decay_bias_and_norm": model.decay_bias_and_norm,
        }

    return tuple(
        GroupSpec(
            name=group.name,
            prefixes=tuple(dict.fromkeys(leaf.layer or leaf.name for leaf in group.trainable)),
            **training(group),
        )
        for group in groups
    )


def _reasons(specs: Sequence[GroupSpec], norms: Mapping[str, tuple[float, float]]) -> dict[str, str]:
    """Returns the comment above each group of the block: what was measured."""
    largest = max(mean for mean, _ in norms.values())
    measured = {
        name: f"|gradient| / |weights| = {mean:.2e} ± {deviation:.0e}, {mean / largest:.3f} of the largest"
        for name, (mean, deviation) in norms.items()
    }
    # `always_train` leaves a frozen group of nothing but normalization parameters without weights to measure, and the
    # weights of another group may not be trainable in the model.
    return {
        spec.name: measured.get(
            spec.name,
            "not measured, because it is frozen"
            if spec.frozen
            else "not measured, because `train.always_train` trains its weights",
        )
        for spec in specs
    }


def _write_extending(recipe: Path, out: Path, block: str) -> None:
    base = os.path.relpath(recipe, out.parent)  # `extends` is relative to the file that writes it
    with replacing(out) as temporary:
        temporary.write_text(f"extends: {base}\n\n{block}", encoding="utf-8")
        load_recipe(temporary)  # a fault in it must show before the file has its name
