import pytest

from finetune.commands.kept_weights import best_keeper, collector
from finetune.recipe.loader import load_recipe


@pytest.mark.parametrize(
    ("overrides", "monitor", "mode"),
    [
        ([], "val_loss", "auto"),
        (["train.until={monitor: val_accuracy, mode: max}"], "val_accuracy", "max"),
    ],
)
def test_the_best_are_those_of_the_metric_that_until_watches(overrides, monitor, mode, tiny_files):
    asked = [*overrides, "train.keep=best", "train.average={last: 4}"]
    settings = load_recipe(tiny_files / "tiny.yaml", overrides=asked).train
    keeper, collect = best_keeper(settings), collector(settings)
    assert (keeper.monitor, collect.monitor, collect.mode) == (monitor, monitor, mode)
    assert (collect.count, collect.newest) == (4, True)


def test_an_average_never_goes_by_the_training_rows(tiny_files):
    asked = ["train.until={monitor: loss}", "train.average={best: 2}"]
    settings = load_recipe(tiny_files / "tiny.yaml", overrides=asked).train
    assert collector(settings).monitor == "val_loss"


def test_nothing_is_remembered_unasked(tiny_files):
    settings = load_recipe(tiny_files / "tiny.yaml").train
    assert (best_keeper(settings), collector(settings)) == (None, None)
