import pytest

from finetune.errors import RecipeError
from finetune.recipe.code_consent import check_graph_allowed, names_graph
from finetune.recipe.loader import load_recipe, with_values

RECIPE = """model: {hub: nets/a, head: {classes: 3}}
data: {npz: d.npz}
groups: [{name: all, rest: true, optimizer: sgd, learning_rate: 1.0e-3}]
train: {epochs: 1, loss: mse}
"""


@pytest.mark.parametrize("text", ["nets/a", "nets/a/", "/x/nets/a", "/x/y/../nets/a"])
def test_a_graph_is_named_as_in_the_recipe_or_by_its_path(text):
    assert names_graph([f"hub:{text}"], "nets/a", "/x/nets/a")


@pytest.mark.parametrize(
    "text", ["hub:", "hub:/x/nets", "hub:a", "nets/a", "hub:nets/a/b", "op:nets/a", "hub:/x/nets/ab"]
)
def test_anything_else_does_not_name_it(text):
    assert not names_graph([text], "nets/a", "/x/nets/a")


def test_a_path_is_from_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert names_graph(["hub:a"], "../nets/a", str(tmp_path / "a"))


def test_an_address_is_named_whole():
    address = "https://tfhub.dev/google/nnlm/2"
    assert names_graph([f"hub:{address}"], address, address)
    assert not names_graph(["hub:https://tfhub.dev/google/nnlm"], address, address)


def test_a_recipe_with_a_graph_is_refused_with_its_place_and_the_option(tmp_path):
    (tmp_path / "r.yaml").write_text(RECIPE)
    recipe = load_recipe(tmp_path / "r.yaml")
    with pytest.raises(RecipeError) as caught:
        check_graph_allowed(recipe, ["my_package"])
    assert str(caught.value) == (
        f"{tmp_path}/r.yaml:1:14: `model.hub: nets/a` names a SavedModel, whose graph is code, and a recipe may come from "
        "anywhere. `finetune inspect` lists what is in a local one, and `finetune plan` what it would do. Add "
        "`--allow-code hub:nets/a` if you trust it."
    )
    check_graph_allowed(recipe, [f"hub:{tmp_path}/nets/a"])


def test_a_recipe_remembers_what_was_allowed_also_after_a_change(tmp_path):
    (tmp_path / "r.yaml").write_text(RECIPE)
    assert load_recipe(tmp_path / "r.yaml").allowed_code is None
    recipe = load_recipe(tmp_path / "r.yaml", allow_code=["hub:nets/a"])
    assert with_values(recipe, {("train", "epochs"): 2}).allowed_code == ("hub:nets/a",)
