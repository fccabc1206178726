"""An augmented row depends on (seed, epoch, row) alone, for every layer of Keras that a recipe can name."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from finetune.data.augmentation import Augmentation, augmented_input
from finetune.data.batches import measurement_batches, training_batches
from finetune.data.rows import Rows
from finetune.errors import DataError
from finetune.recipe.augment import AUGMENT_LAYERS, MIXING_LAYERS

X = np.random.default_rng(0).uniform(0, 255, (7, 12, 10, 3)).astype("float32")
Y = np.arange(7)
ARGUMENTS = {
    "AugMix": {"factor": 0.9},
    "Dropout": {"rate": 0.3},
    "GaussianDropout": {"rate": 0.3},
    "GaussianNoise": {"stddev": 0.5},
    "RandomColorJitter": {"brightness_factor": 0.3, "contrast_factor": 0.3, "hue_factor": 0.1},
    "RandomCrop": {"height": 12, "width": 10},
    "RandomPosterization": {"factor": [1, 7]},
    "RandomShear": {"x_factor": 0.4},
    "RandomTranslation": {"height_factor": 0.3, "width_factor": 0.3},
    "RandomZoom": {"height_factor": 0.3},
    "Solarization": {"threshold_factor": 0.5},
    "SpatialDropout2D": {"rate": 0.4},
}
WITH_FACTOR = [name for name, known in AUGMENT_LAYERS.items() if known[:1] == ("factor",)]
ROW_LAYERS = sorted({*AUGMENT_LAYERS} - {*MIXING_LAYERS})


def augmentation(*names, seed=3, dtype=tf.float32):
    made = []
    for name in names:
        arguments = ARGUMENTS.get(name) or ({"factor": 0.5} if name in WITH_FACTOR else {})
        layer = getattr(keras.layers, name)(**arguments, dtype="float32")
        row = {"images": X[:1], "labels": np.zeros((1, 2), "float32")} if name in MIXING_LAYERS else X[:1]
        layer(row, training=True)
        made.append(layer)
    mixing = [layer for layer in made if type(layer).__name__ in MIXING_LAYERS]
    return Augmentation([layer for layer in made if layer not in mixing], mixing, 0, dtype, seed)


def epoch_of(changes, epoch, batch_size=3, x=X, **options):
    """Returns the rows of an epoch in their own order."""
    batches = training_batches(x, Y, batch_size=batch_size, seed=1, first_epoch=epoch, augmentation=changes, **options)
    parts = list(batches.take(-(-len(Y) // batch_size)))
    order = np.argsort(np.concatenate([y.numpy() for _, y in parts]))
    return np.concatenate([images.numpy() for images, _ in parts])[order]


@pytest.mark.sample(5)
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if n % 3 == 0 and name != "RandAugment" else pytest.mark.grid)
        for n, name in enumerate(ROW_LAYERS)
    ],
)
def test_a_row_looks_the_same_in_any_batch_and_different_in_another_epoch(name):
    changes = augmentation(name)
    first, again = epoch_of(changes, 0), epoch_of(augmentation(name), 0, batch_size=5)
    np.testing.assert_array_equal(first, again)
    assert first.shape == X.shape
    if name == "RandomCrop":  # of the whole image nothing can be cut
        np.testing.assert_array_equal(first, X)
        return
    assert not np.array_equal(first, X)
    if name not in ("Solarization", "AugMix"):  # with these settings they draw nothing, or rarely something visible
        assert not np.array_equal(first, epoch_of(changes, 1))
        assert not np.array_equal(first, epoch_of(augmentation(name, seed=4), 0))


def test_rows_draw_for_themselves():
    same = np.repeat(X[:1], 7, axis=0)
    rotated = epoch_of(augmentation("RandomRotation"), 0, x=same)
    assert len({row.tobytes() for row in rotated}) == 7


def test_what_begins_later_shows_the_pictures_of_what_began_at_the_start():
    changes = augmentation("RandomRotation", "RandomFlip")
    whole = list(training_batches(X, Y, batch_size=3, augmentation=changes).take(6))
    later = list(training_batches(X, Y, batch_size=3, first_epoch=1, first_step=1, augmentation=changes).take(2))
    for (x, y), (other_x, other_y) in zip(whole[4:], later, strict=True):
        np.testing.assert_array_equal(x, other_x)
        np.testing.assert_array_equal(y, other_y)


def test_rows_that_are_made_one_by_one_look_like_those_of_an_array():
    tensor = tf.constant(X)
    rows = Rows(7, lambda at: tf.gather(tensor, at), take_row=lambda at: tensor[at])
    changes = augmentation("RandomZoom")
    np.testing.assert_array_equal(epoch_of(changes, 2), epoch_of(changes, 2, x=rows))


def test_whole_numbers_stay_whole_numbers_of_their_type():
    pixels = X.astype("uint8")
    changed = epoch_of(augmentation("RandomBrightness", dtype=tf.uint8), 0, x=pixels)
    assert changed.dtype == np.uint8
    # Rounded, and within what the type holds.
    expected = np.rint(epoch_of(augmentation("RandomBrightness"), 0, x=pixels.astype("float32")))
    np.testing.assert_array_equal(changed, expected)


@pytest.mark.parametrize("name", MIXING_LAYERS)
def test_a_blended_batch_depends_on_the_seed_epoch_and_step_and_its_targets_are_blended_alike(name):
    # Images of a single value, so that the share of each image can be read from its pixels.
    x = np.broadcast_to(np.arange(7, dtype="float32")[:, None, None, None], X.shape).copy()
    one_hot = np.eye(7, dtype="float32")
    weights = np.arange(7, dtype="float32")
    changes = augmentation(name)

    def batches(**options):
        made = training_batches(x, one_hot, batch_size=4, sample_weight=weights, augmentation=changes, **options)
        return list(made.take(2))

    first, again, later = batches(), batches(), batches(first_step=1)
    for parts in zip(first[0], again[0], strict=True):
        np.testing.assert_array_equal(*parts)
    np.testing.assert_array_equal(first[1][0], later[0][0])
    images, labels, of_rows = (part.numpy() for part in first[0])
    np.testing.assert_allclose(np.sum(labels, 1), 1, rtol=1e-6)
    assert np.count_nonzero(labels) > 4
    if name == "MixUp":
        np.testing.assert_allclose(np.mean(images, (1, 2, 3)), labels @ np.arange(7), rtol=1e-5)
    np.testing.assert_allclose(of_rows, labels @ weights, rtol=1e-5, atol=1e-6)


def test_targets_of_any_shape_are_blended_row_by_row():
    x, changes = X[:4], augmentation("MixUp")
    y = {"single": np.arange(4.0), "map": np.ones((4, 2, 3)) * np.arange(4)[:, None, None]}
    _, blended = next(iter(training_batches(x, y, batch_size=4, shuffle=False, augmentation=changes)))
    assert blended["single"].shape == (4,)
    assert blended["map"].shape == (4, 2, 3)
    expected = np.broadcast_to(np.asarray(blended["single"])[:, None, None], (4, 2, 3))
    np.testing.assert_allclose(blended["map"], expected, rtol=1e-6)


def test_measurements_see_other_pictures_in_every_iteration():
    batches = measurement_batches(X, Y, batch_size=7, seed=0, augmentation=augmentation("RandomRotation"))
    passes = [next(iter(batches)) for _ in range(2)]
    first, second = (x.numpy()[np.argsort(y.numpy())] for x, y in passes)
    assert not np.array_equal(first, second)


def test_the_input_that_is_augmented_is_the_only_one_of_images():
    place, first = augmented_input({"ages": Y[:, None], "photo": X}, images=True)
    assert (place, first.shape) == (1, (7, 12, 10, 3))
    assert augmented_input(X[:, 0, 0], images=False)[0] == 0


@pytest.mark.parametrize(
    ("x", "said"),
    [
        ((X, X), "augments a single input of images, and the data have 2: `12x10x3 of float32`"),
        (X[:, 0, 0], "has layers for images, whose rows have the shape (height, width, channels)"),
    ],
)
def test_other_inputs_are_refused_with_their_shapes(x, said):
    with pytest.raises(DataError) as caught:
        augmented_input(x, images=True)
    assert str(caught.value).startswith(said)


def test_whole_numbers_such_as_token_ids_are_not_augmented():
    with pytest.raises(DataError, match="changes a single input of floating-point numbers"):
        augmented_input(np.ones((3, 4), "int32"), images=False)
