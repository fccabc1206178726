"""Recognises by name what files hold beside weights: optimizer slots, counters, metrics, random generators' states."""

import re
from collections.abc import Container, Iterable

# Scalars that count or scale: TF1 (`global_step`, `beta1_power`), Keras 2 and 3 (`iterations`, `learning_rate`), loss
# scaling (`good_steps`, `dynamic_scale`), and PyTorch's BatchNorm (`num_batches_tracked`).
_COUNTER = re.compile(
    r"(global_)?step|save_counter|epoch|iterations?|iter|(beta|beta_|beta_power_)[12](_power)?(_\d+)?|decay|"
    r"learning_rate|good_steps|current_loss_scale|dynamic_(scale|counter)|step_counter|num_batches_tracked"
)
# TF1 names a slot after its optimizer, below the weight: `dense/kernel/Adam`, `dense/kernel/Adam_1`.
_SLOT = re.compile(r"(Adam\w*|Momentum|RMSProp|Ada[a-z]+|Ftrl\w*|ExponentialMovingAverage)(_\d+)?")
_RANDOM_STATE = re.compile(r"(^|/)_?(seed|random)_generator(/|$)|seed_generator_state$|(^|/)_state_var$")
_OPTIMIZER_OR_METRICS = re.compile(r"_?(optimizer|optimizer_(state|vars)|opt_state|metrics)|keras_api")


def is_counter(name: str) -> bool:
    """Whether a scalar of this name counts something: `global_step`, `beta1_power`."""
    return _COUNTER.fullmatch(name.rpartition("/")[2]) is not None


def is_random_state(name: str) -> bool:
    """Whether the name, or the path to a variable, is that of a random generator's state."""
    return _RANDOM_STATE.search(name) is not None


def is_slot(name: str, all_names: Container[str]) -> bool:
    """Whether the name is that of an optimizer's slot or of a moving average of another weight.

    Args:
        name: The name in question: `dense/kernel/Adam`, or `train/dense/kernel/Adam` for an optimizer in a scope.
        all_names: All names in the file. A name below that of another weight can only be a slot.
    """
    owner, _, last = name.rpartition("/")
    if owner in all_names or last == "ExponentialMovingAverage":
        return True
    parts = owner.split("/")
    return bool(_SLOT.fullmatch(last)) and any("/".join(parts[i:]) in all_names for i in range(1, len(parts)))


def is_in_optimizer_or_metrics(path: Iterable[str]) -> bool:
    """Whether a path leads through the part of a file that belongs to an optimizer or metrics: `opt_state/0/kernel`."""
    return any(_OPTIMIZER_OR_METRICS.fullmatch(part) for part in list(path)[:-1])
