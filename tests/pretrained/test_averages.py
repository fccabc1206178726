"""The moving averages of a file are taken in place of its weights when asked for."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from finetune.errors import RestoreError
from finetune.groups.selectors import resolve_groups
from finetune.optimizers.grouped import GroupedOptimizer
from finetune.pretrained.averages import held, with_averages
from finetune.pretrained.formats.readers import read_weights
from finetune.pretrained.restore import restore

tf1 = tf.compat.v1


def network(name="head"):
    return keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(3, name=name), keras.layers.BatchNormalization(name="bn")]
    )


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Checkpoints of a training in TF1: everything, the averages alone; and the values of all variables."""
    folder = tmp_path_factory.mktemp("tf1")
    with tf.Graph().as_default(), tf1.Session() as session:
        rng = np.random.default_rng(0)
        made = [
            tf1.get_variable(name, initializer=rng.normal(size=shape).astype("float32"), trainable="moving" not in name)
            for name, shape in [("head/kernel", (4, 3)), ("head/bias", (3,))]
            + [(f"bn/{part}", (3,)) for part in ("gamma", "beta", "moving_mean", "moving_variance")]
        ]
        loss = tf.add_n([tf.reduce_sum(variable**2) for variable in made])
        step = tf1.train.get_or_create_global_step()
        train = tf1.train.AdamOptimizer(0.1).minimize(loss, global_step=step)
        average = tf1.train.ExponentialMovingAverage(0.5, step)
        with tf.control_dependencies([train]):
            update = average.apply(tf1.trainable_variables())
        session.run(tf1.global_variables_initializer())
        for _ in range(3):
            session.run(update)
        both = tf1.train.Saver().save(session, str(folder / "both"), write_meta_graph=False)
        shadows = [average.average(variable) for variable in tf1.trainable_variables()]
        alone = tf1.train.Saver(shadows).save(session, str(folder / "alone"), write_meta_graph=False)
        return both, alone, {v.op.name: session.run(v) for v in tf1.global_variables()}


def values_of(model):
    return {f"{layer.name}/{weight.name}": weight.numpy() for layer in model.layers for weight in layer.weights}


END = "/ExponentialMovingAverage"


def test_averages_are_restored_and_moving_statistics_without_an_average_as_they_are(checkpoints):
    both, _, values = checkpoints
    model = network()
    report = restore(model, both, averages=True)
    for name, value in values_of(model).items():
        np.testing.assert_array_equal(value, values.get(f"{name}{END}", values[name]))
        assert f"{name}{END}" not in values or not np.array_equal(value, values[name])
    assert {weight.source: weight.how for weight in report.restored}[f"head/kernel{END}"] == "average"
    assert "6 weights restored" in report.summary()
    assert "4 of them moving averages" in report.summary()


def test_without_averages_the_weights_are_restored_and_the_report_counts_what_else_there_is(checkpoints):
    both, _, values = checkpoints
    model = network()
    report = restore(model, both)
    for name, value in values_of(model).items():
        np.testing.assert_array_equal(value, values[name])
    assert report.others == {"slot": 8, "average": 4, "counter": 3}
    assert report.summary().endswith("read back bit for bit, not read: 3 counters, 8 slots, 4 averages")
    assert report.to_json()["others"]["average"] == 4


def test_a_file_of_averages_alone_gives_them_to_who_asks(checkpoints):
    _, alone, values = checkpoints
    model = network()
    statistics = ["bn/moving_mean", "bn/moving_variance"]
    restore(model, alone, averages=True, allow_missing=statistics)
    for name, value in values_of(model).items():
        if name not in statistics:
            np.testing.assert_array_equal(value, values[f"{name}{END}"])
    with pytest.raises(RestoreError, match="holds moving averages of 4 weights: `averages: true` takes them"):
        restore(model, alone)


@pytest.mark.parametrize("which", [0, 1], ids=["both", "alone"])
def test_averages_that_rename_names_like_weights_take_their_place(checkpoints, which):
    values = checkpoints[2]
    model = network()
    restore(model, checkpoints[which], rename={f"{END}$": ""}, allow_missing=["bn/moving_mean", "bn/moving_variance"])
    np.testing.assert_array_equal(model.get_weights()[0], values[f"head/kernel{END}"])
    np.testing.assert_array_equal(model.get_weights()[1], values[f"head/bias{END}"])


def test_averages_are_renamed_like_the_weights_that_they_stand_for(checkpoints):
    both, _, values = checkpoints
    model = network("top")
    restore(model, both, averages=True, rename={"^head/": "top/"})
    np.testing.assert_array_equal(model.get_weights()[0], values[f"head/kernel{END}"])


def test_slots_that_a_rule_for_weights_renames_stay_slots(checkpoints):
    both, _, values = checkpoints
    model = network("top")
    report = restore(model, both, rename={"^head/": "top/"})
    np.testing.assert_array_equal(model.get_weights()[0], values["head/kernel"])
    assert report.others["slot"] == 8


def test_a_file_without_averages_is_refused_with_what_it_holds(tmp_path):
    np.savez(tmp_path / "m.npz", **{"head/kernel": np.zeros((4, 3)), "head/kernel/Adam": np.zeros((4, 3)), "step": 1})
    with pytest.raises(RestoreError) as caught:
        with_averages(read_weights(tmp_path / "m.npz"))
    assert str(caught.value) == (
        "`averages` takes the moving averages in a file in place of its weights: tensors such as "
        f"`conv/kernel/ExponentialMovingAverage`. `{tmp_path / 'm.npz'}` (npz) has none; it holds 1 weight, 1 slot, "
        "1 counter. Remove `averages`."
    )


def test_what_a_file_holds_is_counted_by_role(tmp_path):
    np.savez(tmp_path / "m.npz", **{"a": np.zeros(3), "a/ema": np.zeros(3)})
    assert held(read_weights(tmp_path / "m.npz")) == "1 weight, 1 average"


def test_a_weight_of_the_model_is_a_weight_whatever_its_name_looks_like(tmp_path):
    class Odd(keras.layers.Layer):
        def build(self, shape):
            self.scale = self.add_weight(shape=(3,), name="scale")
            self.step = self.add_weight(shape=(), name="step")

        def call(self, x):
            return x * self.scale * self.step

    model = keras.Sequential([keras.Input((3,)), Odd(name="odd")])
    np.savez(tmp_path / "m.npz", **{"odd/scale": np.arange(3.0), "odd/step": np.float32(7)})
    restore(model, tmp_path / "m.npz")
    assert model.get_weights()[1] == 7


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_averages_of_an_object_checkpoint_are_taken(tmp_path):
    source = network()
    shadows = {}
    for leaf in source.weights:
        leaf.assign(np.random.default_rng(1).normal(size=leaf.shape))
        shadows[leaf.path.replace("/", "_")] = tf.Variable(leaf.numpy() + 1, name=f"{leaf.path}{END}")
    path = tf.train.Checkpoint(model=source, shadows=shadows).write(str(tmp_path / "ckpt"))
    model = network()
    restore(model, path)
    np.testing.assert_array_equal(model.get_weights()[0], source.get_weights()[0])
    restore(model, path, averages=True)
    for ours, theirs in zip(model.get_weights(), source.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs + np.float32(1))


@pytest.mark.parametrize("grouped", [False, True])
def test_the_averages_that_an_optimizer_of_keras_keeps_are_taken_from_a_checkpoint(grouped, tmp_path):
    source, model = network(), network()
    optimizer = keras.optimizers.SGD(0.1, use_ema=True, ema_momentum=0.5)
    if grouped:
        groups = resolve_groups(source, by="layer")
        children = {group.name: (keras.optimizers.SGD(0.1), group) for group in groups}
        optimizer = GroupedOptimizer(children, use_ema=True, ema_momentum=0.5)
    source.compile(optimizer, "mse")
    x, y = np.random.default_rng(0).normal(size=(4, 4)), np.ones((4, 3))
    for _ in range(3):
        source.train_on_batch(x, y)
    path = tf.train.Checkpoint(model=source, optimizer=optimizer).write(str(tmp_path / "ckpt"))
    trained = [np.copy(weight.numpy()) for weight in source.weights]
    restore(model, path, averages=True)
    optimizer.finalize_variable_values(source.trainable_variables)
    for ours, theirs, before in zip(model.weights, source.weights, trained, strict=True):
        np.testing.assert_array_equal(ours.numpy(), theirs.numpy())
        assert not theirs.path.endswith("kernel") or not np.array_equal(ours.numpy(), before)


def test_the_averages_of_keras_have_no_names_and_the_message_says_how_to_get_them(tmp_path):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    model.compile(keras.optimizers.SGD(0.1, use_ema=True, ema_momentum=0.5), "mse")
    for _ in range(3):  # steps of an epoch that has not ended
        model.train_on_batch(np.ones((4, 3)), np.ones((4, 2)))
    model.save(tmp_path / "model.keras")
    with pytest.raises(RestoreError, match=r"The averages of Keras' `use_ema` are slots without names.*restore from"):
        with_averages(read_weights(tmp_path / "model.keras"))
    # What the message says.
    again = keras.models.load_model(tmp_path / "model.keras")
    again.optimizer.finalize_variable_values(again.trainable_variables)
    again.save(tmp_path / "averages.keras")
    taken = read_weights(tmp_path / "averages.keras").tensors[0].read()
    average = next(v for v in model.optimizer.variables if "average" in v.name)
    np.testing.assert_array_equal(taken, average)
    assert not np.array_equal(taken, model.get_weights()[0])
