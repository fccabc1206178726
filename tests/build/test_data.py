import keras
import numpy as np
import pytest
from PIL import Image

from finetune.build.data import RunLength, build_examples, precision, steps_per_epoch
from finetune.errors import RecipeError
from finetune.recipe.loader import load_recipe

# -- Precision --------------------------------------------------------------------------------------------------------

BUILT = "model={builder: finetune.examples.digits:small_cnn}"


def policy_inside(recipe, mixed):
    with precision(load_recipe(recipe, overrides=[BUILT, f"train.mixed_precision={mixed}"])):
        return keras.config.dtype_policy().name


@pytest.mark.parametrize(
    ("mixed", "policy"), [("false", "float32"), ("bfloat16", "mixed_bfloat16"), ("float16", "mixed_float16")]
)
def test_the_precision_of_the_recipe_holds_inside_and_the_former_one_is_put_back(recipe, mixed, policy):
    keras.config.set_dtype_policy("float64")
    try:
        assert policy_inside(recipe, mixed) == policy
        assert keras.config.dtype_policy().name == "float64"
    finally:
        keras.config.set_dtype_policy("float32")


def test_the_former_precision_is_put_back_after_an_error_too(recipe):
    loaded = load_recipe(recipe, overrides=[BUILT, "train.mixed_precision=bfloat16"])

    def fail():
        with precision(loaded):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert keras.config.dtype_policy().name == "float32"


def test_a_model_from_a_file_keeps_its_precision(recipe, problem):
    assert problem(recipe, "train.mixed_precision=float16").startswith(
        "--set train.mixed_precision: a model from a file keeps the precision it was saved with."
    )


def test_the_seed_of_the_recipe_decides_the_fresh_weights(recipe):
    def fresh(seed):
        with precision(load_recipe(recipe, overrides=[f"seed={seed}"])):
            return keras.random.normal((3,)).numpy().tolist()

    assert fresh(5) == fresh(5)
    assert fresh(5) != fresh(6)


def test_float16_gets_a_loss_scale_around_all_groups(recipe, lay_out):
    groups = "groups=[{name: a, rest: true, optimizer: sgd, learning_rate: 0.1}]"
    data = "data={builder: finetune.examples.digits:uci_digits, arguments: {train_rows: 20, test_rows: 20}}"
    layout = lay_out(recipe, BUILT, data, groups, "train.mixed_precision=float16")
    assert isinstance(layout.model.optimizer, keras.optimizers.LossScaleOptimizer)


# -- How long a run is ------------------------------------------------------------------------------------------------


def examples_of(recipe, rows, fraction, batch_size=1):
    """Reads as many training rows from a file, and splits validation rows off."""
    x, y = np.zeros((rows, 6), "float32"), np.zeros(rows)
    np.savez("counted.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    counts = [f"train.validation_fraction={fraction}", f"train.batch_size={batch_size}"]
    loaded = load_recipe(recipe, overrides=["data.npz=counted.npz", *counts])
    return loaded, build_examples(loaded)


def fitted(rows, fraction, batch_size):
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(1)])
    model.compile("sgd", loss="mse", run_eagerly=True)
    x, y = np.zeros((rows, 6), "float32"), np.zeros(rows)
    model.fit(x, y, batch_size=batch_size, validation_split=fraction, verbose=0)
    return int(model.optimizer.iterations)


@pytest.mark.parametrize(("rows", "fraction", "batch_size"), [(33, 0.3, 5), (100, 0.1, 32), (7, 0.0, 3)])
def test_the_steps_are_those_of_a_real_fit(recipe, rows, fraction, batch_size):
    assert steps_per_epoch(*examples_of(recipe, rows, fraction, batch_size)) == fitted(rows, fraction, batch_size)


def test_where_keras_cannot_split_the_rows_the_recipe_is_wrong(recipe):
    with pytest.raises(ValueError, match="not sufficient to split"):
        fitted(10, 0.95, 4)
    with pytest.raises(RecipeError, match="leaves 0 of 10 rows to train on"):
        examples_of(recipe, 10, 0.95, 4)


def test_the_validation_rows_are_the_last_training_rows(recipe):
    x, y = np.arange(60, dtype="float32").reshape(10, 6), np.arange(10)
    np.savez("counted.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    examples = build_examples(load_recipe(recipe, overrides=["data.npz=counted.npz", "train.validation_fraction=0.25"]))
    assert examples.y_train.tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert examples.y_validation.tolist() == [7, 8, 9]
    np.testing.assert_array_equal(examples.x_validation, x[7:])


def test_a_fraction_too_small_for_a_row_is_refused_as_keras_would(recipe, problem):
    assert problem(recipe, "train.validation_fraction=1e-18") == (
        "--set train.validation_fraction: `train.validation_fraction: 1e-18` leaves 60 of 60 rows to train on. Both "
        "parts need at least one row: choose another fraction."
    )


def test_validation_rows_come_from_one_place(recipe):
    x, y = np.zeros((10, 6), "float32"), np.zeros(10)
    rows = {f"{name}_{part}": value for part in ("train", "test", "validation") for name, value in (("x", x), ("y", y))}
    np.savez("three.npz", **rows)
    overrides = ["data.npz=three.npz", "train.validation_fraction=0.2"]
    with pytest.raises(RecipeError, match="but the data already have validation rows"):
        build_examples(load_recipe(recipe, overrides=overrides))
    loaded = load_recipe(recipe, overrides=overrides[:1])
    assert steps_per_epoch(loaded, build_examples(loaded)) == 1


def test_lengths_in_epochs_and_fractions_are_of_the_steps_that_are_made():
    whole = RunLength(epochs=3, steps_per_epoch=10)
    cut = RunLength(epochs=3, steps_per_epoch=10, total_steps=24)
    assert (whole.steps, cut.steps) == (30, 24)
    assert (whole.in_steps(0.5, "fraction"), cut.in_steps(0.5, "fraction")) == (15, 12)
    assert whole.in_steps(1.5, "epochs") == 15


# -- Images -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def pictures(recipe):
    """Two classes of 10 images, and a network for images of any size."""
    for name, value in {"dark": 10, "light": 240}.items():
        (recipe.parent / "pictures" / name).mkdir(parents=True)
        for number in range(10):
            Image.new("RGB", (9, 6), (value, value, number)).save(recipe.parent / "pictures" / name / f"{number}.png")
    inputs = keras.Input((None, None, 3))
    outputs = keras.layers.Dense(2, name="head")(keras.layers.GlobalAveragePooling2D()(inputs))
    keras.Model(inputs, outputs).save(recipe.parent / "any_size.keras")
    return "data={images: pictures/, size: [4, 6]}", "model={keras_file: any_size.keras}"


def images_of(recipe, pictures, *overrides):
    return build_examples(load_recipe(recipe, overrides=[*pictures, *overrides]), NETWORK)


NETWORK = keras.Sequential([keras.Input((None, None, 3)), keras.layers.GlobalAveragePooling2D()])


def test_images_are_split_by_class_and_have_the_size_of_the_recipe(recipe, pictures):
    examples = images_of(recipe, pictures)
    assert np.bincount(examples.y_train).tolist() == [8, 8]
    assert np.bincount(examples.y_test).tolist() == [2, 2]
    x, y = examples.train.first(16)
    assert x.shape == (16, 4, 6, 3)
    assert ((x[:, 2, 3, 0] > 200).numpy() == y.numpy()).all()


def test_images_have_by_default_the_size_that_the_network_takes(recipe, pictures):
    loaded = load_recipe(recipe, overrides=[*pictures, "data.size=null"])
    network = keras.Sequential([keras.Input((5, 7, 1)), keras.layers.Flatten()])
    assert build_examples(loaded, network).train.first(1)[0].shape == (1, 5, 7, 1)


def test_a_limit_keeps_the_shares_of_the_classes(recipe, pictures):
    examples = images_of(recipe, pictures, "data.limit=10")
    assert np.bincount([*examples.y_train, *examples.y_test]).tolist() == [5, 5]


def test_names_of_classes_come_in_the_order_of_the_recipe_or_of_a_file(recipe, pictures):
    assert images_of(recipe, pictures, "data.class_names=[light, dark]").class_names == ("light", "dark")
    (recipe.parent / "names.txt").write_text("light\n\ndark\nother\n")
    assert images_of(recipe, pictures, "data.class_names_file=names.txt").class_names == ("light", "dark", "other")


def test_the_split_by_hash_follows_the_names_of_the_files(recipe, pictures):
    before = images_of(recipe, pictures, "data.split={by: hash, test: 0.3}")
    (recipe.parent / "pictures/dark/0.png").rename(recipe.parent / "pictures/dark/other.png")
    after = images_of(recipe, pictures, "data.split={by: hash, test: 0.3}")
    assert abs(len(before.test) - len(after.test)) <= 1


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("data.images=picture", "`data.images`: Images lie in a folder. `"),
        ("data.class_names=[light, drak]", "`data.images`: Every row must be of a class in `class_names`"),
        ("data.size=null", "`data.images`: Images must all have the same size, and the network takes any. Set"),
        ("data.class_weight={darc: 2.0}", "`data.class_weight`: `class_weight` names classes: `dark`, `light`"),
    ],
)
def test_what_is_wrong_with_images_is_said_with_its_place(recipe, pictures, override, said):
    with pytest.raises(RecipeError) as caught:
        images_of(recipe, pictures, override)
    assert said in str(caught.value)


def test_a_network_for_something_else_is_refused(recipe, pictures):
    loaded = load_recipe(recipe, overrides=pictures)
    with pytest.raises(RecipeError, match=r"The network takes \(\(None, 6\)|The network takes \(None, 6\)"):
        build_examples(loaded, keras.Sequential([keras.Input((6,)), keras.layers.Dense(2)]))


def test_balanced_classes_weigh_the_training_rows_alone(recipe, pictures):
    for number in range(6):
        (recipe.parent / f"pictures/dark/{number}.png").unlink()
    examples = images_of(recipe, pictures, "data.class_weight=balanced")
    sums = np.bincount(examples.y_train, examples.weights_train)
    np.testing.assert_allclose(sums, sums.mean(), rtol=1e-6)
    assert examples.weights_test is None
