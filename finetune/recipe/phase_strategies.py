"""Strategies of unfreezing: each is written out as a list of phases, which can be printed, edited and compared.

A strategy is its settings and the phases that follow from them: one class holds both. It needs nothing but the peak
learning rates of the groups and a number of epochs, so that `finetune check` can write it out without TensorFlow;
`finetune.training.phases.named_strategies` takes the same classes for `train_phases`.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, get_args

from pydantic import Field

from finetune.errors import quote
from finetune.recipe.fields import AtLeastOne, Count, Part, Rate, choice, fault, pick
from finetune.recipe.phase_spec import ALL, PhaseSpec
from finetune.recipe.text import dump


class PhaseStrategy(Part):
    """Base of the strategies.

    Attributes:
        strategy: Name of the strategy.
        epochs: Length of its last phase; by default what is left of the epochs of the whole run.
    """

    strategy: Any  # a `Literal` in every strategy; declared here so that it is dumped first
    epochs: Count | None = None

    def phases(self, peaks: Mapping[str, float], epochs: int | None) -> tuple[PhaseSpec, ...]:
        """Writes the strategy out.

        Args:
            peaks: Peak learning rate of each group that is not frozen in all phases, input to output, by name; > 0.
            epochs: Length of the whole run in epochs; `None` if unknown.

        Raises:
            PydanticCustomError: The length of the last phase is unknown, or nothing is left for it.
        """
        raise NotImplementedError

    def last_epochs(self, before: int, epochs: int | None) -> int:
        """Returns the length of the last phase, after so many epochs of the others.

        Raises:
            PydanticCustomError: As for `phases`.
        """
        if self.epochs is not None:
            return self.epochs
        if epochs is None:
            raise fault(
                "does not say how long its last phase is. Give it `epochs`, as in "
                f"`phases: {{strategy: {self.strategy}, epochs: 4}}`, or set those of the whole run: `train.epochs`"
            )
        if epochs <= before:
            raise fault(
                f"needs {before} epochs before its last phase, and `train.epochs` is {epochs}. Increase that, or give "
                "the strategy `epochs`"
            )
        return epochs - before


class FreezeThenAll(PhaseStrategy):
    """The last group alone, then all: fastai's `fine_tune`, with its one-cycle schedules and ratios.

    Attributes:
        frozen_epochs: Length of the first phase.
        peak: Its rate; by default the peak of the last group. fastai's is 2e-3.
        ratio: How many times smaller the rate of the first group is than that of the last.

    References:
        `Learner.fine_tune`, https://docs.fast.ai/callback.schedule.html
    """

    strategy: Literal["freeze_then_all"]
    frozen_epochs: Count = 1
    peak: Rate | None = None
    ratio: AtLeastOne = 100.0

    def phases(self, peaks: Mapping[str, float], epochs: int | None) -> tuple[PhaseSpec, ...]:
        """Returns two phases: the last group alone, then all groups, each phase a full one-cycle schedule.

        With the rate `peak` in the first phase, group `n` of `N`, counted from 0 at the input, has in the second phase
        `peak / 2 / ratio ** ((N - 1 - n) / (N - 1))`: `peak / 2` for the last and `peak / 2 / ratio` for the first,
        as `fine_tune` halves `base_lr` and spreads it with `slice(base_lr / lr_mult, base_lr)`.
        """
        *_, last = peaks
        peak = self.peak or peaks[last]
        # Half the peak in the second phase, spread geometrically: top / ratio for the first group, top for the last.
        top, steps = peak / 2, len(peaks) - 1
        rates = {name: top / self.ratio ** ((steps - n) / steps if steps else 0) for n, name in enumerate(peaks)}
        first = {"schedule": "one_cycle", "peak": peak, "warmup_fraction": 0.99}
        second = {"schedule": "one_cycle", "warmup_fraction": 0.3, "div": 5.0}
        return (
            _phase([last], self.frozen_epochs, rates={last: first}, clock="phase"),
            _phase(
                ALL,
                self.last_epochs(self.frozen_epochs, epochs),
                rates={name: {**second, "peak": rate} for name, rate in rates.items()},
                clock="phase",
            ),
        )


class GradualUnfreezing(PhaseStrategy):
    """One more group in every phase, last to first: ULMFiT, with its rates and slanted triangles.

    Attributes:
        epochs_per_group: Length of every phase but the last.
        peak: Rate of the last group; by default its own peak.
        decay: Ratio of a group's rate to that of the group before it.

    References:
        Howard & Ruder (2018), ULMFiT, section 3.3, https://arxiv.org/abs/1801.06146
    """

    strategy: Literal["gradual_unfreezing"]
    epochs_per_group: Count = 1
    peak: Rate | None = None
    decay: AtLeastOne = 2.6

    def phases(self, peaks: Mapping[str, float], epochs: int | None) -> tuple[PhaseSpec, ...]:
        """Returns a phase for each group: first the last group alone, and in every phase one more before it.

        Where a run has fewer epochs than that takes, several groups enter in a phase, as evenly as can be: of 18 groups
        in 4 epochs, 1, 6 more, 6 more and 5 more.

        The rate of a group is `decay` times smaller than that of the group after it. With `h` groups after it, it is
        `peak / decay ** h` (ULMFiT's `lr[l - 1] = lr[l] / 2.6`), at the top of a slanted triangle over each phase.
        """
        names = list(peaks)
        peak = self.peak or peaks[names[-1]]
        rates = {name: peak / self.decay**height for height, name in enumerate(reversed(names))}
        starts = self._first_groups(len(names), epochs)
        last = self.last_epochs(self.epochs_per_group * (len(starts) - 1), epochs)
        return tuple(
            _phase(
                names[start:],
                self.epochs_per_group if start else last,
                rates={name: {"schedule": "slanted_triangular", "peak": rates[name]} for name in names[start:]},
                clock="phase",
            )
            for start in starts
        )

    def _first_groups(self, groups: int, epochs: int | None) -> list[int]:
        """Returns the place of the first group that each phase trains."""
        further = groups - 1  # that enter after the last
        if self.epochs is None and epochs is not None:
            # One phase fewer than there is room for before the last phase, which has an epoch at least.
            further = min(further, (epochs - 1) // self.epochs_per_group)
        if further < 1:
            return sorted({groups - 1, 0}, reverse=True)  # two phases do not fit either: `last_epochs` says so
        return [(groups - 1) * (further - phase) // further for phase in range(further + 1)]


class LpFt(PhaseStrategy):
    """Linear probing, then fine-tuning: the last group alone, then all, at the rates of the groups.

    Attributes:
        probe_epochs: Length of the first phase; by default as long as the second.

    References:
        Kumar et al. (2022), https://arxiv.org/abs/2202.10054
    """

    strategy: Literal["lp_ft"]
    probe_epochs: Count | None = None

    def phases(self, peaks: Mapping[str, float], epochs: int | None) -> tuple[PhaseSpec, ...]:
        """Returns two phases: the last group alone (linear probing), then all groups, at the rates of the groups.

        The head is fitted first so that its random weights do not distort the pretrained features in the second phase.
        Without `probe_epochs` and `epochs` both phases take half of the run, the second the odd epoch.
        """
        probe = max(self.probe_epochs or self.epochs or (epochs or 0) // 2, 1)
        last = self.last_epochs(probe, epochs)
        return _phase([*peaks][-1:], probe, clock="phase"), _phase(ALL, last, clock="phase")


class ChainThaw(PhaseStrategy):
    """The last group, then every other group alone, first to last, then all, at the rates of the groups.

    Attributes:
        epochs_per_group: Length of every phase but the last, at most.
        patience: Ends every phase when the validation loss has not fallen for so many epochs.

    References:
        Felbo et al. (2017), DeepMoji, section 3.3, https://arxiv.org/abs/1708.00524
    """

    strategy: Literal["chain_thaw"]
    epochs_per_group: Count = 1
    patience: Annotated[int, Field(ge=0)] | None = None

    def phases(self, peaks: Mapping[str, float], epochs: int | None) -> tuple[PhaseSpec, ...]:
        """Returns a phase for each group alone, and a last phase of all groups, at the rates of the groups.

        The order is that of DeepMoji: the last group, which is new, then the others from input to output. `N` groups
        make `N + 1` phases and take `N * epochs_per_group` epochs before the last phase.
        """
        *others, newest = peaks
        order = [newest, *others]
        until = {} if self.patience is None else {"until": {"patience": self.patience}}
        last = self.last_epochs(self.epochs_per_group * len(order), epochs)
        alone = [_phase([name], self.epochs_per_group, clock="phase", **until) for name in order]
        return *alone, _phase(ALL, last, clock="phase", **until)


class Surgical(PhaseStrategy):
    """A single group, at the rate of the group.

    Attributes:
        train: Which of the groups that are not `frozen`.

    References:
        Lee et al. (2023), https://arxiv.org/abs/2210.11466
    """

    strategy: Literal["surgical"]
    train: Annotated[Literal["first", "middle", "last"], choice("first", "middle", "last")]

    def phases(self, peaks: Mapping[str, float], epochs: int | None) -> tuple[PhaseSpec, ...]:
        """Returns a single phase that trains a single group for the whole run.

        Of `N` groups `first` is group 0, `middle` is group `N // 2`, and `last` is group `N - 1`. The paper tunes the
        first block for changes of the input (corrupted images), the middle for new subpopulations, and the last for
        changes of the output (labels).
        """
        names = list(peaks)
        place = {"first": 0, "middle": len(names) // 2, "last": -1}[self.train]
        return (_phase([names[place]], self.last_epochs(0, epochs)),)


class AutoRgnSpec(PhaseStrategy):
    """All groups, at rates in proportion to their relative gradient norms, measured before every epoch.

    Attributes:
        peak: Rate of the group with the largest norm; by default the highest peak of the groups.

    References:
        Lee et al. (2023), section 3 (Auto-RGN), https://arxiv.org/abs/2210.11466
    """

    strategy: Literal["auto_rgn"]
    peak: Rate | None = None

    def phases(self, peaks: Mapping[str, float], epochs: int | None) -> tuple[PhaseSpec, ...]:
        """Returns a single phase of all groups, whose rates are measured instead of set.

        With the relative gradient norm `r = |gradient| / |weights|` of each group, its rate is `peak * r / max(r)`:
        the group with the largest `r` trains at `peak`, and a group whose weights hardly need to change almost stops.
        """
        return (_phase(ALL, self.last_epochs(0, epochs), auto_rgn=self.peak or max(peaks.values())),)


AnyStrategy = FreezeThenAll | GradualUnfreezing | LpFt | ChainThaw | Surgical | AutoRgnSpec
STRATEGIES: dict[str, type[PhaseStrategy]] = {
    get_args(model.model_fields["strategy"].annotation)[0]: model for model in get_args(AnyStrategy)
}


def read_strategy(value: Any) -> Any:
    """Validates a name or a mapping against the class of the strategy it names.

    Raises:
        PydanticCustomError: It is neither, or there is no strategy of that name.
    """
    if isinstance(value, PhaseStrategy):
        return value
    value = {"strategy": value} if isinstance(value, str) else value
    if not isinstance(value, dict) or "strategy" not in value:
        raise fault(f"must be a list of phases, or say which `strategy`: {quote(STRATEGIES, limit=9)}")
    return STRATEGIES[pick(value["strategy"], STRATEGIES, at=("strategy",))].model_validate(value)


def written_out(phases: Any, peaks: Mapping[str, float], epochs: int | None) -> tuple[PhaseSpec, ...]:
    """Returns a list of phases as it is, and a strategy as the list it is short for.

    Args:
        phases: The `phases` of a recipe.
        peaks: Peak learning rate of each group that is not frozen in all phases, input to output, by name.
        epochs: Length of the whole run, if the recipe gives one.

    Raises:
        PydanticCustomError: The length of the strategy's last phase is unknown.
    """
    return phases if isinstance(phases, tuple) else phases.phases(peaks, epochs)


def phases_block(phases: Sequence[PhaseSpec]) -> str:
    """Writes phases as YAML that can be pasted into a recipe in place of the strategy."""
    lines = ["phases:"]
    for phase in phases:
        lines += [f"  {line}" for line in dump([_as_lists(phase.model_dump())], compact=True).splitlines()]
    return "\n".join(lines) + "\n"


def _as_lists(value: Any) -> Any:
    """Replaces tuples by lists, which is what YAML has."""
    if isinstance(value, dict):
        return {key: _as_lists(item) for key, item in value.items()}
    return [_as_lists(item) for item in value] if isinstance(value, tuple | list) else value


def _phase(train: Any, epochs: int, **settings: Any) -> PhaseSpec:
    return PhaseSpec.model_validate({"train": train, "epochs": epochs, **settings})
