"""A block in which layers compute with TensorFlow's own kernels, and the table of the layers that can.

Keras spells out on TensorFlow what TensorFlow has a single kernel for: BatchNormalization is a dozen operations, each
of which reads and writes the whole batch. In a block of `native_kernels`, a layer of a class in `KERNELS` runs its
kernel in place of its `call`, wherever a function is traced that calls the layer. Functions traced before the block
stay what they are, and those traced in it stay native. `FUNCTIONS` holds kernels of functions that layers of any class
call through `keras.ops`.

A kernel is a function with the arguments of the layer's `call`, behind the layer itself, or with those of the function.
It returns the outputs, or `None` where it does not apply; then Keras' own code runs. No kernel runs:

- in place of the `call` of a subclass, whose author may count on what Keras computes;
- in eager calls, which a fused operation hardly shortens, and in symbolic ones, which compute nothing;
- under XLA, which fuses by itself, and where variables are spread over several replicas;
- in another thread than that of the block.

Nothing of a model changes, not even in the block: the classes' `call` and the functions of Keras' backend are
exchanged, and look for a block each time.
"""

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from functools import wraps
from typing import Any

import keras
import tensorflow as tf

from finetune import keras_private
from finetune.errors import TrainingError, did_you_mean
from finetune.kernels.attention import dot_product_attention
from finetune.kernels.batch_normalization import batch_normalization
from finetune.kernels.dense import dense, einsum_dense
from finetune.kernels.depthwise_convolution import depthwise_conv, separable_conv
from finetune.kernels.einsum import einsum
from finetune.kernels.gelu import gelu
from finetune.kernels.group_normalization import group_normalization
from finetune.kernels.layer_normalization import layer_normalization
from finetune.kernels.pointwise_convolution import pointwise_convolution
from finetune.kernels.recurrent import gru, lstm
from finetune.kernels.silu import silu

Kernel = Callable[..., Any]
MODES = ("exact", "native")

KERNELS: Mapping[Any, Kernel] = {
    keras.layers.BatchNormalization: batch_normalization,
    keras.layers.Conv1D: pointwise_convolution,
    keras.layers.Conv2D: pointwise_convolution,
    keras.layers.Conv3D: pointwise_convolution,
    keras.layers.Dense: dense,
    keras.layers.EinsumDense: einsum_dense,
    keras.layers.GRU: gru,
    keras.layers.GroupNormalization: group_normalization,
    keras.layers.LSTM: lstm,
    keras.layers.LayerNormalization: layer_normalization,
}
# Functions of Keras' backend, by module and name, that layers of any class call through `keras.ops`.
FUNCTIONS: Mapping[str, Kernel] = {
    "nn.depthwise_conv": depthwise_conv,
    "nn.dot_product_attention": dot_product_attention,
    "nn.gelu": gelu,
    "nn.separable_conv": separable_conv,
    "nn.silu": silu,
    "numpy.einsum": einsum,
}


class NativeLayers:
    """The layers, and the functions of Keras' backend, that ran a kernel in a block.

    Attributes:
        layers: The layers by their `id`.
        functions: The names of the functions, as in `FUNCTIONS`.
    """

    def __init__(self) -> None:
        self.layers: dict[int, keras.layers.Layer] = {}
        self.functions: set[str] = set()

    def counts(self, model: keras.layers.Layer) -> dict[str, int]:
        """Returns how many layers of a model ran a kernel, by the name of their class, in alphabetical order."""
        return _by_class(layer for layer in _layers_in(model) if id(layer) in self.layers)

    def to_json(self, model: keras.layers.Layer) -> dict[str, Any]:
        """Returns what `result.json` says: numbers of layers by class, and the names of the functions."""
        return {"layers": self.counts(model), "functions": sorted(self.functions)}


_BLOCKS: ContextVar[tuple[NativeLayers, ...]] = ContextVar("blocks of native kernels in this thread", default=())
_lock = threading.Lock()
_open_blocks = 0  # in all threads
_calls: dict[Any, tuple[Any, Any]] = {}  # of each class: `call` in a block, and what it defines itself, if anything
_functions: dict[str, tuple[Any, Any]] = {}  # of each name: the function in a block, and Keras' own


@contextmanager
def native_kernels() -> Iterator[NativeLayers]:
    """Lets functions that are traced in the block, by this thread, compute layers with the kernels of `KERNELS`.

    Examples:
        >>> model = keras.Sequential([keras.Input((4, 4, 3)), keras.layers.BatchNormalization()])
        >>> with native_kernels() as native:
        ...     outputs = model.predict(tf.ones((2, 4, 4, 3)), verbose=0)
        >>> native.counts(model)
        {'BatchNormalization': 1}
    """
    native, outside = NativeLayers(), _BLOCKS.get()
    _count_blocks(1)
    _BLOCKS.set((*outside, native))
    try:
        yield native
    finally:
        _BLOCKS.set(outside)
        _count_blocks(-1)


def with_kernels(kernels: str) -> AbstractContextManager[NativeLayers]:
    """Returns a block in which layers compute in this way: that of `native_kernels`, or one that changes nothing.

    Args:
        kernels: `exact` or `native`.

    Raises:
        TrainingError: It is neither.
    """
    if kernels not in MODES:
        raise TrainingError(
            "Layers compute with `exact` kernels, which are those of Keras, or with `native` kernels of TensorFlow. "
            f"Received `kernels={kernels!r}`.{did_you_mean(str(kernels), MODES)}"
        )
    return native_kernels() if kernels == "native" else nullcontext(NativeLayers())


@contextmanager
def model_with_kernels(model: Any, kernels: str) -> Iterator[NativeLayers]:
    """Lets a model train, evaluate and predict with these kernels in the block, and again as before behind it.

    What Keras had traced of a model stays as it is, so each change of the kernels lets it be traced anew.

    Args:
        model: A compiled model.
        kernels: `exact` or `native`.

    Raises:
        TrainingError: It is neither.
    """
    with with_kernels(kernels) as native:
        if kernels == "exact":
            yield native
            return
        forget_traces(model)
        try:
            yield native
        finally:
            forget_traces(model)


def forget_traces(model: Any) -> None:
    """Lets Keras trace the functions of a compiled model anew, with the kernels of then."""
    model.train_function = model.test_function = model.predict_function = None


def layers_with_kernels(model: keras.layers.Layer) -> dict[str, int]:
    """Returns how many layers of a model are of a class in `KERNELS`, by its name; some may not run the kernel."""
    return _by_class(layer for layer in _layers_in(model) if type(layer) in KERNELS)


def active_kernels() -> str:
    """Returns how layers compute in functions that this thread traces now: `exact` or `native`."""
    return "native" if _BLOCKS.get() else "exact"


def traced_natively(function: Callable[..., Any], native: NativeLayers) -> Callable[..., Any]:
    """Returns a function that runs another in a block, as long as it has traced nothing before.

    Args:
        function: Such as Keras' own train function, which is traced when it is first called.
        native: Gets the layers that run a kernel.
    """

    def run(*arguments: Any) -> Any:
        with native_kernels() as of_call:
            outputs = function(*arguments)
        native.layers.update(of_call.layers)
        native.functions |= of_call.functions
        return outputs

    run.kernels = "native"  # pyright: ignore[reportFunctionMemberAccess] - for `kernels_of`
    return run


def kernels_of(function: Any) -> str:
    """Returns how layers compute in a train function, or in one that is traced now: `exact` or `native`."""
    return getattr(function, "kernels", active_kernels())


def _layers_in(model: keras.layers.Layer) -> list[keras.layers.Layer]:
    return keras_private.sublayers(model, include_self=True)


def _by_class(layers: Iterable[keras.layers.Layer]) -> dict[str, int]:
    return dict(sorted(Counter(type(layer).__name__ for layer in layers).items()))


def _count_blocks(change: int) -> None:
    """Exchanges calls and functions with the first block of all threads, and puts them back after the last."""
    global _open_blocks
    with _lock:
        before, _open_blocks = _open_blocks, _open_blocks + change
        if before == 0:
            for kind, kernel in KERNELS.items():
                if kind not in _calls:
                    _calls[kind] = _dispatched(kind, kernel), vars(kind).get("call")
                kind.call = _calls[kind][0]
            for name, kernel in FUNCTIONS.items():
                if name not in _functions:
                    own = keras_private.backend_function(name)
                    _functions[name] = _dispatched_function(name, own, kernel), own
                keras_private.set_backend_function(name, _functions[name][0])
        elif _open_blocks == 0:
            for name, (_, own) in _functions.items():
                keras_private.set_backend_function(name, own)
            for kind, (_, own) in _calls.items():
                if own is None:  # it has the `call` of its base
                    del kind.call
                else:
                    kind.call = own


def _dispatched(kind: Any, kernel: Kernel) -> Callable[..., Any]:
    """Returns a `call` for a class of layers that runs the kernel in blocks of this thread, where it applies."""
    own = kind.call

    @wraps(own)  # Keras asks for its signature
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        blocks = _BLOCKS.get()
        if blocks and type(self) is kind and _may_run():
            outputs = kernel(self, *args, **kwargs)
            if outputs is not None:
                for block in blocks:
                    block.layers[id(self)] = self
                return outputs
        return own(self, *args, **kwargs)

    return call


def _dispatched_function(name: str, own: Callable[..., Any], kernel: Kernel) -> Callable[..., Any]:
    """Returns a function that runs the kernel in blocks of this thread, where it applies."""

    @wraps(own)
    def function(*args: Any, **kwargs: Any) -> Any:
        blocks = _BLOCKS.get()
        if blocks and _may_run():
            outputs = kernel(*args, **kwargs)
            if outputs is not None:
                for block in blocks:
                    block.functions.add(name)
                return outputs
        return own(*args, **kwargs)

    return function


def _may_run() -> bool:
    """Whether what is being traced here may hold kernels."""
    return not (
        tf.executing_eagerly()
        or keras_private.is_symbolic()
        or keras_private.is_compiled_by_xla()
        or tf.distribute.get_strategy().num_replicas_in_sync > 1
    )
