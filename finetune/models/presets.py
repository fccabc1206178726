"""KerasHub presets: pretrained backbones and whole tasks, from a local folder or a handle."""

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import keras

from finetune.errors import FinetuneError, did_you_mean, quote, reason
from finetune.files.hdf5_check import check_hdf5
from finetune.machine_failures import raise_machine_failure
from finetune.models.heads import inputs_of
from finetune.models.preset_images import converted, image_converter
from finetune.models.weight_memory import limited_to_file

_TEXT_INPUTS = {"token_ids", "padding_mask", "segment_ids"}


def make_preset(
    preset: str,
    *,
    whole_task: bool = False,
    arguments: Mapping[str, Any] | None = None,
    pairs: bool = False,
    size: Sequence[int] | None = None,
) -> keras.Model:
    """Makes a network from a KerasHub preset that takes a single array, or token ids of pairs and their types.

    The network is the layer `backbone` (or `task`) of the returned model. Where it takes token ids with a mask and
    segment ids, the model takes the ids alone: the mask hides the tokenizer's padding id (0 if the preset has no
    tokenizer), and the segment ids are 0, or an input of their own for pairs of texts.

    Args:
        preset: A local folder, or a handle that KerasHub can resolve.
        whole_task: Whether to load the task with its head rather than the backbone alone. Needs a local folder.
        arguments: Keyword arguments for `from_preset`, e.g. `dropout`.
        pairs: Whether rows are pairs of texts, whose tokens a network with `segment_ids` tells apart.
        size: Height and width of images, for a network that takes any; by default those of the preset's converter.

    Raises:
        FinetuneError: If KerasHub is not installed, the preset cannot be loaded or does not accept the arguments, or
            the network takes several inputs.
    """
    keras_hub = _keras_hub()
    kind = _task_class(keras_hub, preset) if whole_task else keras_hub.models.Backbone
    for path in sorted(Path(preset).glob("*.h5")):  # of a local folder; KerasHub would open them at once
        check_hdf5(path)
    fixed = {"name": "task", "preprocessor": None} if whole_task else {"name": "backbone"}
    options = dict(arguments or {})
    try:
        with limited_to_file(Path(preset)) if Path(preset).is_dir() else nullcontext():
            network = kind.from_preset(preset, **{**options, **fixed})
    except FinetuneError:
        raise
    except Exception as error:  # KerasHub, Kaggle and Hugging Face raise classes of their own
        raise_machine_failure(error, f"Loading `{preset}`")
        cause = f"{type(error).__name__}: {reason(error).rstrip(':')}"
        raise FinetuneError(
            f"A preset is a folder that `save_to_preset` wrote, or a handle. `{preset}` cannot be loaded: {cause}. "
            "Check the name and the network, or download the preset elsewhere and give its folder."
        ) from error
    # After loading, since only then the class whose arguments count is known.
    _check_arguments(type(network), options, preset)
    return _with_few_inputs(network, lambda: _padding_id(keras_hub, preset), preset, pairs, size)


def _keras_hub() -> Any:
    try:
        import keras_hub  # optional, and takes seconds
    except ImportError as error:
        raise FinetuneError(
            "A preset is loaded by KerasHub, which is not installed. Install it: "
            "`pip install 'discriminative-finetune[presets]'`."
        ) from error
    return keras_hub


def _check_arguments(kind: Any, arguments: Mapping[str, Any], preset: str) -> None:
    """Refuses arguments that KerasHub would silently ignore."""
    known = [name for name in inspect.signature(kind).parameters if name not in ("kwargs", "name", "preprocessor")]
    unknown = [name for name in arguments if name not in known]
    if unknown:
        raise FinetuneError(
            f"The `{kind.__name__}` of `{preset}` accepts the arguments {quote(known, limit=12)}, not {quote(unknown)}."
            f"{did_you_mean(unknown[0], known)}"
        )


def _task_class(keras_hub: Any, preset: str) -> Any:
    """Returns the class that the folder's `task.json` names: KerasHub loads a task only through its class."""
    name = None
    with suppress(OSError, ValueError, AttributeError, RecursionError):  # no such file, no JSON, no mapping in it
        name = json.loads((Path(preset) / "task.json").read_text()).get("class_name")
    kind = getattr(keras_hub.models, str(name), None)
    if kind is None:
        received = f"names the task `{name}`, which KerasHub does not have" if name else "has no `task.json`"
        raise FinetuneError(
            f"A preset without a `head` is a local folder with a whole task, described by its `task.json`. `{preset}` "
            f"{received}. Add a `head` to the recipe: it is put on the preset's backbone."
        )
    return kind


def _with_few_inputs(
    network: keras.Model, padding_id: Callable[[], int], preset: str, pairs: bool, size: Sequence[int] | None
) -> keras.Model:
    inputs = inputs_of(network)
    if not isinstance(inputs, Mapping):
        converter = image_converter(preset) if len(inputs.shape) == 4 else None
        if converter is not None:
            return converted(network, inputs.shape[1:], converter, size)
        x = keras.Input(inputs.shape[1:], dtype=inputs.dtype, name="inputs")
        return keras.Model(x, network(x), name="preset_model")
    if "token_ids" not in inputs or not set(inputs) <= _TEXT_INPUTS:
        raise FinetuneError(
            f"A recipe feeds a single array to the network. That of `{preset}` takes {quote(inputs)}. Write a "
            "`builder` that makes the other inputs from one of them."
        )
    # Any length: the position embedding of the network sets the limit.
    tokens = keras.Input((None,), dtype="int32", name="token_ids")
    made = {"token_ids": tokens, "segment_ids": keras.ops.zeros_like(tokens)}
    if "padding_mask" in inputs:
        made["padding_mask"] = keras.ops.cast(keras.ops.not_equal(tokens, padding_id()), "int32")
    taken: Any = tokens
    if pairs and "segment_ids" in inputs:
        made["segment_ids"] = keras.Input((None,), dtype="int32", name="segment_ids")
        taken = {"token_ids": tokens, "segment_ids": made["segment_ids"]}
    return keras.Model(taken, network({key: made[key] for key in inputs}), name="preset_model")


def _padding_id(keras_hub: Any, preset: str) -> int:
    with suppress(Exception):  # a preset may consist of a backbone alone
        return int(keras_hub.models.Tokenizer.from_preset(preset).pad_token_id)
    return 0
