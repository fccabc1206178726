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


# -- Weights ----------------------------------------------------------------------------------------------------------


def test_balanced_classes_weigh_the_training_rows_alone(recipe):
    x, y = np.zeros((10, 6), "float32"), np.array([0] * 8 + [1] * 2)
    np.savez("counted.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    loaded = load_recipe(recipe, overrides=["data={npz: counted.npz, class_weight: balanced}"])
    examples = build_examples(loaded)
    np.testing.assert_allclose(np.bincount(examples.y_train, examples.weights_train), [5, 5], rtol=1e-6)
    assert examples.weights_test is None


def test_weights_of_rows_and_of_classes_are_multiplied(recipe):
    x, y = np.zeros((10, 6), "float32"), np.arange(10) % 2
    np.savez("counted.npz", x_train=x, y_train=y, x_test=x, y_test=y, weights_train=np.arange(10.0))
    overrides = ["data={npz: counted.npz, class_weight: {1: 3.0}}"]
    weights = build_examples(load_recipe(recipe, overrides=overrides)).weights_train
    assert weights.tolist() == [0, 3, 2, 9, 4, 15, 6, 21, 8, 27]


def test_classes_of_almost_the_same_name_are_told_wherever_they_come_from(recipe):
    for kind in ("cat", "Cat", "dog"):
        for n in range(5):
            path = recipe.parent / "photos" / kind / f"{n}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (4, 4), (n, 0, 0)).save(path)
    (recipe.parent / "pets.csv").write_text(
        "x,pet,tags,size\n" + "1,cat,a b|c,s\n2,Cat,A_B,S\n3,dog,c,tall\n4,dog,c,Tall\n" * 4
    )

    def warnings(data, *overrides, network=None):
        examples = build_examples(load_recipe(recipe, overrides=[f"data={data}", *overrides]), network)
        return examples.source.get("warnings", [])

    said = (
        "Classes whose names differ by upper case, spaces, hyphens or underscores alone are different classes: {}. If they "
        "are one, write them alike"
    )
    assert warnings("{images: photos, size: [4, 4]}") == [said.format("`Cat` and `cat`")]
    assert warnings("{images: photos, size: [4, 4], class_names: [dog, Cat, cat]}") == []
    assert warnings("{table: pets.csv, inputs: x, target: pet}") == [said.format("`Cat` and `cat`")]
    assert warnings(
        "{table: pets.csv, inputs: x, target: tags}", "train.loss=binary_crossentropy", "train.metrics=[]"
    ) == [said.format("`A_B` and `a b`")]
    x = keras.Input((1,))
    two = keras.Model(x, {name: keras.layers.Dense(3, name=name)(x) for name in ("pet", "size")})
    losses = "train.loss={pet: sparse_categorical_crossentropy, size: sparse_categorical_crossentropy}"
    target = "{table: pets.csv, inputs: x, target: {pet: pet, size: size}}"
    assert warnings(target, losses, "train.metrics=null", network=two) == [
        said.format("`Cat` and `cat`; `Tall` and `tall`")
    ]


def test_a_fraction_of_rows_that_lie_class_by_class_is_told_with_what_to_write(recipe):
    for part in ("train", "test"):
        for kind in ("a", "b", "c"):
            for n in range(5):
                path = recipe.parent / "photos" / part / kind / f"{n}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (4, 4), (n, 0, 0)).save(path)

    def warnings(*overrides):
        examples = build_examples(load_recipe(recipe, overrides=["data={images: photos, size: [4, 4]}", *overrides]))
        return examples.source.get("warnings", [])

    (warning,) = warnings("train.validation_fraction=0.2")
    assert warning.startswith("`train.validation_fraction` takes the end of the rows, which has 1 of 3 classes")
    assert "`data.split: {validation: 0.2}`" in warning
    assert warnings("data.split={validation: 0.2}") == []
    assert warnings("train.validation_fraction=0.6") == []
