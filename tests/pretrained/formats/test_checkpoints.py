import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from tensorflow.core.protobuf import saver_pb2

from finetune.errors import RestoreError
from finetune.groups.layer_tree import layer_tree
from finetune.pretrained.formats.readers import read_weights
from finetune.pretrained.restore import restore

v1 = tf.compat.v1


def flat(classes=2):
    """A Keras 3 network with names that TF1 could have given."""
    inputs = keras.Input((3,))
    x = layers.Dense(4, name="dense")(inputs)
    x = keras.Sequential([keras.Input((4,)), layers.Dense(4, name="d0")], name="bb")(x)
    x = layers.BatchNormalization(name="bn")(x)
    model = keras.Model(inputs, layers.Dense(classes, name="head")(x))
    scramble(model)
    return model


def scramble(model, seed=0):
    rng = np.random.default_rng(seed)
    for weight in model.weights:
        weight.assign(rng.normal(size=weight.shape))


@pytest.fixture(scope="module", params=[saver_pb2.SaverDef.V1, saver_pb2.SaverDef.V2], ids=["v1", "v2"])
def of_tf1(request, tmp_path_factory):
    """A checkpoint of TF1's `Saver` with slots of two optimizers, shadows, counters; its path and its values."""
    folder = tmp_path_factory.mktemp("tf1")
    with tf.Graph().as_default(), v1.Session() as session:
        x = tf.ones((2, 3))
        for scope, width in (("dense", 4), ("bb/d0", 4), ("head", 2)):
            with v1.variable_scope(scope):
                normal = v1.random_normal_initializer()
                kernel = v1.get_variable("kernel", (x.shape[1], width), initializer=normal)
                x = x @ kernel + v1.get_variable("bias", (width,), initializer=normal)
        with v1.variable_scope("bn"):
            for name in ("gamma", "beta", "moving_mean", "moving_variance"):
                v1.get_variable(name, (4,), initializer=normal, trainable=not name.startswith("moving"))
        step = v1.train.get_or_create_global_step()
        train = v1.train.AdamOptimizer().minimize(tf.reduce_sum(x**2), global_step=step)
        with v1.variable_scope("scope"):
            v1.train.MomentumOptimizer(0.1, 0.9).minimize(tf.reduce_sum(x**2))
        tf.train.ExponentialMovingAverage(0.9).apply(v1.trainable_variables())
        session.run(v1.global_variables_initializer())
        session.run(train)
        weights = [v for v in v1.global_variables() if v.op.name.split("/")[-1] in WEIGHTS]
        path = v1.train.Saver(write_version=request.param).save(session, str(folder / "model.ckpt"), global_step=step)
        return path, {v.op.name: session.run(v) for v in weights}


WEIGHTS = ("kernel", "bias", "gamma", "beta", "moving_mean", "moving_variance")


def test_a_tf1_checkpoint_gives_the_weights_without_slots_shadows_and_counters(of_tf1):
    path, expected = of_tf1
    assert len(tf.train.load_checkpoint(path).get_variable_to_shape_map()) > 3 * len(expected)
    found = read_weights(path)
    assert (found.kind, found.path) == ("tf1-checkpoint", path)
    assert {tensor.name for tensor in found.tensors} == set(expected)
    for tensor in found.tensors:
        np.testing.assert_array_equal(tensor.read(), expected[tensor.name])


def test_a_tf1_checkpoint_goes_into_a_keras_model_of_the_same_names(of_tf1):
    path, expected = of_tf1
    model = flat()
    report = restore(model, path)
    assert {weight.how for weight in report.restored} == {"name"}
    for leaf in layer_tree(model).leaves:
        np.testing.assert_array_equal(leaf.variable.numpy(), expected[leaf.name])


@pytest.mark.parametrize("root", ["model", "net", "anything"])
def test_the_root_of_an_object_checkpoint_may_have_any_name(root, tmp_path):
    source, model = flat(), flat()
    scramble(model, 1)
    path = tf.train.Checkpoint(**{root: source}, epoch=tf.Variable(3)).save(str(tmp_path / "ckpt"))
    report = restore(model, path)
    assert (report.kind, report.unused) == ("tf-object-checkpoint", ())
    np.testing.assert_array_equal(model.weights[0].numpy(), source.weights[0].numpy())


def test_slots_and_the_optimizer_of_an_object_checkpoint_are_not_weights(tmp_path):
    model = flat()
    model.compile(keras.optimizers.Adam(use_ema=True), "mse")
    model.optimizer.build(model.trainable_variables)
    path = tf.train.Checkpoint(model=model, optimizer=model.optimizer).save(str(tmp_path / "ckpt"))
    found = read_weights(path)
    assert len(found.tensors) == len(model.weights)
    assert {tensor.name for tensor in found.tensors} >= {"dense/kernel", "bn/moving_mean", "head/bias"}


def test_two_models_in_one_checkpoint_are_told_apart_by_what_holds_them(tmp_path):
    source, model = flat(), flat()
    scramble(source, 1)
    path = tf.train.Checkpoint(one=flat(), two=source).save(str(tmp_path / "ckpt"))
    with pytest.raises(RestoreError, match="`dense/kernel` by `one/dense/kernel`, `two/dense/kernel`"):
        restore(model, path)
    restore(model, path, rename={"^two/": ""}, allow_unused=["one"])
    for ours, theirs in zip(model.weights, source.weights, strict=True):
        np.testing.assert_array_equal(ours.numpy(), theirs.numpy(), err_msg=ours.path)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("how", ["save_weights", "Checkpoint"])
def test_a_checkpoint_of_tf_keras_goes_into_a_model_of_keras_3(how, tmp_path):
    tf_keras = pytest.importorskip("tf_keras")
    inputs = tf_keras.Input((3,))
    inner = tf_keras.Sequential([tf_keras.Input((4,)), tf_keras.layers.Dense(4, name="d0")], name="bb")
    x = inner(tf_keras.layers.Dense(4, name="dense")(inputs))
    x = tf_keras.layers.BatchNormalization(name="bn")(x)
    source = tf_keras.Model(inputs, tf_keras.layers.Dense(2, name="head")(x))
    source.compile(tf_keras.optimizers.legacy.Adam() if how == "Checkpoint" else "adam", "mse")
    source.optimizer.build(
        source.trainable_variables
    ) if how == "save_weights" else source.optimizer._create_all_weights(source.trainable_variables)
    scramble(source, 2)
    path = str(tmp_path / "ckpt")
    source.save_weights(path) if how == "save_weights" else tf.train.Checkpoint(model=source).write(path)
    model = flat()
    report = restore(model, path)
    assert len(report.restored) == len(source.weights)
    for ours, theirs in zip(model.weights, source.weights, strict=True):
        np.testing.assert_array_equal(ours.numpy(), theirs.numpy(), err_msg=ours.path)


def stacked_cells(library):
    """Cells in lists, in a wrapper and out of it, between layers in a list and a dict of a model's class."""
    of = library.layers

    class Held(library.Model):
        def __init__(self):
            super().__init__()
            self.blocks, self.named = [of.Dense(3), [of.Dense(3)]], {"a": of.Dense(3), "b": of.Dense(3, name="of_b")}
            self.below = of.RNN([of.LSTMCell(3), of.GRUCell(2)], return_sequences=True)
            self.above = of.Bidirectional(of.RNN(of.StackedRNNCells([of.LSTMCell(2), of.LSTMCell(2)])))

        def call(self, x):
            for block in (self.blocks[0], self.blocks[1][0], *self.named.values()):
                x = block(x)
            return self.above(self.below(x))

    model = Held()
    model(np.zeros((1, 4, 3), "float32"))
    return model


@pytest.mark.sample(1)
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("how", ["save_weights", "Checkpoint", "root"])
def test_stacked_cells_and_layers_in_lists_and_dicts_of_keras_2_go_into_any_network_of_a_process(how, tmp_path):
    source = stacked_cells(pytest.importorskip("tf_keras"))
    scramble(source, 3)
    path = str(tmp_path / "ckpt")
    if how == "save_weights":
        source.save_weights(path)
    else:
        (tf.train.Checkpoint(source) if how == "root" else tf.train.Checkpoint(net=source)).write(path)
    x = np.random.default_rng(0).normal(size=(2, 4, 3)).astype("float32")
    for model in [stacked_cells(keras) for _ in range(2)]:
        assert len(restore(model, path).restored) == len(source.weights) == 26
        np.testing.assert_allclose(model(x).numpy(), source(x).numpy(), atol=1e-5)


def test_the_kernel_that_keras_2_called_depthwise_is_found(tmp_path):
    with tf.Graph().as_default(), v1.Session() as session:
        kernel = v1.get_variable("deep/depthwise_kernel", (2, 2, 3, 1), initializer=v1.random_normal_initializer())
        session.run(kernel.initializer)
        path, expected = v1.train.Saver().save(session, str(tmp_path / "ckpt")), session.run(kernel)
    model = keras.Sequential([keras.Input((4, 4, 3)), layers.DepthwiseConv2D(2, use_bias=False, name="deep")])
    restore(model, path)
    np.testing.assert_array_equal(model.weights[0].numpy(), expected)


class Listed(keras.Model):
    def __init__(self):
        super().__init__()
        self.parts = [layers.Dense(3), layers.Dense(3)]
        self.head = layers.Dense(2)

    def build(self, shape):
        for part in (*self.parts, self.head):
            part.build((None, 3))


def listed():
    model = Listed()
    model.build((None, 3))
    return model


def test_layers_in_lists_that_keras_keeps_from_a_checkpoint_are_reported_with_the_way_out(tmp_path):
    path = tf.train.Checkpoint(model=listed()).write(str(tmp_path / "ckpt"))
    assert len(read_weights(path).tensors) == 2, "Keras now tracks lists: rejoice, and drop the advice"
    with pytest.raises(RestoreError, match=r"`parts/0/kernel`.*leave out what a Keras 3 model holds in lists"):
        restore(listed(), path)


def test_layers_in_lists_are_found_through_the_optimizer_that_trained_them(tmp_path):
    source, model = listed(), listed()
    source.compile("adam", "mse")
    source.optimizer.build(source.trainable_variables)
    report = restore(model, tf.train.Checkpoint(model=source).write(str(tmp_path / "ckpt")))
    assert {weight.how for weight in report.restored if weight.name.startswith("parts")} == {"structure"}
    for ours, theirs in zip(model.weights, source.weights, strict=True):
        np.testing.assert_array_equal(ours.numpy(), theirs.numpy())


def test_repeated_names_are_told_apart_by_number_and_each_weight_finds_its_place(tmp_path):
    class Twins(Listed):
        def __init__(self):
            super().__init__()
            self.parts = [layers.Dense(3, name="same"), layers.Dense(3, name="same")]

    source, model = Twins(), Twins()
    for holder in (source, model):
        holder.build((None, 3))
    source.compile("adam", "mse")
    source.optimizer.build(source.trainable_variables)
    path = tf.train.Checkpoint(model=source).write(str(tmp_path / "ckpt"))
    names = {tensor.name for tensor in read_weights(path).tensors}
    assert {f"{source.name}/same/kernel~1", f"{source.name}/same/kernel~2"} <= names  # Keras may have numbered `twins`
    restore(model, path)
    for ours, theirs in zip(model.weights, source.weights, strict=True):
        np.testing.assert_array_equal(ours.numpy(), theirs.numpy())


class Counting(tf.Module):
    def __init__(self):
        super().__init__()
        self.kernel = tf.Variable(tf.random.normal((2, 3)), name="w")
        self.random = tf.random.Generator.from_seed(1)
        self.words = tf.Variable(["a", "b"])


def test_texts_random_states_and_counters_are_not_weights(tmp_path):
    path = tf.train.Checkpoint(net=Counting(), step=tf.Variable(1)).save(str(tmp_path / "ckpt"))
    assert [tensor.name for tensor in read_weights(path).tensors] == ["kernel"]


def test_the_variables_of_a_saved_model_can_be_restored_by_their_prefix(tmp_path):
    source, model = flat(), flat()
    scramble(model, 1)
    tf.saved_model.save(source, str(tmp_path / "saved"))
    restore(model, tmp_path / "saved" / "variables" / "variables")
    np.testing.assert_array_equal(model.weights[0].numpy(), source.weights[0].numpy())


@pytest.mark.sample(1)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:You are saving your model")
@pytest.mark.parametrize("how", ["save_weights", "saved_model"])
def test_unnamed_layers_and_their_parts_in_a_checkpoint_of_keras_2_are_found_whatever_was_built_before(how, tmp_path):
    tf_keras = pytest.importorskip("tf_keras")

    def build(lib):
        lib.layers.Bidirectional(lib.layers.LSTM(2))  # so that the next has another number
        parts = [lib.layers.TimeDistributed(lib.Sequential([lib.Input((4,)), lib.layers.Dense(3)]))]
        parts += [lib.layers.TimeDistributed(lib.layers.Dense(3)), lib.layers.Bidirectional(lib.layers.LSTM(2))]
        model = lib.Sequential([lib.Input((5, 4)), *parts, lib.layers.Dropout(0.1), lib.layers.Dense(2)])
        scramble(model)
        return model

    source = build(tf_keras)
    path = str(tmp_path / "m")
    source.save_weights(path) if how == "save_weights" else source.save(path, save_format="tf")
    for _ in range(2):  # the numbers in names rise with every model of a process
        model = build(keras)
        scramble(model, 1)
        restore(model, path)
        x = np.random.default_rng(0).normal(size=(2, 5, 4)).astype("f4")
        np.testing.assert_allclose(model(x), source(x), rtol=1e-4, atol=1e-5)


def test_a_layer_of_another_name_is_not_taken_for_its_place_in_a_checkpoint_of_keras_2(tmp_path):
    tf_keras = pytest.importorskip("tf_keras")
    path = str(tmp_path / "m")
    tf_keras.Sequential([tf_keras.Input((3,)), tf_keras.layers.Dense(3, name="block_1")]).save_weights(path)
    with pytest.raises(RestoreError, match=r"`block_2/kernel`, `block_2/bias`|2 are not: `block_2/kernel`"):
        restore(keras.Sequential([keras.Input((3,)), layers.Dense(3, name="block_2")]), path)


@pytest.mark.sample(1)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("how", ["save_weights", "Checkpoint"])
def test_attention_in_lists_of_a_subclassed_model_of_keras_2_is_found_by_attributes(how, tmp_path):
    tf_keras = pytest.importorskip("tf_keras")

    def build(lib):
        class Block(lib.layers.Layer):
            def __init__(self):
                super().__init__()
                self.attention = lib.layers.MultiHeadAttention(2, 4)
                self.tail = lib.Sequential([lib.layers.Dense(4), lib.layers.BatchNormalization()])

            def call(self, x):
                return self.tail(self.attention(x, x))

        class Net(lib.Model):
            def __init__(self):
                super().__init__()
                self.blocks = [Block(), Block()]

            def call(self, x):
                for block in self.blocks:
                    x = block(x)
                return x

        model = Net()
        model(np.zeros((1, 5, 4), "f4"))
        scramble(model)
        return model

    source, path = build(tf_keras), str(tmp_path / "m")
    source.save_weights(path) if how == "save_weights" else tf.train.Checkpoint(net=source).write(path)
    for _ in range(2):
        model = build(keras)
        scramble(model, 1)
        restore(model, path)
        x = np.random.default_rng(0).normal(size=(2, 5, 4)).astype("f4")
        for weight in (*model.weights, *source.weights):
            if "variance" in weight.name:
                weight.assign(np.abs(weight.numpy()))
        np.testing.assert_allclose(model(x), source(x), rtol=1e-3, atol=1e-4)
