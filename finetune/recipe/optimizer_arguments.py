"""The arguments of every optimizer, and the values that make sense, so that a recipe is checked without Keras.

A contract test compares this table with the signatures of the installed optimizers. Bounds are those outside of which
an optimizer computes nonsense or trains nothing; a value that Keras trains with is inside.
"""

from dataclasses import dataclass
from math import inf
from typing import Any

from finetune.errors import did_you_mean, quote
from finetune.recipe.fields import fault, show


@dataclass(frozen=True)
class Number:
    """Numbers that an argument takes.

    Attributes:
        low: The least.
        high: The greatest.
        ends: Whether `low` and `high` themselves are allowed.
        whole: Whether only whole numbers are.
        optional: Whether `null` is allowed.
    """

    low: float = -inf
    high: float = inf
    ends: tuple[bool, bool] = (True, True)
    whole: bool = False
    optional: bool = False

    def problem(self, value: Any) -> str:
        """Returns the rule that a value breaks, as a predicate; empty if it breaks none."""
        if value is None:
            return "" if self.optional else "must be a number"
        if type(value) not in ((int,) if self.whole else (int, float)):
            return "must be a whole number" if self.whole else "must be a number"
        rules = [
            (self.low == -inf or value > self.low or (value == self.low and self.ends[0]), self._lower()),
            (self.high == inf or value < self.high or (value == self.high and self.ends[1]), self._upper()),
        ]
        # NaN and infinities fail every comparison that they should.
        if all(holds for holds, _ in rules) and abs(value) <= _LARGEST:
            return ""
        return f"must be {' and '.join(text for _, text in rules if text) or 'a finite number'}"

    def _lower(self) -> str:
        return "" if self.low == -inf else f"{self.low:g} or more" if self.ends[0] else f"greater than {self.low:g}"

    def _upper(self) -> str:
        return "" if self.high == inf else f"{self.high:g} or less" if self.ends[1] else f"less than {self.high:g}"


@dataclass(frozen=True)
class Flag:
    """`true` or `false`."""

    def problem(self, value: Any) -> str:
        """As `Number.problem`."""
        return "" if type(value) is bool else "must be `true` or `false`"


@dataclass(frozen=True)
class Names:
    """A list of names, or nothing."""

    def problem(self, value: Any) -> str:
        """As `Number.problem`."""
        is_list = isinstance(value, list) and all(isinstance(name, str) for name in value)
        return "" if value is None or is_list else "must be a list of names"


_LARGEST = 3.4e38  # of float32, in which optimizers compute; beyond it a number becomes infinite
_SMALLEST = 1.2e-38  # below it a number becomes 0 there
_DECAYING = Number(0, 1, ends=(True, False))  # of a moving average: at 1 nothing new is ever taken in
_SHARE = Number(0, 1)
_NOT_NEGATIVE = Number(0)
_NOT_NEGATIVE_OR_NONE = Number(0, optional=True)
_CLIP = Number(_SMALLEST, optional=True)
_BETAS = {"beta_1": _DECAYING, "beta_2": _DECAYING}
_OF_EVERY_OPTIMIZER = {"weight_decay": _NOT_NEGATIVE_OR_NONE, "clipnorm": _CLIP, "clipvalue": _CLIP}
_EPSILON = {"epsilon": _NOT_NEGATIVE}
_SGD = {"momentum": _SHARE, "nesterov": Flag()}
_ADAM = {**_BETAS, **_EPSILON, "amsgrad": Flag()}
_RMSPROP = {"rho": _DECAYING, "momentum": _SHARE, **_EPSILON, "centered": Flag()}

ARGUMENTS: dict[str, dict[str, Number | Flag | Names]] = {
    name: {**arguments, **_OF_EVERY_OPTIMIZER}
    for name, arguments in {
        "sgd": _SGD,
        "momentum": _SGD,
        "adam": _ADAM,
        "adamw": _ADAM,
        "rmsprop": _RMSPROP,
        "adagrad": {"initial_accumulator_value": _NOT_NEGATIVE, **_EPSILON},
        "adadelta": {"rho": _DECAYING, **_EPSILON},
        "adamax": {**_BETAS, **_EPSILON},
        "nadam": {**_BETAS, **_EPSILON},
        "ftrl": {
            "learning_rate_power": Number(high=0),
            "initial_accumulator_value": _NOT_NEGATIVE,
            "l1_regularization_strength": _NOT_NEGATIVE,
            "l2_regularization_strength": _NOT_NEGATIVE,
            "l2_shrinkage_regularization_strength": _NOT_NEGATIVE,
            "beta": _NOT_NEGATIVE,
        },
        "lion": {"beta_1": Number(0, 1, ends=(False, False)), "beta_2": _DECAYING},
        "lamb": {**_BETAS, **_EPSILON},
        "muon": {
            "adam_beta_1": _DECAYING,
            "adam_beta_2": _DECAYING,
            "adam_weight_decay": _NOT_NEGATIVE_OR_NONE,
            **_EPSILON,
            "exclude_layers": Names(),
            "exclude_embeddings": Flag(),
            "muon_a": Number(),
            "muon_b": Number(),
            "muon_c": Number(),
            "adam_lr_ratio": _NOT_NEGATIVE,
            "momentum": _SHARE,
            "ns_steps": Number(1, 1000, whole=True),
            "nesterov": Flag(),
            "rms_rate": _NOT_NEGATIVE_OR_NONE,
        },
        "adafactor": {
            "beta_2_decay": Number(high=0),
            "epsilon_1": _NOT_NEGATIVE,
            "epsilon_2": _NOT_NEGATIVE,
            "clip_threshold": Number(0, ends=(False, True)),
            "relative_step": Flag(),
        },
        "schedule_free_adamw": {**_BETAS, **_EPSILON, "warmup_steps": Number(0, 1e12, whole=True)},
        "tf1_rmsprop": _RMSPROP,
    }.items()
}


# How TF1 and TF-Slim call arguments. RMSProp of TF1 is another rule, too.
_CALLED = {
    **dict.fromkeys(("decay", "rmsprop_decay", "adadelta_rho"), "rho"),
    "rmsprop_momentum": "momentum",
    **dict.fromkeys(("adam_beta1", "beta1"), "beta_1"),
    **dict.fromkeys(("adam_beta2", "beta2"), "beta_2"),
    **dict.fromkeys(("opt_epsilon", "eps"), "epsilon"),
    "use_nesterov": "nesterov",
    **{name: f"{name.removeprefix('ftrl_')}_regularization_strength" for name in ("l1", "l2", "ftrl_l1", "ftrl_l2")},
}


def check_arguments(optimizer: str, arguments: dict[str, Any]) -> None:
    """Checks the arguments of an optimizer.

    Args:
        optimizer: One of `ARGUMENTS`.
        arguments: What the recipe writes beside its name.

    Raises:
        PydanticCustomError: The optimizer does not take an argument, or not this value.
    """
    known = ARGUMENTS[optimizer]
    for name, value in arguments.items():
        if name not in known:
            called = _CALLED.get(name)
            if called in known:
                of_tf1 = ". `tf1_rmsprop` has TF1's results" if optimizer == "rmsprop" and "decay" in name else ""
                raise fault(f"is called `{called}` in `{optimizer}`{of_tf1}", at=(name,), about="key")
            taken = f"is not an argument of `{optimizer}`. It takes {quote(known, limit=20)}"
            raise fault(f"{taken}.{did_you_mean(name, list(known))}", at=(name,), about="key")
        problem = known[name].problem(value)
        if problem:
            raise fault(f"{problem}. Received: {show(value)}", at=(name,))
