import keras
import numpy as np
import pytest
import tensorflow as tf

from finetune.errors import DataError, GroupError
from finetune.groups.selectors import Selector, resolve_groups
from finetune.training.fine_tuner import FineTuner
from finetune.training.tuner_arguments import check_and_build, check_arguments, groups_of, missing_attribute


def test_a_model_without_weights_gets_those_for_the_inputs():
    model = keras.Sequential([keras.layers.Dense(2)])
    check_and_build(model, np.ones((8, 3)))
    assert [weight.shape for weight in model.weights] == [(3, 2), (2,)]


def test_single_rows_in_a_dataset_are_told_from_batches(tiny, rows):
    single = tf.data.Dataset.from_tensor_slices(rows)
    check_and_build(tiny(), single.batch(4))
    with pytest.raises(DataError, match=r"Received elements of shape `\(6,\)`. Write `dataset.batch\(32\)`"):
        check_and_build(tiny(), single)


def test_what_is_no_model_is_told_how_to_become_one():
    with pytest.raises(GroupError, match=r"takes a Keras model\. Received a `str`\. Load a file with"):
        check_and_build("net.keras", np.ones((1, 3)))


def test_groups_are_found_by_blocks_or_are_those_that_were_passed(tiny):
    model = tiny()
    selectors = [Selector("body", prefixes=("stem", "bn", "body")), Selector("head", rest=True)]
    ready = resolve_groups(model, selectors)
    assert groups_of(model, ready, None) == ready
    assert [group.name for group in groups_of(model, selectors, None)] == ["body", "head"]
    assert groups_of(model, None, None) == groups_of(model, None, "block")
    with pytest.raises(GroupError, match="`by` is another name of `groups`"):
        groups_of(model, "block", "layer")
    with pytest.raises(GroupError, match="Layer groups need at least one selector"):
        groups_of(model, [], None)


@pytest.mark.parametrize(
    ("name", "ours"), [("lr", "learning_rate"), ("freeze_epochs", "frozen_epochs"), ("phases", "strategy")]
)
def test_arguments_of_other_libraries_are_called_by_their_name_here(name, ours):
    check_arguments({"callbacks": []})
    with pytest.raises(GroupError, match=f"takes no argument `{name}`.* It is called `{ours}`"):
        check_arguments({name: 1})


def test_methods_of_other_libraries_are_told_with_what_they_are_here(tiny, rows):
    tuner = FineTuner(tiny(), rows, verbose=False)
    with pytest.raises(AttributeError) as error:
        tuner.lr_find()
    assert str(error.value) == "A `FineTuner` has no `lr_find`. It is `lr_range()`."
    assert not hasattr(tuner, "_repr_html_")
    assert missing_attribute("evalute", dir(tuner)) == "A `FineTuner` has no `evalute`. Did you mean `evaluate`?"
    assert missing_attribute("zzz", ["fit", "_train"]) == "A `FineTuner` has no `zzz`. It has `fit`."
