"""What every reader returns: the names, shapes and types of a file's tensors, and how to fetch their values."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class StoredTensor:
    """A weight in a file, or another tensor. The values stay in the file until `read` is called.

    The formats differ in what they know of a weight. A TF1 checkpoint knows a name and nothing else; a `.weights.h5`
    knows the layer and a number, but not the weight's name; a TF2 checkpoint knows the attributes that lead to the
    variable. `name`, `position`, `aliases` and `locations` hold all of this in one form, and
    `finetune.pretrained.matching_rules` compares it with the model.

    Attributes:
        name: Its name in the file, or what comes nearest to one: `bb/conv1/kernel`; `bb/conv1/0` where the file only
            numbers the weights of a layer.
        shape: Its shape.
        dtype: Its type, as NumPy or ml_dtypes spell it.
        read: Fetches the values; only this call touches the file.
        position: `(index, count)` among the weights of its layer, where the file keeps them in Keras' order.
        aliases: Other names that a model may use for it, the likeliest first. `*/conv1/kernel` matches the only
            weight whose name ends in `/conv1/kernel`.
        locations: Where the file stores it, in the words of `finetune.pretrained.storage_locations`.
        origin: Names in the file of the weights that it was made from; empty for a weight as it is in the file.
        steps: What `rename` and `transform` did to it: `rename`, `transpose [1, 0]`; `average` if it is taken in place
            of the weight that it averages.
        role: What it is, one of `finetune.pretrained.formats.tensor_roles.ROLES`: `weight`, `slot`, ...
        of: For a slot or an average, the name of its weight, where the file tells.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    # Two descriptions are equal if they say the same; functions are equal only to themselves.
    read: Callable[[], np.ndarray] = field(repr=False, compare=False)
    position: tuple[int, int] | None = None
    aliases: tuple[str, ...] = ()
    locations: tuple[str, ...] = ()
    origin: tuple[str, ...] = ()
    steps: tuple[str, ...] = ()
    role: str = "weight"
    of: str = ""

    @property
    def in_file(self) -> str:
        """Its name in the file, or the names of all weights that it was made from: `lstm/bias_ih + lstm/bias_hh`."""
        return " + ".join(self.origin) or self.name


@dataclass(frozen=True)
class WeightFile:
    """A weight file whose format was recognised. Every tensor in it is listed once.

    Attributes:
        path: As the user wrote it.
        kind: `keras`, `keras-weights`, `keras-legacy-h5`, `tf-object-checkpoint`, `tf1-checkpoint`, `saved-model`,
            `safetensors` or `npz`.
        tensors: The weights, in the file's order.
        others: What is not a weight: slots of optimizers, moving averages, counters and so on, each with its `role`.
    """

    path: str
    kind: str
    tensors: tuple[StoredTensor, ...]
    others: tuple[StoredTensor, ...] = ()
