"""The layer tree names every weight once, by its place, and the names stay."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.errors import GroupError
from finetune.groups.layer_tree import (
    LayerTree,
    layer_tree,
    layers_in_order,
    own_counts,
)

L = keras.layers

# Keras 3.15 writes a file through `np.array(variable)`, which NumPy 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")


def names(model) -> list[str]:
    return [leaf.name for leaf in layer_tree(model).leaves]


def saved_and_loaded(model, tmp_path):
    model.save(tmp_path / "model.keras")
    return keras.models.load_model(tmp_path / "model.keras")


def exported_and_loaded(model, tmp_path):
    model.export(tmp_path / "exported", verbose=False)
    return tf.saved_model.load(tmp_path / "exported")


def ids(variables) -> list[int]:
    return [id(variable) for variable in variables]


def check_promises(model) -> LayerTree:
    """What holds for every Keras model."""
    tree = layer_tree(model)
    assert ids(leaf.variable for leaf in tree.leaves) == ids(model.weights)
    assert ids(leaf.variable for leaf in tree.trainable) == ids(model.trainable_variables)
    assert len(tree.by_name) == len(tree.leaves)
    for leaf in tree.leaves:
        own = leaf.owner._trainable_variables + leaf.owner._non_trainable_variables
        assert own[leaf.index] is leaf.variable
        assert leaf.name.startswith(f"{leaf.layer}/" if leaf.layer else leaf.name)
    return tree


def small_cnn() -> keras.Model:
    image = keras.Input((4, 4, 1), name="image")
    x = L.BatchNormalization(name="bn")(L.Conv2D(2, 2, name="conv")(image))
    return keras.Model(image, L.Dense(2, name="head")(L.Flatten(name="flat")(x)))


def sequence_model() -> keras.Model:
    tokens = keras.Input((5, 4))
    x = L.Bidirectional(L.LSTM(2, return_sequences=True))(tokens)
    x = L.MultiHeadAttention(2, 2)(x, x)
    x = L.TimeDistributed(L.Dense(3))(L.Dropout(0.5)(L.LayerNormalization()(x)))
    return keras.Model(tokens, L.Dense(2)(L.RNN([L.LSTMCell(2), L.GRUCell(3)])(x)))


def backbone(name: str) -> keras.Model:
    inputs = keras.Input((4,))
    return keras.Model(inputs, L.Dense(4, name="conv1")(inputs), name=name)


# While a model is loaded Keras tells layers apart by `id`, which a dead one leaves to another.
ALIVE: list[L.Layer] = []


@keras.saving.register_keras_serializable("test_layer_tree")
class Block(L.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.attention = L.MultiHeadAttention(1, 2)
        self.feed_forward = keras.Sequential([L.Dense(3), L.Dense(4)])
        self.branches = {"left": L.Dense(4), "right": L.Dense(4, name="chosen")}
        ALIVE.append(L.GRU(2, return_sequences=True))
        self.both_ways = L.Bidirectional(ALIVE[-1])

    def build(self, shape):
        self.scale = self.add_weight(shape=(1,))
        self.attention.build(shape, shape)
        for part in (self.feed_forward, *self.branches.values(), self.both_ways):
            part.build(shape)

    def call(self, x):
        x = self.feed_forward(self.attention(x, x)) + self.both_ways(x)
        return (self.branches["left"](x) + self.branches["right"](x)) * self.scale


@keras.saving.register_keras_serializable("test_layer_tree")
class Network(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.stem = L.Dense(4)
        self.blocks = [Block(), Block()]
        self.drop = L.Dropout(0.5, seed=1)
        self.norm = L.BatchNormalization()
        self.head = L.Dense(2, name="classifier")

    def build(self, shape):
        inner = (*shape[:-1], 4)
        self.stem.build(shape)
        for part in (*self.blocks, self.norm, self.head):
            part.build(inner)
        self.token = self.add_weight(shape=(4,), name="token")

    def call(self, x, training=False):
        x = self.stem(x) + self.token
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(self.drop(x, training=training), training=training))


def network() -> Network:
    model = Network()
    model(np.ones((1, 3, 4), "float32"))
    return model


# Keras models


def test_a_flat_model_is_named_by_its_layers_and_counts_its_inputs():
    tree = check_promises(small_cnn())

    assert [leaf.name for leaf in tree.trainable] == [
        "conv/kernel", "conv/bias", "bn/gamma", "bn/beta", "head/kernel", "head/bias",
    ]  # fmt: skip
    assert [leaf.name for leaf in tree.leaves if not leaf.trainable] == ["bn/moving_mean", "bn/moving_variance"]
    assert tree.layers == ("image", "conv", "bn", "flat", "head")
    assert [leaf.index for leaf in tree.leaves] == [0, 1, 0, 1, 2, 3, 0, 1]
    assert tree.by_name["bn/gamma"].layer == "bn"


def test_layers_are_counted_as_the_model_counts_them():
    for model in (small_cnn(), sequence_model(), keras.Sequential([keras.Input((2,)), L.Dropout(0.1), L.Dense(1)])):
        assert layer_tree(model).layers == tuple(layer.name for layer in model.layers)


@pytest.mark.parametrize("build", [small_cnn, sequence_model, network])
def test_names_are_the_same_after_save_and_load(build, tmp_path):
    model = build()
    tree = check_promises(model)

    loaded = check_promises(saved_and_loaded(model, tmp_path))

    assert [leaf.name for leaf in loaded.leaves] == [leaf.name for leaf in tree.leaves]
    assert (loaded.layers, loaded.containers) == (tree.layers, tree.containers)


@pytest.mark.parametrize("build", [small_cnn, sequence_model])
def test_names_are_the_same_in_a_clone(build):
    model = build()

    assert names(keras.models.clone_model(model)) == names(model)


def test_names_of_a_subclassed_model_are_the_same_when_it_is_built_again():
    assert names(network()) == names(network())


def test_a_functional_model_made_by_a_subclassed_one_has_its_layers_numbered_within_it():
    class Holder(keras.Model):
        def __init__(self):
            super().__init__()
            inputs = keras.Input((2,))
            self.body = keras.Model(inputs, L.Dense(2)(L.Dense(2)(L.Dense(2, name="first")(inputs))))

    for _ in range(2):
        assert [leaf.layer for leaf in layer_tree(Holder()).leaves[::2]] == ["body/first", "body/dense", "body/dense_1"]


def test_what_a_subclassed_layer_holds_is_named_by_attribute_unless_somebody_named_it():
    tree = layer_tree(network())

    assert tree.layers == ("stem", "blocks/0", "blocks/1", "drop", "norm", "classifier")
    assert {leaf.layer for leaf in tree.leaves if leaf.name.startswith("blocks/1/")} == {
        "blocks/1",  # holds `scale`, a weight without a name of its own
        "blocks/1/attention/query",
        "blocks/1/attention/key",
        "blocks/1/attention/value",
        "blocks/1/attention/attention_output",
        "blocks/1/feed_forward/dense",
        "blocks/1/feed_forward/dense_1",
        "blocks/1/branches/left",
        "blocks/1/chosen",
        "blocks/1/both_ways/forward_layer/cell",
        "blocks/1/both_ways/backward_layer/cell",
    }
    assert {"blocks/1/scale", "token"} <= set(tree.by_name)
    assert tree.by_name["token"].layer == ""


@pytest.mark.parametrize("freeze", ["model", "layer", "variable"])
def test_freezing_changes_neither_names_nor_the_trainable_list(freeze):
    model = small_cnn()
    before = layer_tree(model)
    {"model": model, "layer": model.get_layer("conv"), "variable": model.weights[0]}[freeze].trainable = False

    after = layer_tree(model)

    assert len(model.trainable_variables) < len(before.trainable)
    assert [(leaf.name, leaf.trainable, leaf.index) for leaf in after.leaves] == [
        (leaf.name, leaf.trainable, leaf.index) for leaf in before.leaves
    ]


def test_a_layer_frozen_before_it_was_built_still_counts_as_trainable(tmp_path):
    model = keras.Sequential([keras.Input((2,)), L.Dense(2, trainable=False, name="a"), L.Dense(1, name="b")])

    for each in (model, saved_and_loaded(model, tmp_path)):
        assert [leaf.name for leaf in layer_tree(each).trainable] == ["a/kernel", "a/bias", "b/kernel", "b/bias"]


def test_a_nameless_weight_has_the_same_name_in_every_copy_of_its_layer():
    def nameless() -> L.Layer:
        layer = L.Layer()
        layer.held = layer.add_weight(shape=(1,))
        _ = [layer.add_weight(shape=(1,)) for _ in range(2)]
        layer.built = True
        return layer

    assert names(nameless()) == names(nameless()) == ["held", "variable", "variable~1"]


def test_two_nested_models_with_the_same_layer_names_stay_apart():
    inputs = keras.Input((4,))
    tree = check_promises(keras.Model(inputs, backbone("right")(backbone("left")(inputs))))

    assert [leaf.layer for leaf in tree.leaves] == ["left/conv1", "left/conv1", "right/conv1", "right/conv1"]
    assert {"left", "right"} <= tree.containers


def test_a_shared_layer_is_named_once_at_its_first_place():
    shared, inner = L.Dense(4, name="shared"), keras.Input((4,))
    inputs = keras.Input((4,))
    model = keras.Model(inputs, L.Dense(1, name="head")(shared(keras.Model(inner, shared(inner), name="sub")(inputs))))

    tree = check_promises(model)

    assert [leaf.name for leaf in tree.leaves] == ["sub/shared/kernel", "sub/shared/bias", "head/kernel", "head/bias"]
    assert tree.layers[1:] == ("sub", "shared", "head")


def test_a_repeated_sibling_name_gets_a_number():
    class Twins(keras.Model):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = (L.Dense(2, name="twin") for _ in range(3))
            self.again = self.a

        def call(self, x):
            return self.c(self.b(self.a(x)))

    model = Twins()
    model(np.ones((1, 2)))
    tree = check_promises(model)

    assert tree.layers == ("twin", "twin~1", "twin~2")
    assert [leaf.layer for leaf in tree.leaves[::2]] == ["twin", "twin~1", "twin~2"]


def test_seeds_metrics_and_optimizer_variables_are_no_weights():
    model = network()
    before = names(model)
    model.compile("adam", "mse", metrics=["mae"], run_eagerly=True)
    model.train_on_batch(np.ones((2, 3, 4), "float32"), np.ones((2, 3, 2), "float32"))

    assert any("seed" in variable.path for variable in model.non_trainable_variables)
    assert names(model) == before


def test_a_weight_that_the_walk_cannot_see_is_named_by_its_path():
    class Hidden(keras.Model):
        def __init__(self):
            super().__init__()
            self.body = L.Dense(1)
            self.far = {"away": L.Dense(2, name="far away")}
            self._layers.remove(self.far["away"])

        def call(self, x):
            return self.body(x)

        @property
        def weights(self):
            return [*super().weights, *self.far["away"].weights]

    model = Hidden()
    model.far["away"].build((None, 2))
    model(np.ones((1, 2), "float32"))

    assert names(model) == ["body/kernel", "body/bias", "far_away/kernel", "far_away/bias"]


def test_a_built_layer_alone_has_a_tree():
    layer = L.Dense(2)
    layer.build((None, 3))

    assert names(layer) == ["kernel", "bias"]


def test_a_model_that_only_holds_built_models_need_not_be_called():
    class Gan(keras.Model):
        def __init__(self):
            super().__init__()
            self.generator, self.discriminator, self.active = backbone("g"), backbone("d"), L.ReLU()

    assert names(Gan()) == ["g/conv1/kernel", "g/conv1/bias", "d/conv1/kernel", "d/conv1/bias"]


@pytest.mark.parametrize(
    "build", [lambda: keras.Sequential([L.Dense(2)], name="unready"), lambda: Network(name="unready")]
)
def test_a_model_without_its_weights_yet_is_an_error_that_says_how_to_build_it(build):
    with pytest.raises(GroupError, match=r"`unready` is not built yet. Call it once on a batch, `model\(batch\)`"):
        layer_tree(build())


def test_a_model_half_built_is_an_error_too():
    class Half(keras.Model):
        def __init__(self):
            super().__init__(name="half")
            self.body, self.head = backbone("body"), L.Dense(1)

    with pytest.raises(GroupError, match="`half` is not built yet"):
        layer_tree(Half())


def test_a_model_without_any_weight_is_an_error():
    with pytest.raises(GroupError, match="needs weights, and `empty` has none"):
        layer_tree(keras.Sequential([keras.Input((2,)), L.Flatten()], name="empty"))


@pytest.mark.parametrize("thing", [None, 3, "model.keras", [np.ones(2)]])
def test_anything_but_a_model_is_an_error(thing):
    with pytest.raises(GroupError, match=r"needs a Keras model, a `tf\.Module` or a loaded SavedModel"):
        layer_tree(thing)


LAYERS = {
    "dense": lambda name: L.Dense(3, name=name),
    "norm": lambda name: L.BatchNormalization(name=name),
    "drop": lambda name: L.Dropout(0.1, name=name),
}


def chain(spec) -> keras.Model:
    """Builds a model from (how, parts): functional, Sequential or a model of models, some layers used twice."""
    how, parts = spec
    layers = [chain(part) if isinstance(part, tuple) else LAYERS[part](None) for part in parts]
    layers = [L.Dense(3), *layers]
    if how == "sequential":
        return keras.Sequential([keras.Input((3,)), *layers])
    inputs = x = keras.Input((3,))
    for layer in [*layers, layers[0]] if how == "shared" else layers:
        x = layer(x)
    return keras.Model(inputs, x)


specs = st.recursive(
    st.sampled_from(sorted(LAYERS)),
    lambda inner: st.tuples(
        st.sampled_from(["sequential", "functional", "shared"]), st.lists(inner, min_size=1, max_size=3)
    ),
    max_leaves=6,
).filter(lambda spec: isinstance(spec, tuple))


@pytest.mark.slow
@settings(max_examples=12, deadline=None)
@given(spec=specs)
def test_any_nested_model_has_unique_names_that_survive_cloning(spec):
    model = chain(spec)
    tree = check_promises(model)

    clone = keras.models.clone_model(model)

    assert names(clone) == [leaf.name for leaf in tree.leaves]
    model.trainable = False
    assert [leaf.name for leaf in layer_tree(model).trainable] == [leaf.name for leaf in tree.trainable]


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(spec=specs)
def test_any_nested_model_has_names_that_survive_saving(spec, tmp_path_factory):
    model = chain(spec)

    assert names(saved_and_loaded(model, tmp_path_factory.mktemp("any"))) == names(model)


@pytest.mark.slow
@pytest.mark.parametrize("build", [keras.applications.MobileNetV2, keras.applications.EfficientNetB0])
def test_the_promises_hold_for_keras_applications(build):
    model = build(weights=None, classes=3, input_shape=(32, 32, 3))
    check_promises(model)

    assert names(keras.models.clone_model(model)) == names(model)


# tf.Module and SavedModel


class Part(tf.Module):
    def __init__(self):
        super().__init__()
        self.kernel = tf.Variable([[1.0]])
        self.bias = tf.Variable([0.0])


class Whole(tf.Module):
    def __init__(self):
        super().__init__()
        self.stem = Part()
        self.blocks = [Part(), Part()]
        self.table = {"b": Part(), "a": tf.Variable(1.0)}
        self.pair = (Part(),)
        self.mean = tf.Variable(0.0, trainable=False)
        self.again = self.stem


def test_a_module_is_named_by_attribute_paths_in_its_public_order():
    module = Whole()
    tree = layer_tree(module)

    assert [leaf.name for leaf in tree.leaves][:4] == ["mean", "table/a", "again/bias", "again/kernel"]
    assert {"blocks/1/kernel", "table/b/bias", "pair/0/kernel"} <= set(tree.by_name)
    assert ids(leaf.variable for leaf in tree.leaves) == ids(module.variables)
    assert ids(leaf.variable for leaf in tree.trainable) == ids(module.trainable_variables)
    assert not tree.by_name["mean"].trainable
    assert tree.layers == ("mean", "table", "again", "blocks", "pair")
    assert (tree.by_name["blocks/1/kernel"].layer, tree.by_name["mean"].layer) == ("blocks/1", "")


def test_a_module_and_its_saved_and_loaded_self_agree(tmp_path):
    module = Whole()
    tf.saved_model.save(module, tmp_path / "saved")

    before, after = layer_tree(module), layer_tree(tf.saved_model.load(tmp_path / "saved"))

    assert [(leaf.name, leaf.trainable, leaf.index) for leaf in after.leaves] == [
        (leaf.name, leaf.trainable, leaf.index) for leaf in before.leaves
    ]
    assert (after.layers, after.containers) == (before.layers, before.containers)


def test_variables_that_all_carry_a_scope_of_their_own_are_named_by_it(tmp_path):
    class Scoped(tf.Module):
        def __init__(self):
            super().__init__()
            self.things = [tf.Variable(1.0, name="stem/kernel"), tf.Variable(2.0, name="head/kernel")]

    module = Scoped()
    tf.saved_model.save(module, tmp_path / "saved")

    for each in (module, tf.saved_model.load(tmp_path / "saved")):
        tree = layer_tree(each)
        assert [leaf.name for leaf in tree.leaves] == ["stem/kernel", "head/kernel"]
        assert [leaf.layer for leaf in tree.leaves] == ["stem", "head"]


def test_a_keras_layer_inside_a_module_is_walked_too():
    module = Part()
    module.dense = L.Dense(2)
    module.dense.build((None, 3))

    assert names(module) == ["bias", "kernel", "dense/kernel", "dense/bias"]


@pytest.mark.slow
def test_an_exported_keras_model_keeps_the_names_of_its_layers(tmp_path):
    model = keras.Sequential(
        [
            keras.Input((4,)),
            L.Dense(2, name="stem"),
            L.BatchNormalization(name="bn"),
            L.Dropout(0.1),
            L.Dense(1, name="head"),
        ],
        name="net",
    )
    loaded = exported_and_loaded(model, tmp_path)
    tree = layer_tree(loaded)

    assert [leaf.name for leaf in tree.leaves] == [f"net/{name}" for name in names(model)]
    assert tree.layers == ("net/stem", "net/bn", "net/head")
    assert ids(leaf.variable for leaf in tree.trainable) == ids(loaded.trainable_variables)


def test_an_export_whose_variables_share_their_names_still_has_unique_names(tmp_path):
    class Twice(keras.Model):
        def __init__(self):
            super().__init__(name="twice")
            self.a, self.b = L.Dense(2), L.Dense(2)
            self.nameless = keras.Variable([1.0])

        def call(self, x):
            return self.b(self.a(x)) * self.nameless

    model = Twice()
    model(np.ones((1, 2), "float32"))
    loaded = exported_and_loaded(model, tmp_path)
    assert len({variable.name for variable in loaded.variables}) == 3, "Keras gives them different names now"

    assert names(loaded) == ["variables/0", "twice/kernel", "twice/bias", "twice/kernel~1", "twice/bias~1"]


def test_a_tf1_saved_model_is_named_by_its_variables(tmp_path):
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        image = tf.compat.v1.placeholder(tf.float32, (None, 3))
        kernel = tf.compat.v1.get_variable("net/stem/kernel", (3, 2))
        head = tf.compat.v1.get_variable("net/head/kernel", (2, 1))
        tf.compat.v1.train.create_global_step()
        session.run(tf.compat.v1.global_variables_initializer())
        logits = tf.matmul(tf.matmul(image, kernel), head)
        builder = tf.compat.v1.saved_model.Builder(str(tmp_path / "tf1"))
        signature = tf.compat.v1.saved_model.predict_signature_def({"image": image}, {"logits": logits})
        builder.add_meta_graph_and_variables(session, ["serve"], signature_def_map={"serving_default": signature})
        builder.save()

    tree = layer_tree(tf.saved_model.load(tmp_path / "tf1"))

    assert [(leaf.name, leaf.trainable) for leaf in tree.leaves] == [
        ("net/stem/kernel", True),
        ("net/head/kernel", True),
        ("global_step", False),
    ]
    assert tree.layers == ("net/stem", "net/head", "global_step")


def test_a_reusable_saved_model_is_limited_to_the_variables_it_lists(tmp_path):
    root = tf.train.Checkpoint(stem=Part(), head=Part(), optimizer=Part())
    root.variables = [*root.stem.variables, *root.head.variables]
    root.trainable_variables = [root.head.kernel, root.stem.kernel]
    tf.saved_model.save(root, tmp_path / "hub")
    loaded = tf.saved_model.load(tmp_path / "hub")

    tree = layer_tree(loaded)

    assert sorted(tree.by_name) == ["head/bias", "head/kernel", "stem/bias", "stem/kernel"]
    listed = ids(loaded.trainable_variables)
    assert [i for i in ids(leaf.variable for leaf in tree.trainable) if i in listed] == listed


def test_a_module_without_variables_is_an_error():
    with pytest.raises(GroupError, match="needs variables, and the `Module` has none"):
        layer_tree(tf.Module())


# The layers


def test_all_layers_below_a_model_are_listed_each_before_its_parts_and_those_without_weights_too():
    inputs = keras.Input((3,), name="input")
    inner = keras.Sequential([keras.Input((3,), name="inner_input"), L.Dense(3, name="a"), L.ReLU(name="b")], name="in")
    model = keras.Model(inputs, L.Dense(2, name="head")(L.Dropout(0.1, name="drop")(inner(inner(inputs)))))

    listed = [layer.name for layer in layers_in_order(model)]

    assert listed == ["input", "in", "a", "b", "inner_input", "drop", "head"]


def test_a_slice_does_not_count_layers_below_a_layer_that_is_not_a_model():
    class Holder(L.Layer):
        def __init__(self):
            super().__init__(name="holder")
            self.inner = L.Dense(2, name="inner")

        def build(self, shape):
            self.inner.build(shape)

        def call(self, x):
            return self.inner(x)

    tree = layer_tree(keras.Sequential([keras.Input((3,)), Holder(), L.Dense(2, name="head")]))

    assert tree.containers == {""}
    assert list(tree.by_name)[:2] == ["holder/inner/kernel", "holder/inner/bias"]


def test_a_weight_with_an_automatic_name_is_named_by_its_attribute_beside_a_weight_that_has_a_name():
    layer = L.Layer()
    layer.scale, layer.shift = layer.add_weight(shape=(2,)), layer.add_weight(shape=(2,), name="offset")
    layer.built = True

    assert names(layer) == ["scale", "offset"]


def test_parts_held_beside_the_graph_of_a_functional_model_come_after_those_of_the_graph():
    class Beside(keras.Model):
        def __init__(self):
            inputs = keras.Input((3,))
            super().__init__(inputs, L.Dense(2, name="a")(inputs))
            self.extra = L.Dense(2, name="extra")
            self.extra.build((None, 3))

    assert names(Beside()) == ["a/kernel", "a/bias", "extra/kernel", "extra/bias"]


def test_a_keras_layer_inside_a_module_has_its_parts_named_by_attribute_whatever_number_keras_gave_them():
    class Holder(L.Layer):
        def __init__(self):
            super().__init__()
            self.inner = L.Dense(2)

        def build(self, shape):
            self.inner.build(shape)

    module = tf.Module()
    module.part = Holder()
    module.part.build((None, 3))

    assert sorted(names(module)) == ["part/inner/bias", "part/inner/kernel"]


def test_a_weight_that_two_layers_share_counts_among_the_weights_of_both():
    layer = keras.layers.SpectralNormalization(keras.layers.Dense(3), name="sn")
    tree = layer_tree(keras.Sequential([keras.Input((4,)), layer]))
    owners = {leaf.name: leaf.owner for leaf in tree.leaves}
    assert list(owners) == ["sn/kernel", "sn/vector_u", "sn/layer/bias"]
    counts = own_counts(tree.leaves)
    assert (counts[id(layer)], counts[id(owners["sn/layer/bias"])]) == (2, 2)  # the kernel is also that of the Dense


def test_at_a_prompt_names_and_counts_are_shown_and_no_values():
    tree = layer_tree(keras.Sequential([keras.Input((4,)), L.Dense(3, name="body"), L.Dense(2, name="head")]))
    assert repr(tree) == "LayerTree(4 weights in `body`, `head`)"
    assert repr(tree.leaves[0]) == "Leaf(body/kernel, (4, 3))"
