import subprocess
import sys
from pathlib import Path

import pytest

import finetune
from finetune.commands.finished_run import FREE, as_begun, changes_since, finished, has_changed
from finetune.errors import FinetuneError
from finetune.recipe.loader import dump_recipe, load_recipe

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")


def test_keys_that_decide_only_what_is_written_are_no_change(recipe):
    given = load_recipe(recipe)
    document = {"recipe": dump_recipe(given, absolute_paths=True)}
    assert changes_since(document, given, of_run=False) == []
    free = load_recipe(recipe, overrides=["train.checkpoint_steps=3", "train.extend=append"])
    assert changes_since(document, free, of_run=False) == []
    assert {"train.checkpoint_steps", "train.extend"} <= set(FREE)
    longer = load_recipe(recipe, overrides=["train.epochs=9"])
    assert [str(change) for change in changes_since(document, longer, of_run=False)] == ["`train.epochs`: was 2, is 9"]
    assert changes_since(document, longer, of_run=True) == []  # an older file does not hold the resolved recipe


def test_a_finished_run_is_told_from_one_that_is_to_go_on_without_tensorflow(recipe):
    finetune.run(recipe, out="out", overrides=["train.epochs=1"])
    own = Path("out/recipe.yaml")
    assert not has_changed(Path("out"), own)
    assert has_changed(Path("out"), own, ["train.epochs=3"])
    assert not has_changed(Path("out"), recipe, ["train.epochs=1"])
    assert "`finetune resume out --set train.epochs=...`" in finished(Path("out"))
    program = (
        "import sys; from pathlib import Path; from finetune.commands.finished_run import has_changed; "
        "print(has_changed(Path('out'), Path('out/recipe.yaml'), ['seed=5']), 'tensorflow' in sys.modules)"
    )
    root = Path(finetune.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env={"PYTHONPATH": str(root)}, check=True
    )
    assert done.stdout.split() == ["True", "False"]
    own.write_text(own.read_text() + "phases:\n- {train: all, steps: 3}\n")  # as a run by steps leaves it
    assert "`finetune resume out --set 'phases=[...]'`, with longer or more phases" in finished(Path("out"))
    own.write_text("phases: [")
    with pytest.raises(FinetuneError, match=r"`out/recipe\.yaml` cannot be: .* Copy the whole folder again"):
        finished(Path("out"))


def without_kernels(folder):
    """Makes a finished run look as those did that had no choice of kernels."""
    recipe = Path(folder, "recipe.yaml")
    recipe.write_text(recipe.read_text().replace("  kernels: exact\n", ""))
    assert "kernels" not in recipe.read_text()
    return recipe


def test_a_run_of_before_there_was_a_choice_of_kernels_goes_on_with_the_bits_of_keras(recipe):
    given = load_recipe(recipe)
    document = {"recipe": dump_recipe(given, absolute_paths=True).replace("  kernels: native\n", "")}
    assert as_begun(given, document).train.kernels == "exact"
    assert changes_since(document, given, of_run=False) == []
    native = load_recipe(recipe, overrides=["train.kernels=native"])
    assert as_begun(native, document).train.kernels == "native"
    assert [str(change) for change in changes_since(document, native, of_run=False)] == [
        "`train.kernels`: was nothing, is native"
    ]
    assert as_begun(given, {"recipe": dump_recipe(given)}) is given


def test_a_share_to_test_that_an_older_run_wrote_out_is_no_change(recipe):
    given = load_recipe(recipe, overrides=["data={table: r.csv, inputs: [a], target: y, split: {column: part}}"])
    text = dump_recipe(given, absolute_paths=True)
    older = text.replace("column: part", "column: part\n    test: 0.2")
    assert changes_since({"resolved": older, "recipe": text}, given, of_run=True) == []
    other = text.replace("column: part", "column: part\n    test: 0.3")
    assert changes_since({"resolved": other, "recipe": text}, given, of_run=True)


def test_the_recipe_in_the_folder_of_such_a_run_is_exact_and_extends_it_bit_for_bit(recipe):
    short, long = (["train.kernels=exact", f"train.epochs={epochs}"] for epochs in (1, 3))
    expected = finetune.run(recipe, out="long", overrides=long)
    finetune.run(recipe, out="out", overrides=short)
    own = without_kernels("out")
    assert load_recipe(own).train.kernels == "exact"
    result = finetune.run(own, out="out", overrides=["train.epochs=3"], resume=True)
    assert (result.native, result.metrics) == (None, expected.metrics)
    assert load_recipe(own, overrides=["train.kernels=native"]).train.kernels == "native"
