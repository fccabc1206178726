"""The `loss` and the `metrics` of a recipe: for the only output of a network, or for each output by its name.

`auto` in place of a name is decided later, by the targets and the network (`finetune.build.objectives`).
"""

from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import BeforeValidator, Discriminator, Strict, Tag

from finetune.recipe.fields import OneOrMore, Text, fault
from finetune.recipe.optimizers import Named

_T = TypeVar("_T")
AUTO = Named(name="auto")


def _is_by_output(value: Any) -> bool:
    """Whether a value has a loss for each output: a mapping with `name` is a single loss and its arguments."""
    return isinstance(value, dict) and "name" not in value


def _check_auto(named: Any) -> Any:
    if isinstance(named, dict) and named.get("name") == "auto" and len(named) > 1:
        raise fault("takes no arguments where it is `auto`. Write the name of what you want, or `auto` alone")
    return named


def _check_outputs(value: Any) -> Any:
    if not value:
        raise fault("must name the outputs of the network", received=value)
    return value


_Named = Annotated[Named, BeforeValidator(_check_auto)]

Loss = Annotated[
    Annotated[_Named, Tag("<loss>")]
    | Annotated[dict[Text, _Named], Strict(False), BeforeValidator(_check_outputs), Tag("<losses>")],
    Discriminator(lambda value: "<losses>" if _is_by_output(value) else "<loss>"),
]
Metrics = Annotated[
    Annotated[OneOrMore[_Named], Tag("<metrics>")]
    | Annotated[dict[Text, OneOrMore[_Named]], Strict(False), BeforeValidator(_check_outputs), Tag("<by output>")],
    Discriminator(lambda value: "<by output>" if _is_by_output(value) else "<metrics>"),
]


def by_output(value: _T | Mapping[str, _T]) -> dict[str, _T]:
    """Returns a loss, or metrics, by the name of the output; the name of an only output is empty."""
    return dict(value) if isinstance(value, Mapping) else {"": value}
