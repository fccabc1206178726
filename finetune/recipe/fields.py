"""Building blocks of the schema: a strict base class, and field types whose errors say what to do.

Every message completes a sentence whose subject is the key: "`train.epochs` must be a whole number". The predicate is
written here or by the validators of the schema; `finetune.recipe.messages` adds the subject and the place.
"""

import difflib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetPydanticSchema,
    Strict,
    ValidationError,
    ValidationInfo,
    model_serializer,
    model_validator,
)
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError, core_schema

from finetune.errors import did_you_mean, quote

UNITS = ("steps", "epochs", "fraction")
_NOTHING: Any = object()
_T = TypeVar("_T")


def fault(
    predicate: str,
    *,
    received: Any = _NOTHING,
    at: Sequence[str | int] = (),
    about: Literal["value", "key", "mapping"] = "value",
) -> PydanticCustomError:
    """Makes a validation error whose message will read "`path.to.key` <predicate>".

    Args:
        predicate: The rule and what to do about it, e.g. "must be greater than 0".
        received: The value at fault, shown at the end.
        at: Keys that lead from the validated value to the one at fault.
        about: What is at fault: the value, its key, or the mapping that holds the key.

    Returns:
        The error, to be raised inside a pydantic validator.
    """
    shown = "" if received is _NOTHING else f". Received: {show(received)}"
    return PydanticCustomError("fault", "fault", {"predicate": predicate + shown, "at": tuple(at), "about": about})


def show(value: Any) -> str:
    """Returns a value as one short line of YAML in backticks."""
    try:
        text = json.dumps(value, default=str, ensure_ascii=False)
    except (ValueError, RecursionError, TypeError):
        text = type(value).__name__
    if isinstance(value, float):
        text = text.replace("Infinity", ".inf").replace("NaN", ".nan")
    return f"`{text if len(text) <= 60 else text[:57] + '...'}`"


def pick(value: Any, known: Iterable[str], *, at: Sequence[str | int] = ()) -> str:
    """Returns `value` if it is a known name.

    Args:
        value: What was written.
        known: All names that are allowed.
        at: Keys that lead from the validated value to this one.

    Raises:
        PydanticCustomError: It is not; with the nearest names, or with all.
    """
    names = list(known)
    if isinstance(value, str) and value in names:
        return value
    raise fault(f"is not a known value. Received: {show(value)}.{offer(str(value), names)}", at=at)


# How other programs call keys that have another name here.
CALLED = {
    **dict.fromkeys(("lr", "peak_lr", "max_lr", "lr_max", "base_lr"), "learning_rate"),
    **dict.fromkeys(("bs", "batch", "batchsize"), "batch_size"),
    **dict.fromkeys(("n_epochs", "num_epochs", "nepochs"), "epochs"),
    **dict.fromkeys(("wd", "decay"), "weight_decay"),
    **dict.fromkeys(("optim", "opt"), "optimizer"),
    **dict.fromkeys(("labels", "label", "y"), "target"),
    **dict.fromkeys(("features", "columns", "x"), "inputs"),
    **dict.fromkeys(("freeze", "freezed"), "frozen"),
    **dict.fromkeys(("path", "file", "checkpoint", "weights", "checkpoint_path"), "from"),
    # TF-Slim's flags, and the arguments of TF1's and Keras' schedules.
    **dict.fromkeys(("checkpoint_exclude_scopes", "exclude_scopes"), "exclude"),
    **dict.fromkeys(("trainable_scopes", "scopes"), "prefixes"),
    **dict.fromkeys(("initial_learning_rate", "learning_rate"), "initial"),
    **dict.fromkeys(("learning_rate_decay_factor", "decay_factor"), "decay_rate"),
    **dict.fromkeys(("moving_average_decay", "ema_decay"), "ema_momentum"),
    "ignore_missing_vars": "allow_missing",
    "learning_rate_decay_type": "schedule",
    "num_epochs_per_decay": "decay_epochs",
    "end_learning_rate": "end",
    "log_every_n_steps": "log_every_steps",
    "save_interval_secs": "checkpoint_seconds",
    "train_image_size": "size",
}
# What other programs have a key for, and this one does in another way.
INSTEAD = {
    **dict.fromkeys(
        ("train_dir", "log_dir", "logdir", "output_dir", "checkpoint_dir", "model_dir"),
        "The folder of a run is named on the command line: `finetune run recipe.yaml --out FOLDER`",
    ),
    **dict.fromkeys(
        ("max_number_of_steps", "max_steps", "num_steps", "number_of_steps"),
        "A length in steps is that of a phase: `phases: [{train: all, steps: 1000}]`, without `train.epochs`",
    ),
}


def offer(name: str, known: Sequence[str]) -> str:
    """Returns a sentence with the nearest known names, or with all of them if none is near."""
    return did_you_mean(name, known) or f" Choose from {quote(known, limit=20)}."


class Part(BaseModel):
    """One mapping of a recipe: unknown keys are errors, nothing is coerced, `null` means "left out".

    Attributes:
        keys_read_before: Keys that users may write but that were removed before validation; offered for a misspelt key.
        renamed: New names of keys by their former ones.
        elsewhere: The part that has a key which people may write here, by the key.
    """

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, validate_default=True, allow_inf_nan=False, defer_build=True
    )

    keys_read_before: ClassVar[tuple[str, ...]] = ()
    renamed: ClassVar[Mapping[str, str]] = {}
    elsewhere: ClassVar[Mapping[str, str]] = {}

    @model_validator(mode="wrap")
    @classmethod
    def _read(cls, value: Any, handler: Any) -> Any:
        if not isinstance(value, dict):
            return handler(value)
        fields = {field.alias or name: field for name, field in cls.model_fields.items()}
        # `null` unsets a key, so that an override can. In a required key it stays and is an error.
        written = {
            key: item
            for key, item in value.items()
            if item is not None or key not in fields or fields[key].is_required()
        }
        try:
            return handler(written)
        except ValidationError as error:
            known = [*fields, *cls.keys_read_before]
            details = [_detail(detail, known, cls.renamed, cls.elsewhere) for detail in error.errors(include_url=False)]
            raise ValidationError.from_exception_data(cls.__name__, details) from None

    @model_serializer(mode="wrap")
    def _drop_unset(self, handler: Any) -> dict[str, Any]:
        fields = {field.alias or name: field for name, field in type(self).model_fields.items()}
        unset = [key for key, field in fields.items() if not field.get_default(call_default_factory=True)]
        # A number is always written: `seed: 0` says something.
        return {key: item for key, item in handler(self).items() if key not in unset or item or type(item) is int}


def _detail(
    error: ErrorDetails, known: Sequence[str], renamed: Mapping[str, str], elsewhere: Mapping[str, str]
) -> InitErrorDetails:
    """Turns a reported error into one that can be raised, and an unknown key into one with the nearest known keys."""
    kind: str | PydanticCustomError = error["type"]
    context = error.get("ctx", {})
    if kind == "fault":
        kind = PydanticCustomError("fault", "fault", context)
    elif kind == "extra_forbidden" and len(error["loc"]) == 1:
        key = str(error["loc"][0])
        now = f"is now called `{renamed[key]}`. Rename it" if key in renamed else ""
        called = CALLED.get(key, "")
        if not now and called in known:
            now = f"is not a known key. It is called `{called}`"
        there = next((name for name in (key, called) if name in elsewhere), "")
        is_misspelt = difflib.get_close_matches(key, known, cutoff=0.8)  # `extend` is `extends` before `train.extend`
        if not now and there and not is_misspelt:
            what = "it is" if there == key else f"it is called `{there}` and is"
            now = f"is not a known key here: {what} one of `{elsewhere[there]}`. Write `{elsewhere[there]}.{there}`"
        if not now and key in INSTEAD:
            now = f"is not a known key. {INSTEAD[key]}"
        kind = fault(now or f"is not a known key.{offer(key, known)}", about="key")
    return InitErrorDetails(type=kind, loc=error["loc"], input=error["input"], ctx=context)


class RecipePath(str):
    """A path as the recipe writes it, and the folder of the file that wrote it.

    Attributes:
        folder: What a relative path is relative to; `None` is the working directory.
    """

    folder: Path | None

    def __new__(cls, text: str, folder: Path | None = None) -> "RecipePath":
        path = super().__new__(cls, text)
        path.folder = folder
        return path


class Length(NamedTuple):
    """A stretch of training.

    Attributes:
        amount: How much of the unit, > 0.
        unit: `steps`, `epochs`, or `fraction` of the whole run.
    """

    amount: float
    unit: str


def length_of(part: BaseModel, name: str) -> Length | None:
    """Returns the length that `part` has as `<name>_steps`, `<name>_epochs` or `<name>_fraction`."""
    for unit in UNITS:
        amount = getattr(part, f"{name}_{unit}", None)
        if amount is not None:
            return Length(amount, unit)
    return None


def one_of(value: Any, info: ValidationInfo, *others: str, default: Any = _NOTHING) -> Any:
    """Checks that exactly one of several keys is used: the field being validated, which is the last, or the others.

    Args:
        value: Value of the last key; `None` if it is not used.
        info: Pydantic's. A field that is wrong itself is missing from `info.data` and counts as used.
        others: Names of the fields before.
        default: Value of the field when no key is used; without a default that is an error.

    Returns:
        The value, or the default.

    Raises:
        PydanticCustomError: More than one key is used, or none where that is an error.
    """
    used = [name for name in others if info.data.get(name, _NOTHING) is not None]
    used += [] if value is None else [str(info.field_name)]
    if len(used) == 1 or (not used and default is not _NOTHING):
        return value if used else default
    spellings = quote([*others, info.field_name], limit=9)
    received = f"Received: {quote(used)}" if used else "All are missing"
    rule = "needs exactly one" if default is _NOTHING else "takes at most one"
    raise fault(f"{rule} of {spellings}. {received}", about="mapping")


def validated_by(function: Callable[[Any], Any]) -> GetPydanticSchema:
    """Validates a field by `function` alone; pydantic does not build validators for the annotated type."""
    return GetPydanticSchema(lambda source, handler: core_schema.no_info_plain_validator_function(function))


def choice(*known: Any) -> BeforeValidator:
    """Accepts only these values. Types must agree, too: in Python `False == 0`."""

    def check(value: Any) -> Any:
        if not any(type(value) is type(item) and value == item for item in known):
            pick(value, [json.dumps(item).strip('"') for item in known])
        return value

    check.known = known  # type: ignore[attr-defined]  # `finetune.recipe.keys` lists them
    return BeforeValidator(check)


def matched(pattern: str, predicate: str) -> AfterValidator:
    """Accepts only text that a regular expression matches as a whole; otherwise the error is `predicate`."""
    compiled = re.compile(pattern, re.ASCII)

    def check(text: str) -> str:
        if not compiled.fullmatch(text):
            raise fault(predicate, received=text)
        return text

    return AfterValidator(check)


def _compiled(text: str) -> str:
    try:
        re.compile(text)
    except (re.error, OverflowError, RecursionError) as error:
        raise fault(f"is not a regular expression: {error}", received=text) from None
    return text


def is_in_float32(number: float) -> bool:
    """Whether a positive number neither becomes 0 nor infinite in the type in which networks are trained."""
    return 1.2e-38 <= number <= 3.4e38


def _in_float32(number: float) -> float:
    if not is_in_float32(number):
        raise fault(
            "must be between 1.2e-38 and 3.4e38: in float32, other numbers become 0 or infinite", received=number
        )
    return number


Positive = Annotated[float, Field(gt=0), AfterValidator(_in_float32)]
Rate = Positive
NotNegative = Annotated[float, Field(ge=0)]
AtLeastOne = Annotated[float, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]
OpenShare = Annotated[float, Field(gt=0, lt=1)]
Count = Annotated[int, Field(ge=1, le=10**12)]
Fraction = Annotated[float, Field(gt=0, le=1)]

Text = Annotated[str, Field(min_length=1)]
ListOf = Annotated[tuple[_T, ...], Strict(False)]
IN_A_LIST = BeforeValidator(lambda value: value if isinstance(value, list | tuple) else [value])
OneOrMore = Annotated[tuple[_T, ...], Strict(False), IN_A_LIST]
Regex = Annotated[Text, AfterValidator(_compiled)]
Identifier = Annotated[str, matched(r"[A-Za-z_]\w*", "must be a name of letters, digits and `_`")]
Arguments = dict[Identifier, Any]
FilePath = Annotated[
    RecipePath,
    GetPydanticSchema(
        lambda source, handler: core_schema.no_info_wrap_validator_function(
            lambda value, text: RecipePath(text(value), getattr(value, "folder", None)),
            core_schema.str_schema(strict=True, min_length=1),
        )
    ),
]
