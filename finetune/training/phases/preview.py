"""The phases in the plan: which groups train when, at which rates, and in which mode BatchNormalization runs."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import keras

from finetune.errors import quote
from finetune.groups.batch_norm import BATCH_NORM_MODES
from finetune.groups.selectors import LayerGroup
from finetune.planning.plan import GroupSettings, Plan, PlannedWeight
from finetune.training.freezing import PhaseState
from finetune.training.phases.phase import CLOCKS, Phase, state_of

_LOOKS = 17  # steps of a phase at which a rate is looked at for its peak
_SAME = 0.1  # difference of two peaks that comes of looking at some steps only

Rates = tuple[float, float, float]


@dataclass(frozen=True)
class PlannedPhase:
    """The row of a phase in the plan.

    Attributes:
        train: Names of the groups that are trained.
        epochs: Length in epochs, at most.
        steps: Length in steps, at most.
        parameters: Numbers that are trained.
        learning_rates: Rate of each of these groups at the first, the middle and the last step of the phase.
        peaks: The highest rate of each of these groups in the phase, of the steps that were looked at.
        batch_norm: Mode of BatchNormalization in each group that has some.
        inference_layers: Names of the layers that run in inference mode though Keras would not let them.
        notes: Sentences about everything else it does.
    """

    train: tuple[str, ...]
    epochs: int
    steps: int
    parameters: int
    learning_rates: dict[str, Rates]
    peaks: dict[str, float]
    batch_norm: dict[str, str]
    inference_layers: tuple[str, ...]
    notes: tuple[str, ...]


def with_phases(
    plan: Plan,
    model: keras.Model,
    groups: Sequence[LayerGroup],
    phases: Sequence[Phase],
    settings: Mapping[str, GroupSettings],
    lengths: Sequence[tuple[int, int]],
) -> Plan:
    """Adds phases to a plan. The rates of a weight are then those of the steps in which it is trained.

    Args:
        plan: The plan of a run that trains all groups all the time.
        model: The model.
        groups: All of its layer groups.
        phases: The phases.
        settings: Settings of every group that is not frozen for good, by its name.
        lengths: Epochs and steps of each phase, in the order of `phases`.
    """
    # The same function as in training decides, so that the plan cannot promise something else.
    states = [state_of(model, groups, phase) for phase in phases]
    starts = [sum(steps for _, steps in lengths[:place]) for place in range(len(phases))]  # first step of each
    names = [set(phase.names(groups)) for phase in phases]

    def rate_in(place: int, group: str) -> Callable[[int], float]:
        # As in the loop: a group warms up when the phase before did not train it.
        warms = place == 0 or group not in names[place - 1]
        return rate_in_phase(phases[place], group, settings[group], starts[place], warms=warms)

    rows = [
        _planned(phase, groups, state, lengths[place], lambda group, place=place: rate_in(place, group), settings)
        for place, (phase, state) in enumerate(zip(phases, states, strict=True))
    ]
    trained_in = {
        row.name: [place for place, state in enumerate(states) if any(leaf.name == row.name for leaf in state.trained)]
        for row in plan.weights
    }
    weights = tuple(_in_phases(row, trained_in[row.name], states, lengths, rate_in) for row in plan.weights)
    # A weight that trains with its group frozen, as normalization may, is in no phase's rates.
    highest = {name: max(row.peaks[name] for row in rows if name in row.peaks) for row in rows for name in row.peaks}
    weights = tuple(
        replace(row, peak=max(highest.get(row.group, 0.0), *row.learning_rate) if row.learning_rate else None)
        for row in weights
    )
    return replace(plan, weights=weights, phases=tuple(rows), advice=(*plan.advice, *_advice(groups, phases)))


def rate_in_phase(
    phase: Phase, group: str, settings: GroupSettings, start: int, *, warms: bool
) -> Callable[[int], float]:
    """Returns the rate of a group as a function of the step within the phase.

    A rate that warms up is multiplied by `min(step / warmup_steps, 1)`, as `GroupedOptimizer.reschedule` does it.

    Args:
        phase: The phase.
        group: Name of the group, which the phase trains.
        settings: How the group is trained where the phase does not say it.
        start: Step of the run with which the phase begins.
        warms: Whether the group warms up, because the phase before did not train it.
    """
    # What `_PhaseLoop.set_rates` does: Auto-RGN replaces the rates of the phase, and these replace those of the groups.
    rate: Any = phase.auto_rgn or phase.rates.get(group, settings.learning_rate)

    def at(step: int) -> float:
        # A schedule counts from the start of the phase or of the run, as its clock says.
        moment: Any = step if phase.clock == "phase" else start + step
        now: Any = rate(moment) if callable(rate) else rate
        value = float(now)
        return value * min(step / phase.warmup_steps, 1.0) if phase.warmup_steps and warms else value

    return at


def _planned(
    phase: Phase,
    groups: Sequence[LayerGroup],
    state: PhaseState,
    length: tuple[int, int],
    rate: Callable[[str], Callable[[int], float]],
    settings: Mapping[str, GroupSettings],
) -> PlannedPhase:
    epochs, steps = length
    names = phase.names(groups)
    # First, middle and last step, as in the table of groups; the schedule is called, nothing is estimated.
    rates = {name: (at(0), at((steps - 1) // 2), at(steps - 1)) for name in names for at in [rate(name)]}
    # Between them, too, for a rate that rises and falls. A call takes a third of a millisecond.
    looks = max(2, min(_LOOKS, 1000 // len(names)))
    between = {step * (steps - 1) // looks for step in range(1, looks)}
    changes = {name for name in names if callable(phase.rates.get(name, settings[name].learning_rate))}
    peaks = {
        name: max(*three, *(rate(name)(step) for step in between if name in changes or phase.warmup_steps))
        for name, three in rates.items()
    }
    return PlannedPhase(
        train=phase.names(groups),
        epochs=epochs,
        steps=steps,
        parameters=sum(prod(leaf.variable.shape) for leaf in state.trained),
        learning_rates=rates,
        peaks=peaks,
        batch_norm=dict(state.batch_norm_modes),
        inference_layers=tuple(layer.name for layer in state.inference_layers),
        notes=(*_notes(phase), *_replaced_rates(phase, peaks, settings)),
    )


def _notes(phase: Phase) -> list[str]:
    notes = [f"schedules count from the start of the {phase.clock}"] if phase.clock != CLOCKS[0] else []
    notes += [f"the rates of newly trained groups rise for {phase.warmup_steps} steps"] if phase.warmup_steps else []
    notes += ["rates follow the relative gradient norms, measured before every epoch"] if phase.auto_rgn else []
    if phase.until:
        notes.append(f"ends after {phase.until.patience} epochs without a better `{phase.until.monitor}`")
    if phase.reduce_on_plateau:
        notes.append(f"rates are lowered when `{phase.reduce_on_plateau.monitor}` stops improving")
    if phase.always_train_normalization:
        notes.append("gamma and beta of normalization layers also train in frozen groups, at the rates of their groups")
    return notes


def _replaced_rates(phase: Phase, peaks: Mapping[str, float], settings: Mapping[str, GroupSettings]) -> Iterator[str]:
    """Yields a sentence where a phase has other rates than the groups were given."""
    if phase.auto_rgn:
        return  # which has a note
    # A schedule of the group that counts from the begin of the phase is made anew, and has the same peak.
    others = [name for name in phase.rates if abs(peaks[name] / settings[name].peak - 1) > _SAME]
    if others:
        yield f"sets rates that replace those written for {quote(others, limit=3)}"


def _in_phases(
    row: PlannedWeight,
    places: Sequence[int],
    states: Sequence[PhaseState],
    lengths: Sequence[tuple[int, int]],
    rate_in: Callable[[int, str], Callable[[int], float]],
) -> PlannedWeight:
    # Each mode once, in the order of the phases.
    modes = list(
        dict.fromkeys(state.batch_norm_modes[row.group] for state in states if row.group in state.batch_norm_modes)
    )
    mode = row.batch_normalization
    if mode and modes:
        mode = BATCH_NORM_MODES[modes[0]] if len(modes) == 1 else f"by phase, {', then '.join(modes)}"
    if not places:
        # Never trained, whatever its group says; moving statistics have no rate and are not called frozen.
        frozen = row.frozen or row.learning_rate is not None
        untrained = {"frozen": frozen, "optimizer": None, "learning_rate": None, "weight_decay": None}
        return replace(row, batch_normalization=mode, **untrained)
    # First, middle and last of the steps in which the weight trains, which may lie in several phases.
    counts = [lengths[place][1] for place in places]
    # Counted over the steps in which the weight trains, not over those of the run between them.
    middle = (sum(counts) - 1) // 2
    at = next(n for n in range(len(places)) if middle < sum(counts[: n + 1]))
    rates = (
        rate_in(places[0], row.group)(0),
        rate_in(places[at], row.group)(middle - sum(counts[:at])),
        rate_in(places[-1], row.group)(counts[-1] - 1),
    )
    return replace(row, batch_normalization=mode, learning_rate=rates)


def _advice(groups: Sequence[LayerGroup], phases: Sequence[Phase]) -> list[str]:
    trained = {name for phase in phases for name in phase.names(groups)}
    # No error as in `check_phases`: a plan of some phases of a run is worth reading.
    idle = [group.name for group in groups if not group.frozen and group.name not in trained]
    if not idle:
        return []
    return [f"No phase trains {quote(idle)}. Their weights that were not restored stay random: train them in a phase."]
