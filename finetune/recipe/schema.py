"""The shape of a recipe: its keys, each defined in the module of its name, and what they must say together.

Everything is checked strictly, and without TensorFlow or Keras. A validator raises `fields.fault`, a predicate that
completes a sentence about a key; `finetune.recipe.messages` writes the sentence and adds where the key was written.
"""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, get_args

from pydantic import (
    BeforeValidator,
    Field,
    PrivateAttr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from finetune.recipe.augment import MIXING_LAYERS
from finetune.recipe.data import DataSource
from finetune.recipe.distribute import Distribute
from finetune.recipe.fields import Part, RecipePath, fault
from finetune.recipe.groups import Groups
from finetune.recipe.losses import by_output
from finetune.recipe.model import ModelSource
from finetune.recipe.phase_spec import PhaseSpec
from finetune.recipe.phase_strategies import PhaseStrategy, written_out
from finetune.recipe.phases import Phases, check_names, disagreement
from finetune.recipe.report import ReportSpec
from finetune.recipe.restore import Restore
from finetune.recipe.train import Train

FORMAT = 1


def _check_format(value: Any) -> Any:
    if type(value) is int and value > FORMAT:
        rule = f"is of a newer version of finetune: this one reads format {FORMAT}. Update it"
        raise fault(rule, received=value)
    if type(value) is not int or value < 1:
        raise fault(f"must be a whole number from 1 to {FORMAT}", received=value)
    return value


class Recipe(Part):
    """A whole recipe, after `extends` and overrides were applied.

    Attributes:
        seed: Seeds Python, NumPy and TensorFlow.
        model: Where the network comes from.
        data: Where the examples come from.
        restore: Which pretrained weights go back into which layers; by default none do.
        groups: The layer groups, or a strategy that makes them.
        phases: Stretches of training, or a strategy of them; by default all groups are trained all the time.
        train: How long and in which way all groups are trained together.
        distribute: On which devices and machines the steps are made.
        report: What is written about the run at its end.
        format: Number of the format of recipes and run folders; this version reads and writes 1.
    """

    keys_read_before: ClassVar[tuple[str, ...]] = ("extends",)
    elsewhere: ClassVar[Mapping[str, str]] = {
        key: part
        for part, model in (("model", ModelSource), ("data", DataSource), ("restore", Restore), ("train", Train))
        for key in model.model_fields
    } | dict.fromkeys(("prefixes", "optimizer"), "groups.<name>")

    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    model: ModelSource
    data: DataSource
    restore: Restore | None = None
    groups: Groups
    phases: Phases | None = None
    train: Train
    distribute: Distribute = Distribute()
    report: ReportSpec = ReportSpec()
    format: Annotated[int, BeforeValidator(_check_format)] = FORMAT
    _tree: Any = PrivateAttr(default=None)  # where everything was written, for `finetune.recipe.loader`
    _allowed_code: tuple[str, ...] | None = PrivateAttr(default=None)

    @property
    def allowed_code(self) -> tuple[str, ...] | None:
        """What `--allow-code` names, for the graphs of SavedModels; `None` for a recipe of the caller's own."""
        return self._allowed_code

    @field_validator("train", mode="wrap")
    @classmethod
    def _require_epochs(cls, value: Any, handler: Any, info: ValidationInfo) -> Any:
        """Without phases, `train.epochs` is required; reported together with all other errors of `train`."""
        lacks = isinstance(value, dict) and value.get("epochs") is None and info.data.get("phases", "invalid") is None
        details: list[Any] = []
        try:
            train = handler(value)
        except ValidationError as error:
            details = error.errors(include_url=False)
        else:
            if not lacks:
                return train
        if lacks:
            kind = "int_type" if "epochs" in value else "missing"
            details.append({"type": kind, "loc": ("epochs",), "input": value.get("epochs")})
        raise ValidationError.from_exception_data("Train", [_raised_again(detail) for detail in details])

    @model_validator(mode="after")
    def _check_together(self) -> "Recipe":
        if self.phases is not None:
            for key in ("until", "reduce_on_plateau"):
                if getattr(self.train, key) is not None:
                    rule = "is of a run without `phases`. Move it into the phases that it is meant for"
                    raise fault(rule, at=("train", key), about="key")
            if self.train.extend != "stretch" or self.train.extensions:
                key = "extend" if self.train.extend != "stretch" else "extensions"
                rule = (
                    "is of a run without `phases`. Remove it, and give the phases that come the rates they shall have"
                )
                raise fault(rule, at=("train", key), about="key")
            self._check_phases()
        self._check_orders()
        self._check_blending()
        if self.distribute.batch_size_is == "per_replica" and self.train.batch_size == "auto":
            rule = "needs a number in `train.batch_size`, and that is `auto`, which measures the rows of all devices"
            raise fault(f"{rule}. Write a number, or `global`", at=("distribute", "batch_size_is"))
        if self.data.tokenizer and not self.data.tokenizer.file and not self.model.preset:
            rule = "is missing. Only a KerasHub preset (`model.preset`) brings its own tokenizer"
            raise fault(rule, at=("data", "tokenizer", "file"))
        if self.train.learning_rate and self.phases is not None:
            self._check_rates_are_open(self.phases)
        return self

    def _check_rates_are_open(self, phases: tuple[PhaseSpec, ...] | PhaseStrategy) -> None:
        """Checks that phases set no rates, where those of the groups are yet to be measured or searched."""
        at: tuple[str | int, ...] | None = ("phases", "peak") if getattr(phases, "peak", None) is not None else None
        if isinstance(phases, tuple):
            at = next((("phases", n) for n, phase in enumerate(phases) if phase.rates or phase.auto_rgn), None)
        if at:
            rule = f"sets rates, which `train.learning_rate: {self.train.learning_rate}` does not change"
            raise fault(f"{rule}. Remove one of the two", at=at)

    def _check_orders(self) -> None:
        groups = self.groups if isinstance(self.groups, tuple) else ()
        place = next((n for n, group in enumerate(groups) if group.order == "creation"), None)
        if place is not None and self.model.keras_file:
            # Loading makes the variables in the order of the graph, so `creation` would silently be the same.
            rule = (
                "needs a model that code builds, and `model` is a `keras_file`, which does not hold the order in which "
            )
            raise fault(f"{rule}the variables were made. Name the weights by `prefixes`", at=("groups", place, "order"))

    def _check_blending(self) -> None:
        place = next((n for n, each in enumerate(self.data.augment) if each.layer in MIXING_LAYERS), None)
        names = [loss.name for loss in by_output(self.train.loss).values()]
        takes_numbers = [name for name in names if name.lower().startswith(("sparse", "circle"))]
        if place is not None and takes_numbers:
            raise fault(
                f"blends the targets of two rows, which have a place for each class then, and "
                f"`loss: {takes_numbers[0]}` takes the number of a single class. Write `loss: "
                "categorical_crossentropy` or `auto` under `train`",
                at=("data", "augment", place),
            )

    def _check_phases(self) -> None:
        """Checks what can be checked without the model; groups made by a strategy have no names yet."""
        assert self.phases is not None
        phases: Any = self.phases
        try:
            if isinstance(self.groups, tuple):
                trained = [group.name for group in self.groups if not group.frozen]
                phases = written_out(phases, dict.fromkeys(trained, 1.0), self.train.epochs)
                if isinstance(self.phases, tuple):
                    check_names(phases, {group.name: bool(group.frozen) for group in self.groups})
        except PydanticCustomError as error:
            context = error.context or {}
            raise fault(context["predicate"], at=("phases", *context["at"]), about=context["about"]) from None
        if isinstance(phases, tuple) and (contradiction := disagreement(phases, self.train.epochs)):
            raise contradiction

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Recipe) and self.__dict__ == other.__dict__  # wherever they were written


def _raised_again(detail: Any) -> InitErrorDetails:
    """Turns an error that pydantic has reported into one that can be raised."""
    kind = PydanticCustomError("fault", "fault", detail["ctx"]) if detail["type"] == "fault" else detail["type"]
    return InitErrorDetails(type=kind, loc=detail["loc"], input=detail["input"], ctx=detail.get("ctx", {}))


def _is_path(annotation: Any) -> bool:
    return annotation is RecipePath or any(_is_path(part) for part in get_args(annotation))


def _paths(part: type[Part], keys: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, field in part.model_fields.items():
        inside = (*keys, field.alias or name)
        if _is_path(field.annotation):
            yield inside
        for annotation in (field.annotation, *get_args(field.annotation)):
            if isinstance(annotation, type) and issubclass(annotation, Part):
                yield from _paths(annotation, inside)


# The keys that lead to every value that is a path: relative to the file that wrote it, and absolute in a run folder.
PATH_FIELDS = tuple(_paths(Recipe))
