import keras
import numpy as np
import pytest

from finetune import GroupedOptimizer
from finetune.errors import TrainingError
from finetune.keras_private import step_counter
from finetune.training.checkpoints.carried_state import carry_over
from finetune.training.checkpoints.class_columns import ClassChange
from finetune.training.checkpoints.model_state import model_state
from finetune.training.checkpoints.slot_names import slot_names, weight_names

X, Y = np.random.default_rng(0).normal(size=(12, 4)).astype("float32"), np.ones((12, 2), "float32")


def trained(groups, *, steps=3, outputs=2, **options):
    """A model of `stem`, `body`, `head`, whose groups are pairs of a rule and the names of layers."""
    keras.utils.set_random_seed(1)
    layers = [keras.layers.Dense(4, name=name) for name in ("stem", "body")]
    model = keras.Sequential([keras.Input((4,)), *layers, keras.layers.Dense(outputs, name="head")])
    of_groups = {
        name: (getattr(keras.optimizers, rule)(1e-2), [model.get_layer(layer) for layer in members])
        for name, (rule, members) in groups.items()
    }
    model.compile(GroupedOptimizer(of_groups, **options), "mse")
    model.optimizer.build(model.trainable_variables)
    if steps:
        model.fit(X, Y[:, :1].repeat(outputs, 1), batch_size=4, epochs=1, verbose=0)
    return model


def slots(model):
    names = slot_names(model.optimizer, weight_names(model))
    kept = [variable for variable in model.optimizer.variables if id(variable) in names]
    return {tuple(names[id(variable)][1]): variable.numpy() for variable in kept}


def carried(before, after, **options):
    arrays, document = model_state(before)
    return {
        (part.name, part.state): part for part in carry_over(after, arrays, document, source="a.safetensors", **options)
    }


TWO = {"low": ("Adam", ["stem", "body"]), "head": ("Adam", ["head"])}


def test_groups_that_are_split_merged_renamed_and_reordered_keep_their_slots():
    before = trained(TWO)
    after = trained({"top": ("Adam", ["head"]), "b": ("AdamW", ["body"]), "a": ("Adam", ["stem"])}, steps=0)
    parts = carried(before, after)
    assert set(parts) == {("weights", "carried"), ("top", "carried"), ("b", "carried"), ("a", "carried")}
    names = slots(before).keys()
    assert len(names) == 13  # two of each weight, and the steps
    for name in names:
        np.testing.assert_array_equal(slots(after)[name], slots(before)[name])
        assert np.any(slots(after)[name])
    assert int(step_counter(after.optimizer)) == 3
    np.testing.assert_array_equal(after.get_weights()[2], before.get_weights()[2])


def test_another_rule_begins_its_group_afresh_at_the_present_step():
    after = trained({"low": ("SGD", ["stem", "body"]), "head": ("RMSprop", ["head"])}, steps=0)
    parts = carried(trained(TWO), after)
    assert parts["head", "fresh"].why == "`Adam` is now `RMSprop`"
    assert after.optimizer.saved_state.document()["groups"]["head"]["start"] == 3
    assert parts["low", "dropped"].tensors == 8


def test_an_output_of_another_width_begins_afresh_and_the_rest_is_carried():
    after = trained(TWO, steps=0, outputs=3)
    parts = carried(trained(TWO), after)
    assert (parts["weights", "carried"].tensors, parts["weights", "fresh"].tensors) == (4, 2)
    assert parts["head", "fresh"].why == "`head/kernel` has another shape"
    assert ("low", "carried") in parts


def test_averages_that_are_new_begin_at_the_weights_and_those_of_old_are_carried():
    before, after = trained(TWO), trained(TWO, steps=0, use_ema=True)
    assert carried(before, after)["average", "fresh"].tensors == 6
    np.testing.assert_array_equal(slots(after)["stem/kernel", "average"], before.get_weights()[0])
    again = trained(TWO, steps=0, use_ema=True)
    assert carried(trained(TWO, use_ema=True), again)["average", "carried"].tensors == 6
    assert carried(trained(TWO, use_ema=True), trained(TWO, steps=0))["average", "dropped"].tensors == 6


def test_what_was_taken_off_all_rates_stays_and_what_they_follow_is_new():
    before = trained(TWO)
    before.optimizer.learning_rate = 5e-3
    after = trained(TWO, steps=0)
    after.optimizer.reschedule("low", 4e-2)
    carried(before, after)
    assert after.optimizer.learning_rates == pytest.approx({"low": 2e-2, "head": 5e-3})


def test_a_file_of_an_older_version_has_weights_and_no_slots_to_carry():
    arrays, document = model_state(trained(TWO))
    del document["slots"], document["rules"]
    after = trained(TWO, steps=0)
    parts = {part.name: part for part in carry_over(after, arrays, document, source="a.safetensors")}
    assert parts["low"].why.startswith("the checkpoint is of an older version")
    assert int(step_counter(after.optimizer)) == 3


def test_a_network_with_none_of_the_weights_is_refused():
    arrays, document = model_state(trained(TWO))
    other = keras.Sequential([keras.Input((4,)), keras.layers.Dense(5, name="other")])
    other.compile(GroupedOptimizer({"all": (keras.optimizers.Adam(1e-3), other)}), "mse")
    other.optimizer.build(other.trainable_variables)
    with pytest.raises(TrainingError, match=r"No weight of this network is in `a\.safetensors`"):
        carry_over(other, arrays, document, source="a.safetensors")


ABC, CABD = ("a", "b", "c"), ("c", "a", "b", "d")


@pytest.mark.parametrize(("rule", "slots_of_kernel"), [("Adam", 2), ("Adagrad", 1), ("SGD", 0)])
def test_each_class_keeps_its_weights_and_slots_and_a_new_one_begins_as_a_fresh_network(rule, slots_of_kernel):
    groups = {"low": ("Adam", ["stem", "body"]), "head": (rule, ["head"])}
    before, after = trained(groups, outputs=3, use_ema=True), trained(groups, steps=0, outputs=4, use_ema=True)
    fresh, fresh_slots = after.get_weights(), slots(after)
    parts = carried(before, after, classes=[ClassChange("", ABC, CABD)])
    assert parts["head/kernel", "carried"].why == "by the names of the classes; 1 column fresh"
    assert not any(state in ("fresh", "dropped") for _, state in parts)
    former = before.get_weights()
    for place in (-2, -1):  # kernel and bias
        np.testing.assert_array_equal(after.get_weights()[place][..., :3], former[place][..., [2, 0, 1]])
        np.testing.assert_array_equal(after.get_weights()[place][..., 3], fresh[place][..., 3])
    of_kernel = [name for name in slots(before) if name[0] == "head/kernel" and name[1] != "average"]
    assert len(of_kernel) == slots_of_kernel
    for name in of_kernel:
        np.testing.assert_array_equal(slots(after)[name][:, :3], slots(before)[name][:, [2, 0, 1]])
        np.testing.assert_array_equal(slots(after)[name][:, 3], fresh_slots[name][:, 3])
    average = slots(after)["head/kernel", "average"]
    np.testing.assert_array_equal(average[:, :3], slots(before)["head/kernel", "average"][:, [2, 0, 1]])
    np.testing.assert_array_equal(average[:, 3], fresh[-2][:, 3])
    again, document = model_state(before)
    once = after.get_weights()
    carry_over(after, again, document, source="a", classes=[ClassChange("", ABC, CABD)])  # a run restores twice
    np.testing.assert_array_equal(
        np.concatenate([*map(np.ravel, after.get_weights())]), np.concatenate([*map(np.ravel, once)])
    )


def test_slots_without_a_column_for_each_class_begin_afresh_where_classes_change():
    groups = {"low": ("Adam", ["stem", "body"]), "head": ("Adafactor", ["head"])}
    before, after = trained(groups, outputs=3), trained(groups, steps=0, outputs=3)
    parts = carried(before, after, classes=[ClassChange("", ABC, ("b", "a", "c"))])
    assert parts["head", "fresh"].why == "`head/kernel` has another shape"
    assert parts["head/kernel", "carried"].why == "by the names of the classes; 0 columns fresh"


def test_no_class_in_common_leaves_the_last_layer_fresh():
    after = trained(TWO, steps=0, outputs=3)
    fresh = after.get_weights()[-2]
    parts = carried(trained(TWO, outputs=3), after, classes=[ClassChange("", ABC, ("x", "y", "z"))])
    assert parts["head/kernel", "fresh"].why == "no class keeps its column"
    np.testing.assert_array_equal(after.get_weights()[-2], fresh)


def test_a_checkpoint_without_slots_carries_all_else_and_says_so():
    before, after = trained(TWO, use_ema=True), trained(TWO, steps=0, use_ema=True)
    whole, _ = model_state(before)
    arrays, document = model_state(before, slots=False)
    assert len(whole) - len(arrays) == 12  # two of each weight; the averages stay
    parts = {(part.name, part.state): part for part in carry_over(after, arrays, document, source="a.safetensors")}
    assert parts["low", "fresh"].why == "the checkpoint holds no slots (`train.checkpoint_optimizer`)"
    assert set(parts) == {("weights", "carried"), ("low", "fresh"), ("head", "fresh"), ("average", "carried")}
    assert int(step_counter(after.optimizer)) == 3
    assert after.optimizer.saved_state.document()["groups"]["head"]["start"] == 3  # of its bias correction
    np.testing.assert_array_equal(after.get_weights()[2], before.get_weights()[2])
