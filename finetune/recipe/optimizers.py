"""Things of Keras that a recipe names with keyword arguments: losses, metrics, and the `optimizer` of a group."""

from typing import Annotated, Any

from pydantic import AfterValidator, Field, model_serializer, model_validator

from finetune.recipe.fields import Arguments, Identifier, Part, fault, pick
from finetune.recipe.optimizer_arguments import ARGUMENTS, check_arguments

OPTIMIZERS = tuple(ARGUMENTS)
_UNDER_TRAIN = "belongs under `train`: it is for all groups together"
_MISPLACED = {
    "learning_rate": "belongs beside `optimizer`, not inside it",
    "global_clipnorm": _UNDER_TRAIN,
    "gradient_accumulation_steps": _UNDER_TRAIN,
    "use_ema": _UNDER_TRAIN,
    "ema_momentum": _UNDER_TRAIN,
    "loss_scale_factor": "cannot be set: `train.mixed_precision` takes care of it. Remove it",
}
# TF1's defaults and formulas differ from Keras', so that its names are told and not taken.
_OF_TF1 = {
    "GradientDescentOptimizer": "sgd",
    "MomentumOptimizer": "{name: momentum, momentum: 0.9}",
    "RMSPropOptimizer": "{name: tf1_rmsprop, rho: 0.9, momentum: 0.9}",
    "AdamOptimizer": "{name: adam, epsilon: 1.0e-8}",
    "AdagradOptimizer": "{name: adagrad, epsilon: 0.0}",
    "AdadeltaOptimizer": "{name: adadelta, epsilon: 1.0e-8}",
    "FtrlOptimizer": "ftrl",
}


class Named(Part):
    """A thing of Keras by its name: `mse`, or `{name: huber, delta: 0.5}`.

    Attributes:
        name: Keras' name of it.
        arguments: The keyword arguments written beside the name.
    """

    name: Identifier
    arguments: Arguments = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"name": value}
        if isinstance(value, Named):
            return value
        if not isinstance(value, dict):
            raise fault("must be a name, or a mapping with `name`", received=value)
        arguments = {key: item for key, item in value.items() if key != "name"}
        return {key: value[key] for key in ("name",) if key in value} | {"arguments": arguments}

    @model_serializer
    def _join(self) -> Any:
        return {"name": self.name, **self.arguments} if self.arguments else self.name


def _known_spelling(name: str) -> str:
    """Accepts the names of Keras' classes, too: `AdamW`, `RMSprop`, `ScheduleFreeAdamW`."""
    if name in _OF_TF1:
        raise fault(f"is TF1's. With its results: `{_OF_TF1[name]}`", received=name)
    plain = {known.replace("_", ""): known for known in OPTIMIZERS}
    return plain.get(name.lower().replace("_", "")) or pick(name, OPTIMIZERS)


def _check_argument(key: str) -> str:
    if key in _MISPLACED:
        raise fault(_MISPLACED[key])
    return key


class OptimizerSpec(Named):
    """A group's optimizer; `name` is one of `OPTIMIZERS` however it was written."""

    name: Annotated[Identifier, AfterValidator(_known_spelling)]
    arguments: dict[Annotated[Identifier, AfterValidator(_check_argument)], Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check_values(self) -> "OptimizerSpec":
        check_arguments(self.name, self.arguments)
        return self
