"""What is wrong with a restore, as the user reads it: the rule, what was received, what is nearest, what to do."""

import keras
import numpy as np
import pytest
from keras import layers

from finetune.errors import RestoreError
from finetune.groups.layer_tree import layer_tree
from finetune.pretrained.formats.weight_file import StoredTensor, WeightFile
from finetune.pretrained.matching import match
from finetune.pretrained.problems import low_coverage, nothing_restored, unmatched_excludes
from finetune.pretrained.transforms import Transform


def tree_of(**dense):
    """A stack of Dense layers by name and width, from 3 features."""
    return layer_tree(keras.Sequential([keras.Input((3,)), *(layers.Dense(w, name=n) for n, w in dense.items())]))


def file_of(shapes, dtype="float32", kind="tf1-checkpoint", **known):
    tensors = (StoredTensor(name, shape, dtype, lambda s=shape: np.zeros(s), **known) for name, shape in shapes.items())
    return WeightFile("w.ckpt", kind, tuple(tensors))


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


def test_an_exclude_that_matches_nothing_is_refused_with_the_nearest_name(tree):
    message = complaint(match(tree, file_of(BODY | HEAD), exclude=["haed"]))
    assert "`exclude` takes prefixes of the model's names, and `haed` matches nothing" in message
    assert "begin with `body`, `head`. Did you mean `head`?" in message


def test_an_exclude_that_is_a_scope_of_the_file_is_told_which_layer_of_the_model_that_is(tree):
    inside = file_of({f"Net/{name}": shape for name, shape in (BODY | HEAD).items()})
    message = complaint(match(tree, inside, exclude=["Net/head"], rename={"^Net/": ""}))
    assert "`Net/head` matches nothing: the file has it. The model's names begin with `body`, `head`." in message
    assert "Exclude `head`, and name `Net/head` in `allow_unused` if the file's weights still count" in message


def test_names_between_commas_are_to_be_a_list(tree):
    message = complaint(match(tree, file_of(BODY | HEAD), exclude=["body, head"]))
    assert "begin with `body`, `head`. Names are written as a list: `[body, head]`." in message


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


def test_all_kinds_of_problems_are_reported_in_one_error():
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
    listed = message.partition("Exclude")[0]
    assert listed.count("/bias`") + listed.count("/kernel`") == 5
    assert "and 2 more. Exclude `layer0/bias`, `layer1`, `layer2`, `layer3`" in message


def test_only_what_lies_under_an_allowed_prefix_may_be_missing_or_unused(tree):
    match(tree, file_of(BODY | {"old/w": (1,)}), allow_missing=["head"], allow_unused=["old"]).check()
    assert "`head/bias`" in complaint(match(tree, file_of(BODY), allow_missing=["head/kernel"]))
    assert "`old/w`" in complaint(match(tree, file_of(BODY | HEAD | {"old/w": (1,)}), allow_unused=["ol"]))


def test_a_restore_that_restores_nothing_is_refused_even_if_everything_is_allowed(tree):
    plan = match(tree, file_of({"x/w": (1,)}), allow_missing=["body", "head"], allow_unused=["x"])
    assert "At least one weight must be restored" in complaint(plan)
    assert "The file holds `x/w`." in complaint(plan)
    message = complaint(match(tree, file_of(BODY), exclude=["body", "head"]))
    assert "`exclude` names all layers of the model. Name only those that are to keep fresh weights, or" in message


def test_a_single_number_that_no_weight_asks_for_is_listed_and_not_refused(tree):
    plan = match(tree, file_of(BODY | HEAD | {"metric/total": ()}))
    plan.check()
    assert names(plan.unused) == ["metric/total"]


def test_a_part_of_the_other_side_is_recognised_and_the_rule_that_helps_is_reported(tree):
    inside = {f"net/{name}": shape for name, shape in (BODY | HEAD).items()}
    hint = "`rename: {'^net/': ''}` would match 4 of the model's weights."
    assert hint in complaint(match(tree, file_of(inside)))
    match(tree, file_of(inside), rename={"^net/": ""}).check()

    outer = keras.Sequential([keras.Input((3,)), keras.Sequential([keras.Input((3,)), layers.Dense(4, name="body")])])
    name = outer.layers[0].name
    assert f"`rename: {{'^': '{name}/'}}` would match" in complaint(match(layer_tree(outer), file_of(BODY)))
    match(layer_tree(outer), file_of(BODY), rename={"^": f"{name}/"}).check()


def test_two_weights_of_the_file_for_one_of_the_model_are_refused(tree):
    plan = match(tree, file_of(BODY | HEAD | {"old/bias": (4,)}), rename={"^old/": "body/"})
    assert "1 is matched by several: `body/bias` by `body/bias`, `old/bias`. Give them" in complaint(plan)


def test_a_missing_weight_of_a_numbered_layer_says_how_many_weights_the_file_has_for_it(tree):
    numbered = [StoredTensor(f"head/{i}", (4, 2), "float32", lambda: 0, (i, 3)) for i in range(3)]
    body = file_of(BODY).tensors
    message = complaint(match(tree, WeightFile("w", "keras-weights", (*body, *numbered))))
    assert "`head/kernel` (`head` in the file: 3 weights)" in message


def test_an_unused_weight_is_shown_with_the_nearest_weight_that_the_model_misses(tree):
    message = complaint(match(tree, file_of(BODY | {"heads/kernel": (4, 2), "head/bias": (2,)})))
    assert "`heads/kernel` (nearest in the model: `head/kernel`)" in message


def test_layers_in_lists_that_an_object_checkpoint_leaves_out_are_explained(tree):
    class Listed(keras.Model):
        def __init__(self):
            super().__init__()
            self.parts = [layers.Dense(3)]
            self.head = layers.Dense(2, name="head")

        def build(self, shape):
            for part in (*self.parts, self.head):
                part.build(shape)

    model = Listed()
    model.build((None, 3))
    hint = "leave out what a Keras 3 model holds in lists or dicts: save it with `save_weights`."
    head = {"head/kernel": (3, 2), "head/bias": (2,)}
    assert hint in complaint(match(layer_tree(model), file_of(head, kind="tf-object-checkpoint")))
    assert hint not in complaint(match(layer_tree(model), file_of(head, kind="npz")))
    assert hint not in complaint(match(tree, file_of(BODY, kind="tf-object-checkpoint")))


def test_a_dot_counts_like_a_slash_in_what_may_be_unused_only_in_files_of_flat_names(tree):
    shapes = BODY | HEAD | {"old.part.w": (1,)}
    match(tree, file_of(shapes, kind="safetensors"), allow_unused=["old.part"]).check()
    match(tree, file_of(shapes, kind="npz"), allow_unused=["old/part"]).check()
    assert "`old.part.w`" in complaint(match(tree, file_of(shapes), allow_unused=["old"]))


def test_weights_in_dispute_are_reported_once_and_neither_as_missing_nor_as_unused(tree):
    plan = match(tree, file_of(BODY | HEAD | {"old/bias": (4,)}), rename={"^old/": "body/"})
    assert len(plan.problems) == 1


def test_a_dispute_over_an_excluded_weight_is_not_a_problem(tree):
    file = file_of(BODY | HEAD | {"old/bias": (2,)})
    match(tree, file, rename={"^old/": "head/"}, exclude=["head"]).check()


def test_too_small_a_coverage_names_the_largest_weights_that_would_not_be_restored(tree):
    plan = match(tree, file_of(BODY), allow_missing=["head"])
    assert plan.coverage == 16 / 26
    assert list(low_coverage(plan, 16 / 26)) == []
    (message,) = low_coverage(plan, 0.7)
    assert "At least 70.0% of the model's parameters outside `exclude` must come from the file" in message
    assert "(`min_coverage: 0.7`), and 61.5% would. The largest that would not: `head/kernel`, `head/bias`." in message


def test_checks_that_find_nothing_wrong_yield_nothing(tree):
    plan = match(tree, file_of(BODY | HEAD), exclude=["head"])
    assert [*unmatched_excludes(tree, ["head", "body/kernel"]), *nothing_restored(plan)] == []
    assert plan.problems == ()


def test_a_nearest_prefix_may_be_that_of_an_inner_layer():
    inner = keras.Sequential([keras.Input((3,)), layers.Dense(3, name="block")], name="net")
    tree = layer_tree(keras.Sequential([keras.Input((3,)), inner]))
    (message,) = unmatched_excludes(tree, ["net/blok"])
    assert "begin with `net`. Did you mean `net/block` or" in message


def test_integers_and_complex_numbers_are_not_taken_for_floats(tree):
    shapes = {"body/kernel": (3, 4), "body/bias": (4,)}
    types = {"body/kernel": "int8", "body/bias": "complex64"}
    tensors = tuple(StoredTensor(name, shape, types[name], lambda: 0) for name, shape in shapes.items())
    plan = match(tree, WeightFile("w.npz", "npz", tensors), exclude=["head"])
    assert [pair.leaf.name for pair in plan.shape_conflict] == ["body/kernel", "body/bias"]
    assert (
        "Integers, floats, complex numbers, text and dates are not taken for each other: quantized weights need their scales, and a "
        "cast would lose parts. 2 weights differ: `body/kernel` is (3, 4) float32 in the model and (3, 4) int8 in the "
        "file (`body/kernel`), `body/bias` is (4,) float32 in the model and (4,) complex64 in the file (`body/bias`). If "
        "the numbers are right as they are, save the file again in the model's type (`array.astype('float32')`), or "
        "exclude `body` to keep fresh weights there."
    ) in complaint(plan)
    assert "Shapes must agree" not in complaint(plan)


def test_what_may_be_unused_is_named_as_the_file_spells_it_or_as_keras_3_does():
    tree = tree_of(conv=4)
    conv = {"conv/kernel": (3, 4), "conv/bias": (4,)}
    unused = {"Logits/kernel": (4, 2), "block/BatchNorm/gamma": (4,)}
    for allowed in (["Logits", "block"], ["logits", "block_bn"]):
        match(tree, file_of(conv | unused), allow_unused=allowed).check()
    assert "1 is not: `Logits/kernel`" in complaint(
        match(tree, file_of(conv | unused), allow_unused=["block", "logit"])
    )


def test_the_file_of_another_network_is_named_first_and_nothing_is_to_be_excluded():
    tree = tree_of(**{f"dense_{number}": 4 for number in range(6)})
    others = {f"conv_{number}/{name}": (3, 3) for number in range(6) for name in ("kernel", "bias")}
    message = complaint(match(tree, file_of(others)))
    assert message.splitlines()[1] == (
        "- The file does not seem to hold the weights of this network: 0 of the model's 12 weights fit. Check first "
        "that `from` names the right file, and that the model is the one, with the arguments, that the file was made of."
    )
    assert "If the file has them under other names, `rename` them; if it is of another network" in message
    assert "Exclude `dense_0`" not in message


def test_a_rule_is_not_blamed_for_the_file_of_another_network():
    tree = tree_of(**{f"dense_{number}": 4 for number in range(6)})
    others = file_of({f"conv_{number}/kernel": (3, 3, 1) for number in range(6)})
    with pytest.raises(RestoreError) as caught:
        match(tree, others, transform=[Transform(names=(".*/kernel",), transpose=(1, 0))])
    assert str(caught.value).startswith(
        "The file does not seem to hold the weights of this network: it has 0 of the model's 12 names. Check first that "
        "`from` names the right file. `transform` must fit each weight that its pattern matches."
    )


def test_scales_and_biases_that_the_file_lacks_may_be_missing_where_their_fresh_values_change_nothing():
    parts = [layers.Conv2D(4, 1, name="conv"), layers.BatchNormalization(name="bn")]
    model = keras.Sequential([keras.Input((2, 2, 3)), *parts])
    norm = {f"bn/{name}": (4,) for name in ("beta", "moving_mean", "moving_variance")}
    saved = file_of({"conv/kernel": (1, 1, 3, 4), **norm})
    message = complaint(match(layer_tree(model), saved))
    assert "the fresh values of `bias`, `gamma` change nothing" in message
    assert "name `conv/bias`, `bn/gamma` in `allow_missing`, or build the layers without (`scale=False`, " in message
    match(layer_tree(model), saved, allow_missing=["conv/bias", "bn/gamma"]).check()

    model.layers[1].gamma.assign([1, 1, 1, 2])
    assert "Exclude `conv/bias`, `bn/gamma` to keep fresh weights there" in complaint(match(layer_tree(model), saved))


def test_a_whole_layer_that_the_file_lacks_is_to_be_excluded_though_its_fresh_values_change_little():
    model = keras.Sequential([keras.Input((3,)), layers.Dense(4, name="body"), layers.LayerNormalization(name="norm")])
    assert "Exclude `norm` to keep fresh weights there" in complaint(match(layer_tree(model), file_of(BODY)))
