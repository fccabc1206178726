import keras
import numpy as np
import pytest
from keras import layers, ops

from finetune import HubLayer
from finetune.data.rows import Rows
from finetune.kernels.native_kernels import native_kernels
from finetune.training.features.cache_keys import feature_keys
from finetune.training.features.cut import find_cut

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

X = np.random.default_rng(0).normal(size=(5, 6)).astype("float32")


def network(activation="relu", axis=-1, scale=2.0, dtype="float32"):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6,))
    x = layers.Dense(6, activation=activation, dtype=dtype, name="a")(inputs)
    x = layers.BatchNormalization(name="bn")(ops.flip(x * scale, axis=axis))
    model = keras.Model(inputs, layers.Dense(2, name="head")(x))
    for name in ("a", "bn"):
        model.get_layer(name).trainable = False
    return model


def key(model=None, x=X, **options):
    cut = find_cut(model or network())
    return feature_keys(cut.front, cut.graph.inputs_of(x), **options)[cut.computed[0]]


def test_the_same_network_and_data_have_the_same_key():
    assert key() == key()


def test_the_kernels_change_the_key():
    with native_kernels():
        native = key()
    assert native != key()


def test_a_view_of_the_data_and_a_file_of_them_have_the_key_of_the_data(tmp_path):
    np.save(tmp_path / "x.npy", X)
    assert key(x=np.load(tmp_path / "x.npy", mmap_mode="r")) == key(x=np.asfortranarray(X)) == key()


@pytest.mark.parametrize("change", [{"activation": "tanh"}, {"axis": 0}, {"scale": 3.0}, {"dtype": "mixed_bfloat16"}])
def test_what_the_network_computes_changes_the_key(change):
    assert key(network(**change)) != key()


def test_a_bit_of_the_data_changes_the_key():
    other = X.copy()
    other[3, 2] = np.nextafter(other[3, 2], np.float32(9))
    assert key(x=other) != key()
    assert key(x=X[::-1]) != key()


def test_a_bit_of_a_weight_or_of_a_moving_statistic_changes_the_key():
    for name in ("kernel", "moving_mean"):
        model = network()
        weight = next(weight for weight in model.weights if weight.name == name)
        value = weight.numpy()
        value.flat[0] = np.nextafter(value.flat[0], np.float32(9))
        weight.assign(value)
        assert key(model) != key()


def test_the_weights_of_the_rest_do_not_change_the_key():
    model = network()
    model.get_layer("head").kernel.assign(np.ones((6, 2)))
    assert key(model) == key()


def test_the_number_of_passes_and_the_layers_in_inference_mode_change_the_key():
    model = network()
    assert len({key(), key(passes=2), key(model, inference=frozenset([id(model.get_layer("bn"))]))}) == 3


def test_texts_of_other_ends_have_other_keys():
    table = layers.StringLookup(vocabulary=["a", "b"])
    inputs = keras.Input((2,), dtype="string")
    model = keras.Model(inputs, layers.Dense(2)(layers.Embedding(4, 3, name="e")(table(inputs))))
    model.get_layer("e").trainable = False
    one, other = (np.array([row], dtype=object) for row in (["ab", "c"], ["a", "bc"]))
    assert key(model, one) == key(model, one.copy())
    assert key(model, one) != key(model, other)


def test_a_hub_layer_has_a_key(encoder_folder):
    keys = []
    for _ in range(2):
        hub = HubLayer(encoder_folder, name="hub")
        model = keras.Sequential([keras.Input((6,)), hub, layers.Dense(2)])
        hub.trainable = False
        keys.append(key(model))
    assert keys[0] == keys[1]


class Unknown(layers.Layer):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def call(self, x):
        return self.function(x)

    def get_config(self):
        return {**super().get_config(), "function": self.function}


def test_what_nobody_can_tell_the_content_of_has_no_key():
    parts = [layers.Dense(4, name="a"), Unknown(ops.square), layers.Dense(2)]
    model = keras.Sequential([keras.Input((6,)), *parts])
    model.get_layer("a").trainable = False
    cut = find_cut(model)
    assert feature_keys(cut.front, {0: X}) is None


class Configured(layers.Layer):
    def __init__(self, value):
        super().__init__(name="configured")
        self.value = value

    def call(self, x):
        return x + 0

    def get_config(self):
        return {**super().get_config(), "value": self.value}


@pytest.mark.parametrize(
    ("value", "other"),
    [
        *[
            (slice(1), slice(2)),
            (1j, 2j),
            (b"a", b"b"),
            (np.float32(1), np.float32(2)),
            (range(3), range(4)),
            (None, ...),
        ],
        *[(np.dtype("f4"), np.dtype("f8")), (np.array(1.0), np.array(2.0))],
    ],
    ids=str,
)
def test_plain_values_of_every_kind_in_a_config_are_part_of_the_key(value, other):
    def key_with(setting):
        keras.utils.set_random_seed(0)
        parts = [layers.Dense(4, name="a"), Configured(setting), layers.Dense(2, name="head")]
        model = keras.Sequential([keras.Input((6,)), *parts])
        model.get_layer("a").trainable = False
        cut = find_cut(model)
        return feature_keys(cut.graph.steps, {0: X})[cut.graph.outputs[0]]

    assert key_with(value) == key_with(value) != key_with(other)


def test_only_the_layers_in_inference_mode_change_the_key():
    model = network()
    ids = [frozenset([id(model.get_layer(name))]) for name in ("a", "bn", "head")]
    assert key(model, inference=frozenset([1])) == key(model, inference=ids[2]) == key(model)
    assert len({key(model), key(model, inference=ids[0]), key(model, inference=ids[1])}) == 3


def test_rows_that_are_read_when_needed_have_keys_only_where_they_have_a_fingerprint():
    def of(fingerprint):
        cut = find_cut(network())
        return feature_keys(cut.front, {0: Rows(5, lambda indices: indices, fingerprint)})

    assert of("a") == of("a")
    assert of("a") != of("b")
    assert of("") is None


def key_of_configured(value, kind=Configured):
    keras.utils.set_random_seed(0)
    parts = [layers.Dense(4, name="a"), kind(value), layers.Dense(2, name="head")]
    model = keras.Sequential([keras.Input((6,)), *parts])
    model.get_layer("a").trainable = False
    cut = find_cut(model)
    keys = feature_keys(cut.graph.steps, {0: X})
    return keys and keys[cut.graph.outputs[0]]


def test_the_order_of_a_set_and_of_a_mapping_does_not_change_the_key():
    assert [*{0, 8}] != [*{8, 0}]  # both fall on the same place of the table, and the first stays there
    assert key_of_configured({0, 8}) == key_of_configured({8, 0}) != key_of_configured({0})
    assert key_of_configured(frozenset([0, 8])) == key_of_configured(frozenset([8, 0]))
    assert key_of_configured({"x": 1, 2: 3}) == key_of_configured({2: 3, "x": 1}) != key_of_configured({2: 3, "x": 2})
    assert key_of_configured(["a", "b"]) != key_of_configured(["b", "a"])


def test_a_class_whose_source_cannot_be_read_has_no_key():
    names = {"Configured": Configured}
    exec("class Hidden(Configured): pass", names)
    names["Hidden"].__module__ = "nowhere"
    assert key_of_configured(1, names["Hidden"]) is None
    assert key_of_configured(1) is not None


@pytest.mark.parametrize("package", ["keras", "tensorflow"])
def test_another_version_of_keras_or_tensorflow_changes_the_key(package, monkeypatch):
    before = key()
    monkeypatch.setattr(
        f"finetune.training.features.cache_keys.{'keras' if package == 'keras' else 'tf'}.__version__", "0"
    )
    assert key() != before


def test_seeds_are_part_of_the_key_only_where_random_layers_are_run_several_times():
    def seeded(seed, passes):
        keras.utils.set_random_seed(0)
        parts = [layers.Dense(4, name="a"), layers.Dropout(0.5, seed=seed, name="d"), layers.Dense(2, name="head")]
        model = keras.Sequential([keras.Input((6,)), *parts])
        model.get_layer("a").trainable = False
        layer = model.get_layer("d")
        layer.get_config = lambda: {"name": "d"}  # the seed in the config is not what is asked about
        cut = find_cut(model)
        return feature_keys(cut.graph.steps, {0: X}, passes=passes)[cut.graph.outputs[0]]

    assert seeded(1, 1) == seeded(2, 1)
    assert seeded(1, 2) != seeded(2, 2)
