import json
import warnings
import zipfile

import keras
import numpy as np
import pytest

from finetune.optimizers.grouped import GroupedOptimizer
from finetune.training.fitted_metrics import Conversion, FittedMetric
from finetune.training.plain_compile import plain_compile
from finetune.training.saving import save_model
from finetune.training.smoothed_loss import SmoothedSparseCategoricalCrossentropy

# NumPy 2 warns when Keras copies a TensorFlow variable to save it.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")


def grouped(model, rate=0.003):
    return GroupedOptimizer({"all": (keras.optimizers.Adam(rate), model.layers)})


def saved_again(model, path):
    sentences = save_model(model, path)
    with zipfile.ZipFile(path) as archive:
        assert "finetune" not in archive.read("config.json").decode()
    with warnings.catch_warnings(record=True) as raised:
        warnings.simplefilter("always")
        again = keras.models.load_model(path)
    assert [str(each.message) for each in raised if "doesn't accept a copy" not in str(each.message)] == []
    return again, sentences


def test_a_saved_model_evaluates_at_once_to_the_same_figures_and_trains_with_a_plain_optimizer(tiny, rows, tmp_path):
    model = tiny()
    model.compile(grouped(model), "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(*rows, batch_size=45, verbose=0)
    figures = model.evaluate(*rows, verbose=0, return_dict=True)
    again, sentences = saved_again(model, tmp_path / "a.keras")
    assert sentences == ()
    assert again.evaluate(*rows, verbose=0, return_dict=True) == figures
    assert type(again.optimizer) is keras.optimizers.SGD
    assert float(again.optimizer.learning_rate) == pytest.approx(0.003)
    again.fit(*rows, verbose=0)
    # The model that goes on has what it had.
    assert isinstance(model.optimizer, GroupedOptimizer)
    assert "GroupedOptimizer" in json.dumps(model.get_compile_config()["optimizer"])
    model.fit(*rows, verbose=0)


def test_what_plain_keras_does_not_have_is_left_out_and_said(tiny, rows, tmp_path):
    model = tiny()
    one_hot = FittedMetric(keras.metrics.F1Score(average="macro"), Conversion(3, one_hot=True))
    loss = SmoothedSparseCategoricalCrossentropy(0.1)
    model.compile("adam", loss, metrics=["accuracy", one_hot])
    model.fit(*rows, verbose=0)
    again, sentences = saved_again(model, tmp_path / "a.keras")
    assert sentences == (
        "its loss is `sparse_categorical_crossentropy` without label smoothing, which Keras has for one-hot targets",
        "the metric `f1_score` is left out, as Keras takes other targets or outputs for it",
    )
    figures = again.evaluate(*rows, verbose=0, return_dict=True)
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    assert figures == pytest.approx(model.evaluate(*rows, verbose=0, return_dict=True), rel=1e-6)


def test_a_metric_whose_targets_get_the_axis_that_keras_gives_arrays_is_saved(rows, tmp_path):
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(1)])
    model.compile("adam", "mse", metrics=[FittedMetric(keras.metrics.R2Score(), Conversion(1, add_axis=True))])
    x, y = rows[0], rows[1].astype("float32")
    model.fit(x, y, verbose=0)
    again, sentences = saved_again(model, tmp_path / "a.keras")
    assert sentences == ()
    assert again.evaluate(x, y, verbose=0, return_dict=True) == model.evaluate(x, y, verbose=0, return_dict=True)


def test_losses_and_metrics_of_several_outputs_stay_with_their_outputs(rows, tmp_path):
    x = keras.Input((6,))
    outputs = {"kind": keras.layers.Dense(3, "softmax", name="kind")(x), "size": keras.layers.Dense(1, name="size")(x)}
    model = keras.Model(x, outputs)
    hinge = FittedMetric(keras.metrics.Hinge(), Conversion(1, probabilities="sigmoid"))
    losses = {"kind": "sparse_categorical_crossentropy", "size": keras.losses.Huber(delta=0.5)}
    model.compile("adam", losses, metrics={"kind": ["accuracy"], "size": ["mae", hinge]})
    y = {"kind": rows[1], "size": rows[1][:, np.newaxis].astype("float32")}
    model.fit(rows[0], y, verbose=0)
    again, sentences = saved_again(model, tmp_path / "a.keras")
    assert sentences == ("the metric `hinge` is left out, as Keras takes other targets or outputs for it",)
    figures = model.evaluate(rows[0], y, verbose=0, return_dict=True)
    del figures["size_hinge"]
    assert again.evaluate(rows[0], y, verbose=0, return_dict=True) == figures


@pytest.mark.parametrize(
    ("loss", "options"),
    [("Huber", {"delta": 0.5}), ("CosineSimilarity", {"axis": 0}), ("BinaryFocalCrossentropy", {"gamma": 3.0})],
)
def test_arguments_that_keras_forgets_in_its_configs_are_kept(tiny, loss, options):
    model = tiny()
    model.compile("sgd", getattr(keras.losses, loss)(**options), metrics=[keras.metrics.CosineSimilarity(axis=0)])
    config = plain_compile(model).config
    assert options.items() <= config["loss"]["config"].items()
    assert config["metrics"][0]["config"]["axis"] == 0
    keras.saving.deserialize_keras_object(config["loss"])


def test_a_model_of_mixed_precision_opens_without_a_warning(tmp_path):
    keras.mixed_precision.set_dtype_policy("mixed_float16")
    try:
        model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(1)])
        model.compile(keras.optimizers.Adam(), "mse")
    finally:
        keras.mixed_precision.set_dtype_policy("float32")
    again, _ = saved_again(model, tmp_path / "a.keras")
    assert again.compiled


def test_a_model_with_a_compile_of_its_own_is_saved_without_one(tmp_path):
    class Own(keras.Model):
        def compile(self, **options):
            super().compile(**options)

    model = Own()
    model.compile(optimizer="adam", loss="mse")
    assert plain_compile(model) == ({}, ())


@pytest.mark.parametrize("rate", [0.0, float("inf"), "adam"])
def test_a_rate_that_no_optimizer_takes_is_that_of_keras(tiny, rate):
    model = tiny()
    model.compile(keras.optimizers.SGD(), "mse")
    model.optimizer = keras.optimizers.SGD(rate) if isinstance(rate, float) else rate
    model.compiled = True
    assert plain_compile(model).config["optimizer"]["config"]["learning_rate"] == pytest.approx(0.01)
