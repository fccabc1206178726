"""What the values of inputs and targets are compared with, in networks of many forms."""

import keras
import pytest

from finetune.training.input_checks import (
    first_layers,
    input_facts,
    input_notes,
    input_problems,
    rare_class_problems,
    target_problems,
)

layers = keras.layers


def images(*first):
    return keras.Sequential([keras.Input((8, 8, 3)), *first, layers.Conv2D(2, 3, name="conv"), layers.Flatten()])


def adapted(mean):
    return layers.Normalization(mean=mean, variance=[1.0] * len(mean), name="scaled")


@pytest.mark.parametrize(
    "model",
    [
        images(layers.Rescaling(1 / 255, name="scaled")),
        images(layers.RandomFlip(), layers.ZeroPadding2D(1), layers.Rescaling(1 / 127.5, offset=-1, name="scaled")),
        images(images(layers.Rescaling(1 / 255, name="scaled")), layers.Reshape((6, 6, 2))),
        images(adapted([120.0, 115.0, 100.0])),
    ],
)
def test_a_network_that_scales_pixels_is_not_fed_scaled_ones(model):
    [problem] = input_problems(model, {"": (-1.0, 1.0)})
    assert problem == (
        "the network takes pixels from 0 to 255, since `scaled` scales them. The inputs are -1 to 1. Do not scale them"
    )
    assert input_problems(model, {"": (0.0, 255.0)}) == input_notes(model, {"": (0.0, 255.0)}) == []


def test_large_values_that_nothing_scales_are_mentioned():
    [note] = input_notes(images(layers.Dropout(0.1)), {"": (0.0, 255.0)})
    assert note.startswith(
        "nothing scales the inputs, 0 to 255, before `conv`. Where the network was not trained on such"
    )
    assert input_notes(images(), {"": (0.0, 1.0)}) == []
    assert input_notes(images(layers.BatchNormalization()), {"": (0.0, 255.0)}) == []
    assert input_notes(images(adapted([0.0, 0.0, 0.0])), {"": (0.0, 255.0)}) == []


def test_ids_beyond_an_embedding_are_found_by_the_name_of_the_input():
    ids, photo = keras.Input((4,), name="ids", dtype="int32"), keras.Input((8, 8, 3), name="photo")
    words = layers.Flatten()(layers.Embedding(50, 2, name="words")(ids))
    model = keras.Model([ids, photo], layers.Dense(2)(layers.Concatenate()([words, layers.Flatten()(photo)])))
    kinds = {name: [type(layer).__name__ for layer in of] for name, of in first_layers(model).items()}
    assert kinds == {"ids": ["Embedding"], "photo": ["Concatenate"]}
    [problem] = input_problems(model, {"ids": (0.0, 50.0), "photo": (0.0, 1.0)})
    assert problem.startswith("the inputs `ids` are 0 to 50, and `words` takes ids from 0 to 49. Use the ids of the")
    assert len(input_problems(model, {"ids": (-1.0, 9.0)})) == 1
    assert input_problems(model, {"ids": (0.0, 49.0)}) == []


def test_a_model_without_a_graph_is_not_judged():
    class Own(keras.Model):
        def call(self, x):
            return x

    assert first_layers(Own()) == {}
    assert input_problems(Own(), {"": (0.0, 1.0)}) == []


@pytest.mark.parametrize(
    ("loss", "labels", "is_wrong"),
    [
        (keras.losses.SparseCategoricalCrossentropy(), (0.0, 3.0), True),
        (keras.losses.SparseCategoricalCrossentropy(), (-1.0, 2.0), True),
        (keras.losses.SparseCategoricalCrossentropy(ignore_class=-1), (-1.0, 2.0), False),
        ("sparse_categorical_crossentropy", (0.0, 255.0), True),
        ("sparse_categorical_crossentropy", (0.0, 2.0), False),
        ("mse", (-5.0, 9.0), False),
    ],
)
def test_labels_that_are_read_row_by_row_are_those_of_the_classes(loss, labels, is_wrong):
    model = keras.Sequential([keras.Input((8, 8, 3)), layers.Conv2D(3, 1)])
    model.compile("sgd", loss)
    problems = target_problems(model, {"test": {"": labels}})
    assert len(problems) == is_wrong
    if is_wrong:
        low, high = labels
        assert problems[0].startswith(
            f"labels of `test` are {low:g} to {high:g}, and the network gives 3 classes, `0` to"
        )


def test_classes_with_few_training_rows_are_named():
    counts = {"train": [20, 4, 6, 0], "test": [3, 3, 3, 0]}
    named = {"class_names": list("abcd"), "rows_of_classes": counts}
    assert rare_class_problems(named) == ["2 classes have fewer than 5 training rows: `b` (4), `d` (0)"]
    kinds = {"outputs": {"kind": named, "size": {"numbers": {}}}}
    assert rare_class_problems(kinds) == ["2 classes of `kind` have fewer than 5 training rows: `b` (4), `d` (0)"]
    assert rare_class_problems({"numbers": {}}) == []
    untested = {"class_names": list("abc"), "rows_of_classes": {"train": [20, 9, 3], "test": [5, 3, 0]}}
    assert rare_class_problems(untested) == [
        "a class has fewer than 5 training rows: `c` (3)",
        "a class has rows to train on and none to test on: `c`",
    ]
    many = {"class_names": list("abcdefgh"), "rows_of_classes": {"train": [1] * 8, "test": [1] * 8}}
    assert rare_class_problems(many)[0].endswith("`e` (1) and 3 more")


def test_the_deviations_of_imagenet_scale_pixels():
    scale = [1 / (255 * deviation) for deviation in (0.229, 0.224, 0.225)]
    model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Rescaling(scale, name="converter")])
    [problem] = input_problems(model, {"": (0.0, 1.0)})
    assert "takes pixels from 0 to 255, since `converter` scales them" in problem
    assert input_problems(model, {"": (0.0, 255.0)}) == []


def test_the_range_of_the_inputs_is_told_beside_what_the_network_does_with_them_first():
    pixels = {"": (0.0, 255.0)}
    [fact] = input_facts(images(layers.Rescaling(1 / 255, name="scaled")), pixels)
    assert fact == "inputs: 0 to 255 in the first rows; the network takes pixels from 0 to 255, which `scaled` scales"
    frozen = images()
    frozen.trainable = False
    for model in (images(), frozen):
        assert input_facts(model, pixels) == ["inputs: 0 to 255 in the first rows; `conv` takes them as they are"]
    assert input_notes(frozen, pixels)  # frozen or not, nothing scales them
    [fact] = input_facts(images(adapted([0.0, 0.0, 0.0])), pixels)
    assert fact.endswith("they go through `scaled` first")
    inputs = {name: keras.Input((3,), name=name) for name in ("ids", "numbers")}
    parts = [layers.Flatten()(layers.Embedding(10, 2, name="words")(inputs["ids"])), inputs["numbers"]]
    model = keras.Model(inputs, layers.Dense(2)(layers.Concatenate()(parts)))
    first, second = input_facts(model, {"ids": (0.0, 9.0), "numbers": (-1.0, 1.0)})
    assert first == "inputs `ids`: 0 to 9 in the first rows; `words` takes ids from 0 to 9"
    assert second.startswith("inputs `numbers`: -1 to 1 in the first rows;")
    assert input_facts(model, {"ids": (0.0, 9.0)}) == [first]
