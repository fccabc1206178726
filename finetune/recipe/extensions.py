"""How the rates go on where a run is trained for longer than it was planned: `train.extend` and `train.extensions`."""

from typing import Annotated, Literal

from finetune.recipe.fields import Count, Part, choice

EXTEND = ("stretch", "append", "cooldown")


class Extension(Part):
    """A time that a run was extended with rates other than those of a run of its new length; `resume` writes it.

    Attributes:
        by: `append`: the schedules are those of the former length, and their last rate is held; `cooldown`: the rates
            fall in a straight line to 0 at the end of the run.
        at_steps: Steps that were made then; a cooldown begins there.
        total_steps: Length of the run before, which the schedules count in.
    """

    by: Annotated[Literal["append", "cooldown"], choice("append", "cooldown")]
    at_steps: Count
    total_steps: Count
