from dataclasses import replace

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from finetune.errors import RestoreError
from finetune.groups.layer_tree import layer_tree
from finetune.pretrained.formats.weight_file import StoredTensor, WeightFile
from finetune.pretrained.matching import match


def tree_of(**dense):
    """A stack of Dense layers by name and width, from 3 features."""
    return layer_tree(keras.Sequential([keras.Input((3,)), *(layers.Dense(w, name=n) for n, w in dense.items())]))


def file_of(shapes, dtype="float32", **known):
    tensors = (StoredTensor(name, shape, dtype, lambda s=shape: np.zeros(s), **known) for name, shape in shapes.items())
    return WeightFile("w.ckpt", "tf1-checkpoint", tuple(tensors))


BODY = {"body/kernel": (3, 4), "body/bias": (4,)}
HEAD = {"head/kernel": (4, 2), "head/bias": (2,)}


@pytest.fixture
def tree():
    return tree_of(body=4, head=2)


def names(items):
    return [item.leaf.name if hasattr(item, "leaf") else item.name for item in items]


def complaint(plan):
    with pytest.raises(RestoreError) as caught:
        plan.check()
    return str(caught.value)


def test_equal_names_match_whatever_the_order_in_the_file(tree):
    plan = match(tree, file_of(HEAD | BODY))
    plan.check()
    assert names(plan.restored) == ["body/kernel", "body/bias", "head/kernel", "head/bias"]
    assert {found.how for found in plan.restored} == {"name"}
    assert plan.missing == plan.unused == plan.shape_conflict == plan.excluded == ()


def test_excluded_weights_stay_and_what_the_file_has_for_them_is_not_unused():
    plan = match(tree_of(body=4, head=5), file_of(BODY | HEAD), exclude=["head"])
    plan.check()
    assert names(plan.restored) == ["body/kernel", "body/bias"]
    assert names(plan.excluded) == ["head/kernel", "head/bias"]
    assert plan.unused == plan.shape_conflict == ()


def test_what_the_file_has_below_an_excluded_layer_is_not_unused_even_if_the_model_has_no_such_weight(tree):
    plan = match(tree, file_of(BODY | HEAD | {"head/extra/kernel": (2, 2)}), exclude=["head"])
    plan.check()
    assert plan.unused == ()


@pytest.mark.parametrize("dtype", ["int8", "uint8", "bool"])
def test_integers_do_not_become_weights(tree, dtype):
    message = complaint(match(tree, file_of(BODY | HEAD, dtype=dtype)))
    assert f"`body/kernel` is (3, 4) float32 in the model and (3, 4) {dtype} in the file" in message


def test_rules_rename_the_file_s_weights_one_after_the_other(tree):
    shapes = {f"module/enc/{name}": shape for name, shape in (BODY | HEAD).items()}
    plan = match(tree, file_of(shapes), rename={"^module/(.*)": r"\1", "^enc/": ""})
    plan.check()
    assert {found.how for found in plan.restored} == {"rename"}
    assert plan.restored[0].tensor.name == "module/enc/body/kernel"


def test_a_rule_that_matches_nothing_and_a_rule_that_is_none_are_refused(tree):
    message = complaint(match(tree, file_of(BODY | HEAD), rename={"^modul/": ""}))
    assert "`^modul/` matches none. The file holds `body/kernel`, `body/bias`, `head/kernel`" in message
    with pytest.raises(RestoreError, match=r"needs regular expressions and replacements. `\(: x`"):
        match(tree, file_of(BODY), rename={"(": "x"})
    with pytest.raises(RestoreError, match=r"needs regular expressions and replacements. `body: \\2`"):
        match(tree, file_of(BODY), rename={"body": r"\2"})


def test_a_new_name_makes_the_file_forget_where_it_kept_the_weight(tree):
    file = file_of(BODY | HEAD, locations=(), aliases=())
    moved = tuple(replace(t, locations=(f"keras:{t.name}",)) for t in file.tensors)
    places = {name: (f"keras:{name}",) for name in tree.by_name}
    plan = match(tree, replace(file, tensors=moved), rename={"^body": "old"}, locations=places)
    assert names(plan.restored) == ["head/kernel", "head/bias"]


def test_the_weights_of_a_bare_module_match_by_name():
    module = tf.Module()
    module.kernel = tf.Variable(tf.ones((2, 3)))
    (name,) = layer_tree(module).by_name
    match(layer_tree(module), file_of({name: (2, 3)})).check()


def test_a_rule_may_match_some_names_only(tree):
    shapes = {"old/kernel": (3, 4), "old/bias": (4,)} | HEAD
    plan = match(tree, file_of(shapes), rename={"^old/": "body/"})
    plan.check()
    assert len(plan.restored) == 4


def test_a_new_name_makes_the_file_forget_the_other_names_of_the_weight(tree):
    known = [replace(t, name=f"x/{t.name}", aliases=(t.name,)) for t in file_of(BODY).tensors]
    file = replace(file_of(HEAD), tensors=(*known, *file_of(HEAD).tensors))
    assert [p.how for p in match(tree, file).restored] == ["alias", "alias", "name", "name"]
    assert names(match(tree, file, rename={"^x/": "y/"}).restored) == ["head/kernel", "head/bias"]


def test_a_weight_known_by_another_name_is_not_said_to_be_known_by_its_index(tree):
    weights = replace(file_of(BODY).tensors[0], name="body/weights", aliases=("body/kernel",))
    plan = match(tree, replace(file_of(HEAD), tensors=(weights, *file_of({"body/bias": (4,)} | HEAD).tensors)))
    assert [(p.tensor.name, p.how) for p in plan.restored[:1]] == [("body/weights", "alias")]


def test_what_belongs_to_an_excluded_layer_by_another_or_an_older_name_is_not_unused(tree):
    file = file_of(BODY | HEAD | {"x/extra": (2, 2), "head/older": (2, 2), "y/extra": (2, 2)})
    tensors = [replace(t, aliases=("head/extra",)) if t.name == "x/extra" else t for t in file.tensors]
    plan = match(tree, replace(file, tensors=tuple(tensors)), exclude=["head"], rename={"^head/older": "z/older"})
    assert names(plan.unused) == ["y/extra"]


def test_every_kind_of_problem_is_collected_in_one_plan():
    tree = tree_of(body=4, neck=4, head=5)
    file = file_of(BODY | HEAD | {"x/w": (1,), "y/bias": (4,)})
    plan = match(tree, file, exclude=["q"], rename={"z": "", "^y/": "body/"}, min_coverage=0.9)
    parts = ["`rename` must match", "`q` matches nothing", "`body/bias` by `body/bias`, `y/bias`", "`neck/kernel`"]
    parts += ["`x/w`", "`head/kernel` is (4, 5)", "`min_coverage: 0.9`"]
    assert len(plan.problems) == len(parts)
    assert all(part in problem for part, problem in zip(parts, plan.problems, strict=True))
    (nothing,) = match(tree, file_of({"x/w": ()}), allow_missing=["body", "neck", "head"]).problems
    assert "At least one weight must be restored" in nothing


def test_weights_that_may_be_missing_need_no_coverage(tree):
    match(tree, file_of(BODY), allow_missing=["head"]).check()


def test_a_name_that_a_rule_made_is_not_renumbered():
    tree = tree_of(dense_1=3, dense_2=3)
    file = file_of({"a/kernel": (3, 3), "a/bias": (3,), "dense_3/kernel": (3, 3), "dense_3/bias": (3,)})
    plan = match(tree, file, rename={"^a/": "dense_2/"})
    assert [(pair.leaf.name, pair.tensor.name) for pair in plan.restored] == [
        ("dense_2/kernel", "a/kernel"),
        ("dense_2/bias", "a/bias"),
    ]
