"""The LR range test as people call it: it judges, proposes a rate for every group, and is plain data."""

import json
from dataclasses import replace

import keras
import numpy as np
import pytest
import tensorflow as tf

from finetune import HubLayer, export_hub
from finetune.errors import DataError, GroupError, TrainingError
from finetune.optimizers.grouped import GroupedOptimizer
from finetune.training.lr_range.api import ALL, RangeTest, judge, lr_range_test
from finetune.training.lr_range.sweep import Sweep

GENERATOR = np.random.default_rng(0)
X = GENERATOR.normal(size=(256, 6)).astype("float32")
Y = (X @ GENERATOR.normal(size=6) > 0).astype("int64")


def batches(rows: int = 256) -> tf.data.Dataset:
    return tf.data.Dataset.from_tensor_slices((X[:rows], Y[:rows])).batch(16)


def compiled(**settings) -> keras.Model:
    keras.utils.set_random_seed(1)
    body, head = keras.layers.Dense(16, activation="relu", name="body"), keras.layers.Dense(2, name="head")
    model = keras.Sequential([keras.Input((6,)), body, head])
    optimizer = GroupedOptimizer(
        {"body": (keras.optimizers.Adam(1e-3), body), "head": (keras.optimizers.Adam(1e-2), head)}
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss=loss, **settings)
    return model


@pytest.fixture(scope="module")
def together():
    return lr_range_test(compiled(), batches(), repeats=2)


def test_all_groups_together_get_rates_in_the_ratios_they_had(together):
    rates = together.learning_rates
    assert list(rates) == ["body", "head"]
    assert rates["head"] / rates["body"] == pytest.approx(10)
    assert rates["head"] == together.verdicts[ALL].learning_rate
    assert 1e-3 < rates["head"] < 1


def test_many_groups_with_the_same_suggestion_are_told_in_a_line(together):
    sentences = together.suggestions()
    assert [sentence.split(":")[0] for sentence in sentences] == ["suggested for `body`", "suggested for `head`"]
    verdict = together.verdicts[ALL]
    same = replace(together, base_rates=dict.fromkeys("abcd", 1e-3))
    confidence = f"(confidence {verdict.confidence:.2f})"
    assert same.suggestions("{:.1e}".format) == [
        f"suggested for all 4 groups: {verdict.learning_rate:.1e}  {confidence}"
    ]
    assert len(replace(same, base_rates=dict(zip("abcd", [1, 1, 1, 2], strict=True))).suggestions()) == 4


def test_a_dataset_too_short_is_repeated_and_that_is_said(together):
    assert together.notes == ("The data have 16 batches, and the test needs 200: the batches are repeated.",)
    assert lr_range_test(compiled(), batches().repeat(), steps=3).notes == ()


def test_the_result_is_plain_data_with_every_repeat(together):
    plain = json.loads(json.dumps(together.to_json()))
    curve = plain["curves"][ALL]
    steps = len(curve["rates"])
    assert {len(curve[key]) for key in ("losses", "smoothed")} == {steps}
    assert [len(one) for one in curve["repeats"]] == [len(sweep.losses) for sweep in together.sweeps[ALL]]
    np.testing.assert_allclose(
        curve["losses"], np.mean([one[:steps] for one in curve["repeated_losses"]], axis=0), rtol=1e-6
    )
    assert set(curve["group_rates"]) == {"body", "head"}
    assert plain["learning_rates"] == together.learning_rates
    assert plain["snapshot_bytes"] > 0


@pytest.mark.slow
def test_plot_writes_the_picture(together, tmp_path):
    together.plot(tmp_path / "curve")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["curve.png", "curve.svg"]


@pytest.mark.slow
def test_each_group_alone_gets_a_rate_of_its_own():
    found = lr_range_test(compiled(), batches(), each=True)
    assert list(found.sweeps) == list(found.verdicts) == ["body", "head"]
    alone = lr_range_test(compiled(), batches(), group="body")
    assert list(alone.learning_rates) == ["body"]
    np.testing.assert_array_equal(alone.sweeps["body"][0].losses, found.sweeps["body"][0].losses)
    assert all(sweep.rates[:, 1 - sweep.swept].max() == 0 for [sweep] in found.sweeps.values())


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{"steps_per_execution": 4}, {"jit_compile": True}, {"run_eagerly": True}])
def test_however_the_model_is_compiled_the_curve_is_the_same(settings):
    plain, other = (
        lr_range_test(compiled(**more), batches(), steps=20).sweeps[ALL][0].losses for more in ({}, settings)
    )
    np.testing.assert_allclose(plain, other, rtol=1e-4)


@pytest.mark.slow
def test_a_rare_class_changes_nothing_in_how_it_is_judged():
    rare = np.where(np.arange(256) % 32 == 0, 1, 0)
    data = tf.data.Dataset.from_tensor_slices((X, rare)).batch(8)
    verdict = lr_range_test(compiled(), data, repeats=3).verdicts[ALL]
    assert (verdict.learning_rate is None) == (verdict.refused is not None)


def sweep(losses) -> Sweep:
    rates = np.geomspace(1e-5, 1, 100)[:, None]
    return Sweep(("all",), rates[: len(losses)], np.asarray(losses, "float32"), 0, 100, len(losses) < 100, 0)


def test_a_group_that_got_no_rate_is_left_out():
    flat = sweep(np.ones(100))
    found = RangeTest({"body": (flat,)}, {"body": judge((flat,))}, {"body": 1e-3, "head": 1e-2})
    assert found.learning_rates == {}
    assert "flat" in found.verdicts["body"].refused
    assert RangeTest({ALL: (flat,)}, {ALL: judge((flat,))}, {"body": 1e-3}).learning_rates == {}


def test_rates_that_are_given_make_the_ratios():
    found = lr_range_test(compiled(), batches(), steps=3, base_rates={"body": 1.0, "head": 4.0})
    [one] = found.sweeps[ALL]
    np.testing.assert_allclose(one.rates[:, 1] / one.rates[:, 0], 4, rtol=1e-6)


def test_contradictory_arguments_are_errors():
    with pytest.raises(GroupError, match=r"Received group='body' and each=True\. Remove one of the two"):
        lr_range_test(compiled(), batches(), group="body", each=True)
    with pytest.raises(
        GroupError, match=r"are `frozen`, or train at their own `constant` rates\. Received others='sleep'"
    ):
        lr_range_test(compiled(), batches(), group="body", others="sleep")


@pytest.mark.slow
def test_a_hub_layer_is_swept_and_is_as_before_afterwards(tmp_path):
    body = keras.Sequential([keras.Input((6,)), keras.layers.Dense(8, name="a"), keras.layers.BatchNormalization()])
    export_hub(body, tmp_path / "hub")
    inputs = keras.Input((6,))
    hub, head = HubLayer(str(tmp_path / "hub"), name="hub"), keras.layers.Dense(2, name="head")
    model = keras.Model(inputs, head(hub(inputs)))
    groups = {"hub": (keras.optimizers.Adam(1e-3), hub), "head": (keras.optimizers.Adam(1e-2), head)}
    model.compile(GroupedOptimizer(groups), loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    before = [variable.numpy() for variable in model.weights]
    found = lr_range_test(model, batches(), each=True)
    assert list(found.sweeps) == ["hub", "head"]
    assert found.sweeps["hub"][0].losses.std() > 0
    assert all(np.array_equal(a, b.numpy()) for a, b in zip(before, model.weights, strict=True))


class Sequence(keras.utils.PyDataset):
    """The rows in batches of 16."""

    def __len__(self):
        return 16

    def __getitem__(self, index):
        return X[16 * index : 16 * index + 16], Y[16 * index : 16 * index + 16]


def test_arrays_and_a_pydataset_are_taken_as_fit_takes_them():
    keras.utils.set_random_seed(0)
    of_arrays = lr_range_test(compiled(), X, Y, batch_size=64, steps=4)
    assert of_arrays.notes == ()
    of_sequence = lr_range_test(compiled(), Sequence(), steps=4)
    of_dataset = lr_range_test(compiled(), batches(), steps=4)
    np.testing.assert_array_equal(of_sequence.sweeps[ALL][0].losses, of_dataset.sweeps[ALL][0].losses)


def test_weights_of_rows_and_classes_weigh_the_loss_that_is_measured():
    plain = lr_range_test(compiled(), batches(), steps=2).sweeps[ALL][0].losses
    by_class = lr_range_test(compiled(), batches(), class_weight={0: 2.0, 1: 2.0}, steps=2).sweeps[ALL][0].losses
    by_row = lr_range_test(compiled(), X, Y, sample_weight=np.full(256, 2.0), batch_size=256, steps=2)
    np.testing.assert_allclose(by_class, 2 * plain, rtol=1e-5)
    whole = lr_range_test(compiled(), X, Y, batch_size=256, steps=2).sweeps[ALL][0].losses
    np.testing.assert_allclose(by_row.sweeps[ALL][0].losses, 2 * whole, rtol=1e-5)


def test_a_generator_that_ends_too_early_is_an_error_since_it_cannot_begin_again():
    generator = ((X[n : n + 16], Y[n : n + 16]) for n in range(0, 64, 16))
    with pytest.raises(TrainingError, match=r"The batches ran out after 0 of 10 steps\. Pass a dataset that repeats"):
        lr_range_test(compiled(), generator, steps=10)


def test_the_random_state_is_not_moved_by_the_order_of_the_rows():
    model, drawn = compiled(), []
    for measures in (False, True):
        tf.random.set_seed(3)
        if measures:
            lr_range_test(model, X, Y, steps=3)
        drawn.append(float(tf.random.normal([])))
    assert drawn[0] == drawn[1]


def test_a_model_that_is_not_compiled_is_an_error():
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(2)], name="net")
    with pytest.raises(GroupError, match=r"optimizer and loss\. `net` is not compiled\. Call `model.compile` first\."):
        lr_range_test(model, X, Y, steps=3)


def test_data_that_fit_would_not_take_are_an_error_that_says_what_it_takes():
    with pytest.raises(DataError, match=r"^Data are what `model.fit` takes\. ValueError: Unrecognized data type"):
        lr_range_test(compiled(), "rows.csv", steps=3)
