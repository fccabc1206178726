import pytest

from finetune.commands.new_strategy import Setup, strategy_lines
from finetune.recipe.loader import load_recipe

BEGIN = "model: {builder: finetune.examples.networks:mlp, head: {classes: 2}}\ndata: {npz: a.npz}\n"


def recipe_of(tmp_path, setup):
    (tmp_path / "a.yaml").write_text(BEGIN + "\n".join(strategy_lines(setup)) + "\n")
    return load_recipe(tmp_path / "a.yaml")


def test_a_pretrained_network_trains_as_a_whole_at_one_rate_that_is_searched(tmp_path):
    recipe = recipe_of(tmp_path, Setup(is_pretrained=True, is_language_model=False, rows=1000))
    assert [group.name for group in recipe.groups] == ["body", "head"]
    assert {group.learning_rate.initial for group in recipe.groups} == {3e-3}  # as it was measured: one peak rate
    assert {group.optimizer.name for group in recipe.groups} == {"adamw"}
    assert (recipe.phases, recipe.train.learning_rate, recipe.train.epochs) == (None, "search", 5)


@pytest.mark.parametrize(("rows", "epochs"), [(0, 5), (20, 20), (100, 13), (300, 9), (1000, 5), (10**6, 5)])
def test_with_few_rows_there_are_more_epochs(tmp_path, rows, epochs):
    assert recipe_of(tmp_path, Setup(True, False, rows)).train.epochs == epochs


def test_a_network_of_text_has_a_low_rate_below_its_head_which_trains_alone_first(tmp_path):
    recipe = recipe_of(tmp_path, Setup(is_pretrained=True, is_language_model=True, rows=1000))
    assert [group.learning_rate.initial for group in recipe.groups] == [3e-5, 1e-3]
    assert [(phase.train, phase.epochs) for phase in recipe.phases] == [(("head",), 1), ("all", 4)]
    assert recipe.train.learning_rate == "search"


def test_an_output_that_is_not_taken_is_frozen(tmp_path):
    recipe = recipe_of(tmp_path, Setup(True, True, 1000, unused="backbone/pooled_dense"))
    group = recipe.groups[-1]
    assert (group.prefixes, group.frozen) == (("backbone/pooled_dense",), True)


def test_without_pretrained_weights_all_layers_learn_at_one_rate(tmp_path):
    recipe = recipe_of(tmp_path, Setup(is_pretrained=False, is_language_model=False, rows=0))
    assert ([group.name for group in recipe.groups], recipe.phases) == (["all"], None)
    assert (recipe.train.epochs, recipe.train.batch_size) == (20, 32)


@pytest.mark.parametrize(
    ("rows", "batch_size"), [(0, 32), (9, 4), (50, 4), (100, 8), (178, 16), (320, 32), (10**6, 32)]
)
def test_few_rows_make_small_batches(tmp_path, rows, batch_size):
    assert recipe_of(tmp_path, Setup(False, False, rows)).train.batch_size == batch_size
