import os
import shutil
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import finetune
from finetune import GroupedOptimizer, HubLayer, Selector, layer_tree, resolve_groups
from finetune.errors import FinetuneError
from finetune.groups.selectors import selectors_by

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

ROOT = Path(__file__).resolve().parents[2]
X = np.random.default_rng(0).normal(size=(16, 6)).astype("float32")
Y = np.arange(16) % 3
WEIGHTS = (
    "stem/kernel",
    "stem/bias",
    "bn/gamma",
    "bn/beta",
    "bn/moving_mean",
    "bn/moving_variance",
    "body/kernel",
    "body/bias",
)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TFHUB_CACHE_DIR", str(tmp_path / "cache"))


def with_head(hub, **kwargs):
    """A functional model: the layer, then a head with the same weights every time."""
    inputs = keras.Input((6,))
    head = layers.Dense(3, activation="softmax", kernel_initializer=keras.initializers.GlorotUniform(1), name="head")
    return keras.Model(inputs, head(hub(inputs)), **kwargs)


def values(model):
    return {leaf.name: leaf.variable.numpy() for leaf in layer_tree(model).leaves}


def changed(model, before):
    return [name for name, value in values(model).items() if (value != before[name]).any()]


def train(model, optimizer="sgd", epochs=1, **options):
    model.compile(optimizer, "sparse_categorical_crossentropy", **{"jit_compile": False, **options})
    return model.fit(X, Y, batch_size=8, epochs=epochs, verbose=0)


# -- Names and storage ------------------------------------------------------------------------------------------------


def test_the_layers_weights_are_the_modules_own_variables_under_their_own_names(encoder_folder):
    model = with_head(HubLayer(encoder_folder, name="hub"))
    names = [leaf.name for leaf in layer_tree(model).leaves]
    assert names == [*(f"hub/{name}" for name in WEIGHTS), "head/kernel", "head/bias"]
    assert [leaf.name for leaf in layer_tree(model).trainable] == [name for name in names if "moving" not in name]
    layer = model.get_layer("hub")
    held = {leaf.name: leaf.variable for leaf in layer.module.leaves}
    for leaf in layer_tree(layer).leaves:
        assert leaf.variable.value is held[leaf.name]


def test_the_layer_computes_what_the_model_did_before_it_was_exported(encoder, encoder_folder):
    np.testing.assert_allclose(HubLayer(encoder_folder)(X), encoder(X), rtol=1e-6)


def test_a_strategy_by_layer_counts_the_parts_of_a_module_one_by_one(encoder_folder):
    names = [selector.name for selector in selectors_by(with_head(HubLayer(encoder_folder, name="hub")), "layer")]
    assert names == ["hub-stem", "hub-bn", "hub-body", "head"]


@pytest.mark.slow
def test_a_bare_module_without_lists_of_its_variables_has_the_names_of_its_attributes(tmp_path):
    class Bare(tf.Module):
        def __init__(self):
            super().__init__()
            self.weights = [tf.Variable(tf.ones((6, 4))), tf.Variable(tf.zeros((4,)))]

        @tf.function(input_signature=[tf.TensorSpec((None, 6))])
        def __call__(self, inputs):
            return tf.matmul(inputs, self.weights[0]) + self.weights[1]

    tf.saved_model.save(Bare(), str(tmp_path / "bare"))
    model = with_head(HubLayer(tmp_path / "bare", name="hub"))
    assert [leaf.name for leaf in layer_tree(model).leaves][:2] == ["hub/weights/0", "hub/weights/1"]
    before = values(model)
    train(model)
    assert changed(model, before) == list(before)


# -- Training ---------------------------------------------------------------------------------------------------------


def test_every_weight_is_trained_under_fit_by_groups_that_reach_into_the_module(encoder_folder):
    model = with_head(HubLayer(encoder_folder, name="hub"))
    groups = resolve_groups(
        model, [Selector("stem", ("hub/stem", "hub/bn")), Selector("body", ("hub/body",)), Selector("head", rest=True)]
    )
    rates = {
        "stem": keras.optimizers.SGD(1e-3),
        "body": keras.optimizers.Adam(1e-2),
        "head": keras.optimizers.AdamW(1e-2),
    }
    before = values(model)
    train(model, GroupedOptimizer({group.name: (rates[group.name], group) for group in groups}))
    assert changed(model, before) == list(before)


@pytest.mark.slow
def test_training_the_layer_is_training_the_model_that_was_exported(encoder, encoder_folder):
    original, hub = with_head(encoder), with_head(HubLayer(encoder_folder, name="hub"))
    losses = [train(model, keras.optimizers.SGD(0.05, momentum=0.9), 3).history["loss"] for model in (original, hub)]
    np.testing.assert_allclose(*losses, rtol=1e-5)
    ours, theirs = values(original), values(hub)
    for name in WEIGHTS:
        np.testing.assert_allclose(ours[f"encoder/{name}"], theirs[f"hub/{name}"], rtol=1e-4, atol=1e-6)


@pytest.mark.sample(4)
@pytest.mark.slow
@pytest.mark.parametrize(
    "optimizer",
    [
        "SGD",
        "Adam",
        "AdamW",
        "RMSprop",
        "Adagrad",
        "Adadelta",
        "Adamax",
        "Nadam",
        "Ftrl",
        "Lion",
        "Lamb",
        "Adafactor",
        "Muon",
    ],
)
def test_every_optimizer_of_keras_trains_it(encoder_folder, optimizer):
    model = with_head(HubLayer(encoder_folder, name="hub"))
    before = values(model)
    train(model, getattr(keras.optimizers, optimizer)(0.01), run_eagerly=True)
    assert changed(model, before) == list(before)


@pytest.mark.grid
@pytest.mark.slow
def test_it_trains_under_xla_as_without(encoder_folder):
    losses = []
    for jit_compile in (False, True):
        model = with_head(HubLayer(encoder_folder, name="hub"))
        losses.append(train(model, keras.optimizers.Adam(0.01), 3, jit_compile=jit_compile).history["loss"])
    np.testing.assert_allclose(*losses, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_it_stays_float32_under_a_mixed_policy(encoder_folder, policy):
    keras.config.set_dtype_policy(policy)
    try:
        inputs = keras.Input((6,))
        layer = HubLayer(encoder_folder, name="hub")
        model = keras.Model(inputs, layers.Dense(3, activation="softmax")(layer(layers.Dense(6)(inputs))))
        assert layer.compute_dtype == layer.variable_dtype == "float32"
        before = values(model)
        train(model)
        assert changed(model, before) == list(before)
    finally:
        keras.config.set_dtype_policy("float32")


def test_training_moves_the_statistics_and_inference_does_not(encoder_folder):
    layer = HubLayer(encoder_folder, name="hub")
    before = values(layer)
    layer(X)
    assert changed(layer, before) == []
    layer(X, training=True)
    assert changed(layer, before) == ["bn/moving_mean", "bn/moving_variance"]


def test_what_is_not_trainable_is_not_updated_statistics_included(encoder_folder):
    for layer in (HubLayer(encoder_folder, name="hub", trainable=False), HubLayer(encoder_folder, name="hub")):
        layer.trainable = False  # has no effect on the first, which has this value
        before = values(layer)
        layer(X, training=True)
        assert layer.trainable_variables == []
        assert layer.losses == []
        assert changed(layer, before) == []


def test_a_layer_that_is_made_frozen_does_not_train_in_any_model(encoder_folder):
    model = with_head(HubLayer(encoder_folder, name="hub", trainable=False))
    assert [variable.name for variable in model.trainable_variables] == ["kernel", "bias"]
    before = values(model)
    train(model)
    assert changed(model, before) == ["head/kernel", "head/bias"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("frozen", "moves"),
    [(("hub/stem",), True), (("hub/stem", "hub/bn"), False), (("hub/bn/gamma",), False), (("hub/body",), True)],
)
def test_statistics_of_a_frozen_group_are_fixed_and_those_of_others_move(encoder_folder, frozen, moves):
    model = with_head(HubLayer(encoder_folder, name="hub"))
    finetune.freeze(
        model, resolve_groups(model, [Selector("stem", prefixes=frozen, frozen=True), Selector("rest", rest=True)])
    )
    before = values(model)
    model(X, training=True)
    assert changed(model, before) == (["hub/bn/moving_mean", "hub/bn/moving_variance"] if moves else [])
    finetune.freeze(model, resolve_groups(model, [Selector("all", rest=True)]))
    model(X, training=True)
    assert changed(model, before) == ["hub/bn/moving_mean", "hub/bn/moving_variance"]


def test_regularization_losses_are_added_unless_what_they_are_of_is_frozen(encoder, encoder_folder):
    layer = HubLayer(encoder_folder, name="hub")
    encoder(X)
    layer(X)
    assert float(layer.losses[0]) == pytest.approx(float(encoder.losses[0]))
    layer.parts[2].trainable = False
    layer(X)
    assert layer.parts[2].name == "body"
    assert layer.losses == []


@pytest.mark.slow
def test_it_goes_into_a_sequential_model(encoder_folder):
    model = keras.Sequential([keras.Input((6,)), HubLayer(encoder_folder, name="hub"), layers.Dense(3)])
    assert model.output_shape == (None, 3)
    assert model.layers[0].output.shape == (None, 8)


# -- Signatures, outputs and inputs -----------------------------------------------------------------------------------


@pytest.fixture
def several(tmp_path):
    """A module with two outputs, a second signature, and no call of its own for dicts."""

    class Several(tf.Module):
        def __init__(self):
            super().__init__()
            self.scale = tf.Variable(2.0)

        @tf.function(input_signature=[tf.TensorSpec((None, 6))])
        def __call__(self, inputs):
            return {"twice": self.scale * inputs, "sum": tf.reduce_sum(self.scale * inputs, -1, keepdims=True)}

        @tf.function(input_signature=[tf.TensorSpec((None, 6), name="a"), tf.TensorSpec((None, 6), name="b")])
        def both(self, a, b):
            return {"only": self.scale * a + b}

    module = Several()
    tf.saved_model.save(module, str(tmp_path / "several"), signatures={"both": module.both, "one": module.__call__})
    return tmp_path / "several"


@pytest.mark.slow
def test_several_outputs_are_a_dict_or_the_one_that_is_asked_for(several):
    outputs = HubLayer(several)(X)
    assert set(outputs) == {"twice", "sum"}
    np.testing.assert_allclose(HubLayer(several, output_key="sum")(X), 2 * X.sum(-1, keepdims=True), rtol=1e-5)


@pytest.mark.slow
def test_a_signature_takes_its_inputs_by_name_or_in_order(several):
    layer = HubLayer(several, signature="both")
    for inputs in (
        {"a": X, "b": Y[:, None] * np.ones((1, 6), "float32")},
        [X, Y[:, None] * np.ones((1, 6), "float32")],
    ):
        np.testing.assert_allclose(layer(inputs), 2 * X + Y[:, None], rtol=1e-6)


def message(call):
    with pytest.raises(FinetuneError) as error:
        call()
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_wrong_signature_or_output_is_refused_with_those_that_exist(several):
    assert message(lambda: HubLayer(several, signature="bothe")) == (
        f"`signature` is the name of a signature of the SavedModel. `{several}` has no `bothe`; it has `both`, `one`. Did "
        "you mean `both`?"
    )
    assert message(lambda: HubLayer(several, output_key="sums")).endswith(
        "has no `sums`; it has `sum`, `twice`. Did you mean `sum`?"
    )
    said = message(lambda: HubLayer(several, signature="both", output_key="x"))
    assert said.endswith("has no `x`; it has `only`.")


@pytest.mark.slow
def test_an_input_of_another_shape_is_refused_with_what_is_taken(encoder_folder):
    with pytest.raises(
        ValueError,
        match=r"A SavedModel takes inputs of the kinds and shapes it was saved with. `hub` takes `float32 \?x6`",
    ):
        HubLayer(encoder_folder, name="hub")(X[:, :5])


class SumOfRows(tf.Module):
    """Sums the embeddings of each row's ids, or gives them back, for the kinds of tensors that it is traced with."""

    def __init__(self, *specs, adds_up=True):
        super().__init__()
        self.table = tf.Variable(np.arange(15, dtype="float32").reshape(5, 3), name="table")

        def call(ids):
            if isinstance(ids, tf.SparseTensor):
                return tf.sparse.sparse_dense_matmul(ids, self.table)
            embedded = tf.ragged.map_flat_values(lambda flat: tf.gather(self.table, flat), ids)
            return tf.reduce_sum(embedded, axis=1) if adds_up else embedded

        self.__call__ = tf.function(call)
        self.traces = [self.__call__.get_concrete_function(spec) for spec in specs]


DENSE, RAGGED = tf.TensorSpec([None, None], tf.int32), tf.RaggedTensorSpec([None, None], tf.int32)
IDS = tf.ragged.constant([[1, 2], [3], [0, 1, 4]])
SUMS = [[9.0, 11.0, 13.0], [9.0, 10.0, 11.0], [15.0, 18.0, 21.0]]


def rows_layer(path, *specs, **options):
    tf.saved_model.save(SumOfRows(*specs, **options), str(path))
    return HubLayer(path, name="hub")


def ragged_model(layer, *above):
    inputs = outputs = keras.Input((None,), dtype="int32", ragged=True)
    for part in (layer, *above):
        outputs = part(outputs)
    return keras.Model(inputs, outputs)


@pytest.mark.parametrize("specs", [(RAGGED,), (DENSE, RAGGED), (RAGGED, DENSE)])
def test_ragged_rows_are_summed_and_trained_as_they_are(tmp_path, specs):
    layer = rows_layer(tmp_path / "module", *specs)
    for ids in (IDS, tf.cast(IDS, tf.int64), IDS.with_row_splits_dtype(tf.int32)):
        np.testing.assert_allclose(layer(ids), SUMS)
    model = ragged_model(layer, layers.Dense(1, use_bias=False, kernel_initializer="ones"))
    np.testing.assert_allclose(model.predict(IDS, verbose=0), np.sum(SUMS, axis=1, keepdims=True))
    model.compile(keras.optimizers.SGD(0.5), "mae")
    model.fit(IDS, np.zeros((3, 1)), verbose=0)
    # |y| is averaged over 3 rows: each row that an id is in takes 0.5 / 3 off its embedding.
    moved = np.arange(15).reshape(5, 3) - layer.weights[0].numpy()
    np.testing.assert_allclose(moved, np.repeat([[1], [2], [1], [1], [1]], 3, axis=1) / 6, atol=1e-6)


def test_a_module_that_returns_ragged_rows_goes_into_a_functional_model(tmp_path):
    model = ragged_model(rows_layer(tmp_path / "module", RAGGED, adds_up=False))
    assert model.output.ragged
    assert model.predict(IDS, verbose=0).to_list()[1] == [[9.0, 10.0, 11.0]]


def test_sparse_rows_are_multiplied_as_they_are_and_cast(tmp_path):
    layer = rows_layer(tmp_path / "module", tf.SparseTensorSpec([None, 5], tf.float32))
    for dtype in ("float32", "int32"):
        np.testing.assert_allclose(layer(tf.sparse.from_dense(np.eye(5, dtype=dtype)[:1] * 2)), [[0.0, 2.0, 4.0]])


def test_rows_of_a_kind_that_the_module_was_not_saved_with_are_refused(tmp_path):
    with pytest.raises(
        ValueError, match=r"takes `int32 \?x\?`; received `ragged int32 3x\?`. Make the input dense: `.to_"
    ):
        rows_layer(tmp_path / "dense", DENSE)(IDS)
    with pytest.raises(ValueError, match=r"takes `ragged int32 \?x\?`; received `int32 1x2`.\x1b"):
        rows_layer(tmp_path / "ragged", RAGGED)(tf.constant([[1, 2]]))


def test_a_signature_says_that_it_takes_dense_tensors_alone(tmp_path):
    module = SumOfRows(RAGGED)
    tf.saved_model.save(module, str(tmp_path / "served"), signatures=module.traces[0])
    layer = HubLayer(tmp_path / "served", signature="serving_default")
    assert message(lambda: layer(IDS)) == (
        "A signature takes dense tensors. `serving_default` takes `{ids: int32 ?, ids_1: int64 ?}`; received `ragged int32 "
        "3x?`. Run the module's `__call__`, which can take others (no `signature`), or make the input dense: "
        "`.to_tensor()` or `tf.sparse.to_dense`."
    )


@pytest.mark.slow
def test_whole_numbers_are_cast_to_what_the_module_takes(encoder_folder):
    whole = np.ones((2, 6), "uint8")
    layer = HubLayer(encoder_folder)
    np.testing.assert_array_equal(layer(whole), layer(whole.astype("float32")))


@pytest.mark.slow
def test_the_axes_of_an_output_that_the_module_does_not_tell_can_be_given(tmp_path):
    class Vague(tf.Module):
        def __init__(self):
            super().__init__()
            self.scale = tf.Variable(2.0)

        @tf.function(input_signature=[tf.TensorSpec((None, 6))])
        def __call__(self, inputs):
            return tf.numpy_function(lambda x: x, [self.scale * inputs], tf.float32)

    tf.saved_model.save(Vague(), str(tmp_path / "vague"))
    with pytest.raises(ValueError, match=r"Add `output_shape`, without the batch"):
        HubLayer(tmp_path / "vague", allow_operations="PyFunc")(keras.Input((6,)))
    assert HubLayer(tmp_path / "vague", allow_operations="PyFunc", output_shape=[6])(keras.Input((6,))).shape == (
        None,
        6,
    )


@pytest.mark.slow
def test_what_keras_3_exported_trains_through_its_signature(encoder, tmp_path):
    encoder.export(tmp_path / "served", verbose=False)
    model = with_head(HubLayer(tmp_path / "served", name="hub"))
    before = values(model)
    assert len(before) == 10
    train(model)
    assert changed(model, before) == [name for name in before if "moving" not in name]


# -- TensorFlow 1 -----------------------------------------------------------------------------------------------------


def tf1_module(path, is_hub):
    """What TensorFlow 1 wrote: a SavedModel, or a Hub module with a second graph for training."""
    v1 = tf.compat.v1
    builder = v1.saved_model.Builder(str(path))
    for n, tags in enumerate([[], ["train"]] if is_hub else [["serve"]]):
        with tf.Graph().as_default(), v1.Session() as session:
            x = v1.placeholder(tf.float32, [None, 6], name="x")
            with v1.variable_scope("encoder", use_resource=True):
                kernel = v1.get_variable("kernel", [6, 4], initializer=v1.constant_initializer(0.1))
                bias = v1.get_variable("bias", [4], initializer=v1.constant_initializer(0.5))
                v1.get_variable("count", [], trainable=False)
            outputs = {"default": tf.nn.relu(tf.matmul(x, kernel) + bias), "sums": tf.matmul(x, kernel)}
            signature = {"default": v1.saved_model.predict_signature_def({"default": x}, outputs)}
            session.run(v1.global_variables_initializer())
            if n:
                builder.add_meta_graph(tags, signature)
            else:
                builder.add_meta_graph_and_variables(session, tags, signature)
    builder.save()
    if is_hub:
        (path / "tfhub_module.pb").write_bytes(b"\x08\x03")
    return path


@pytest.mark.slow
@pytest.mark.parametrize("is_hub", [True, False])
def test_a_module_of_tensorflow_1_trains_through_its_signature_with_a_warning(tmp_path, is_hub):
    path = tf1_module(tmp_path / "old", is_hub)
    with pytest.warns(
        UserWarning, match=r"was saved by TensorFlow 1 and runs through its signature `default`: .* are lost"
    ):
        layer = HubLayer(path, name="hub")
    model = with_head(layer)
    np.testing.assert_allclose(layer(X), np.maximum(X @ np.full((6, 4), 0.1) + 0.5, 0), rtol=1e-4, atol=1e-6)
    before = values(model)
    assert list(before)[:3] == ["hub/encoder/kernel", "hub/encoder/bias", "hub/encoder/count"]
    train(model, "adam")
    assert changed(model, before) == [name for name in before if name != "hub/encoder/count"]


# -- Text -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def text_module(tmp_path):
    """Texts in, means of word vectors out; its vocabulary is a file beside the SavedModel."""

    class Text(tf.Module):
        def __init__(self, vocabulary):
            super().__init__()
            words = tf.lookup.TextFileInitializer(
                str(vocabulary),
                tf.string,
                tf.lookup.TextFileIndex.WHOLE_LINE,
                tf.int64,
                tf.lookup.TextFileIndex.LINE_NUMBER,
            )
            self.table = tf.lookup.StaticVocabularyTable(words, 1)
            self.vectors = tf.Variable(np.random.default_rng(0).normal(size=(4, 5)).astype("float32"))

        @tf.function(input_signature=[tf.TensorSpec([None], tf.string)])
        def __call__(self, inputs):
            ids = self.table.lookup(tf.strings.split(inputs))
            return tf.reduce_mean(tf.nn.embedding_lookup(self.vectors, ids), axis=1)

    (tmp_path / "words.txt").write_text("good\nbad\nso\n")
    tf.saved_model.save(Text(tmp_path / "words.txt"), str(tmp_path / "text"))
    (tmp_path / "words.txt").unlink()
    return tmp_path / "text"


@pytest.mark.slow
def test_a_text_module_takes_strings_and_is_saved_with_its_vocabulary(text_module, tmp_path):
    model = keras.Sequential([keras.Input((), dtype="string"), HubLayer(text_module, name="hub"), layers.Dense(1)])
    assert not model.layers[0].supports_jit  # XLA knows no text
    texts = np.array(["good so good", "bad bad", "so", "never seen"], dtype=object)
    before = values(model)
    model.compile("adam", "mse")
    model.fit(texts, np.array([1.0, 0.0, 0.5, 0.5]), verbose=0)
    assert changed(model, before) == list(before)
    assert len(before) == 3
    expected = model.predict(texts, verbose=0)
    model.save(tmp_path / "model.keras")
    shutil.rmtree(text_module)
    loaded = keras.models.load_model(tmp_path / "model.keras", safe_mode=False)
    np.testing.assert_array_equal(loaded.predict(texts, verbose=0), expected)
    loaded.export(tmp_path / "served", verbose=False)
    served = tf.saved_model.load(str(tmp_path / "served"))
    np.testing.assert_allclose(served.serve(tf.constant(list(texts))), expected, rtol=1e-6)
    again = HubLayer(finetune.export_hub(loaded, tmp_path / "again"))
    np.testing.assert_allclose(again(tf.constant(list(texts))), expected, rtol=1e-6)


# -- Saving -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_saved_model_needs_neither_the_handle_nor_its_folder(encoder_folder, tmp_path):
    shutil.copytree(encoder_folder, tmp_path / "gone")
    model = with_head(HubLayer(tmp_path / "gone", name="hub"))
    train(
        model,
        GroupedOptimizer(
            {"hub": (keras.optimizers.SGD(0.1), model.layers[1]), "head": (keras.optimizers.Adam(), model.layers[2])}
        ),
    )
    expected = model.predict(X, verbose=0)
    model.save(tmp_path / "model.keras")
    shutil.rmtree(tmp_path / "gone")
    shutil.rmtree(tmp_path / "cache", ignore_errors=True)
    loaded = keras.models.load_model(tmp_path / "model.keras", safe_mode=False)
    np.testing.assert_array_equal(loaded.predict(X, verbose=0), expected)
    for one, other in zip(model.optimizer.variables, loaded.optimizer.variables, strict=True):
        np.testing.assert_array_equal(one.numpy(), other.numpy())
    before = values(loaded)
    loaded.fit(X, Y, verbose=0)
    assert changed(loaded, before) == list(before)


@pytest.mark.slow
def test_the_graph_in_a_file_holds_no_weights(tmp_path):
    inputs = keras.Input((256,))
    wide = keras.Model(inputs, layers.Dense(512, name="wide")(inputs))
    layer = HubLayer(finetune.export_hub(wide, tmp_path / "wide"), name="hub")
    assert sum(path.stat().st_size for path in (tmp_path / "wide").rglob("*") if path.is_file()) > 500_000
    assert len(layer.get_config()["graph"]) < 40_000


def test_keras_safe_mode_does_not_load_a_graph(encoder_folder, tmp_path):
    with_head(HubLayer(encoder_folder, name="hub")).save(tmp_path / "model.keras")
    said = message(lambda: keras.models.load_model(tmp_path / "model.keras"))
    assert said == (
        "The graph of a SavedModel is code, which Keras' safe mode does not load. The file contains a `HubLayer` made "
        f"from `{encoder_folder}`. If you trust the file, load it with `safe_mode=False`; in a recipe, name the SavedModel "
        "under `hub` and the file under `restore`."
    )


@pytest.mark.slow
def test_weights_go_through_weight_files_and_checkpoints_once_each(encoder_folder, tmp_path):
    model, other, third = (with_head(HubLayer(encoder_folder, name="hub")) for _ in range(3))
    train(model)
    model.save_weights(tmp_path / "a.weights.h5")
    other.load_weights(tmp_path / "a.weights.h5")
    checkpoint = tf.train.Checkpoint(model=model).save(str(tmp_path / "checkpoint" / "c"))
    third.compile("sgd")
    third.optimizer.build(third.trainable_variables)
    tf.train.Checkpoint(model=third).restore(checkpoint).assert_consumed()
    for name, value in values(model).items():
        np.testing.assert_array_equal(values(other)[name], value)
        np.testing.assert_array_equal(values(third)[name], value)
    shapes = [tuple(shape) for name, shape in tf.train.list_variables(checkpoint) if "optimizer" not in name]
    assert shapes.count((6, 8)) == 1


@pytest.mark.slow
def test_a_model_with_the_layer_is_exported_and_its_weights_restored_by_name(encoder_folder, tmp_path):
    model = with_head(HubLayer(encoder_folder, name="hub"))
    train(model)
    model.export(tmp_path / "served", verbose=False)
    served = tf.saved_model.load(str(tmp_path / "served"))
    np.testing.assert_allclose(served.serve(X), model.predict(X, verbose=0), rtol=1e-5)
    model.save_weights(tmp_path / "a.weights.h5")
    other = with_head(HubLayer(encoder_folder, name="hub"))
    report = finetune.restore(other, tmp_path / "a.weights.h5", exclude=["head"])
    assert len(report.restored) == 8


# -- Replicas ---------------------------------------------------------------------------------------------------------

REPLICAS = """
    import sys
    import keras, numpy as np, tensorflow as tf
    from finetune import HubLayer, GroupedOptimizer
    X, Y = np.load(sys.argv[2]), np.arange(16) % 3
    devices = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(devices[0], [tf.config.LogicalDeviceConfiguration()] * 2)
    def train():
        inputs = keras.Input((6,))
        head = keras.layers.Dense(3, activation="softmax", kernel_initializer=keras.initializers.GlorotUniform(1))
        hub = HubLayer(sys.argv[1], name="hub")
        hub.parts[1].trainable = False  # statistics over parts of a batch are others than over the whole
        model = keras.Model(inputs, head(hub(inputs)))
        optimizer = GroupedOptimizer({"hub": (keras.optimizers.SGD(0.05), hub), "head": (keras.optimizers.Adam(0.01), head)})
        model.compile(optimizer, "sparse_categorical_crossentropy", jit_compile=False)
        model.fit(X, Y, batch_size=8, epochs=2, shuffle=False, verbose=0)
        return model.get_weights()
    with tf.distribute.MirroredStrategy(cross_device_ops=tf.distribute.ReductionToOneDevice()).scope():
        two = train()
    one = train()
    print(max(float(np.abs(a - b).max()) for a, b in zip(one, two)), tf.config.list_logical_devices("CPU"))
"""


@pytest.mark.slow
def test_two_replicas_train_it_as_one_does(encoder_folder, tmp_path):
    np.save(tmp_path / "x.npy", X)
    (tmp_path / "replicas.py").write_text(textwrap.dedent(REPLICAS))
    command = [sys.executable, str(tmp_path / "replicas.py"), str(encoder_folder), str(tmp_path / "x.npy")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert float(done.stdout.split()[0]) < 1e-6
    assert done.stdout.count("LogicalDevice") >= 2


@pytest.mark.slow
def test_an_archive_is_a_handle(encoder_folder, tmp_path):
    with zipfile.ZipFile(tmp_path / "encoder.zip", "w") as file:
        for path in encoder_folder.rglob("*"):
            file.write(path, Path("inner") / path.relative_to(encoder_folder))
    np.testing.assert_array_equal(HubLayer(tmp_path / "encoder.zip")(X), HubLayer(encoder_folder)(X))


def test_a_graph_that_reaches_files_is_refused_until_its_operations_are_named(tmp_path, monkeypatch):
    class Writing(tf.Module):
        def __init__(self):
            super().__init__()
            self.w = tf.Variable(tf.ones((6, 2)), name="w")

        @tf.function(input_signature=[tf.TensorSpec((None, 6), tf.float32)])
        def __call__(self, x):
            tf.io.write_file("written", "text")
            return tf.matmul(x, self.w)

    monkeypatch.chdir(tmp_path)
    tf.saved_model.save(Writing(), "net")
    with pytest.raises(
        FinetuneError, match=r"by `WriteFile \(files\)`, .* name them: `allow_operations=\['WriteFile'\]`"
    ):
        HubLayer("net")
    model = with_head(HubLayer("net", allow_operations=["WriteFile"], name="hub"))
    model.save("model.keras")
    with pytest.raises(FinetuneError, match="safe mode"):
        keras.models.load_model("model.keras")
    keras.models.load_model("model.keras", safe_mode=False)
