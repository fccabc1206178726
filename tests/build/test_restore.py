import keras
import numpy as np
import pytest

from finetune.build.restore import restore_weights
from finetune.errors import RestoreError
from finetune.groups.layer_tree import layer_tree
from finetune.recipe.loader import load_recipe


@pytest.fixture
def weights(tiny, tmp_path):
    """A file with the weights of a tiny model, all of them 0.5, and names of another network for two of them."""
    arrays = {leaf.name: np.full(leaf.variable.shape, 0.5, "float32") for leaf in layer_tree(tiny()).leaves}
    arrays["old/kernel"] = arrays.pop("head/kernel").T
    np.savez(tmp_path / "weights.npz", **arrays)
    return tmp_path / "weights.npz"


def restored(recipe, model, written, **more):
    return restore_weights(load_recipe(recipe, overrides=[f"restore={{{written}}}"]), model, **more)


def test_a_recipe_without_restore_reads_nothing(recipe, tiny):
    model = tiny()
    before = model.get_weights()
    assert restore_weights(load_recipe(recipe), model) is None
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_rename_and_transform_of_the_recipe_are_applied(recipe, tiny, weights):
    model = tiny()
    rules = "rename: {'^old/': head/}, transform: [{names: head/kernel, transpose: [1, 0]}]"
    report = restored(recipe, model, f"from: {weights}, {rules}")
    assert report.coverage == 1.0
    assert all((array == 0.5).all() for array in model.get_weights())


@pytest.mark.parametrize(
    ("keys", "fresh"), [("exclude: [head]", 1.0), ("allow_missing: [head/kernel], allow_unused: [old]", 1.0)]
)
def test_layers_that_keep_their_fresh_weights_are_named_by_the_recipe(recipe, tiny, weights, keys, fresh):
    keys += ", allow_unused: [old, head]" if "exclude" in keys else ""
    model = tiny()
    model.get_layer("head").kernel.assign(np.full((8, 3), fresh))
    restored(recipe, model, f"from: {weights}, {keys}")
    assert (model.get_layer("head").kernel.numpy() == fresh).all()
    assert (model.get_layer("body").kernel.numpy() == 0.5).all()


def test_what_is_not_allowed_to_be_missing_is_an_error(recipe, tiny, weights):
    with pytest.raises(RestoreError, match="head/kernel"):
        restored(recipe, tiny(), f"from: {weights}, allow_unused: [old]")
    with pytest.raises(RestoreError, match="min_coverage"):
        restored(
            recipe, tiny(), f"from: {weights}, allow_missing: [head/kernel], allow_unused: [old], min_coverage: 0.99"
        )


def test_outputs_are_compared_only_where_that_is_asked_for(recipe, tiny, tiny_files, tmp_path):
    np.savez(tmp_path / "wrong.npz", input=np.ones((2, 6), "float32"), output=np.full((2, 3), 9.0, "float32"))
    written = f"from: {tiny_files / 'tiny.keras'}, verify: {tmp_path / 'wrong.npz'}"
    assert restored(recipe, tiny(), written, verify=False).verified == ""
    with pytest.raises(RestoreError, match="differs by up to"):
        restored(recipe, tiny(), written)
    loose = restored(recipe, tiny(), f"{written}, verify_atol: 100.0")
    assert loose.verified


def test_the_tree_that_is_passed_is_used(recipe, tiny, tiny_files):
    keras.utils.set_random_seed(4)
    model = tiny()
    tree = layer_tree(model)
    report = restored(recipe, model, f"from: {tiny_files / 'tiny.keras'}", tree=tree)
    assert [weight.name for weight in report.restored] == [leaf.name for leaf in tree.leaves]


def test_averages_of_the_recipe_take_the_place_of_the_weights(recipe, tiny, tmp_path):
    arrays = {leaf.name: np.full(leaf.variable.shape, 0.5, "float32") for leaf in layer_tree(tiny()).leaves}
    arrays |= {f"{name}/ExponentialMovingAverage": array / 2 for name, array in arrays.items()}
    np.savez(tmp_path / "ema.npz", **arrays)
    model = tiny()
    restored(recipe, model, f"from: {tmp_path / 'ema.npz'}")
    assert all((array == 0.5).all() for array in model.get_weights())
    restored(recipe, model, f"from: {tmp_path / 'ema.npz'}, averages: true")
    assert all((array == 0.25).all() for array in model.get_weights())
