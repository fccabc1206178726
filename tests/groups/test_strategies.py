"""A group for each layer or block, found by the names of the layers."""

import re

import keras
import numpy as np
import pytest
import tensorflow as tf

from finetune.groups import strategies
from finetune.groups.layer_tree import LayerTree, layer_tree
from finetune.groups.selectors import resolve_groups

L = keras.layers


def by_layer(model) -> dict[str, tuple[str, ...]]:
    return strategies.by_layer(model if isinstance(model, LayerTree) else layer_tree(model))


def by_block(model) -> dict[str, tuple[str, ...]]:
    return strategies.by_block(model if isinstance(model, LayerTree) else layer_tree(model))


def test_by_layer_makes_a_group_for_every_layer_with_trainable_weights_from_input_to_output(tree):
    assert list(by_layer(tree)) == ["stem", "bn", "block_1", "block_2", "block_10", "head"]
    assert sum(len(group.leaves) for group in resolve_groups(tree, by="layer")) == len(tree.leaves)


def composite_model() -> keras.Model:
    inner = keras.Input((4, 3))
    x = L.MultiHeadAttention(1, 2, name="attention")(inner, inner)
    body = keras.Model(inner, L.Bidirectional(L.GRU(2), name="both_ways")(x), name="body 1")
    inputs = keras.Input((4, 3))
    return keras.Model(inputs, keras.Sequential([L.Dense(2, name="a"), L.Dense(2, name="b")], name="top")(body(inputs)))


def test_by_layer_opens_nested_models_and_keeps_layers_made_of_layers():
    model = composite_model()

    assert by_layer(model) == {
        "body-1-attention": ("body 1/attention",),
        "body-1-both_ways": ("body 1/both_ways",),
        "top-a": ("top/a",),
        "top-b": ("top/b",),
    }
    assert len(resolve_groups(model, by="layer")) == 4


def test_by_layer_gives_names_that_stay_apart_when_made_usable():
    model = keras.Sequential(
        [keras.Input((2,)), L.Dense(2, name="a b"), L.Dense(2, name="a+b"), L.Dense(2, name="a-b")]
    )

    assert list(by_layer(model)) == ["a-b", "a-b-2", "a-b-3"]


def test_by_layer_works_on_a_module_and_what_was_loaded(tmp_path):
    class Dense(tf.Module):
        def __init__(self):
            super().__init__()
            self.w, self.b = tf.Variable([[1.0]]), tf.Variable([0.0])

    class Net(tf.Module):
        def __init__(self):
            super().__init__()
            self.blocks, self.head, self.scale = [Dense(), Dense()], Dense(), tf.Variable(1.0)

    net = Net()
    tf.saved_model.save(net, tmp_path / "net")

    for each in (net, tf.saved_model.load(tmp_path / "net")):
        assert list(by_layer(each)) == ["scale", "blocks-0", "blocks-1", "head"]
        assert resolve_groups(each, by="layer")


def dense_chain(*names: str) -> keras.Model:
    norm = re.compile(r"(?i)(.*_)?(bn|norm|layer_normalization|batch_normalization)\w*")
    layers = [L.BatchNormalization(name=n) if norm.fullmatch(n) else L.Dense(2, name=n) for n in names]
    return keras.Sequential([keras.Input((2,)), *layers])


@pytest.mark.parametrize(
    ("names", "blocks"),
    [
        ("block_1_expand block_1_project block_2_expand head", {"block_1": 2, "block_2": 1, "head": 1}),
        ("conv2_block1_1_conv conv2_block1_2_bn conv2_block2_1_conv", {"conv2_block1": 2, "conv2_block2": 1}),
        ("block1a_dwconv block1a_bn block1b_dwconv", {"block1a": 2, "block1b": 1}),
        ("conv1_conv conv1_bn conv2_conv conv2_bn", {"conv1": 2, "conv2": 2}),
        ("conv2d batch_normalization conv2d_1 batch_normalization_1", {"conv2d": 2, "conv2d_1": 2}),
        ("Conv1 bn_Conv1 Conv_1 Conv_1_bn", {"Conv1": 2, "Conv_1": 2}),
        ("conv1 BN conv2 BN_conv2 conv3 conv3_Norm", {"conv1": 2, "conv2": 2, "conv3": 2}),
        ("conv1 bn1 conv2 bn2 head", {"conv1": 2, "conv2": 2, "head": 1}),
        ("stem_conv stem_bn top_conv top_bn", {"stem": 2, "top": 2}),
        (
            "transformer_layer_0 transformer_layer_1 pooler",
            {"transformer_layer_0": 1, "transformer_layer_1": 1, "pooler": 1},
        ),
        ("embed_tokens dense_1 dense_2 dense", {"embed_tokens": 1, "dense_1": 1, "dense_2": 1, "dense": 1}),
        ("left_block_1_a right_block_1_a left_block_1_b right_block_1_b", {"left_block_1": 2, "right_block_1": 2}),
        ("query_a query_b", {"query_a": 1, "query_b": 1}),
    ],
)
def test_by_block_reads_the_blocks_from_the_layers_names(names, blocks):
    model = dense_chain(*names.split())

    assert {name: len(prefixes) for name, prefixes in by_block(model).items()} == blocks
    assert list(by_block(model)) == list(blocks)
    assert resolve_groups(model, by="block")


def test_by_block_takes_each_element_of_a_list_of_layers_as_one():
    class Net(keras.Model):
        def __init__(self):
            super().__init__()
            self.stem = L.Dense(2)
            self.blocks = [keras.Sequential([L.Dense(2), L.Dense(2)]) for _ in range(2)]
            self.norm = L.LayerNormalization()
            self.towers = [keras.Sequential([L.Dense(2), L.LayerNormalization()]) for _ in range(2)]

        def call(self, x):
            x = self.stem(x)
            for block in (*self.blocks, self.norm, *self.towers):
                x = block(x)
            return x

    model = Net()
    model(np.ones((1, 2), "float32"))

    assert by_block(model) == {
        "stem": ("stem",),
        "blocks-0": ("blocks/0/dense", "blocks/0/dense_1"),
        "blocks-1": ("blocks/1/dense", "blocks/1/dense_1", "norm"),
        "towers-0": ("towers/0/dense", "towers/0/layer_normalization"),
        "towers-1": ("towers/1/dense", "towers/1/layer_normalization"),
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("application", "first", "last", "count"),
    [
        ("MobileNetV2", ["Conv1", "expanded_conv", "block_1"], ["block_16", "Conv_1", "predictions"], 20),
        ("ResNet50", ["conv1", "conv2_block1", "conv2_block2"], ["conv5_block3", "predictions"], 18),
        ("EfficientNetB0", ["stem", "block1a", "block2a", "block2b"], ["block7a", "top", "predictions"], 19),
    ],
)
def test_by_block_finds_the_blocks_of_keras_applications(application, first, last, count):
    tree = layer_tree(getattr(keras.applications, application)(weights=None, classes=3, input_shape=(32, 32, 3)))

    groups = resolve_groups(tree, by="block")

    names = [group.name for group in groups]
    assert (names[: len(first)], names[-len(last) :], len(names)) == (first, last, count)
    assert sum(len(group.leaves) for group in groups) == len(tree.leaves)
    positions = [tree.leaves.index(leaf) for group in groups for leaf in group.trainable]
    assert positions == sorted(positions), "blocks lie one after the other, from input to output"


class Attention(L.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.query, self.key, self.value = (L.Dense(4, name=name) for name in ("query", "key", "value"))

    def call(self, x):
        return self.query(x) + self.key(x) + self.value(x)


class Block(L.Layer):
    """A block with two attentions and numbered experts inside, which are no stack of blocks."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.ln_1, self.ln_2 = L.LayerNormalization(), L.LayerNormalization()
        self.attention_1, self.attention_2 = Attention(name="attention_1"), Attention(name="attention_2")
        self.experts = Experts(name="experts")

    def call(self, x):
        return self.experts(self.ln_2(self.attention_2(self.attention_1(self.ln_1(x)))))


class Experts(L.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.expert = [keras.Sequential([L.Dense(4), L.Dense(4)]) for _ in range(3)]

    def call(self, x):
        return sum(expert(x) for expert in self.expert)


class Encoder(L.Layer):
    """Blocks in a list, or by numbered names; then a normalization."""

    def __init__(self, depth, listed, **kwargs):
        super().__init__(**kwargs)
        self.listed = [Block() for _ in range(depth)] if listed else []
        for n in range(0 if listed else depth):
            setattr(self, f"part_{n}", Block(name=f"part_{n}"))
        self.parts = self.listed or [getattr(self, f"part_{n}") for n in range(depth)]
        self.final_norm = L.LayerNormalization(name="final_norm")

    def call(self, x):
        for part in self.parts:
            x = part(x)
        return self.final_norm(x)


class Wrapped(L.Layer):
    def __init__(self, encoder, **kwargs):
        super().__init__(**kwargs)
        self.encoder = encoder

    def call(self, x):
        return self.encoder(x)


def transformer(encoder):
    tokens = keras.Input((3,), dtype="int32")
    x = L.Embedding(9, 4, name="words")(tokens) + L.Embedding(9, 4, name="positions")(tokens)
    x = encoder(L.LayerNormalization(name="embeddings_norm")(x))
    return keras.Model(tokens, L.Dense(2, name="head")(L.GlobalAveragePooling1D()(x)))


@pytest.mark.sample(2)
@pytest.mark.parametrize("listed", [True, False])
@pytest.mark.parametrize("wrapped", [True, False])
def test_by_block_finds_the_blocks_of_an_encoder_at_any_depth(listed, wrapped):
    depth = 4  # more than there are attentions and experts in a block
    encoder = Encoder(depth, listed, name="encoder")
    groups = by_block(transformer(Wrapped(encoder, name="tower") if wrapped else encoder))
    names = list(groups)
    assert len(names) == 1 + depth + 1  # as timm counts: the embeddings, the blocks, the head; 14 of a ViT-B
    assert groups["embeddings"] == ("words", "positions", "embeddings_norm")
    assert names[-1] == "head"
    assert [len(groups[name]) for name in names[1:-1]] == [1] * (depth - 1) + [
        2
    ]  # the last with the final normalization


def test_by_block_opens_stages_of_blocks_and_leaves_recurrent_cells_whole():
    stages = [Encoder(2, True, name=f"stage_{n}") for n in range(3)]
    inputs = x = keras.Input((3, 4))
    for stage in stages:
        x = stage(x)
    x = L.RNN([L.GRUCell(4), L.GRUCell(4)], name="rnn")(x)
    groups = by_block(keras.Model(inputs, L.Dense(2, name="head")(x)))
    assert len(groups) == 3 * 2 + 2
    assert "rnn" in groups


@pytest.mark.parametrize(
    ("names", "blocks"),
    [
        ("conv_dw_1 conv_dw_1_bn conv_pw_1 conv_pw_1_bn conv_dw_2", {"conv_1": 4, "conv_dw_2": 1}),
        ("c_depthwise c_squeeze_excite_conv c_squeeze_excite_conv_1 c_project", {"c": 4}),
        ("top_layernorm top_dense", {"top": 2}),
        ("layer_1_a decoder_output_layer_norm head", {"layer_1": 2, "head": 1}),
        ("token_embedding_1 token_embedding_2 embed_norm dense", {"embeddings": 3, "dense": 1}),
    ],
)
def test_by_block_reads_names_of_parts(names, blocks):
    groups = by_block(dense_chain(*names.split()))
    assert {name: len(prefixes) for name, prefixes in groups.items()} == blocks
