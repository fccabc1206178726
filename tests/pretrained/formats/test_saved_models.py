import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from finetune.errors import RestoreError
from finetune.pretrained.formats.readers import read_weights
from finetune.pretrained.restore import restore

# Keras itself saves by `np.array(variable)`, which NumPy 2.4 warns of.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def network():
    """Layers named by hand and by Keras, a nested model, BatchNorm; automatic names change from call to call."""
    inner = keras.Sequential([keras.Input((4,)), layers.Dense(4), layers.Dense(4, name="out")], name="inner")
    inputs = keras.Input((3,))
    x = layers.BatchNormalization()(layers.Dense(4, name="stem")(inputs))
    return keras.Model(inputs, layers.Dense(2)(layers.Dense(4)(inner(x))))


def scrambled(model, seed=0):
    rng = np.random.default_rng(seed)
    for weight in model.weights:
        weight.assign(rng.normal(size=weight.shape))
    return model


class Tower(tf.Module):
    def __init__(self, seed):
        super().__init__(name="tower")
        self.weight = tf.Variable(tf.random.stateless_normal((2, 3), (seed, 0)))
        self.parts = [tf.Module(), tf.Module()]
        for i, part in enumerate(self.parts):
            part.scale = tf.Variable(tf.random.stateless_normal((3,), (seed, i + 1)), name="s")


def names(path):
    return sorted(tensor.name for tensor in read_weights(path).tensors)


def refused(path):
    with pytest.raises(RestoreError) as caught:
        read_weights(path)
    return str(caught.value)


def test_a_bare_module_s_variables_are_read_by_their_attributes_and_restored(tmp_path):
    source, model = Tower(1), Tower(2)
    tf.saved_model.save(source, str(tmp_path / "m"))
    assert names(tmp_path / "m") == ["parts/0/scale", "parts/1/scale", "weight"]
    report = restore(model, tmp_path / "m" / "saved_model.pb")
    assert (report.kind, report.path) == ("saved-model", str(tmp_path / "m"))
    for ours, theirs in zip(model.variables, source.variables, strict=True):
        np.testing.assert_array_equal(ours.numpy(), theirs.numpy())


def test_what_keras_3_exports_goes_back_into_the_model_whatever_its_automatic_names(tmp_path):
    source = scrambled(network())
    source.export(tmp_path / "m", verbose=False)
    model = scrambled(network(), seed=1)
    report = restore(model, tmp_path / "m")
    assert len(report.restored) == len(model.weights)
    assert report.unused == ()
    for ours, theirs in zip(model.weights, source.weights, strict=True):
        np.testing.assert_array_equal(ours.numpy(), theirs.numpy(), err_msg=ours.path)


@pytest.mark.slow
def test_what_tf_keras_saved_is_read_without_its_optimizer_and_metrics(tmp_path):
    import tf_keras

    parts = [tf_keras.layers.Dense(4, name="body"), tf_keras.layers.BatchNormalization(name="bn")]
    model = tf_keras.Sequential([tf_keras.Input((3,)), *parts, tf_keras.layers.Dense(2, name="head")])
    model.compile("adam", "mse", metrics=["mae"])
    model.fit(np.zeros((4, 3)), np.zeros((4, 2)), verbose=0)
    model.save(tmp_path / "m", save_format="tf")
    ours = keras.Sequential(
        [
            keras.Input((3,)),
            layers.Dense(4, name="body"),
            layers.BatchNormalization(name="bn"),
            layers.Dense(2, name="head"),
        ]
    )
    report = restore(ours, tmp_path / "m")
    assert {weight.how for weight in report.restored} == {"name"}
    for mine, theirs in zip(ours.weights, model.weights, strict=True):
        np.testing.assert_array_equal(mine.numpy(), theirs.numpy())


@pytest.mark.slow
def test_a_tf1_saved_model_is_read_by_its_flat_names_without_slots(tmp_path):
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        x = v1.placeholder(tf.float32, (None, 3))
        w = v1.get_variable("net/w", (3, 2))
        step = v1.train.get_or_create_global_step()
        minimize = v1.train.AdamOptimizer().minimize(tf.reduce_sum(x @ w), global_step=step)
        session.run(v1.global_variables_initializer())
        session.run(minimize, {x: np.ones((1, 3))})
        expected = session.run(w)
        builder = v1.saved_model.Builder(str(tmp_path / "m"))
        builder.add_meta_graph_and_variables(session, ["serve"])
        builder.save()
    found = read_weights(tmp_path / "m")
    assert [tensor.name for tensor in found.tensors] == ["net/w"]
    np.testing.assert_array_equal(found.tensors[0].read(), expected)


def test_a_saved_model_without_variables_is_refused(tmp_path):
    class Constant(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec((), tf.float32)])
        def double(self, x):
            return 2 * x

    tf.saved_model.save(Constant(), str(tmp_path / "m"))
    assert "(saved-model) holds none." in refused(tmp_path / "m")
    for file in (tmp_path / "m" / "variables").iterdir():
        file.unlink()
    assert "has none: either it was copied without this folder, or its graph holds the weights as constants" in refused(
        tmp_path / "m"
    )
