"""Strategies of unfreezing written out as lists of phases: pure data, to be printed and edited."""

from collections.abc import Mapping, Sequence
from typing import Any

from finetune.recipe.fields import fault
from finetune.recipe.phases import (
    ALL,
    AutoRgnSpec,
    ChainThaw,
    FreezeThenAll,
    GradualUnfreezing,
    LpFt,
    PhaseSpec,
    Surgical,
    UntilSpec,
)
from finetune.recipe.text import dump


def written_out(phases: Any, peaks: Mapping[str, float], epochs: int | None) -> tuple[PhaseSpec, ...]:
    """Returns a list of phases as it is, and a strategy as the list it stands for.

    Args:
        phases: What the recipe says.
        peaks: The first or highest rate of every group that is not `frozen`, input to output, by its name.
        epochs: Length of the whole run, if the recipe says one.

    Raises:
        PydanticCustomError: The strategy does not know how long its last phase is.

    References:
        freeze_then_all: fastai's `Learner.fine_tune`, https://docs.fast.ai/callback.schedule.html
        gradual_unfreezing: Howard & Ruder (2018), ULMFiT, section 3.3, https://arxiv.org/abs/1801.06146
        lp_ft: Kumar et al. (2022), https://arxiv.org/abs/2202.10054
        chain_thaw: Felbo et al. (2017), DeepMoji, section 3.3, https://arxiv.org/abs/1708.00524
        surgical, auto_rgn: Lee et al. (2023), https://arxiv.org/abs/2210.11466
    """
    if isinstance(phases, tuple):
        return phases
    return _WRITERS[type(phases)](phases, peaks, epochs)


def phases_block(phases: Sequence[PhaseSpec]) -> str:
    """Writes phases as YAML that can be pasted into a recipe in place of the strategy."""
    lines = ["phases:"]
    for phase in phases:
        lines += [f"  {line}" for line in dump([_plain(phase.model_dump())], compact=True).splitlines()]
    return "\n".join(lines) + "\n"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value


def _last_epochs(strategy: Any, before: int, epochs: int | None) -> int:
    """How long the last phase is, after so many epochs of the others."""
    if strategy.epochs is not None:
        return strategy.epochs
    if epochs is None:
        raise fault(
            "does not say how long its last phase is. Give it `epochs`, as in "
            f"`phases: {{strategy: {strategy.strategy}, epochs: 4}}`, or give those of the whole run as `train.epochs`"
        )
    if epochs <= before:
        raise fault(
            f"needs {before} epochs before its last phase, and `train.epochs` is {epochs}. Make that longer, or give "
            "the strategy `epochs`"
        )
    return epochs - before


def _phase(train: Any, epochs: int, **more: Any) -> PhaseSpec:
    return PhaseSpec.model_validate({"train": train, "epochs": epochs, **more})


def _freeze_then_all(strategy: FreezeThenAll, peaks: Mapping[str, float], epochs: int | None) -> tuple[PhaseSpec, ...]:
    *_, last = peaks
    peak = strategy.peak or peaks[last]
    top, steps = peak / 2, len(peaks) - 1
    rates = {name: top / strategy.ratio ** ((steps - n) / steps if steps else 0) for n, name in enumerate(peaks)}
    first = {"schedule": "one_cycle", "peak": peak, "warmup_fraction": 0.99}
    second = {"schedule": "one_cycle", "warmup_fraction": 0.3, "div": 5.0}
    return (
        _phase([last], strategy.frozen_epochs, rates={last: first}, clock="phase"),
        _phase(
            ALL,
            _last_epochs(strategy, strategy.frozen_epochs, epochs),
            rates={name: {**second, "peak": rate} for name, rate in rates.items()},
            clock="phase",
        ),
    )


def _gradual_unfreezing(
    strategy: GradualUnfreezing, peaks: Mapping[str, float], epochs: int | None
) -> tuple[PhaseSpec, ...]:
    names = list(peaks)
    peak = strategy.peak or peaks[names[-1]]
    rates = {name: peak / strategy.decay**height for height, name in enumerate(reversed(names))}
    last = _last_epochs(strategy, strategy.epochs_per_group * (len(names) - 1), epochs)
    return tuple(
        _phase(
            names[start:],
            strategy.epochs_per_group if start else last,
            rates={name: {"schedule": "slanted_triangular", "peak": rates[name]} for name in names[start:]},
            clock="phase",
        )
        for start in range(len(names) - 1, -1, -1)
    )


def _lp_ft(strategy: LpFt, peaks: Mapping[str, float], epochs: int | None) -> tuple[PhaseSpec, ...]:
    probe = strategy.probe_epochs or strategy.epochs or (epochs or 0) // 2
    return _phase([*peaks][-1:], max(probe, 1), clock="phase"), _phase(
        ALL, _last_epochs(strategy, max(probe, 1), epochs), clock="phase"
    )


def _chain_thaw(strategy: ChainThaw, peaks: Mapping[str, float], epochs: int | None) -> tuple[PhaseSpec, ...]:
    *others, newest = peaks
    turns = [newest, *others]
    until = {} if strategy.patience is None else {"until": UntilSpec(patience=strategy.patience)}
    last = _last_epochs(strategy, strategy.epochs_per_group * len(turns), epochs)
    alone = [_phase([name], strategy.epochs_per_group, clock="phase", **until) for name in turns]
    return *alone, _phase(ALL, last, clock="phase", **until)


def _surgical(strategy: Surgical, peaks: Mapping[str, float], epochs: int | None) -> tuple[PhaseSpec, ...]:
    names = list(peaks)
    place = {"first": 0, "middle": len(names) // 2, "last": -1}[strategy.train]
    return (_phase([names[place]], _last_epochs(strategy, 0, epochs)),)


def _auto_rgn(strategy: AutoRgnSpec, peaks: Mapping[str, float], epochs: int | None) -> tuple[PhaseSpec, ...]:
    return (_phase(ALL, _last_epochs(strategy, 0, epochs), auto_rgn=strategy.peak or max(peaks.values())),)


_WRITERS: dict[type, Any] = {
    FreezeThenAll: _freeze_then_all,
    GradualUnfreezing: _gradual_unfreezing,
    LpFt: _lp_ft,
    ChainThaw: _chain_thaw,
    Surgical: _surgical,
    AutoRgnSpec: _auto_rgn,
}
