import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from finetune import HubLayer, export_hub, layer_tree
from finetune.errors import FinetuneError

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

X = np.random.default_rng(0).normal(size=(8, 6)).astype("float32")


@pytest.fixture(scope="module")
def exported(encoder_folder):
    """What `tf.saved_model.load` makes of an exported `encoder_model`."""
    return tf.saved_model.load(str(encoder_folder))


def problem(call, *arguments):
    with pytest.raises(FinetuneError) as error:
        call(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


# -- What is written --------------------------------------------------------------------------------------------------


def test_the_variables_are_listed_in_the_order_and_under_the_names_of_the_layer_tree(encoder, exported):
    tree = layer_tree(encoder)
    assert [v.name for v in exported.variables] == [f"{leaf.name}:0" for leaf in tree.leaves]
    assert [v.name for v in exported.trainable_variables] == [f"{leaf.name}:0" for leaf in tree.trainable]
    for variable, leaf in zip(exported.variables, tree.leaves, strict=True):
        np.testing.assert_array_equal(variable.numpy(), leaf.variable.numpy())
    assert exported.stem.kernel is exported.variables[0], "a path of attributes leads to each variable"


def test_the_call_takes_training_and_infers_without_it(encoder, encoder_folder):
    loaded = tf.saved_model.load(str(encoder_folder))
    mean = next(v for v in loaded.variables if v.name == "bn/moving_mean:0")
    before = mean.numpy()
    np.testing.assert_allclose(loaded(X), encoder(X), rtol=1e-6)
    np.testing.assert_allclose(loaded(X, training=False), encoder(X), rtol=1e-6)
    np.testing.assert_array_equal(mean.numpy(), before)
    np.testing.assert_allclose(loaded(X, training=True), encoder(X, training=True), rtol=1e-5)
    assert (mean.numpy() != before).any()


def test_every_regularized_weight_has_a_loss_that_follows_the_weight(encoder_folder):
    loaded = tf.saved_model.load(str(encoder_folder))
    (loss,) = loaded.regularization_losses
    kernel = next(v for v in loaded.variables if v.name == "body/kernel:0")
    assert float(loss()) == pytest.approx(0.1 * float(tf.reduce_sum(kernel**2)))
    kernel.assign(tf.ones_like(kernel))
    assert float(loss()) == pytest.approx(0.1 * 64)


def test_the_signature_for_serving_infers_for_any_number_of_rows(encoder, exported):
    serve = exported.signatures["serving_default"]
    (name,) = serve.structured_input_signature[1]
    for rows in (1, 8):
        outputs = serve(**{name: tf.constant(X[:rows])})
        assert list(outputs) == ["outputs"]
        np.testing.assert_allclose(outputs["outputs"], encoder(X[:rows]), rtol=1e-5)


@pytest.fixture(scope="module")
def frozen_in_part(tmp_path_factory):
    """A model whose stem is frozen, with BatchNormalization in it, and whose `adapted` has LoRA; and its export."""
    model = keras.Sequential(
        [
            keras.Input((6,)),
            layers.Dense(6, name="stem", kernel_regularizer="l2"),
            layers.BatchNormalization(name="bn"),
            layers.Dense(6, name="adapted"),
            layers.Dropout(0.5),
            layers.Dense(2, activation="softmax", name="head", kernel_regularizer="l2"),
        ]
    )
    model.get_layer("adapted").enable_lora(2)
    model.get_layer("stem").trainable = model.get_layer("bn").trainable = False
    return model, export_hub(model, tmp_path_factory.mktemp("frozen") / "out")


def test_what_is_frozen_as_a_layer_can_be_trained_further_and_what_lora_froze_cannot(frozen_in_part):
    model, folder = frozen_in_part
    loaded = tf.saved_model.load(str(folder))
    names = [variable.name.removesuffix(":0") for variable in loaded.trainable_variables]
    assert {"stem/kernel", "bn/gamma", "adapted/bias", "head/kernel"} <= set(names)
    assert "adapted/kernel" not in names
    assert len([name for name in names if "lora" in name]) == 2
    assert len(loaded.regularization_losses) == 2
    before = [variable.numpy() for variable in loaded.variables]
    loaded(X, training=True)
    moved = [v.name for v, old in zip(loaded.variables, before, strict=True) if (v.numpy() != old).any()]
    assert sorted(moved) == ["bn/moving_mean:0", "bn/moving_variance:0"]
    assert [layer.trainable for layer in model.layers] == [False, False, True, True, True]
    assert [v.path for v in model.trainable_variables if "adapted/kernel" in v.path] == []


@pytest.mark.parametrize("layer", ["hub.KerasLayer", "HubLayer"])
def test_a_layer_made_of_an_export_trains_all_that_is_trainable(frozen_in_part, layer):
    model, folder = frozen_in_part
    library, made = keras, None
    if layer == "hub.KerasLayer":
        library, made = pytest.importorskip("tf_keras"), pytest.importorskip("tensorflow_hub").KerasLayer
    module = (made or HubLayer)(str(folder), trainable=True)
    network = library.Sequential([library.Input((6,)), module])
    np.testing.assert_allclose(network(X, training=False), model(X), atol=1e-6)
    assert (network(X, training=True).numpy() != network(X, training=True).numpy()).any()  # dropout
    assert len(network.losses) == 2
    before = {id(weight): weight.numpy() for weight in module.weights}
    network.compile(library.optimizers.Adam(0.1), "sparse_categorical_crossentropy")
    network.fit(X, np.arange(8) % 2, epochs=2, verbose=0)  # the first step of LoRA moves but one of its two
    still = [weight.name for weight in module.weights if (before[id(weight)] == weight.numpy()).all()]
    assert len(still) == 1  # the kernel that LoRA adapts
    assert len(module.trainable_weights) == len(module.weights) - 3  # nor are moving statistics


@pytest.mark.parametrize(
    ("outputs", "keys"),
    [(lambda a, b: {"mean": a, "max": b}, ["max", "mean"]), (lambda a, b: [a, b], ["output_0", "output_1"])],
    ids=["dict", "list"],
)
def test_several_outputs_have_their_keys_or_positions_in_the_signature(tmp_path, outputs, keys):
    x = keras.Input((4,), name="x")
    y = layers.Dense(2)(x)
    model = keras.Model(x, outputs(y, 2 * y))
    loaded = tf.saved_model.load(str(export_hub(model, tmp_path / "several")))
    served = loaded.signatures["serving_default"](x=tf.ones((3, 4)))
    assert sorted(served) == keys
    expected = model(np.ones((3, 4)))
    values = expected.values() if isinstance(expected, dict) else expected
    by_key = dict(zip(expected if isinstance(expected, dict) else keys, values, strict=True))
    for key in keys:
        np.testing.assert_allclose(served[key], by_key[key], rtol=1e-6)


def test_several_inputs_are_arguments_of_the_signature_under_their_names(tmp_path):
    a, b = keras.Input((2,), name="a"), keras.Input((2,), name="b", dtype="int32")
    model = keras.Model({"a": a, "b": b}, layers.Dense(1)(a) + keras.ops.cast(b, "float32"))
    loaded = tf.saved_model.load(str(export_hub(model, tmp_path / "two")))
    specs = loaded.signatures["serving_default"].structured_input_signature[1]
    assert {name: (spec.shape.as_list(), spec.dtype.name) for name, spec in specs.items()} == {
        "a": ([None, 2], "float32"),
        "b": ([None, 2], "int32"),
    }


def test_dropout_drops_anew_in_every_call_of_a_loaded_model(tmp_path):
    model = keras.Sequential([keras.Input((50,)), layers.Dense(50), layers.Dropout(0.5)])
    loaded = tf.saved_model.load(str(export_hub(model, tmp_path / "dropout")))
    first, second = (np.asarray(loaded(np.ones((1, 50), "float32"), training=True)) for _ in range(2))
    assert (first == 0).any()
    assert ((first == 0) != (second == 0)).any(), "its seed is a variable of the SavedModel"
    assert len(loaded.variables) == 2, "and none of its weights"


def test_a_lookup_table_is_written_with_the_model(tmp_path):
    words = layers.StringLookup(vocabulary=["good", "bad"])
    model = keras.Sequential([keras.Input((), dtype="string"), words, layers.Embedding(3, 2)])
    layer = HubLayer(export_hub(model, tmp_path / "words"))
    texts = tf.constant(["bad", "never seen"])
    np.testing.assert_array_equal(layer(texts), model(texts))


def test_a_model_with_a_hub_layer_keeps_the_losses_of_the_module(encoder_folder, tmp_path):
    inputs = keras.Input((6,))
    hub = HubLayer(encoder_folder, name="hub")
    model = keras.Model(inputs, layers.Dense(2, kernel_regularizer="l2", name="head")(hub(inputs)))
    again = tf.saved_model.load(str(export_hub(model, tmp_path / "again")))
    assert "hub/body/kernel:0" in [v.name for v in again.variables]
    model(X)
    expected = [float(loss) for loss in model.losses]
    assert sorted(float(loss()) for loss in again.regularization_losses) == pytest.approx(sorted(expected))
    assert len(expected) == 2


# -- Where it is written ----------------------------------------------------------------------------------------------


def test_an_empty_folder_is_filled_and_one_that_is_not_empty_is_refused_and_left_as_it_is(encoder, tmp_path):
    (tmp_path / "empty").mkdir()
    assert export_hub(encoder, tmp_path / "empty") == tmp_path / "empty"
    assert (tmp_path / "empty" / "saved_model.pb").is_file()
    assert (tmp_path / "empty").stat().st_mode & 0o777 == 0o755
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    assert problem(export_hub, encoder, tmp_path / "full") == (
        f"A SavedModel must be written to a folder that does not exist or is empty. `{tmp_path / 'full'}` exists. Choose "
        "another folder."
    )
    assert "exists" in problem(export_hub, encoder, tmp_path / "full" / "notes.txt")
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["notes.txt"]


def test_folders_above_are_made(encoder, tmp_path):
    assert export_hub(encoder, str(tmp_path / "a" / "b" / "c")) == tmp_path / "a" / "b" / "c"


# -- What cannot be written -------------------------------------------------------------------------------------------


class Own(keras.Model):
    def __init__(self):
        super().__init__(name="own")
        self.dense = layers.Dense(2)

    def call(self, inputs):
        return self.dense(inputs)


def test_a_model_whose_inputs_are_not_known_is_refused_with_how_to_wrap_it(tmp_path):
    model = Own()
    model(X)
    for refused in (model, keras.Sequential([layers.Dense(2)], name="own")):
        assert problem(export_hub, refused, tmp_path / "own") == (
            "A model is exported with the shapes of its inputs. Those of `own` are not known. Wrap it in a functional "
            "model: `x = keras.Input(shape); keras.Model(x, model(x))`."
        )
    inputs = keras.Input((6,))
    wrapped = keras.Model(inputs, model(inputs))
    np.testing.assert_allclose(HubLayer(export_hub(wrapped, tmp_path / "own"))(X), model(X), rtol=1e-6)


def test_what_tensorflow_cannot_save_is_one_short_error_and_leaves_nothing_behind(tmp_path):
    hidden = tf.Variable(2.0)

    class Hiding(layers.Layer):
        def call(self, inputs):
            return inputs * hidden

    model = keras.Sequential([keras.Input((6,)), layers.Dense(2), Hiding()], name="hiding")
    assert problem(export_hub, model, tmp_path / "hiding").startswith("`hiding` cannot be exported. TensorFlow says: ")
    assert list(tmp_path.iterdir()) == []
