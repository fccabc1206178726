"""`train.mixed_precision: auto` by a trial before training."""

import json

import pytest
import yaml

import finetune
from finetune.build.mixed_precision import (
    chosen_type,
    has_bfloat16,
    processor_has_bfloat16,
    with_measured_precision,
)
from finetune.recipe.loader import load_recipe
from finetune.training.precision_trial import PrecisionTrial

AUTO = "train.mixed_precision=auto"
SMALL = [
    "model={builder: finetune.examples.digits:small_cnn}",
    "data={builder: finetune.examples.digits:uci_digits, arguments: {train_rows: 20, test_rows: 20}}",
    "groups=[{name: all, rest: true, optimizer: sgd, learning_rate: 0.01}]",
    "train.epochs=1",
]
WIDE = PrecisionTrial(30, 12.0, 0.9, 0.7)


def test_bfloat16_is_taken_where_it_is_faster_and_its_loss_as_good():
    assert chosen_type(WIDE, PrecisionTrial(30, 8.0, 0.9, 0.701)) == (
        "bfloat16",
        "mixed precision: bfloat16, which is faster at the same loss: the fastest of 30 steps takes 12 ms in float32 "
        "and 8 in bfloat16, with a mean loss of 0.7 and 0.701",
    )


@pytest.mark.parametrize(
    ("narrow", "why"),
    [
        (PrecisionTrial(30, 11.5, 0.9, 0.7), "bfloat16 saves less than a tenth of a step"),
        (PrecisionTrial(12, 300.0, 0.9, 0.7), "bfloat16 saves less than a tenth of a step"),
        (PrecisionTrial(30, 8.0, 0.9, 0.8), "the loss is worse in bfloat16"),
        (PrecisionTrial(30, 8.0, 0.9, float("nan")), "the loss is worse in bfloat16"),
        (PrecisionTrial(12, 8.0, 0.9, 0.7), "the loss is worse in bfloat16"),
    ],
)
def test_float32_stays_where_bfloat16_gains_little_or_loses(narrow, why):
    mixed, sentence = chosen_type(WIDE, narrow)
    assert mixed is False
    assert sentence.startswith(f"mixed precision: none, since {why}: the fastest of 30 steps takes 12 ms in float32")


@pytest.mark.parametrize(
    ("flags", "has"),
    [
        ("flags : fma avx512f avx512_bf16 amx_tile", True),
        ("flags : amx_bf16", True),
        ("Features : asimd bf16 i8mm", True),
        ("flags : fma avx512f avx512bw", False),
        ("", False),
    ],
)
def test_the_flags_of_the_processor_say_whether_it_has_bfloat16(flags, has):
    assert processor_has_bfloat16(flags) is has


def test_a_type_that_is_named_and_the_types_of_a_file_stay_without_a_trial(recipe):
    for mixed in ("false", "bfloat16", "float16"):
        loaded = load_recipe(recipe, overrides=[f"train.mixed_precision={mixed}"])
        assert with_measured_precision(loaded) == (loaded, ())
    chosen, sentences = with_measured_precision(load_recipe(recipe, overrides=[AUTO]))  # its model is a file
    assert chosen.train.mixed_precision is False
    assert sentences == ("mixed precision: as the file of the model has it, which keeps its types",)


@pytest.mark.slow
def test_a_run_notes_what_was_chosen_and_why_and_goes_on_with_it_without_another_trial(recipe):
    result = finetune.run(recipe, "out", overrides=[*SMALL, AUTO])
    mixed = yaml.safe_load((result.folder / "recipe.yaml").read_text())["train"].get("mixed_precision", False)
    assert mixed in (False, "bfloat16")
    assert result.mixed_precision.startswith("mixed precision: bfloat16" if mixed else "mixed precision: none")
    assert ("ms in float32 and" in result.mixed_precision) is has_bfloat16()
    assert json.loads((result.folder / "result.json").read_text())["mixed_precision"] == result.mixed_precision
    longer = finetune.run(recipe, "out", overrides=[*SMALL, AUTO, "train.epochs=2"], resume=True)
    assert longer.mixed_precision == ""
    after = yaml.safe_load((result.folder / "recipe.yaml").read_text())["train"]
    assert (after.get("mixed_precision", False), after["epochs"]) == (mixed, 2)
