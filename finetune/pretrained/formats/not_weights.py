"""What files hold beside weights: optimizer slots, counters, metrics and states of random generators."""

import re
from collections.abc import Container, Iterable

_COUNTER = re.compile(
    r"(global_)?step|save_counter|epoch|iterations?|iter|(beta|beta_|beta_power_)[12](_power)?(_\d+)?|decay|"
    r"learning_rate|good_steps|current_loss_scale|dynamic_(scale|counter)|step_counter|num_batches_tracked"
)
_SLOT = re.compile(r"(Adam\w*|Momentum|RMSProp|Ada[a-z]+|Ftrl\w*|ExponentialMovingAverage)(_\d+)?")
_RANDOM_STATE = re.compile(r"(^|/)_?(seed|random)_generator(/|$)|seed_generator_state$|(^|/)_state_var$")
_BOOKS = re.compile(r"_?(optimizer|optimizer_(state|vars)|opt_state|metrics)|keras_api")


def is_counter(name: str) -> bool:
    """Whether a single number of this name counts something: `global_step`, `beta1_power`."""
    return _COUNTER.fullmatch(name.rpartition("/")[2]) is not None


def is_random_state(name: str) -> bool:
    """Whether the name, or the path that leads there, is that of a random generator's state."""
    return _RANDOM_STATE.search(name) is not None


def is_slot(name: str, every: Container[str]) -> bool:
    """Whether it hangs below another weight: `dense/kernel/Adam`, or `train/dense/kernel/Adam` from a scope."""
    owner, _, own = name.rpartition("/")
    if owner in every or own == "ExponentialMovingAverage":
        return True
    parts = owner.split("/")
    return bool(_SLOT.fullmatch(own)) and any("/".join(parts[i:]) in every for i in range(1, len(parts)))


def in_books(parts: Iterable[str]) -> bool:
    """Whether a path leads through an optimizer's or the metrics' own part of a file: `opt_state/0/kernel`."""
    return any(_BOOKS.fullmatch(part) for part in list(parts)[:-1])
