import json
import shutil

import keras
import numpy as np
import pytest

import finetune
from finetune import layer_tree
from finetune.errors import FinetuneError
from finetune.models.presets import make_preset

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"),
]


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """A tiny BERT backbone as KerasHub itself saves it."""
    import keras_hub

    keras.utils.set_random_seed(0)
    network = keras_hub.models.BertBackbone(
        vocabulary_size=30, num_layers=2, num_heads=2, hidden_dim=8, intermediate_dim=16, max_sequence_length=12
    )
    folder = tmp_path_factory.mktemp("presets") / "bert"
    network.save_to_preset(str(folder))
    return folder, network


@pytest.fixture(scope="module")
def resnet(tmp_path_factory):
    """A tiny image classifier, a whole task."""
    import keras_hub

    backbone = keras_hub.models.ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[3],
        stackwise_num_filters=[64],
        stackwise_num_blocks=[1],
        stackwise_num_strides=[1],
        block_type="basic_block",
        image_shape=(16, 16, 3),
    )
    task = keras_hub.models.ResNetImageClassifier(backbone=backbone, num_classes=3, activation="softmax")
    folder = tmp_path_factory.mktemp("presets") / "resnet"
    task.save_to_preset(str(folder))
    return folder, task


def recipe(folder, model, x, y):
    np.savez(folder / "rows.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    (folder / "recipe.yaml").write_text(
        f"""
model: {{{model}}}
data: {{npz: rows.npz}}
groups:
  - {{name: body, prefixes: [{"task" if "head" not in model else "backbone"}], optimizer: sgd, learning_rate: 1.0e-3}}
"""
        + ("  - {name: head, prefixes: [head], optimizer: adamw, learning_rate: 1.0e-2}\n" if "head" in model else "")
        + "train: {epochs: 1, batch_size: 4, loss: sparse_categorical_crossentropy, metrics: [accuracy]}\n"
    )
    return folder / "recipe.yaml"


def test_a_text_backbone_takes_token_ids_and_masks_what_is_padding(bert):
    folder, network = bert
    model = make_preset(str(folder))
    ids = np.array([[2, 5, 7, 0, 0], [2, 9, 9, 9, 3]])
    given = {"token_ids": ids, "padding_mask": (ids != 0).astype(int), "segment_ids": np.zeros_like(ids)}
    for name, expected in network(given).items():
        np.testing.assert_allclose(model(ids)[name], expected, rtol=1e-5, atol=1e-6)
    names = [leaf.name for leaf in layer_tree(model).leaves]
    assert "backbone/transformer_layer_0/self_attention_layer/query/kernel" in names


def test_a_recipe_puts_a_head_on_a_preset(bert, tmp_path):
    folder, _ = bert
    ids = np.random.default_rng(0).integers(1, 30, size=(8, 6)).astype("int32")
    path = recipe(
        tmp_path,
        f"preset: {folder}, output_key: pooled_output, head: {{classes: 3}}",
        ids,
        np.arange(8) % 3,
    )
    result = finetune.run(path, tmp_path / "out")
    assert result.model.output_shape == (None, 3)
    assert {leaf.name for leaf in layer_tree(result.model).leaves} >= {"head/output/kernel"}
    with pytest.raises(
        FinetuneError, match=r"`preset_model` has `\w+`, `\w+`; none is selected\. Select one with `output_key`\."
    ):
        finetune.plan(path, overrides=["model.output_key=null"])


def test_a_recipe_fine_tunes_a_whole_task(resnet, tmp_path):
    folder, task = resnet
    x = np.random.default_rng(0).uniform(size=(4, 16, 16, 3)).astype("float32")
    path = recipe(tmp_path, f"preset: {folder}", x, np.arange(4) % 3)
    ready = finetune.plan(path)
    np.testing.assert_allclose(ready.model(x), task.predict(x, verbose=0), rtol=1e-4, atol=1e-5)
    assert all(weight.restored_from for weight in ready.plan.weights)


def message(*arguments, **options):
    with pytest.raises(FinetuneError) as error:
        make_preset(*arguments, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_what_is_no_preset_is_one_short_error(bert, tmp_path):
    said = message(str(tmp_path / "nowhere"))
    assert said.startswith(
        f"A preset is a folder that `save_to_preset` wrote, or a handle. `{tmp_path / 'nowhere'}` cannot"
    )
    assert message(str(bert[0]), arguments={"droput": 0.1}).endswith("not `droput`. Did you mean `dropout`?")
    assert message(str(bert[0]), whole_task=True) == (
        "A preset without a `head` is a local folder with a whole task, described by its `task.json`. "
        f"`{bert[0]}` has no `task.json`. Add a `head` to the recipe: it is put on the preset's backbone."
    )


def test_a_small_preset_that_asks_for_a_huge_network_is_refused_before_memory_is_taken(bert, tmp_path):
    shutil.copytree(bert[0], tmp_path / "huge")
    config = json.loads((tmp_path / "huge" / "config.json").read_text())
    config["config"]["vocabulary_size"] = 10**9
    (tmp_path / "huge" / "config.json").write_text(json.dumps(config))
    with pytest.raises(FinetuneError, match="may hold 104,857,600 bytes, so that a small file cannot fill the memory"):
        make_preset(str(tmp_path / "huge"))
