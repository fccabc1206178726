import pytest

from finetune.errors import RecipeError
from finetune.recipe.keys import blocks, blocks_at, markdown
from finetune.recipe.learning_rates import SCHEDULES
from finetune.recipe.optimizers import OPTIMIZERS
from finetune.recipe.phase_strategies import STRATEGIES


def key(block, name):
    return next(key for key in blocks_at(block)[0].keys if key.name == name)


def test_every_key_of_a_recipe_has_a_meaning():
    assert [(block.path, key.name) for block in blocks() for key in block.keys if not key.meaning] == []


def test_every_part_every_schedule_and_every_strategy_is_listed_once():
    paths = [block.path for block in blocks()]
    assert {"", "model", "model.head", "data", "data.split", "restore.transform", "phases.until", "train"} <= set(paths)
    assert {f"learning_rate ({name})" for name in SCHEDULES} <= set(paths)
    assert {f"phases ({name})" for name in STRATEGIES} <= set(paths)
    assert [path for path in paths if paths.count(path) > 1] == ["groups", "groups"]  # a list, or a strategy


def test_values_are_those_that_the_schema_accepts():
    assert key("train", "batch_size").values == "whole number >= 1 or `auto`"
    assert key("train", "epochs").values == "whole number >= 1"
    assert key("data.split", "test").values == "number > 0, < 1"
    assert key("data", "resize").values == "`pad`, `crop`, `stretch`"
    assert key("data", "size").values == "list of 2 x whole number >= 1"
    assert key("train", "mixed_precision").values == "`false`, `bfloat16`, `float16`, `auto`"
    assert key("groups", "batch_norm").values == "`train`, `freeze`, `affine`, `statistics`"
    assert key("groups", "prefixes").values == "text, or a list"
    assert key("phases", "rates").values == "mapping of number > 0 or mapping with `schedule`"
    assert all(f"`{name}`" in key("groups", "optimizer").values for name in OPTIMIZERS)


def test_defaults_are_written_as_yaml_and_required_keys_say_so():
    assert (key("train", "loss").default, key("train", "metrics").default) == ("auto", "")
    assert (key("train", "shuffle").default, key("train", "cache").default) == ("true", "auto")
    assert (key("train", "epochs").default, key("data", "class_names").default) == ("", "")
    assert key("restore", "from").default == "required"


def test_a_key_is_found_by_its_place_and_by_its_name():
    assert [block.path for block in blocks_at("data.split")] == ["data.split"]
    assert [block.path for block in blocks_at("model")] == ["model", "model.head"]
    assert [block.path for block in blocks_at("cosine_decay")] == ["learning_rate (cosine_decay)"]
    assert [block.path for block in blocks_at("train.loss")] == ["train"]
    assert "groups" in [block.path for block in blocks_at("layer_decay")]
    assert [block.path for block in blocks_at("")] == [""]


def test_an_unknown_name_offers_the_nearest():
    with pytest.raises(RecipeError) as error:
        blocks_at("train.eposch")
    assert (
        str(error.value) == "No key, schedule or strategy of a recipe is called `train.eposch`. Did you mean `epochs`?"
    )


def test_markdown_is_a_table_whose_bars_are_escaped():
    table = markdown(blocks_at("data.split")[0]).splitlines()
    assert table[:2] == ["| key | values | default | meaning |", "|---|---|---|---|"]
    assert all(line.replace("\\|", "").count("|") == 5 for line in table)
