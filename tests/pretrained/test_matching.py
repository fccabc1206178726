from dataclasses import replace

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from finetune.errors import RestoreError
from finetune.groups.layer_tree import layer_tree
from finetune.pretrained.formats.weight_file import StoredTensor, WeightFile
from finetune.pretrained.matching import is_under, match


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


@pytest.mark.parametrize(
    ("name", "prefix", "under"),
    [("a/kernel", "a", True), ("a", "a", True), ("ab/kernel", "a", False), ("a/Logits", "a/", True)]
    + [("a/LogitsAux/w", "a/Logits", False), ("b/a/kernel", "a", False)],
)
def test_a_prefix_ends_at_a_slash(name, prefix, under):
    assert is_under(name, [prefix]) is under


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


def test_an_exclude_that_matches_nothing_is_refused_with_the_nearest_name(tree):
    message = complaint(match(tree, file_of(BODY | HEAD), exclude=["haed"]))
    assert "`exclude` takes prefixes of the model's names, and `haed` matches nothing" in message
    assert "begin with `body`, `head`. Did you mean `head`?" in message


def test_a_missing_weight_is_refused_with_the_nearest_name_and_what_to_do(tree):
    message = complaint(match(tree, file_of(BODY | {"haed/kernel": (4, 2), "haed/bias": (2,)})))
    assert message.startswith("`w.ckpt` (tf1-checkpoint) does not fit the model; nothing was restored.\n- ")
    assert "2 are not: `head/kernel` (nearest in the file: `haed/kernel`), `head/bias` (nearest" in message
    assert "Exclude `head` to keep fresh weights there, `rename` the file's weights, or name a prefix in" in message


def test_an_unused_weight_is_refused_with_the_nearest_name_and_what_to_do(tree):
    message = complaint(match(tree, file_of(BODY | HEAD | {"top/kernel": (2, 2)})))
    assert "Each weight of the file must be in the model, and 1 is not: `top/kernel`. `rename` them, or" in message


def test_a_shape_conflict_tells_both_shapes_and_what_to_exclude():
    message = complaint(match(tree_of(body=4, head=5), file_of(BODY | HEAD)))
    assert "2 do not: `head/kernel` is (4, 5) in the model and (4, 2) in the file (`head/kernel`)" in message
    assert message.endswith("Exclude `head` to keep fresh weights there.")


@pytest.mark.parametrize("dtype", ["int8", "uint8", "bool"])
def test_whole_numbers_do_not_become_weights(tree, dtype):
    message = complaint(match(tree, file_of(BODY | HEAD, dtype=dtype)))
    assert f"`body/kernel` is (3, 4) float32 in the model and (3, 4) {dtype} in the file" in message


def test_all_kinds_of_problems_are_told_in_one_error():
    plan = match(tree_of(body=4, neck=4, head=5), file_of(BODY | HEAD | {"x/w": (1,)}), exclude=["q"], rename={"z": ""})
    assert len(plan.problems) == 5
    message = complaint(plan)
    assert all(
        part in message for part in ("`rename` must match", "`q` matches nothing", "`neck/kernel`", "`x/w`", "(4, 5)")
    )


def test_five_names_are_shown_and_the_others_counted():
    tree = tree_of(**{f"layer{i}": 3 for i in range(4)})
    message = complaint(match(tree, file_of({"layer0/kernel": (3, 3)})))
    assert "7 are not" in message
    assert message.count("/bias`") + message.count("/kernel`") == 5
    assert "and 2 more. Exclude `layer0`, `layer1`, `layer2`, `layer3`" in message


def test_only_what_lies_under_an_allowed_prefix_may_be_missing_or_unused(tree):
    match(tree, file_of(BODY | {"old/w": (1,)}), allow_missing=["head"], allow_unused=["old"]).check()
    assert "`head/bias`" in complaint(match(tree, file_of(BODY), allow_missing=["head/kernel"]))
    assert "`old/w`" in complaint(match(tree, file_of(BODY | HEAD | {"old/w": (1,)}), allow_unused=["ol"]))


def test_a_restore_that_restores_nothing_is_refused_even_if_everything_is_allowed(tree):
    plan = match(tree, file_of({"x/w": (1,)}), allow_missing=["body", "head"], allow_unused=["x"])
    assert "Restoring must restore something" in complaint(plan)
    assert "The file holds `x/w`." in complaint(plan)
    assert "only weights of excluded layers" in complaint(match(tree, file_of(BODY), exclude=["body", "head"]))


def test_a_single_number_that_no_weight_asks_for_is_listed_and_not_refused(tree):
    plan = match(tree, file_of(BODY | HEAD | {"metric/total": ()}))
    plan.check()
    assert names(plan.unused) == ["metric/total"]


def test_a_part_of_the_other_side_is_recognised_and_the_rule_that_helps_is_told(tree):
    inside = {f"net/{name}": shape for name, shape in (BODY | HEAD).items()}
    hint = '`rename: {"^net/": ""}` would match most of them.'
    assert hint in complaint(match(tree, file_of(inside)))
    match(tree, file_of(inside), rename={"^net/": ""}).check()

    outer = keras.Sequential([keras.Input((3,)), keras.Sequential([keras.Input((3,)), layers.Dense(4, name="body")])])
    name = outer.layers[0].name
    assert f'`rename: {{"^": "{name}/"}}` would match' in complaint(match(layer_tree(outer), file_of(BODY)))
    match(layer_tree(outer), file_of(BODY), rename={"^": f"{name}/"}).check()


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


def test_two_weights_of_the_file_for_one_of_the_model_are_refused(tree):
    plan = match(tree, file_of(BODY | HEAD | {"old/bias": (4,)}), rename={"^old/": "body/"})
    assert "1 is matched by several: `body/bias` by `body/bias`, `old/bias`. Give them" in complaint(plan)


def test_a_layer_s_weights_match_by_their_index_only_if_there_are_equally_many():
    model = keras.Sequential([keras.Input((4,)), layers.BatchNormalization(name="bn"), layers.Dense(2, name="head")])
    tree = layer_tree(model)
    numbered = {f"bn/{i}": StoredTensor(f"bn/{i}", (4,), "float32", lambda: np.zeros(4), (i, 4)) for i in range(4)}
    head = tuple(StoredTensor(f"head/{i}", s, "float32", lambda: 0, (i, 2)) for i, s in enumerate(HEAD.values()))
    plan = match(tree, WeightFile("w", "keras-weights", (*numbered.values(), *head)))
    assert [(p.leaf.name, p.tensor.name) for p in plan.restored[:4]] == [
        ("bn/gamma", "bn/0"),
        ("bn/beta", "bn/1"),
        ("bn/moving_mean", "bn/2"),
        ("bn/moving_variance", "bn/3"),
    ]
    assert {p.how for p in plan.restored} == {"layer and index"}
    assert names(plan.restored[4:]) == ["head/kernel", "head/bias"]
    three = tuple(StoredTensor(f"bn/{i}", (4,), "float32", lambda: np.zeros(4), (i, 3)) for i in range(3))
    message = complaint(match(tree, WeightFile("w", "keras-weights", (*three, *head))))
    assert "`bn/gamma` (`bn` in the file: 3 weights)" in message


def test_automatic_names_match_by_their_order_when_only_the_numbers_differ():
    tree = layer_tree(
        keras.Sequential([keras.Input((3,)), layers.Dense(3), layers.Dense(3), layers.Dense(3, name="x")])
    )
    ours = [name.partition("/")[0] for name in tree.by_name][::2]
    shapes = {f"{layer}/{w}": (3, 3) if w == "kernel" else (3,) for layer in ("dense_7", "dense_8", "x") for w in WB}
    plan = match(tree, file_of(shapes))
    plan.check()
    pairs = {p.leaf.name: (p.tensor.name, p.how) for p in plan.restored}
    assert pairs[f"{ours[0]}/kernel"] == ("dense_7/kernel", "renumbered")
    assert pairs[f"{ours[1]}/bias"] == ("dense_8/bias", "renumbered")
    assert pairs["x/kernel"] == ("x/kernel", "name")


def test_automatic_names_that_overlap_match_by_their_order_too():
    shapes = {f"{layer}/{w}": (3, 3) if w == "kernel" else (3,) for layer in ("dense", "dense_1") for w in WB}
    plan = match(tree_of(dense_1=3, dense_2=3), file_of(shapes))
    plan.check()
    assert [(p.leaf.layer, p.tensor.name) for p in plan.restored[::2]] == [
        ("dense_1", "dense/kernel"),
        ("dense_2", "dense_1/kernel"),
    ]


WB = ("kernel", "bias")


def test_names_that_people_gave_are_never_shifted():
    shapes = {f"block_{i}/{w}": (3, 3) if w == "kernel" else (3,) for i in (1, 2) for w in WB}
    plan = match(tree_of(block_2=3, block_3=3), file_of(shapes))
    assert [(p.leaf.name, p.tensor.name) for p in plan.restored] == [(f"block_2/{w}", f"block_2/{w}") for w in WB]
    assert names(plan.missing) == ["block_3/kernel", "block_3/bias"]


def test_an_ending_counts_only_if_one_weight_has_it():
    def model_of(*names):
        parts = (keras.Sequential([keras.Input((3,)), layers.Dense(3, name="conv")], name=name) for name in names)
        return layer_tree(keras.Sequential([keras.Input((3,)), *parts, layers.Dense(4, name="body")]))

    shapes = dict(zip(WB, [(3, 3), (3,)], strict=True))
    ending = [StoredTensor(f"conv/{w}", s, "float32", lambda: 0, aliases=(f"*/conv/{w}",)) for w, s in shapes.items()]
    file = WeightFile("w", "tf-object-checkpoint", (*ending, *file_of(BODY).tensors))
    assert [(p.leaf.name, p.how) for p in match(model_of("bb"), file).restored[:2]] == [
        ("bb/conv/kernel", "ending"),
        ("bb/conv/bias", "ending"),
    ]
    assert names(match(model_of("one", "two"), file).restored) == ["body/kernel", "body/bias"]


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


@pytest.mark.parametrize("structured", [True, False])
def test_names_come_before_structure_where_all_of_the_file_s_are_in_the_model(structured):
    shapes = {f"block_{i}/{w}": (3, 3) if w == "kernel" else (3,) for i in (1, 2) for w in WB}
    tree = tree_of(block_0=3, block_1=3, block_2=3)
    shifted = {f"block_{i - 1}/{w}": (f"keras:block_{i}/{w}",) for i in (1, 2) for w in WB} if structured else {}
    file = file_of(shapes)
    moved = tuple(replace(t, locations=(f"keras:{t.name}",)) for t in file.tensors)
    plan = match(tree, replace(file, tensors=moved), exclude=["block_0"], locations=shifted)
    plan.check()
    assert [(p.leaf.name, p.tensor.name) for p in plan.restored] == [(name, name) for name in shapes]


def test_a_smaller_share_of_the_parameters_than_asked_for_is_refused(tree):
    settings = {"allow_missing": ["head"]}  # 16 of 26 parameters are in the file
    match(tree, file_of(BODY), **settings, min_coverage=0.61).check()
    assert "`min_coverage: 0.62`" in complaint(match(tree, file_of(BODY), **settings, min_coverage=0.62))


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
