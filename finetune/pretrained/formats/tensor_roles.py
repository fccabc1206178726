"""Says what each tensor of a file is: a weight, or an optimizer's slot, a moving average, a counter and so on.

Files of flat names (TF1 checkpoints, npz, safetensors) say nothing but names, shapes and types. A slot of TF1 is named
after its weight, `dense/kernel/Adam`, but so is a weight of a module that shares its name with another weight: `scale`
and `scale/bias`. A tensor below a weight therefore counts as its slot only if the name is that of an optimizer and the
shape is that of the weight. What is in doubt is a weight: a weight that the model lacks is an error of the restore.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace

from finetune.pretrained.formats.weight_file import StoredTensor

WEIGHT, SLOT, AVERAGE, COUNTER = "weight", "slot", "average", "counter"
METRIC, SEED, STATE, TEXT, COPY, OTHER = "metric", "seed", "state", "text", "copy", "other"
ROLES = (WEIGHT, SLOT, AVERAGE, COUNTER, METRIC, SEED, STATE, TEXT, COPY, OTHER)

# Scalars that count or scale: TF1 (`global_step`, `beta1_power`, `local_step` of averages), Keras 2 and 3
# (`iterations`, `learning_rate`), loss scaling (`good_steps`), and PyTorch's BatchNorm (`num_batches_tracked`).
_COUNTER = re.compile(
    r"(global_|local_)?step|save_counter|epoch|iterations?|iter|(beta|beta_|beta_power_)[12](_power)?(_\d+)?|decay|"
    r"learning_rate|good_steps|current_loss_scale|dynamic_(scale|counter)|step_counter|num_batches_tracked"
)
# What TF1 calls a slot below its weight: the optimizer's name, `dense/kernel/Adam`, `dense/kernel/Adam_1`; in BERT's
# checkpoints `adam_m`; `biased` for what averages and BatchNorm keep to correct their start at zero.
_SLOT = re.compile(
    r"(Adam\w*|Momentum\w*|RMSProp|Ada[a-z]+\w*|Ftrl\w*|Proximal\w+|LAMB\w*|LARS\w*|GradientDescent|(adam|lamb)_[mv]|"
    r"biased)(_\d+)?"
)
_AVERAGE = re.compile(r"(\w+_)?(ExponentialMovingAverage|ema|EMA|avg|averages?|shadow)(_\d+)?")
_OF_WEIGHTS = {"kernel", "bias", "gamma", "beta", "scale", "offset", "weight", "weights", "embeddings", "w", "b"}
_SLOT_BESIDE = re.compile(r"(?P<of>.+)_slot_(v|vr|vc|m)")  # Mesh TensorFlow, as in T5's checkpoints: `kernel_slot_vr`
# Keras 2 in a TF1 session: `training/Adam/dense/kernel/m`.
_KERAS_SLOT = re.compile(
    r"(.*/)?(?P<optimizer>[A-Z]\w+)/(?P<of>.+)/(m|v|vhat|momentum|rms|mg|accumulator|linear|accum_\w+)"
)
_NUMBER = re.compile(r"b?float|u?int|bool|complex")
_RANDOM_STATE = re.compile(r"(^|/)_?(seed|random)_generator(/|$)|seed_generator_state$|(^|/)_state_var$")
_OPTIMIZER = re.compile(r"_?(optimizer|optimizer_(state|vars|weights)|opt_state)")
_METRICS = re.compile(r"_?metrics|keras_api")


def is_counter(name: str) -> bool:
    """Whether a scalar of this name counts something: `global_step`, `beta1_power`."""
    return _COUNTER.fullmatch(name.rpartition("/")[2]) is not None


def is_random_state(name: str) -> bool:
    """Whether the name, or the path to a variable, is that of a random generator's state."""
    return _RANDOM_STATE.search(name) is not None


def is_named_as_average(name: str) -> bool:
    """Whether the last part of a name is one that TensorFlow's users give a moving average of the weight above it."""
    return "/" in name and _AVERAGE.fullmatch(name.rpartition("/")[2]) is not None


def is_named_as_slot(name: str) -> bool:
    """Whether the last part of a name is one that TF1 gives an optimizer's slot."""
    return "/" in name and _SLOT.fullmatch(name.rpartition("/")[2]) is not None


def role_of_path(path: Iterable[str], shape: tuple[int, ...]) -> str:
    """Returns the role of what lies below an optimizer, metrics or a random generator; else `weight`.

    Args:
        path: Names that lead to the tensor: `opt_state`, `0`, `kernel`.
        shape: Its shape. Scalars of an optimizer count or scale.
    """
    parts = list(path)
    if is_random_state("/".join(parts)):
        return SEED
    for part in parts[:-1]:
        if _METRICS.fullmatch(part):
            return METRIC
        if _OPTIMIZER.fullmatch(part):
            return SLOT if shape else COUNTER
    return WEIGHT


def with_roles(tensors: Mapping[str, StoredTensor]) -> list[StoredTensor]:
    """Gives the tensors of a file of flat names their roles.

    Args:
        tensors: The tensors by their names with `/` between the parts.

    Returns:
        The same, with `role`, and for slots and averages `of`, the name of their weight as the file has it.
    """
    slot_names = _names_of_unknown_optimizers(tensors)
    roles = {name: _flat_role(name, tensors, slot_names) for name in tensors}
    return [
        replace(tensor, role=role, of=tensors[of].name if of in tensors else of)
        for tensor, (role, of) in zip(tensors.values(), roles.values(), strict=True)
    ]


def split_by_role(tensors: Iterable[StoredTensor]) -> tuple[tuple[StoredTensor, ...], tuple[StoredTensor, ...]]:
    """Returns the weights, and what is not a weight."""
    listed = list(tensors)
    return tuple(t for t in listed if t.role == WEIGHT), tuple(t for t in listed if t.role != WEIGHT)


def _flat_role(name: str, tensors: Mapping[str, StoredTensor], slot_names: set[str]) -> tuple[str, str]:
    """Returns a tensor's role, and the name of its weight if it is a slot or an average."""
    tensor, last = tensors[name], name.rpartition("/")[2]
    if not _NUMBER.match(tensor.dtype):
        return (TEXT if tensor.dtype == "string" else OTHER), ""  # dates and records of an npz file
    if not tensor.shape and is_counter(name):
        return COUNTER, ""
    owner = next((path for path in _possible_owners(name) if path in tensors), "")
    if is_named_as_average(name):
        if owner and _is_like(tensor, tensors[owner]):
            return AVERAGE, owner
        # Its weight need not be in the file, which may hold nothing but averages.
        if not owner and last == "ExponentialMovingAverage":
            return AVERAGE, name.rpartition("/")[0]
    hit = _SLOT_BESIDE.fullmatch(name) or _KERAS_SLOT.fullmatch(name)
    if hit and hit["of"] in tensors:
        owner = hit["of"]
    elif not (is_named_as_slot(name) or _without_count(last) in slot_names):
        owner = ""
    # Adafactor keeps a vector for the rows of a weight and a vector for its columns.
    if owner and _is_like(tensor, tensors[owner], factored=last.startswith("Ada") or "_slot_" in last):
        return SLOT, owner
    return role_of_path(name.split("/"), tensor.shape), ""


def _possible_owners(name: str) -> list[str]:
    """Returns what is above a name, with and without the scopes of an optimizer: `train/a/b/Adam` is of `a/b`."""
    parts = name.split("/")[:-1]
    return ["/".join(parts[i:]) for i in range(len(parts))]


def _is_like(tensor: StoredTensor, owner: StoredTensor, *, factored: bool = False) -> bool:
    """Whether a tensor has the shape of the weight that it is kept for, and holds floats as well."""
    fits = tensor.shape == owner.shape or (factored and _is_part(tensor.shape, owner.shape))
    return fits and all("float" in known.dtype or "complex" in known.dtype for known in (tensor, owner))


def _is_part(shape: tuple[int, ...], whole: tuple[int, ...]) -> bool:
    """Whether a shape is left when axes of another are removed; or `(1,)`, which Adafactor keeps for what it lacks."""
    remaining = iter(whole)
    return shape == (1,) or all(size in remaining for size in shape)  # `in` uses the iterator up: the order counts


def _names_of_unknown_optimizers(tensors: Mapping[str, StoredTensor]) -> set[str]:
    """Returns names of optimizers that users chose, `AdamOptimizer(name="my_adam")`: slots of several kinds have them.

    `my_adam` is below kernels and below biases, each time with their shape. A module's weight, `scale/bias`, is below
    weights of a single kind.
    """
    kinds: dict[str, set[str]] = defaultdict(set)
    for name, tensor in tensors.items():
        owner, _, last = name.rpartition("/")
        if owner in tensors and _is_like(tensor, tensors[owner]):
            kinds[_without_count(last)].add(owner.rpartition("/")[2])
    return {name for name, owners in kinds.items() if len(owners) > 1 and name not in _OF_WEIGHTS}


def _without_count(name: str) -> str:
    return re.sub(r"_\d+$", "", name)
