import pytest

from finetune.cli.unknown_options import advice_on_options

OPTIONS = ["--set", "--out", "--allow-code"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (["--epochs", "3"], "`--epochs` is a key of a recipe and no option. Write `--set train.epochs=3`."),
        (["--batch-size=8"], "`--batch-size` is a key of a recipe and no option. Write `--set train.batch_size=8`."),
        (["--learning_rate=0.1"], "`--learning_rate` is a key of a recipe and no option. Write `--set groups.<name>.learning_rate=0.1`."),
        (["--weight_decay"], "`--weight_decay` is a key of a recipe and no option. Write `--set groups.<name>.optimizer.weight_decay=...`."),
        (["--checkpoint_exclude_scopes=a,b c"], "`--checkpoint_exclude_scopes` is a key of a recipe and no option. Write `--set 'restore.exclude=a,b c'`."),
        (["--out", "x", "--seed", "1"], "`--seed` is a key of a recipe and no option. Write `--set seed=1`."),
        (["--train_dir=x"], "`--train_dir` is no option here. The folder of a run is named on the command line: `finetune run recipe.yaml --out FOLDER`."),
        (["--frobnicate=1"], ""),
        (["--out", "x", "--help"], ""),
    ],
)  # fmt: skip
def test_an_option_that_is_a_key_is_told_as_one_to_set(line, said):
    assert advice_on_options(["run", "r.yaml", *line], OPTIONS) == said


def test_a_command_that_takes_no_recipe_is_not_told_of_keys():
    assert advice_on_options(["inspect", "x", "--epochs=3"], ["--json"]) == ""
