import pickle

import keras
import numpy as np
import pytest
from keras import layers

import finetune
from finetune import GroupedOptimizer, Selector, layer_tree, resolve_groups
from finetune.groups.forgotten_freezing import freeze_again, is_freezing_forgotten

X = np.random.default_rng(0).normal(size=(8, 5, 4)).astype("float32")


@keras.saving.register_keras_serializable("test_forgotten_freezing")
class Normalized(layers.Layer):
    """Makes its layers itself, with moving statistics among them."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense, self.norm = layers.Dense(4), layers.BatchNormalization()

    def build(self, shape):
        self.dense.build(shape)
        self.norm.build(shape)

    def call(self, x, training=False):
        return self.norm(self.dense(x), training=training)


@keras.saving.register_keras_serializable("test_forgotten_freezing")
class Untold(Normalized):
    """Its config does not hold `trainable`."""

    def __init__(self, name=None):
        super().__init__(name=name)

    def get_config(self):
        return {"name": self.name}


def nested():
    inputs = keras.Input((5, 4))
    return keras.Model(inputs, layers.MultiHeadAttention(1, 2)(inputs, inputs), name="body")


BODIES = {
    "attention": lambda **options: layers.MultiHeadAttention(2, 2, name="body", **options),
    "grouped attention": lambda **options: layers.GroupQueryAttention(2, 2, 1, name="body", **options),
    "lstm": lambda **options: layers.LSTM(4, return_sequences=True, name="body", **options),
    "bidirectional": lambda **options: layers.Bidirectional(
        layers.LSTM(2, return_sequences=True), name="body", **options
    ),
    "own layer": lambda **options: Normalized(name="body", **options),
    "nested model": nested,
    "no trainable in the config": lambda: Untold(name="body"),
}
WAYS = {
    "file": lambda model, path: (model.save(path), keras.models.load_model(path))[1],
    "pickle": lambda model, path: pickle.loads(pickle.dumps(model)),
    "copy": lambda model, path: keras.models.clone_model(model),
}


def network(body):
    inputs = keras.Input((5, 4))
    features = body(inputs, inputs) if "attention" in type(body).__name__.lower() else body(inputs)
    return keras.Model(inputs, layers.Dense(1, name="head")(layers.Flatten()(features)))


def frozen_body(kind, optimizer):
    model = network(BODIES[kind]())
    groups = resolve_groups(model, [Selector("body", prefixes=("body",), frozen=True), Selector("head", rest=True)])
    finetune.freeze(model, groups)
    model.compile(
        GroupedOptimizer({"head": (keras.optimizers.Adam(0.1), groups[1])}) if optimizer == "grouped" else optimizer,
        "mse",
    )
    model.fit(X, np.zeros((8, 1)), verbose=0)
    return model


def trained_by_fit(model):
    before = {leaf.name: leaf.variable.numpy() for leaf in layer_tree(model).leaves}
    model.fit(X, np.ones((8, 1)), verbose=0)
    return [leaf.name for leaf in layer_tree(model).leaves if (leaf.variable.numpy() != before[leaf.name]).any()]


@pytest.mark.sample(7)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", BODIES)
def test_what_was_frozen_stays_frozen_in_a_model_that_comes_with_its_optimizer(kind, way, tmp_path):
    model = frozen_body(kind, "grouped")
    again = WAYS[way](model, tmp_path / "model.keras")
    if kind == "no trainable in the config":  # whose moving statistics nothing can freeze
        assert [variable.path for variable in again.trainable_variables] == ["head/kernel", "head/bias"]
    else:
        assert trained_by_fit(again) == ["head/kernel", "head/bias"]


@pytest.mark.sample(3)
@pytest.mark.parametrize("kind", [kind for kind in BODIES if kind != "no trainable in the config"])
def test_what_came_frozen_is_in_a_frozen_group_whatever_keras_would_train(kind, tmp_path):
    frozen_body(kind, "sgd").save(tmp_path / "model.keras")
    model = keras.models.load_model(tmp_path / "model.keras")
    selectors = [Selector("body", prefixes=("body",)), Selector("head", rest=True)]
    with pytest.warns(UserWarning, match="What came frozen stays frozen, and `body"):
        body, head = resolve_groups(model, selectors)
    assert body.frozen
    finetune.freeze(model, [body, head])
    model.compile("adam", "mse")
    assert trained_by_fit(model) == ["head/kernel", "head/bias"]
    opened = resolve_groups(model, [Selector("body", prefixes=("body",), frozen=False), selectors[1]])
    finetune.freeze(model, opened)
    model.compile("adam", "mse")
    assert set(trained_by_fit(model)) > {"head/kernel", "head/bias"}


def test_a_layer_that_is_made_frozen_counts_as_frozen_too():
    model = network(layers.MultiHeadAttention(2, 2, name="body", trainable=False))
    assert len(model.trainable_variables) == 10, "Keras trains what is inside of it"
    assert is_freezing_forgotten(model.get_layer("body"))
    with pytest.warns(UserWarning, match="What came frozen"):
        body, _ = resolve_groups(model, [Selector("body", prefixes=("body",)), Selector("head", rest=True)])
    assert body.frozen
    freeze_again(model)
    assert len(model.trainable_variables) == 2


def test_a_layer_of_which_a_part_was_opened_by_hand_is_not_forgotten():
    body = layers.MultiHeadAttention(2, 2, name="body")
    model = network(body)
    assert not is_freezing_forgotten(body)
    body.trainable = False
    assert not is_freezing_forgotten(body), "everything inside is frozen"
    body.query_dense.trainable = True
    assert not is_freezing_forgotten(body)
    assert [leaf.name for leaf in layer_tree(model).leaves if leaf.came_frozen] == []
