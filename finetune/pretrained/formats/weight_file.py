"""What every reader hands out: a file's weights, named and described, their values not yet read."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Tensor:
    """One weight in a file.

    Attributes:
        name: Its name in the file, or the nearest thing to one: `bb/conv1/kernel`; `bb/conv1/0` where the file only
            numbers the weights of a layer.
        shape: Its shape.
        dtype: Its type, as NumPy or ml_dtypes spell it.
        read: Fetches the values; the file is only touched when this is called.
        position: `(index, count)` among the weights of its layer, where the file keeps them in Keras' order.
        aliases: Other names under which a model may know it, likeliest first. `*/conv1/kernel` stands for the one
            weight whose name ends in `/conv1/kernel`.
        places: Where the file keeps it, in the words of `finetune.pretrained.structure`.
        origin: The names in the file of what it was made from; empty for a weight as it is in the file.
        steps: How it was made: `rename`, `transpose [1, 0]`.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], np.ndarray] = field(repr=False, compare=False)
    position: tuple[int, int] | None = None
    aliases: tuple[str, ...] = ()
    places: tuple[str, ...] = ()
    origin: tuple[str, ...] = ()
    steps: tuple[str, ...] = ()

    @property
    def in_file(self) -> str:
        """What the file calls it, or all that it was made from."""
        return " + ".join(self.origin) or self.name


@dataclass(frozen=True)
class WeightFile:
    """A file of weights that was recognised; optimizer slots, counters and the like are not among `tensors`.

    Attributes:
        path: As it was given.
        kind: `keras`, `keras-weights`, `keras-legacy-h5`, `tf-object-checkpoint`, `tf1-checkpoint`, `saved-model`,
            `safetensors` or `npz`.
        tensors: The weights, in the file's order.
    """

    path: str
    kind: str
    tensors: tuple[Tensor, ...]
