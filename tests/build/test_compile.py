import keras
import numpy as np
import pytest
import tensorflow as tf

from finetune.build.compile import compile_model
from finetune.data.examples import Examples
from finetune.errors import FinetuneError, RecipeError
from finetune.recipe.loader import load_recipe
from finetune.training.try_examples import try_model

X, Y = np.zeros((6, 6), "float32"), np.arange(6) % 3
EXAMPLES = Examples(X, Y, X, Y)

# NumPy 2 warns when Keras copies a TensorFlow variable to save it.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")


@pytest.fixture
def compiled(recipe, tiny):
    def compile_with(*overrides):
        model = tiny()
        trial = try_model(model, EXAMPLES)
        compile_model(load_recipe(recipe, overrides=overrides), model, keras.optimizers.SGD(), EXAMPLES, trial)
        return model

    return compile_with


def logged(model):
    """The names in the logs after one evaluation."""
    model.run_eagerly = True
    return set(model.evaluate(X, Y, verbose=0, return_dict=True))


@pytest.mark.parametrize("loss", ["sparse_categorical_crossentropy", "SparseCategoricalCrossentropy"])
def test_a_loss_is_known_in_snake_case_and_by_its_class(compiled, loss):
    assert logged(compiled(f"train.loss={loss}")) == {"loss", "accuracy"}


def test_a_loss_takes_arguments(recipe, lay_out):
    model = lay_out(
        recipe, "train.loss={name: sparse_categorical_crossentropy, from_logits: true, ignore_class: 2}"
    ).model
    config = model.loss.get_config()
    assert (config["from_logits"], config["ignore_class"]) == (True, 2)


def test_metrics_are_known_by_every_name_of_keras_and_logged_under_it(compiled):
    top = "{name: sparse_top_k_categorical_accuracy, k: 2}"
    metrics = f"[acc, {top}, sparse_categorical_accuracy, SparseCategoricalCrossentropy]"
    names = {"loss", "acc", "sparse_top_k_categorical_accuracy", "sparse_categorical_accuracy"}
    assert logged(compiled(f"train.metrics={metrics}")) == {*names, "SparseCategoricalCrossentropy"}


@pytest.mark.sample(2)
@pytest.mark.parametrize("name", ["mae", "MAE", "mean_absolute_error", "MeanAbsoluteError"])
def test_a_metric_has_the_value_of_keras_under_each_of_its_names(recipe, lay_out, name):
    x, y = X + np.arange(6)[:, np.newaxis], np.array([1.0, 0, 5, 2, 2, 9], "float32")
    np.savez("numbers.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    keras.Sequential([keras.Input((6,)), keras.layers.Dense(1, name="only")]).save("one.keras")
    groups = "groups=[{name: all, rest: true, optimizer: sgd, learning_rate: 1.0}]"
    train = f"train={{epochs: 1, loss: mse, metrics: [{name}]}}"
    model = lay_out(recipe, "model.keras_file=one.keras", "data.npz=numbers.npz", groups, train).model
    reported = model.evaluate(tf.data.Dataset.from_tensor_slices((x, y)).batch(4), verbose=0, return_dict=True)[name]
    assert reported == pytest.approx(np.abs(model.predict(x, verbose=0)[:, 0] - y).mean(), rel=1e-5)


def test_a_class_is_found_however_its_name_is_cut_into_words(compiled):
    assert "mean_io_u" in logged(compiled("train.metrics=[{name: mean_iou, num_classes: 3, sparse_y_pred: false}]"))


@pytest.mark.parametrize(
    ("where", "name", "nearest"),
    [
        ("loss", "sparse_categorical_crossentropi", "`sparse_categorical_crossentropy`"),
        ("loss", "accuracy", ""),
        ("loss", "Loss", ""),
        ("loss", "get", ""),
        ("metrics", "acuracy", "`accuracy`"),
        ("metrics", "{name: acuracy, k: 3}", "`accuracy`"),
        ("metrics", "metric", ""),
        ("metrics", "deserialize", ""),
    ],
)
def test_a_name_that_keras_does_not_know_is_reported_with_its_place_and_the_nearest(compiled, where, name, nearest):
    with pytest.raises(RecipeError) as error:
        compiled(f"train.{where}={name}")
    message = str(error.value)
    assert message.startswith(f"--set train.{where}: `train.{where}: ")
    assert "is not a name that Keras knows." in message
    assert f"Did you mean {nearest}" in message if nearest else "get" not in message.partition("knows.")[2]


@pytest.mark.parametrize(
    ("metric", "said"),
    [
        ("{name: auc, num_tresholds: 3}", "unexpected keyword argument 'num_tresholds'"),
        ("{name: auc, num_thresholds: -3}", "`num_thresholds` must be an integer > 1"),
        ("iou", "missing 2 required positional arguments"),
    ],
)
def test_arguments_that_do_not_fit_are_reported_with_what_keras_says(compiled, metric, said):
    with pytest.raises(RecipeError) as error:
        compiled(f"train.metrics=[{metric}]")
    message = str(error.value)
    assert message.startswith("--set train.metrics: `train.metrics: ")
    assert said in message


def test_what_keras_compiles_is_what_the_recipe_says(compiled):
    model = compiled("train.steps_per_execution=3", "train.batch_size=1", "train.jit_compile=true")
    assert (model.steps_per_execution, model.jit_compile) == (3, True)
    # Not more than an epoch has.
    assert compiled("train.steps_per_execution=1000", "train.batch_size=1").steps_per_execution == len(X)
    assert compiled("train.steps_per_execution=auto").steps_per_execution == 1


def test_a_metric_has_the_same_name_whatever_the_process_made_before(compiled):
    metrics = "train.metrics=[{name: precision, thresholds: 0.4}, {name: precision, class_id: 1}, recall]"
    for _ in range(2):
        keras.metrics.Precision()
        assert logged(compiled(metrics)) == {"loss", "precision", "precision_1", "recall"}


def test_an_object_never_takes_the_name_of_a_metric_written_before_it(compiled):
    names = logged(compiled("train.metrics=[precision, {name: precision, class_id: 1}]"))
    assert names == {"loss", "precision", "precision_1"}


def test_precision_of_a_class_is_right_with_integer_labels(recipe, lay_out):
    layout = lay_out(recipe, "train.metrics=[{name: precision, class_id: 1}]")
    examples = layout.examples
    guess = layout.model.predict(examples.x_test, verbose=0)[:, 1] > 0.5
    hits = (guess & (examples.y_test == 1)).sum()
    reported = layout.model.evaluate(examples.x_test, examples.y_test, verbose=0, return_dict=True)["precision"]
    assert reported == pytest.approx(hits / max(guess.sum(), 1))


def test_a_metric_that_does_not_fit_is_refused_with_its_place_and_the_metric_that_fits(recipe, problem):
    assert problem(recipe, "train.metrics=[accuracy, binary_accuracy]") == (
        "--set train.metrics: metric `binary_accuracy` compares a target with every output, and here a target is the "
        "number of one of 3 classes. Use `sparse_categorical_accuracy`."
    )


def test_a_network_of_too_few_outputs_is_told_before_a_metric_fails_on_it(recipe, tiny):
    y = np.eye(4, dtype="float32")[Y]
    labels = Examples(X, y, X, y)
    loaded = load_recipe(recipe, overrides=["train.loss=binary_crossentropy", "train.metrics=[binary_accuracy]"])
    model = tiny()
    with pytest.raises(FinetuneError, match=r"The model gives 3 a row, and the targets have 4. Give the head as many"):
        compile_model(loaded, model, keras.optimizers.SGD(), labels, try_model(model, labels))


def test_a_metric_of_several_numbers_is_refused_with_the_argument_that_makes_it_one(recipe, problem):
    assert problem(recipe, "train.metrics=[f1_score]") == (
        "--set train.metrics: metric `f1_score` gives 3 numbers, and a metric of a run is a single number. Add "
        "`average: macro`."
    )


def test_a_class_that_the_network_does_not_have_is_refused(recipe, problem):
    assert "has `class_id: 3`, and the network has 3 outputs, counted from 0" in problem(
        recipe, "train.metrics=[{name: recall, class_id: 3}]"
    )


def test_the_plan_says_what_a_metric_over_all_classes_means(recipe, lay_out):
    assert "Metric `precision` counts all 3 classes together." in " ".join(
        lay_out(recipe, "train.metrics=[precision]").plan.advice
    )
    assert "Metric" not in " ".join(lay_out(recipe, "train.metrics=[{name: precision, class_id: 1}]").plan.advice)
