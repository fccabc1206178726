"""`train.mixed_precision: auto`: in which type a network computes, by a trial before training.

The network is built and trained for a few steps in float32, and again in bfloat16 from the same weights on the same
batches. What was tried is thrown away, and the run begins as one whose recipe names the type.
"""

import gc
from pathlib import Path

import tensorflow as tf

from finetune.build.data import batch_rows, precision
from finetune.build.distribute import build_distribution
from finetune.build.layout import build_layout
from finetune.recipe.loader import with_values
from finetune.recipe.schema import Recipe
from finetune.training.precision_trial import MOST_STEPS, PrecisionTrial, try_precision

_FLAGS = ("avx512_bf16", "amx_bf16", "bf16")  # of processors: the last is what ARM's are called
_FIRST_CARD = (8, 0)  # compute capability of NVIDIA's first graphics cards with bfloat16


def with_measured_precision(recipe: Recipe) -> tuple[Recipe, tuple[str, ...]]:
    """Returns the recipe with the type that a trial chose in place of `auto`, and sentences on what was chosen and why.

    Call it outside of `finetune.build.data.precision`, which sets the type.

    Args:
        recipe: The recipe.

    Raises:
        FinetuneError: The layout cannot be built, or a step fails.
    """
    if recipe.train.mixed_precision != "auto":
        return recipe, ()
    in_float32 = with_values(recipe, {("train", "mixed_precision"): False})
    if recipe.model.keras_file:
        return in_float32, ("mixed precision: as the file of the model has it, which keeps its types",)
    if not has_bfloat16():
        return in_float32, ("mixed precision: none, since the processor does not compute in bfloat16",)
    if (replicas := build_distribution(recipe).replicas) > 1:
        return in_float32, (
            f"mixed precision: none, since steps are measured on one device, and {replicas} train. Write `bfloat16` in "
            "`train.mixed_precision` where it is faster",
        )
    in_bfloat16 = with_values(recipe, {("train", "mixed_precision"): "bfloat16"})
    wide = _tried(in_float32)
    mixed, why = chosen_type(wide, _tried(in_bfloat16, steps=wide.steps))
    return in_bfloat16 if mixed else in_float32, (why,)


def chosen_type(wide: PrecisionTrial, narrow: PrecisionTrial) -> tuple[str | bool, str]:
    """Returns `bfloat16` or `False`, and why, as a sentence.

    Args:
        wide: The trial in float32.
        narrow: The trial in bfloat16, of as many steps unless it took too long.
    """
    what = (
        f"the fastest of {wide.steps} steps takes {wide.milliseconds:.3g} ms in float32 and {narrow.milliseconds:.3g} "
        f"in bfloat16, with a mean loss of {wide.loss:.4g} and {narrow.loss:.4g}"
    )
    if not narrow.is_faster_than(wide):
        return False, f"mixed precision: none, since bfloat16 saves less than a tenth of a step: {what}"
    if narrow.steps < wide.steps or not narrow.is_as_good_as(wide):
        return False, f"mixed precision: none, since the loss is worse in bfloat16: {what}"
    return "bfloat16", f"mixed precision: bfloat16, which is faster at the same loss: {what}"


def has_bfloat16() -> bool:
    """Returns whether the device that trains computes in bfloat16; others imitate it, which only costs time."""
    if cards := tf.config.list_physical_devices("GPU"):
        capability = tf.config.experimental.get_device_details(cards[0]).get("compute_capability", (0, 0))
        return tuple(capability) >= _FIRST_CARD
    try:
        return processor_has_bfloat16(Path("/proc/cpuinfo").read_text())
    except OSError:  # not Linux
        return False


def processor_has_bfloat16(about: str) -> bool:
    """Returns whether a processor does, of which Linux says this in `/proc/cpuinfo`."""
    return any(flag in about.split() for flag in _FLAGS)


def _tried(recipe: Recipe, steps: int = MOST_STEPS) -> PrecisionTrial:
    with precision(recipe):
        layout = build_layout(recipe)
        rows = batch_rows(layout.recipe)
        trial = try_precision(layout.model, layout.examples, batch_size=rows, most_steps=steps)
    del layout
    gc.collect()  # a network refers to itself, and the next one is built before Python would look
    return trial
