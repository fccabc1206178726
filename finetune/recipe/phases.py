"""The `phases` of a recipe: a list of phases, or a strategy that is short for such a list."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any

from pydantic import BeforeValidator, Discriminator, Tag, ValidationError
from pydantic_core import PydanticCustomError

from finetune.errors import RecipeError, did_you_mean, quote
from finetune.recipe.fields import ListOf, Part, fault, validated_by
from finetune.recipe.messages import problems_of
from finetune.recipe.phase_spec import ALL, PhaseSpec
from finetune.recipe.phase_strategies import AnyStrategy, PhaseStrategy, read_strategy
from finetune.recipe.text import Place
from finetune.recipe.yaml_tree import report, tree_of


def _require_list(value: Any) -> Any:
    if not isinstance(value, list | tuple) or not value:
        raise fault("must be a list of phases, or a strategy such as `gradual_unfreezing`", received=value)
    return value


Phases = Annotated[
    Annotated[ListOf[PhaseSpec], BeforeValidator(_require_list), Tag("<list>")]
    | Annotated[AnyStrategy, validated_by(read_strategy), Tag("<strategy>")],
    Discriminator(lambda value: "<strategy>" if isinstance(value, str | dict | PhaseStrategy) else "<list>"),
]


class _PhasesAlone(Part):
    phases: Phases


def strategy_phases(
    value: str | Mapping[str, Any], peaks: Mapping[str, float | None], epochs: int | None, *, source: str
) -> tuple[PhaseSpec, ...]:
    """Reads a strategy that is not part of a recipe, by the same rules, and writes it out.

    Args:
        value: The name of a strategy, or a mapping with its `strategy` and settings.
        peaks: Peak learning rate of each group that is not frozen in all phases, input to output, by name; `None` where
            it is unknown.
        epochs: Length of the whole run; `None` if unknown.
        source: The function that was called; begins every line of an error.

    Raises:
        RecipeError: The strategy breaks a rule, needs a peak that is unknown, or does not know its length.
    """
    data = {"phases": value if isinstance(value, str) else dict(value)}
    try:
        strategy: Any = _PhasesAlone.model_validate(data).phases
        unknown = [name for name, peak in peaks.items() if peak is None]
        if unknown and getattr(strategy, "peak", 0) is None:
            raise fault(
                f"needs the peak learning rates of the groups, and cannot read that of {quote(unknown)} from its "
                f"schedule. Set it: `{{'strategy': '{strategy.strategy}', 'peak': 1e-3}}`"
            )
        return strategy.phases({name: peak or 0.0 for name, peak in peaks.items()}, epochs)
    except ValidationError as error:
        raise report(problems_of(error, tree_of(data, Place(source)))) from None
    except PydanticCustomError as error:
        predicate = (error.context or {})["predicate"].replace("`train.epochs`", "`epochs`")
        raise RecipeError(f"{source}: `phases` {predicate}.") from None


# -- What phases and groups say together ------------------------------------------------------------------------------


def check_names(phases: Sequence[PhaseSpec], groups: Mapping[str, bool]) -> None:
    """Checks that phases name groups that can be trained, and that every such group is trained in some phase.

    Args:
        phases: The list.
        groups: For each group by name, whether it is frozen in all phases.

    Raises:
        PydanticCustomError: They do not; it describes the first fault and where it is.
    """
    for index, phase in enumerate(phases):
        for steps, name in _names_in(phase):
            at = (index, *steps)
            if name not in groups:
                hint = did_you_mean(name, list(groups)) or f" The groups are {quote(groups, limit=20)}."
                raise fault(f"does not name a group. Received: `{name}`.{hint}", at=at)
            if groups[name] and steps[0] != "batch_norm":
                raise fault(
                    f"names `{name}`, which is frozen in all phases. Write `frozen: false` in the group and give it "
                    "an optimizer and a rate, or remove it here",
                    at=at,
                )
    trained = {name for phase in phases for name in (groups if phase.train == ALL else phase.train)}
    idle = [name for name, frozen in groups.items() if not frozen and name not in trained]
    if idle:
        raise fault(f"never trains {quote(idle)}. Add a phase that does, or set `frozen: true` in the group")


def _names_in(phase: PhaseSpec) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Yields every name of a group in a phase, with the keys that lead to it."""
    if phase.train != ALL:
        yield from ((("train", place), name) for place, name in enumerate(phase.train))
    yield from ((("rates", name), name) for name in phase.rates)
    if isinstance(phase.batch_norm, dict):
        yield from ((("batch_norm", name), name) for name in phase.batch_norm)


def disagreement(phases: Sequence[PhaseSpec], epochs: int | None) -> PydanticCustomError | None:
    """Returns the fault of `train.epochs` if the phases do not last as long."""
    lengths = [phase.epochs for phase in phases if phase.epochs]
    if epochs is None or epochs == sum(lengths):
        return None
    lasts = f"last {sum(lengths)} epochs together" if len(lengths) == len(phases) else "give their length in steps"
    return fault(f"is {epochs}, and `phases` {lasts}. Remove it: the phases say how long", at=("train", "epochs"))
