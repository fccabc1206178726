import inspect

import pytest

from finetune.errors import RecipeError
from finetune.recipe.loader import dump_recipe, load_recipe, resolve_place
from finetune.recipe.model import APPLICATIONS

REST = """
data: {npz: rows.npz}
groups: [{name: all, rest: true, optimizer: sgd, learning_rate: 0.1}]
train: {epochs: 1, loss: mse}
"""
IMAGE = "application: MobileNetV2, weights: none, input_shape: [32, 32, 3]"


@pytest.fixture
def read(tmp_path):
    def load(model):
        path = tmp_path / "recipe.yaml"
        path.write_text(f"model: {{{model}}}{REST}")
        return load_recipe(path)

    return load


@pytest.fixture
def model_errors(read):
    def message(model):
        with pytest.raises(RecipeError) as error:
            read(model)
        return [line.split("recipe.yaml:", 1)[1] for line in str(error.value).splitlines()]

    return message


@pytest.mark.slow
def test_the_applications_are_those_of_keras():
    import keras

    assert set(APPLICATIONS) == {name for name, value in vars(keras.applications).items() if inspect.isfunction(value)}


@pytest.mark.parametrize("written", ["MobileNetV2", "mobilenetv2", "mobilenet_v2", "MobileNet-v2"])
def test_an_application_is_known_however_it_is_written(read, written):
    assert (
        read(f"application: {written}, weights: none, input_shape: [32, 32, 3], include_top: true").model.application
        == "MobileNetV2"
    )


def test_a_misspelt_application_is_reported_with_its_place_and_the_nearest_name(model_errors):
    said = model_errors(f"{IMAGE}, head: {{classes: 3}}".replace("MobileNetV2", "MobilNetV2"))
    assert len(said) == 1
    assert said[0].startswith(
        '1:22: `model.application` is not a known value. Received: `"MobilNetV2"`. Did you mean `MobileNetV2`'
    )


def test_an_application_says_where_its_weights_are_from_and_what_it_takes(model_errors):
    assert model_errors("application: VGG16, include_top: true, input_shape: [32, 32, 3]") == [
        "1:1: `model.weights` is missing. Write `imagenet` (Keras downloads the file), `none`, or the path of a weight file."
    ]
    assert model_errors("application: VGG16, weights: none, include_top: true, input_shape: [32, 32]") == [
        "1:76: `model.input_shape` must be height, width and 3 channels of an image, e.g. `[224, 224, 3]`. Received: `[32, 32]`."
    ]


def test_an_application_gets_a_head_or_keeps_its_own(model_errors):
    [said] = model_errors(IMAGE)
    assert said.endswith(
        "`model` needs a `head` for your classes, or `include_top: true` to keep the head of the network. Received neither of them."
    )
    [said] = model_errors(f"{IMAGE}, include_top: true, head: {{classes: 2}}")
    assert said.endswith("Received both of them.")


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (
            "hub: a, weights: none",
            "`model.weights` is for models from `application`, and this model is from `hub`. Remove it.",
        ),
        (
            "keras_file: a, signature: b",
            "`model.signature` is for models from `hub`, and this model is from `keras_file`. Remove it.",
        ),
        (
            "hub: a, arguments: {b: 1}",
            "`model.arguments` is for models from `builder`, `application`, `preset`, and this model is from `hub`. Remove it.",
        ),
    ],
)
def test_keys_of_another_source_are_refused(model_errors, model, said):
    assert [line.split(": ", 1)[1] for line in model_errors(model)] == [said]


@pytest.mark.parametrize(
    ("head", "said"),
    [
        ("{}", "`model.head.classes` is missing. Add it under `model.head`."),
        ("{classes: 0}", "`model.head.classes` must be a whole number of at least 1, or `auto`, which counts"),
        ("{classes: 2, dropout: 1}", "`model.head.dropout` must be less than 1. Received: `1`."),
        ("{classes: 2, poling: max}", "`model.head.poling` is not a known key. Did you mean `pooling`?"),
        ("{classes: 2, pooling: maximum}", '`model.head.pooling` is not a known value. Received: `"maximum"`.'),
    ],
)
def test_a_faulty_head_is_reported(model_errors, head, said):
    assert model_errors(f"hub: a, head: {head}")[0].split(": ", 1)[1].startswith(said)


def test_a_head_goes_on_any_source(read):
    for source in (
        "builder: 'finetune.examples.digits:small_cnn'",
        "keras_file: a.keras",
        "hub: a",
        "preset: a",
        IMAGE,
    ):
        head = read(f"{source}, head: {{classes: 2, units: 8}}").model.head
        assert (head.classes, head.units, head.hidden_activation) == (2, (8,), "relu")


def test_paths_are_relative_to_the_recipe_and_handles_stay_as_they_are(read, tmp_path):
    (tmp_path / "here").mkdir()
    for given, meant in (
        ("folder/encoder", str(tmp_path / "folder" / "encoder")),
        ("here", str(tmp_path / "here")),
        ("https://tfhub.dev/google/encoder/1", "https://tfhub.dev/google/encoder/1"),
        ("bert_tiny_en_uncased", "bert_tiny_en_uncased"),
        ("kaggle://keras/bert/keras/bert_tiny_en_uncased/2", "kaggle://keras/bert/keras/bert_tiny_en_uncased/2"),
    ):
        recipe = read(f"hub: '{given}'")
        assert resolve_place(recipe, recipe.model.hub) == meant
        assert f"hub: {meant}\n" in dump_recipe(recipe, absolute_paths=True)


def test_a_recipe_with_a_head_is_itself_after_it_was_written_and_read(read, tmp_path):
    recipe = read(
        f"{IMAGE}, arguments: {{alpha: 0.35}}, head: {{classes: 2, units: [8, 4], pooling: max, dropout: 0.5}}"
    )
    (tmp_path / "again.yaml").write_text(dump_recipe(recipe))
    assert load_recipe(tmp_path / "again.yaml") == recipe


@pytest.mark.parametrize(
    "builder", ["build", "a:b:c", "os:system()", ".a:b", "a..b:c", "a.:b", "a/b:c", "a:b.c", "é:f", "a:b\n"]
)
def test_a_builder_that_is_not_a_module_and_a_function_is_refused(complaint, builder):
    [said] = complaint("model", "builder", to=builder)
    assert said.startswith("`model.builder` must be spelled `package.module:function`. Received: ")


@pytest.mark.parametrize("builder", ["finetune:run", "finetune.run:run", "finetune.examples:a", "finetune.examplesx:a"])
def test_inside_finetune_only_examples_may_be_named(complaint, builder):
    [said] = complaint("model", "builder", to=builder)
    assert said.startswith("`model.builder` may name only `finetune.examples.<module>:<function>` inside finetune.")
