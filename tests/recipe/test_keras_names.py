"""The names of losses and metrics are those of the installed Keras, and a misspelt one is found without it."""

import keras
import pytest

from finetune.recipe.keras_names import LOSSES, METRICS, plain, unknown_names
from finetune.recipe.loader import load_recipe
from finetune.recipe.text import dump

ABSTRACT = {"loss", "lossfunctionwrapper", "metric", "meanmetricwrapper", "get", "serialize", "deserialize"}


@pytest.mark.parametrize(
    ("module", "names"), [(keras.losses, LOSSES), (keras.metrics, METRICS)], ids=["loss", "metric"]
)
def test_the_list_is_that_of_the_installed_keras(module, names):
    public = {plain(name) for name, value in vars(module).items() if callable(value)} - ABSTRACT
    known = {plain(name) for name in names}
    assert public <= known
    for name in {*names} - {"accuracy", "acc", "crossentropy", "ce"}:  # chosen by the shape of the targets
        assert plain(name) in public or module.get(name), name


@pytest.fixture
def unknown(valid, tmp_path):
    def sentences(model=valid["model"], **train):
        (tmp_path / "r.yaml").write_text(dump({**valid, "model": model, "train": {**valid["train"], **train}}))
        return [text.replace(f"{tmp_path}/", "") for text in unknown_names(load_recipe(tmp_path / "r.yaml"))]

    return sentences


@pytest.mark.parametrize("name", ["mse", "MSE", "MeanSquaredError", "mean_squared_error", "huber", "KLDivergence"])
def test_every_spelling_of_a_loss_is_known(unknown, name):
    assert unknown(loss=name) == []


def test_a_misspelt_name_is_told_with_its_place_and_the_nearest(unknown):
    loss, metric = unknown(loss="sparse_categorical_crosentropy", metrics=["accuracy", {"name": "f1"}])
    place, _, text = loss.partition(": ")
    assert place.startswith("r.yaml:")
    assert text.startswith(
        "`train.loss: sparse_categorical_crosentropy` is not a name that Keras knows. "
        "Did you mean `sparse_categorical_crossentropy`"
    )
    assert "`train.metrics.1: f1` is not a name that Keras knows." in metric
    assert "`f1_score`" in metric


def test_code_of_the_user_may_register_more(unknown):
    assert unknown(model={"builder": "mine:build"}, loss="my_loss") == []
