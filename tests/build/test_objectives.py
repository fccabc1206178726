"""Losses and metrics that are chosen by the targets and the network, from the recipe to the compiled model."""

import keras
import numpy as np
import pytest

from finetune.build.data import build_batches
from finetune.errors import RecipeError
from finetune.recipe.loader import dump_recipe

GROUPS = "groups=[{name: all, rest: true, optimizer: adam, learning_rate: 1.0e-3}]"
AUTO = ["train.loss=auto", "train.metrics=auto", "train.epochs=1", GROUPS]


@pytest.fixture
def flowers(recipe):
    """Thirty rows in a table: sizes, a kind of three, a colour of two, several tags, a price with fractions."""
    lines = ["width,height,kind,colour,tags,price,stars"]
    for n in range(30):
        tags = ("small|cheap", "small", "cheap")[n % 3]
        lines.append(f"{n / 7},{n % 5},{'xyz'[n % 3]},{'rb'[n % 2]},{tags},{n / 4 + 0.1},{n % 4 + 1}")
    (recipe.parent / "flowers.csv").write_text("\n".join(lines))
    return recipe


def saved(recipe, outputs, name="network.keras"):
    x = keras.Input((2,), name="sizes")
    keras.Model(x, outputs(x)).save(recipe.parent / name)


def flower_recipe(target, head="{classes: auto}"):
    data = f"data={{table: flowers.csv, inputs: [width, height], target: {target}}}"
    model = "{keras_file: network.keras" + (f", head: {head}}}" if head else "}")
    return [*AUTO, data, f"model={model}"]


@pytest.mark.parametrize(
    ("target", "head", "loss", "metrics", "activation", "width"),
    [
        ("kind", "{classes: auto}", "sparse_categorical_crossentropy", ["accuracy"], "softmax", 3),
        ("colour", "{classes: auto}", "sparse_categorical_crossentropy", ["accuracy"], "softmax", 2),
        ("colour", "{classes: 1}", "binary_crossentropy", ["accuracy"], "sigmoid", 1),
        ("tags", "{classes: auto}", "binary_crossentropy", ["binary_accuracy", "f1_score"], "sigmoid", 2),
        ("price", "{classes: auto}", "mean_squared_error", ["mean_absolute_error"], "linear", 1),
        ("[price, width]", "{classes: auto}", "mean_squared_error", ["mean_absolute_error"], "linear", 2),
        ("stars", "{classes: auto}", "sparse_categorical_crossentropy", ["accuracy"], "softmax", 4),
        ("stars", "{classes: 1}", "mean_squared_error", ["mean_absolute_error"], "linear", 1),
    ],
)
def test_loss_metrics_and_head_follow_the_target(flowers, lay_out, target, head, loss, metrics, activation, width):
    saved(flowers, keras.layers.Dense(4, activation="relu", name="body"))
    layout = lay_out(flowers, *flower_recipe(target, head))
    assert layout.recipe.train.loss.name == loss
    assert [metric.name for metric in layout.recipe.train.metrics] == metrics
    output = layout.model.get_layer("head").get_layer("output")
    assert (output.activation.__name__, output.units) == (activation, width)
    assert f"loss: `{loss}`" in layout.chosen[0]
    report = layout.model.evaluate(layout.examples.test.batches(8), verbose=0, return_dict=True)
    assert set(report) == {"loss", *metrics}


@pytest.mark.parametrize(("activation", "arguments"), [("softmax", {}), (None, {"from_logits": True})])
def test_a_chosen_loss_takes_logits_where_the_network_ends_in_them(flowers, lay_out, activation, arguments):
    saved(flowers, keras.layers.Dense(3, activation=activation, name="output"))
    layout = lay_out(flowers, *flower_recipe("kind", head=""))
    assert layout.recipe.train.loss.arguments == arguments
    assert not layout.plan.advice or "logits" not in "".join(layout.plan.advice)


def test_values_show_probabilities_where_the_layers_do_not(flowers, lay_out):
    def outputs(x):
        odds = keras.ops.exp(keras.layers.Dense(3)(x))
        return odds / keras.ops.sum(odds, axis=-1, keepdims=True)

    saved(flowers, outputs)
    assert lay_out(flowers, *flower_recipe("kind", head="")).recipe.train.loss.arguments == {}
    saved(flowers, lambda x: keras.layers.Dense(3)(x) * 100.0)
    assert lay_out(flowers, *flower_recipe("kind", head="")).recipe.train.loss.arguments == {"from_logits": True}


def test_the_resolved_recipe_reads_the_same_targets(flowers, lay_out):
    saved(flowers, keras.layers.Dense(4, activation="relu", name="body"))
    first = lay_out(flowers, *flower_recipe("stars"))
    (flowers.parent / "again.yaml").write_text(dump_recipe(first.recipe, absolute_paths=True))
    again = lay_out(flowers.parent / "again.yaml")
    assert again.chosen == ()
    assert again.examples.y_train.tolist() == first.examples.y_train.tolist()
    assert again.model.get_layer("head").get_layer("output").activation.__name__ == "softmax"


def test_auto_beside_other_metrics_stands_for_those_that_fit(recipe, lay_out):
    layout = lay_out(recipe, "train.metrics=[auto, {name: precision, class_id: 1}, accuracy]")
    assert [metric.name for metric in layout.recipe.train.metrics] == ["accuracy", "precision"]


def test_arrays_are_read_by_their_values(recipe, lay_out):
    layout = lay_out(recipe, "train.loss=auto", "train.metrics=auto")
    assert layout.recipe.train.loss.name == "sparse_categorical_crossentropy"
    assert layout.chosen == (
        "loss: `sparse_categorical_crossentropy`, metrics: `accuracy`, chosen by the targets: 3 different whole numbers, "
        "and a network with 3 outputs",
    )


MIXED = ["data.augment=[{layer: MixUp, alpha: 0.4}]", "model={keras_file: pixels.keras, head: {classes: auto}}"]


@pytest.fixture
def dots(recipe):
    """Twelve images of 4x4 pixels in three classes, by number, and a network for them."""
    x, y = np.random.default_rng(0).uniform(0, 1, (12, 4, 4, 3)).astype("float32"), np.arange(12) % 3
    np.savez(recipe.parent / "dots.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    inputs = keras.Input((4, 4, 3))
    keras.Model(inputs, keras.layers.Dense(4)(keras.layers.Flatten()(inputs))).save(recipe.parent / "pixels.keras")
    return recipe, [*AUTO, "data={npz: dots.npz}", *MIXED]


def test_classes_that_are_blended_get_a_target_each_and_a_loss_that_takes_them(dots, lay_out):
    recipe, overrides = dots
    layout = lay_out(recipe, *overrides)
    assert layout.recipe.train.loss.name == "categorical_crossentropy"
    assert layout.examples.y_test.tolist() == np.eye(3)[np.arange(12) % 3].tolist()
    assert layout.chosen[0].endswith(", with a target for each class, since `MixUp` blends them")
    _, y = next(iter(build_batches(layout.recipe, layout.examples)))
    np.testing.assert_allclose(np.sum(y, axis=1), 1, rtol=1e-6)
    assert ((np.asarray(y) > 0).sum(axis=1) == 2).any()
    # The resolved recipe, whose loss is written, reads the same targets.
    (recipe.parent / "again.yaml").write_text(dump_recipe(layout.recipe, absolute_paths=True))
    again = lay_out(recipe.parent / "again.yaml")
    assert again.examples.y_train.tolist() == layout.examples.y_train.tolist()


@pytest.mark.parametrize(("values", "loss"), [(np.arange(12) / 7, "mean_squared_error"), (np.eye(3), "categorical")])
def test_targets_that_can_be_blended_stay_as_they_are(dots, lay_out, values, loss):
    recipe, overrides = dots
    arrays = dict(np.load(recipe.parent / "dots.npz"))
    y = np.tile(values, (4, 1)) if values.ndim > 1 else values
    np.savez(recipe.parent / "dots.npz", **arrays | {"y_train": y, "y_test": y})
    layout = lay_out(recipe, *overrides)
    assert layout.recipe.train.loss.name.startswith(loss)
    assert layout.examples.y_train.tolist() == y.tolist()


def test_classes_of_pixels_are_not_blended(dots, lay_out):
    recipe, overrides = dots
    x = np.load(recipe.parent / "dots.npz")["x_train"]
    masks = np.arange(12 * 16).reshape(12, 4, 4) % 3
    np.savez(recipe.parent / "dots.npz", x_train=x, y_train=masks, x_test=x, y_test=masks)
    inputs = keras.Input((4, 4, 3))
    keras.Model(inputs, keras.layers.Conv2D(3, 1)(inputs)).save(recipe.parent / "pixels.keras")
    with pytest.raises(RecipeError, match=r"single class\. These have \(4, 4\) classes a row\. Remove the layer"):
        lay_out(recipe, *overrides, "model={keras_file: pixels.keras}")


# -- Several outputs --------------------------------------------------------------------------------------------------

TARGETS = "{kind: kind, price: price}"


@pytest.fixture(params=["dict", "list"])
def two_outputs(flowers, request):
    def outputs(x):
        kind = keras.layers.Dense(3, activation="softmax", name="kind")(x)
        price = keras.layers.Dense(1, name="price")(x)
        return {"kind": kind, "price": price} if request.param == "dict" else [kind, price]

    saved(flowers, outputs)
    return flowers


def test_each_output_gets_its_own_loss_and_metrics(two_outputs, lay_out):
    layout = lay_out(two_outputs, *flower_recipe(TARGETS, head=""))
    assert {name: loss.name for name, loss in layout.recipe.train.loss.items()} == {
        "kind": "sparse_categorical_crossentropy",
        "price": "mean_squared_error",
    }
    assert len(layout.chosen) == 2
    report = layout.model.evaluate(layout.examples.test.batches(8), verbose=0, return_dict=True)
    assert {"loss", "kind_accuracy", "price_mean_absolute_error", "kind_loss", "price_loss"} == set(report)
    assert report["loss"] == pytest.approx(report["kind_loss"] + report["price_loss"], rel=1e-6)


def test_losses_and_metrics_are_written_by_output(two_outputs, lay_out):
    layout = lay_out(
        two_outputs,
        *flower_recipe(TARGETS, head=""),
        "train.loss={kind: sparse_categorical_crossentropy, price: {name: huber, delta: 2.0}}",
        "train.metrics={kind: [accuracy, {name: precision, class_id: 1}], price: mae}",
    )
    x, y = layout.examples.x_test, layout.examples.y_test
    report = layout.model.evaluate(x, y, verbose=0, return_dict=True)
    outputs = layout.model.predict(x, verbose=0)
    price = outputs["price"] if isinstance(outputs, dict) else outputs[1]
    assert report["price_mae"] == pytest.approx(np.abs(price[:, 0] - y["price"]).mean(), rel=1e-5)
    assert {"kind_accuracy", "kind_precision"} <= set(report)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            ["data.target=kind"],
            "`target` names the column of each of its outputs: `kind`, `price`. Received: `a column ",
        ),
        (["data.target={kind: kind, prize: price}"], "Received: `kind`, `prize`. Did you mean `price`?"),
        (["train.loss={kind: auto, prize: mse}"], "has the outputs `kind`, `price`. Received: `prize`. Did you mean"),
        (["train.metrics=[accuracy]"], None),
    ],
)
def test_names_that_are_no_outputs_are_answered_with_the_nearest(two_outputs, problem, overrides, said):
    said = said or "`train.metrics` names the metrics of each output where there are several: `kind`, `price`. Received"
    assert said in problem(two_outputs, *flower_recipe(TARGETS, head=""), *overrides)


def test_a_network_with_a_single_output_has_no_names_for_it(flowers, problem):
    saved(flowers, keras.layers.Dense(3, activation="softmax", name="output"))
    assert "has a single output: write `loss: ...`. Received: `kind`" in problem(
        flowers, *flower_recipe("kind", head=""), "train.loss={kind: mse}"
    )
    assert "`target` names the column of its only output, without a name. Received: `kind`." in problem(
        flowers, *flower_recipe("{kind: kind}", head="")
    )


def test_a_head_is_a_single_output(two_outputs, problem):
    message = problem(two_outputs, *flower_recipe(TARGETS, head="{classes: auto}"))
    assert "`target` names the column of its only output, without a name. Received: `kind`, `price`." in message
