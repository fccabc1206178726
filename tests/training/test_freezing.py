"""What is trained and what is frozen has one definition, which is put into effect and checked."""

import keras
import numpy as np
import pytest
from keras import layers

from finetune.errors import GroupError, TrainingError
from finetune.groups.layer_tree import layer_tree
from finetune.groups.selectors import Selector, resolve_groups
from finetune.training.freezing import apply_state, check_state, check_trainable, freeze, phase_state


def frozen_by(model, **selector):
    """Freezes what the selector takes, and trains the rest."""
    groups = resolve_groups(model, [Selector("frozen", frozen=True, **selector), Selector("trained", rest=True)])
    freeze(model, groups)
    return groups


def trained_names(model):
    tree = layer_tree(model)
    names = {id(leaf.variable): leaf.name for leaf in tree.leaves}
    return [names[id(variable)] for variable in model.trainable_variables]


def fit(model, shape=(6,)):
    x = np.random.default_rng(0).normal(3.0, size=(16, *shape)).astype("float32")
    model.compile(keras.optimizers.SGD(0.05), loss="mse", run_eagerly=True)
    model.fit(x, np.zeros((16, *model.output_shape[1:]), "float32"), epochs=1, verbose=0)


def changed_by_fit(model, shape=(6,)):
    tree = layer_tree(model)
    before = {leaf.name: np.array(leaf.variable.numpy()) for leaf in tree.leaves}
    fit(model, shape)
    return {leaf.name for leaf in tree.leaves if not np.array_equal(before[leaf.name], leaf.variable.numpy())}


def test_a_frozen_layer_stays_bit_identical_with_its_moving_statistics_and_the_rest_trains(tiny):
    model = tiny()
    frozen_by(model, prefixes=("stem", "bn"))
    assert trained_names(model) == ["body/kernel", "body/bias", "head/kernel", "head/bias"]
    assert changed_by_fit(model) == {"body/kernel", "body/bias", "head/kernel", "head/bias"}


def test_moving_statistics_of_a_trained_group_move(tiny):
    model = tiny()
    frozen_by(model, prefixes=("stem",))
    assert {"bn/moving_mean", "bn/moving_variance"} <= changed_by_fit(model)


def test_a_layer_frozen_in_part_stays_trainable_and_trains_only_the_other_weights(tiny):
    model = tiny()
    frozen_by(model, regex=(".*/kernel",))
    assert model.get_layer("body").trainable
    assert trained_names(model) == ["stem/bias", "bn/gamma", "bn/beta", "body/bias", "head/bias"]
    assert {name for name in changed_by_fit(model) if name.endswith("kernel")} == set()


def test_biases_alone_can_be_frozen(tiny):
    model = tiny()
    frozen_by(model, regex=(".*/bias",))
    changed = changed_by_fit(model)
    assert "body/kernel" in changed
    assert not {name for name in changed if name.endswith("bias")}


@pytest.mark.parametrize(
    ("frozen", "changes"),
    [
        ("bn/gamma", {"bn/beta"}),  # moving statistics belong to the group of the layer's first weight
        ("bn/beta", {"bn/gamma", "bn/moving_mean", "bn/moving_variance"}),
    ],
)
def test_in_batch_normalization_that_two_groups_share_what_belongs_to_the_frozen_group_is_fixed(tiny, frozen, changes):
    model = tiny()
    frozen_by(model, regex=(frozen,))
    assert {name for name in changed_by_fit(model) if name.startswith("bn/")} == changes


def test_batch_normalization_without_parameters_is_frozen_by_its_statistics():
    norm = layers.BatchNormalization(center=False, scale=False, name="bn")
    model = keras.Sequential([keras.Input((6,)), norm, layers.Dense(2, name="head")])
    frozen_by(model, prefixes=("bn",))
    assert not norm.trainable
    assert changed_by_fit(model) == {"head/kernel", "head/bias"}


def test_batch_normalization_without_parameters_trains_with_its_group():
    norm = layers.BatchNormalization(center=False, scale=False, name="bn")
    parts = [keras.Input((6,)), layers.Dense(6, name="stem"), norm, layers.Dense(2, name="head")]
    model = keras.Sequential(parts)
    frozen_by(model, prefixes=("stem",))
    assert changed_by_fit(model) == {"bn/moving_mean", "bn/moving_variance", "head/kernel", "head/bias"}


def nested():
    def backbone(name):
        parts = [layers.Dense(5, name="a"), layers.BatchNormalization(name="bn"), layers.Dense(5, name="b")]
        return keras.Sequential([keras.Input((6,)), *parts], name=name)

    inputs = keras.Input((6,))
    x = layers.Add()([backbone("left")(inputs), backbone("right")(inputs)])
    return keras.Model(inputs, layers.Dense(2, name="head")(x))


def test_a_whole_nested_model_can_be_frozen():
    model = nested()
    frozen_by(model, prefixes=("left",))
    changed = changed_by_fit(model)
    assert not {name for name in changed if name.startswith("left/")}
    assert {"right/a/kernel", "right/bn/moving_mean", "head/bias"} <= changed


def test_one_layer_of_a_nested_model_can_be_frozen_while_its_namesake_in_another_trains():
    model = nested()
    frozen_by(model, prefixes=("left/a", "left/bn"))
    changed = changed_by_fit(model)
    assert not changed & {"left/a/kernel", "left/a/bias", "left/bn/gamma", "left/bn/moving_mean"}
    assert {"left/b/kernel", "right/a/kernel", "right/bn/moving_mean"} <= changed


@keras.saving.register_keras_serializable("tests")
class Scaled(layers.Layer):
    """A layer with a weight of its own and layers below it."""

    def __init__(self):
        super().__init__(name="scaled")
        self.inner = layers.Dense(6, name="inner")
        self.norm = layers.BatchNormalization(name="norm")

    def build(self, shape):
        self.scale = self.add_weight(shape=(6,), initializer="ones", name="scale")
        self.inner.build(shape)
        self.norm.build(shape)

    def call(self, x, training=None):
        return self.norm(self.inner(x), training=training) * self.scale


def scaled():
    return keras.Sequential([keras.Input((6,)), Scaled(), layers.Dense(2, name="head")])


def test_a_layers_own_weight_can_be_frozen_while_the_layers_below_it_train():
    model = scaled()
    frozen_by(model, prefixes=("scaled/scale",))
    changed = changed_by_fit(model)
    assert "scaled/scale" not in changed
    assert {"scaled/inner/kernel", "scaled/norm/gamma", "scaled/norm/moving_mean"} <= changed


def test_the_layers_below_can_be_frozen_while_the_layers_own_weight_trains():
    model = scaled()
    frozen_by(model, prefixes=("scaled/inner", "scaled/norm"))
    assert changed_by_fit(model) == {"scaled/scale", "head/kernel", "head/bias"}


def test_attention_is_frozen_as_a_whole_and_in_part():
    inputs = keras.Input((4, 6))
    x = layers.MultiHeadAttention(2, 3, name="attention")(inputs, inputs)
    model = keras.Model(inputs, layers.Dense(2, name="head")(x))
    frozen_by(model, prefixes=("attention",))
    assert trained_names(model) == ["head/kernel", "head/bias"]
    frozen_by(model, prefixes=("attention/query",))
    assert "attention/key/kernel" in trained_names(model)
    assert not {name for name in changed_by_fit(model, (4, 6)) if name.startswith("attention/query/")}


def test_what_other_code_froze_stays_frozen_in_a_group_that_trains(tiny):
    model = tiny()
    model.get_layer("bn").trainable = model.get_layer("body").kernel.trainable = False
    frozen_by(model, prefixes=("stem",))
    assert trained_names(model) == ["body/bias", "head/kernel", "head/bias"]
    assert changed_by_fit(model) == {"body/bias", "head/kernel", "head/bias"}  # the moving statistics stand still, too


@pytest.mark.parametrize("how", ["model", "layer", "variable"])
def test_an_explicit_setting_trains_what_other_code_froze(tiny, how):
    model = tiny()
    frozen = {"model": model, "layer": model.get_layer("body"), "variable": model.get_layer("body").kernel}[how]
    frozen.trainable = False
    stem, rest = Selector("stem", prefixes=("stem", "bn"), frozen=True), Selector("rest", rest=True, frozen=False)
    freeze(model, resolve_groups(model, [stem, rest]))
    assert trained_names(model) == ["body/kernel", "body/bias", "head/kernel", "head/bias"]


def test_a_model_saved_with_frozen_layers_keeps_them_frozen_after_loading_unless_told_otherwise(tiny, tmp_path):
    model = tiny()
    model.get_layer("stem").trainable = model.get_layer("bn").trainable = False
    model.save(tmp_path / "frozen.keras")
    loaded = keras.models.load_model(tmp_path / "frozen.keras")
    with pytest.warns(UserWarning, match="`stem`, `bn` came with `trainable = False`"):
        freeze(loaded, resolve_groups(loaded, [Selector("all", rest=True)]))
    assert trained_names(loaded) == ["body/kernel", "body/bias", "head/kernel", "head/bias"]
    freeze(loaded, resolve_groups(loaded, [Selector("all", rest=True, frozen=False)]))
    assert len(trained_names(loaded)) == 8


@pytest.mark.parametrize("layer", ["dense", "einsum", "conv", "embedding"])
def test_the_weight_below_a_lora_adapter_stays_frozen_and_the_adapter_trains(layer):
    tokens = layer == "embedding"
    first = {
        "dense": lambda: layers.Dense(4, name="first"),
        "einsum": lambda: layers.EinsumDense("abc,cd->abd", (5, 4), bias_axes="d", name="first"),
        "conv": lambda: layers.Conv1D(4, 2, name="first"),
        "embedding": lambda: layers.Embedding(3, 4, name="first"),
    }[layer]()
    shape = (5,) if tokens else (5, 3)
    model = keras.Sequential([keras.Input(shape), first, layers.Flatten(), layers.Dense(2, name="head")])
    first.enable_lora(2)
    base = "first/embeddings" if tokens else "first/kernel"
    (group,) = resolve_groups(model, [Selector("all", rest=True)])
    assert {leaf.name: leaf.frozen_by for leaf in group.leaves if leaf.frozen_by} == {base: "frozen by LoRA"}
    freeze(model, [group])
    assert base not in trained_names(model)
    assert [name for name in trained_names(model) if "lora" in name]
    tree = layer_tree(model).by_name
    before = {name: tree[name].variable.numpy().copy() for name in tree}
    model.compile("sgd", "mse")
    x = np.ones((8, *shape), "int32" if tokens else "float32")
    model.fit(x, np.ones((8, 2)), verbose=0)
    moved = {name for name in tree if not np.array_equal(before[name], tree[name].variable.numpy())}
    assert base not in moved
    assert base.replace("/", "/lora_") + "_b" in moved


def test_a_group_can_be_frozen_and_trained_again_with_groups_that_are_resolved_anew(tiny):
    model = tiny()
    frozen_by(model, prefixes=("stem", "bn"))
    groups = resolve_groups(model, [Selector("all", rest=True)])
    assert not groups[0].frozen
    freeze(model, groups)
    assert len(trained_names(model)) == 8


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (
            lambda model: model.get_layer("body").enable_lora(2),
            "`body/lora_kernel_a`, `body/lora_kernel_b` in no group",
        ),
        (
            lambda model: model.get_layer("head").quantize("int8"),
            "`head/kernel` in a group, but no longer in the model",
        ),
    ],
)
def test_weights_that_come_and_go_after_the_groups_were_resolved_are_named(tiny, change, named):
    model = tiny()
    groups = resolve_groups(model, [Selector("all", rest=True)])
    change(model)
    with pytest.raises(GroupError) as error:
        freeze(model, groups)
    assert str(error.value).startswith("The layer groups must hold every weight of the model. Received ")
    assert named in str(error.value)
    assert "resolve them after the last change to it, such as a new layer, `enable_lora` or `quantize`" in str(
        error.value
    )


def test_freezing_anew_forgets_the_former_groups(tiny):
    model = tiny()
    frozen_by(model, regex=(".*/bias",))
    frozen_by(model, prefixes=("head",))
    assert {"stem/bias", "bn/beta", "body/bias"} <= set(trained_names(model))
    assert "head/kernel" not in trained_names(model)


def test_the_check_is_content_with_what_freeze_did(tiny):
    model = tiny()
    check_trainable(model, frozen_by(model, regex=("stem/.*", "body/bias")))


@pytest.mark.parametrize(("layer", "trainable"), [("stem", True), ("head", False)])
def test_the_check_names_what_was_flipped_since(tiny, layer, trainable):
    model = tiny()
    groups = frozen_by(model, prefixes=("stem", "bn"))
    model.get_layer(layer).trainable = trainable
    with pytest.raises(TrainingError, match=rf"disagree about `.*{layer}/kernel`, `.*{layer}/bias`\. Do not"):
        check_trainable(model, groups)


# -- The state of a phase ---------------------------------------------------------------------------------------------

GAMMA_BETA, STATISTICS = {"bn/gamma", "bn/beta"}, {"bn/moving_mean", "bn/moving_variance"}


def body_and_head(model):
    selectors = [Selector("stem", prefixes=("stem", "bn"), frozen=True), Selector("body", prefixes=("body",))]
    return resolve_groups(model, [*selectors, Selector("head", rest=True)])


def names(leaves):
    return {leaf.name for leaf in leaves}


def test_every_weight_is_trained_or_frozen_or_an_updated_statistic_and_nothing_is_two_of_them(tiny):
    model = tiny()
    state = phase_state(model, body_and_head(model), ["head"], batch_norm={"stem": "statistics"})
    assert sorted(leaf.name for leaf in state.leaves) == sorted(leaf.name for leaf in layer_tree(model).leaves)
    assert names(state.trained) == {"head/kernel", "head/bias"}
    assert names(state.updated_statistics) == STATISTICS


def test_without_further_words_all_groups_train_that_are_not_frozen_for_good(tiny):
    model = tiny()
    groups = body_and_head(model)
    assert phase_state(model, groups).key == phase_state(model, groups, ["body", "head"]).key
    assert names(phase_state(model, groups).frozen) == {"stem/kernel", "stem/bias"} | GAMMA_BETA | STATISTICS


@pytest.mark.parametrize(
    ("mode", "trained", "updated", "inference", "statistics_only"),
    [
        ("train", GAMMA_BETA, STATISTICS, [], []),
        ("freeze", set(), set(), [], []),  # `layer.trainable=False` is enough
        ("affine", GAMMA_BETA, set(), ["bn"], []),
        ("statistics", set(), STATISTICS, [], ["bn"]),
    ],
)
def test_a_mode_of_batch_normalization_says_what_trains_what_is_updated_and_how_it_runs(
    tiny, mode, trained, updated, inference, statistics_only
):
    model = tiny()
    groups = resolve_groups(model, [Selector("all", rest=True)])
    state = phase_state(model, groups, batch_norm={"all": mode})
    of_bn = {leaf.name for leaf in layer_tree(model).leaves if leaf.layer == "bn"}
    assert names(state.trained) & of_bn == trained
    assert names(state.updated_statistics) == updated
    assert names(state.frozen) == of_bn - trained - updated
    assert [layer.name for layer in state.inference_layers] == inference
    assert [layer.name for layer in state.statistics_only] == statistics_only
    assert state.batch_norm_modes == {"all": mode}


def test_normalization_that_always_trains_does_so_in_groups_that_are_not_frozen_for_good(tiny):
    model = tiny()
    trainable = resolve_groups(model, [Selector("stem", prefixes=("stem", "bn")), Selector("rest", rest=True)])
    state = phase_state(model, trainable, ["rest"], always_train_normalization=True)
    assert names(state.trained) >= GAMMA_BETA
    frozen = phase_state(model, body_and_head(model), ["head"], always_train_normalization=True)
    assert names(frozen.frozen) >= GAMMA_BETA


def test_states_have_one_key_exactly_if_one_compiled_function_can_serve_both(tiny):
    model = tiny()
    groups = body_and_head(model)
    keys = [
        phase_state(model, groups, ["head"]).key,
        phase_state(model, groups, ["body", "head"]).key,
        phase_state(model, groups, ["head"], batch_norm={"stem": "statistics"}).key,
        phase_state(model, resolve_groups(model, [Selector("all", rest=True)]), batch_norm={"all": "affine"}).key,
    ]
    assert len(set(keys)) == 4
    assert phase_state(model, groups, ["head"]).key == keys[0]


def test_dropout_of_a_frozen_group_runs_in_inference_mode_unless_the_group_keeps_it():
    parts = [layers.Dense(4, name="one"), layers.Dropout(0.5, name="drop"), layers.Dense(4, name="two")]
    model = keras.Sequential([keras.Input((6,)), *parts, layers.Dense(2, name="head")])
    groups = resolve_groups(model, [Selector("body", prefixes=("one", "two")), Selector("head", rest=True)])
    silent = phase_state(model, groups, ["head"], dropout_groups=())
    assert [layer.name for layer in silent.inference_layers] == ["drop"]
    assert phase_state(model, groups, ["head"], dropout_groups=("body",)).inference_layers == ()
    assert phase_state(model, groups, ["head"]).inference_layers == ()  # by default all keep it


def test_a_state_in_effect_is_what_keras_trains_whatever_was_in_effect_before(tiny):
    model = tiny()
    groups = resolve_groups(model, [Selector("stem", prefixes=("stem", "bn")), Selector("head", rest=True)])
    for mode in ("affine", "statistics", "freeze", "train"):
        state = phase_state(model, groups, ["stem", "head"], batch_norm={"stem": mode})
        apply_state(model, state)
        check_state(model, state, "this test")
        assert set(trained_names(model)) == names(state.trained)
        assert model.get_layer("bn").trainable == (mode != "freeze")
        assert ("call" in vars(model.get_layer("bn"))) == (mode == "affine")


@pytest.mark.parametrize(("layer", "planned"), [("stem", "frozen"), ("bn", "frozen"), ("head", "trained")])
def test_the_check_of_a_state_names_the_layer_that_other_code_changed(tiny, layer, planned):
    model = tiny()
    state = phase_state(model, body_and_head(model))
    apply_state(model, state)
    model.get_layer(layer).trainable = not model.get_layer(layer).trainable
    message = rf"During phase 1/2 other code changed `trainable` of `{layer}`, which must be {planned}; "
    with pytest.raises(TrainingError, match=message):
        check_state(model, state, "phase 1/2")


def test_of_a_frozen_group_only_normalization_layers_train_when_normalization_always_trains():
    parts = [layers.Dense(4, name="stem"), layers.LayerNormalization(name="norm"), layers.Dense(2, name="head")]
    model = keras.Sequential([keras.Input((6,)), *parts])
    groups = resolve_groups(model, [Selector("body", prefixes=("stem", "norm")), Selector("head", rest=True)])
    state = phase_state(model, groups, ["head"], always_train_normalization=True)
    assert names(state.trained) == {"norm/gamma", "norm/beta", "head/kernel", "head/bias"}
    assert names(phase_state(model, groups, ["head"]).trained) == {"head/kernel", "head/bias"}


def body_with_dropout():
    parts = [layers.Dense(4, name="one"), layers.Dropout(0.5, name="drop"), layers.Dense(4, name="two")]
    model = keras.Sequential([keras.Input((6,)), *parts, layers.Dense(2, name="head")])
    return model, resolve_groups(model, [Selector("body", prefixes=("one", "two")), Selector("head", rest=True)])


def test_a_trained_group_keeps_its_dropout_without_being_named():
    model, groups = body_with_dropout()
    assert phase_state(model, groups, ["body", "head"], dropout_groups=()).inference_layers == ()


def test_states_that_differ_in_dropout_alone_have_different_keys():
    model, groups = body_with_dropout()
    silent, dropping = (phase_state(model, groups, ["head"], dropout_groups=kept) for kept in ((), ("body",)))
    assert names(silent.frozen) == names(dropping.frozen)
    assert silent.key != dropping.key


@pytest.mark.parametrize(("mode", "inference"), [("freeze", []), ("affine", ["bn"])])
def test_without_dropout_batch_normalization_still_runs_in_the_mode_of_its_group(tiny, mode, inference):
    model = tiny()
    groups = resolve_groups(model, [Selector("stem", prefixes=("stem", "bn")), Selector("head", rest=True)])
    state = phase_state(model, groups, ["head"], batch_norm={"stem": mode}, dropout_groups=())
    assert [layer.name for layer in state.inference_layers] == inference  # `affine`: once, since a call is wrapped once


def test_a_layer_runs_in_training_mode_while_batch_normalization_below_it_updates_its_statistics():
    model = scaled()
    groups = resolve_groups(model, [Selector("body", prefixes=("scaled",)), Selector("head", rest=True)])
    updating = phase_state(model, groups, ["head"], batch_norm={"body": "statistics"}, dropout_groups=())
    assert updating.inference_layers == ()
    frozen = phase_state(model, groups, ["head"], dropout_groups=())
    assert [layer.name for layer in frozen.inference_layers] == ["scaled"]


def test_only_groups_with_batch_normalization_have_a_mode_of_it(tiny):
    model = tiny()
    assert phase_state(model, body_and_head(model)).batch_norm_modes == {"stem": "freeze"}


def test_flipping_batch_normalization_that_updates_its_statistics_alone_is_noticed(tiny):
    """Its gamma and beta are frozen before and after, so the trainable variables are the same."""
    model = tiny()
    groups = body_and_head(model)
    state = phase_state(model, groups, ["head"], batch_norm={"stem": "statistics"})
    apply_state(model, state)
    model.get_layer("bn").trainable = False
    assert set(trained_names(model)) == names(state.trained)
    with pytest.raises(TrainingError, match="other code changed `trainable` of `bn`, which must be trained"):
        check_state(model, state, "phase 1/1")


class Counter(layers.Layer):
    """A layer whose only weight is not trainable."""

    def build(self, shape):
        self.count = self.add_weight(shape=(), initializer="zeros", trainable=False, name="count")

    def call(self, x):
        return x


@pytest.mark.parametrize(("frozen", "trainable"), [("counter", False), ("head", True)])
def test_a_layer_without_trainable_weights_is_trainable_exactly_if_its_group_trains(frozen, trainable):
    counter = Counter(name="counter")
    parts = [counter, layers.Dense(4, name="body"), layers.Dense(2, name="head")]
    model = keras.Sequential([keras.Input((6,)), *parts])
    frozen_by(model, prefixes=(frozen,))
    assert counter.trainable == trainable


class RunningNorm(layers.Layer):
    """A custom normalization layer, which its name tells, with a weight that is not trainable."""

    def build(self, shape):
        self.gamma = self.add_weight(shape=(6,), initializer="ones", name="gamma")
        self.scale = self.add_weight(shape=(6,), initializer="ones", trainable=False, name="scale")

    def call(self, x):
        return x * self.gamma / self.scale


def test_normalization_that_always_trains_leaves_other_weights_of_a_custom_layer_frozen():
    model = keras.Sequential([keras.Input((6,)), RunningNorm(name="norm"), layers.Dense(2, name="head")])
    groups = resolve_groups(model, [Selector("body", prefixes=("norm",)), Selector("head", rest=True)])
    state = phase_state(model, groups, ["head"], always_train_normalization=True)
    assert names(state.frozen) == {"norm/scale"}
    assert names(state.trained) == {"norm/gamma", "head/kernel", "head/bias"}
