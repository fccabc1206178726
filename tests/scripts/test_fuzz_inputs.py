"""Inputs of the fuzzer are the same in every process, differ from each other, and reach every command and file."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

from fuzz_inputs import COMMANDS, make_case, make_pristine

from finetune.errors import RecipeError
from finetune.recipe.loader import load_recipe


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz") / "pristine"
    make_pristine(folder)
    return folder


def test_an_input_is_a_function_of_seed_and_number(pristine, tmp_path):
    for number in range(40):
        one, other = make_case(5, number), make_case(5, number)
        assert (one.arguments, one.recipe, list(one.files)) == (other.arguments, other.recipe, list(other.files))
        one.write(pristine, tmp_path / "a")
        other.write(pristine, tmp_path / "b")
        for name in one.files:
            if not name.endswith("npz"):  # whose members have the time of writing
                assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    make_case(1101, 157)  # `delimiter: ","`, a value that is no YAML without its quotes
    assert len({make_case(5, number).recipe for number in range(40)} & {make_case(6, n).recipe for n in range(40)}) < 10


def test_every_command_and_kind_of_file_has_its_turn_and_half_of_the_recipes_keep_the_rules(tmp_path):
    cases = [make_case(0, number) for number in range(300)]
    assert {case.arguments[0] for case in cases} == set(COMMANDS)
    assert len({name for case in cases for name in case.files}) == 12
    keeps = 0
    for case in cases:
        (tmp_path / "recipe.yaml").write_text(case.recipe, errors="replace")
        try:
            load_recipe(tmp_path / "recipe.yaml")
        except RecipeError:
            continue
        keeps += 1
    assert 100 < keeps < 250


def test_valid_files_are_valid(pristine):
    import keras

    x = np.load(pristine / "rows.npz")["x_test"]
    assert keras.models.load_model(pristine / "tiny.keras").predict(x, verbose=0).shape == (20, 3)
