"""The `Layout` of a run: everything that a recipe says, worked out once for one model and its examples.

If you are reading for the first time, read `_lay_out`: its lines are the order in which a recipe becomes a model that
is ready to train. The modules beside this one do the single steps.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import keras
import numpy as np

from finetune.build.compile import compile_model
from finetune.build.data import RunLength, steps_per_epoch
from finetune.build.distribute import build_distribution, synchronize_batch_norm, with_global_batch
from finetune.build.groups import build_groups, group_specs, with_frozen, with_normalization
from finetune.build.model import build_model_and_examples, keys_of_width, pretrained_sources
from finetune.build.optimizer import build_optimizer, build_settings
from finetune.build.padding import with_padding
from finetune.build.phases import build_phases, phase_length, phase_specs, shows_phases, total_length
from finetune.build.restore import restore_weights
from finetune.build.source_keys import loss_names
from finetune.data.examples import Examples
from finetune.data.row_checks import unreadable_rows_named
from finetune.data.target_advice import advice_on_targets
from finetune.data.target_facts import describe
from finetune.distribution.strategy import Distribution
from finetune.errors import RecipeError, quote
from finetune.groups.finite_values import listed, problems_in
from finetune.groups.layer_tree import LayerTree, layer_tree
from finetune.groups.selectors import LayerGroup
from finetune.groups.untracked import advice_on_untracked
from finetune.kernels.native_kernels import layers_with_kernels
from finetune.models.hub import check_gradients
from finetune.models.output_names import by_output_name
from finetune.optimizers.cooldown import cooldown_start
from finetune.planning.extreme_settings import advice_on_extremes
from finetune.planning.plan import GroupSettings, Plan, advice_on_statistics, make_plan
from finetune.pretrained.restore import RestoreReport
from finetune.recipe.error_places import located_at
from finetune.recipe.groups import Strategy
from finetune.recipe.loader import place_of, placed, with_values
from finetune.recipe.phase_spec import ALL, PhaseSpec
from finetune.recipe.phase_strategies import phases_block
from finetune.recipe.rate_edits import scaled
from finetune.recipe.schema import Recipe
from finetune.training.batch_size import FIRST, measure_batch_size
from finetune.training.fast.steps_per_call import divide_evenly
from finetune.training.freezing import check_trainable, freeze
from finetune.training.input_checks import input_facts, input_problems
from finetune.training.loss_advice import advice_on_loss
from finetune.training.phases.phase import Phase
from finetune.training.phases.preview import with_phases
from finetune.training.run_fit import FitOptions
from finetune.training.target_checks import WidthError
from finetune.training.try_examples import LengthError, Trial, try_examples, try_model


@dataclass(frozen=True)
class Layout:
    """Everything a run needs, with the weights restored and the model compiled; nothing is trained yet.

    Attributes:
        recipe: The recipe, with losses and metrics in place of `auto`.
        model: The compiled model.
        examples: What it is trained and tested on.
        tree: The layer tree of the model.
        groups: All layer groups of the model, input to output.
        settings: How each group that is not frozen is trained, by its name, input to output.
        phases: The phases, at least one.
        shows_phases: Whether the recipe has phases, or a group asks for what phases do. Without, the single phase is
            mentioned nowhere.
        length: Epochs and steps of the whole run.
        plan: What will happen to every weight.
        restored: What was restored; `None` for a recipe without `restore`.
        chosen: Sentences on the losses and metrics that were chosen in place of `auto`.
        inputs: Sentences on the range of each input and what the network does with it first.
        phases_block: The phases as YAML, where the recipe names a strategy of phases.
        distribution: The devices that train.
    """

    recipe: Recipe
    model: keras.Model
    examples: Examples
    tree: LayerTree
    groups: tuple[LayerGroup, ...]
    settings: Mapping[str, GroupSettings]
    phases: tuple[Phase, ...]
    shows_phases: bool
    length: RunLength
    plan: Plan
    restored: RestoreReport | None
    chosen: tuple[str, ...]
    inputs: tuple[str, ...]
    phases_block: str | None
    distribution: Distribution

    @property
    def peaks(self) -> dict[str, float]:
        """The peak learning rate of every group that is not frozen, by its name."""
        return {name: settings.peak for name, settings in self.settings.items()}

    @property
    def rates_to_measure(self) -> bool:
        """Whether an LR range test has yet to choose the rates; the rates in the recipe then only give their ratios."""
        return self.recipe.train.learning_rate == "auto"

    @property
    def rates_to_search(self) -> bool:
        """Whether trainings at several rates have yet to choose those of the run."""
        return self.recipe.train.learning_rate == "search"

    @property
    def cooldown_at(self) -> int | None:
        """The step from which the rates fall; until then they do not depend on the length of the run."""
        rates = [settings.learning_rate for settings in self.settings.values()]
        return None if any(phase.rates for phase in self.phases) else cooldown_start(rates)

    def factors(self, peaks: Mapping[str, float]) -> dict[str, float]:
        """Returns what the rates of some groups must be multiplied with to have these peaks."""
        return {name: peak / self.settings[name].peak for name, peak in peaks.items()}


@located_at("model")
def build_layout(recipe: Recipe, chosen: Sequence[str] = ()) -> Layout:
    """Builds the model of a recipe and everything around it, up to the point where training can begin.

    Call it within `finetune.build.data.precision`, which sets the seed that fresh weights follow.

    Args:
        recipe: The recipe.
        chosen: Sentences on what was chosen before in place of `auto`.

    Raises:
        FinetuneError: The input is wrong. Faults that need no weights are found before weights are read from disk.
    """
    distribution = build_distribution(recipe)
    recipe, on_batch = with_global_batch(recipe, distribution)
    recipe, model, examples, of_losses = build_model_and_examples(recipe, distribution)
    synchronize_batch_norm(recipe, model, distribution)
    tree, measures = layer_tree(model), recipe.train.batch_size == "auto"
    if measures:  # at the smallest size, so that the whole model is there for the measurement
        recipe = with_values(recipe, {("train", "batch_size"): FIRST})
    restore = lambda: restore_weights(recipe, model, tree)  # noqa: E731
    layout = _lay_out(recipe, model, examples, tree, restore, (*on_batch, *chosen, *of_losses), distribution)
    return _with_largest_batch(layout) if measures else layout


def _with_largest_batch(layout: Layout) -> Layout:
    """Derives the layout with the largest batches that fit into memory, as `with_peaks` derives one; see there."""
    size = measure_batch_size(layout.model, layout.examples)
    recipe = with_values(layout.recipe, {("train", "batch_size"): size.rows})
    chosen = (*layout.chosen, size.sentence(len(layout.examples.train)))
    return _derived(recipe, layout, chosen)


def _derived(recipe: Recipe, layout: Layout, chosen: tuple[str, ...]) -> Layout:
    restore = lambda: layout.restored  # noqa: E731
    return _lay_out(recipe, layout.model, layout.examples, layout.tree, restore, chosen, layout.distribution)


def with_peaks(layout: Layout, peaks: Mapping[str, float]) -> Layout:
    """Derives the layout in which some groups have other peak learning rates; schedules keep their shapes.

    Model, examples, tree and restored weights are those of `layout`. Optimizers are new, and the model is compiled with
    them: do not use `layout` afterwards.

    Args:
        layout: A layout of which nothing has been trained.
        peaks: The peaks to have, per step and > 0, by the name of the group.
    """
    recipe = scaled(layout.recipe, layout.factors(peaks))  # the recipe in the run folder has the new rates, too
    recipe = with_values(recipe, {("train", "learning_rate"): None})
    return _derived(recipe, layout, layout.chosen)


def fit_options(layout: Layout) -> FitOptions:
    """Takes from `train` whatever `FitOptions` has a field for, so that no key is forgotten."""
    names = {option.name for option in fields(FitOptions)}
    options: dict[str, Any] = {name: value for name, value in layout.recipe.train if name in names}
    options |= {"epochs": layout.length.epochs, "steps_per_epoch": layout.length.steps_per_epoch}
    return FitOptions(**options, seed=layout.recipe.seed, announce_phases=layout.recipe.phases is not None)


@located_at("model")
def _lay_out(
    recipe: Recipe,
    model: keras.Model,
    examples: Examples,
    tree: LayerTree,
    restore: Callable[[], RestoreReport | None],
    chosen: tuple[str, ...],
    distribution: Distribution,
) -> Layout:
    """Works out the layout; `restore` puts the pretrained weights into the model and is called on the way."""
    # What the groups are: `listed` as the recipe means them, `specs` with those that `always_train` adds.
    listed = group_specs(recipe, tree)
    specs = with_normalization(recipe, listed, tree)
    groups = build_groups(recipe, specs, tree)
    listed = with_frozen(listed, groups)

    # How long everything is. Phases come first: they decide the length of the run, and that the length of schedules.
    written_phases = phase_specs(recipe, listed)
    lengths = [phase_length(phase, steps_per_epoch(recipe, examples)) for phase in written_phases]
    length = total_length(lengths)
    _check_updates(recipe, lengths)

    # How the groups are trained, in the run and in each phase. Beyond these lines the recipe has no fault any more.
    with distribution.scope():
        settings = build_settings(recipe, specs, length)
    phases = build_phases(recipe, written_phases, specs, groups, length, examples)

    restored = restore()  # after the checks: a file of many gigabytes is not read for a recipe with a fault
    _check_finite(recipe, tree)
    sources = pretrained_sources(recipe, tree)
    sources |= {weight.name: weight.source for weight in restored.restored} if restored else {}
    plan = make_plan(tree, groups, settings, steps=length.steps, restored_from=sources)
    extremes = advice_on_extremes(settings, dict(recipe.train), length.steps)
    fresh = advice_on_fresh(recipe, written_phases, sources)
    native = layers_with_kernels(model) if recipe.train.kernels == "native" and distribution.strategy is None else {}
    advice = (*plan.advice, *fresh, *extremes, *advice_on_untracked(model))
    plan = replace(plan, native=native, advice=advice)
    if shows_phases(recipe):
        plan = with_phases(plan, model, groups, phases, settings, [(part.epochs, part.steps) for part in lengths])
    plan = replace(plan, advice=(*plan.advice, *advice_on_statistics(plan, tree)))

    # In this order: `compile` notes which variables are trainable, and the optimizer of a group belongs to one model.
    freeze(model, groups)
    with placed(recipe, "model"):
        check_gradients(model)
    of_length = ("data", "tokenizer", "length") if recipe.data.tokenizer else ("data",)
    with placed(recipe, "data"), placed(recipe, *of_length, only=LengthError), unreadable_rows_named(examples):
        examples, notes_on_padding = with_padding(recipe, model, examples)
        trial = try_model(model, examples)
    with distribution.scope():
        optimizer = build_optimizer(recipe, groups, settings)
    notes = compile_model(recipe, model, optimizer, examples, trial)
    with placed(recipe, "train", "loss"), placed(recipe, *keys_of_width(recipe), only=WidthError):
        try_examples(model, examples, trial)
    on_targets = [*_advice_on_targets(recipe, model, examples, trial), *_advice_on_images(model, trial)]
    notes = (*notes, *on_targets, *examples.source.get("warnings", ()), *notes_on_padding)
    plan = replace(plan, advice=(*plan.advice, *advice_on_loss(model, trial.x), *notes))
    divide_evenly(model, length.steps_per_epoch, *(phase.steps or 0 for phase in phases))
    check_trainable(model, groups)
    names_strategy = recipe.phases is not None and not isinstance(recipe.phases, tuple)
    return Layout(
        recipe=recipe,
        model=model,
        examples=examples,
        tree=tree,
        groups=groups,
        settings=settings,
        phases=phases,
        shows_phases=shows_phases(recipe),
        length=length,
        plan=plan,
        restored=restored,
        chosen=chosen,
        inputs=tuple(input_facts(model, _ranges(trial))),
        phases_block=phases_block(written_phases) if names_strategy else None,
        distribution=distribution,
    )


def advice_on_fresh(recipe: Recipe, phases: Sequence[PhaseSpec], sources: Mapping[str, str | None]) -> Iterator[str]:
    """Says where groups wait frozen in some phase, or learn slowly, although nothing is pretrained.

    Args:
        recipe: The recipe.
        phases: Its phases, written out.
        sources: Where each weight of the network comes from, by its name.
    """
    named = {name for phase in phases for name in ((ALL,) if phase.train == ALL else phase.train)}
    first = next((n for n, phase in enumerate(phases) if phase.train != ALL and named - {*phase.train}), None)
    if any(sources.values()):
        return
    if recipe.phases is None or first is None:
        rates = recipe.groups if isinstance(recipe.groups, Strategy) else None
        if rates and (len(set(rates.spread or ())) > 1 or (rates.decay or 1) > 1 or (rates.layer_decay or 1) < 1):
            loaded = "Unless the builder loaded weights, give" if recipe.model.builder else "Give"
            yield (
                "Nothing is pretrained, and the groups near the input have lower rates: these keep what is pretrained, "
                f"and here they keep random weights. {loaded} all groups one rate (`decay: 1`), or add pretrained "
                "weights: `restore`, or `weights` of an application."
            )
        return
    loaded = " Unless the builder loaded weights, remove" if recipe.model.builder else " Remove"
    yield (
        f"Nothing is pretrained, and phase {first + 1} trains {quote(phases[first].train)} alone: what is frozen "
        f"meanwhile is random, and training on top of it teaches little.{loaded} `phases`, or add pretrained weights: "
        "`restore`, or `weights` of an application."
    )


def _advice_on_targets(recipe: Recipe, model: keras.Model, examples: Examples, trial: Trial) -> Iterator[str]:
    losses = loss_names(recipe)
    described, outputs = describe(examples, losses), by_output_name(model, trial.outputs)
    for name, loss in losses.items():
        values = np.asarray(outputs.get(name, ()), np.float64)
        facts = described.get("outputs", {}).get(name, {}) if name else described
        if values.ndim > 1:
            size = float(np.sqrt(np.mean(values**2)))
            yield from advice_on_targets(facts, loss, values.shape[-1], size, name)


def _advice_on_images(model: keras.Model, trial: Trial) -> Iterator[str]:
    """Yields a sentence where images that are scaled already meet a network that scales them."""
    yield from input_problems(model, _ranges(trial, axes=4))


def _ranges(trial: Trial, axes: int = 0) -> dict[str, tuple[float, float]]:
    """Returns least and greatest value of each input of numbers in the trial; with `axes`, of those with so many."""
    inputs = trial.x if isinstance(trial.x, Mapping) else {"": trial.x}
    arrays = {name: np.asarray(x) for name, x in inputs.items() if not axes or len(getattr(x, "shape", ())) == axes}
    numbers = {name: x for name, x in arrays.items() if x.dtype.kind in "biuf" and x.size}
    return {name: (float(x.min()), float(x.max())) for name, x in numbers.items()}


def _check_finite(recipe: Recipe, tree: LayerTree) -> None:
    """Checks the weights with which training would begin; those of `restore` were checked before they were assigned."""
    wrong = problems_in(tree.leaves)
    if wrong:
        raise RecipeError(
            f"{place_of(recipe, 'model')}: `model`: weights and statistics of a network must be finite numbers, and "
            f"variances not negative. It has others: {listed(wrong)}. Take a network that works, or restore these "
            "weights."
        )


def _check_updates(recipe: Recipe, lengths: Sequence[RunLength]) -> None:
    """Checks that batches are not accumulated for so long that a phase, or the whole run, ends without an update."""
    batches = recipe.train.gradient_accumulation_steps
    begin = 0
    for number, length in enumerate(lengths if batches else (), start=1):
        end = begin + length.steps
        if batches and end // batches == begin // batches:
            where = f"phase {number} has {length.steps}" if len(lengths) > 1 else f"the run has {length.steps}"
            place = place_of(recipe, "train", "gradient_accumulation_steps")
            raise RecipeError(
                f"{place}: `train.gradient_accumulation_steps` makes an update of the weights after every {batches:,} "
                f"batches, and {where} in all: it would train nothing. Accumulate fewer batches, or train for longer."
            )
        begin = end
