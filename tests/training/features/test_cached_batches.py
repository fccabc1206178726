"""Training on what `CachedBatches` gives is training on the examples, whatever is cached meanwhile."""

import keras
import numpy as np
import pytest
from keras import layers

from finetune.data.batches import training_batches
from finetune.data.examples import Split
from finetune.optimizers.grouped import GroupedOptimizer
from finetune.training.fast.fast_loop import train_function
from finetune.training.features.cached_batches import CachedBatches

X = np.random.default_rng(0).normal(size=(24, 6)).astype("float32")
Y = np.arange(24) % 3


def network() -> keras.Model:
    keras.utils.set_random_seed(1)
    parts = [layers.Dense(8, name="a"), layers.Dense(8, "relu", name="b"), layers.Dense(3, "softmax", name="head")]
    return keras.Sequential([keras.Input((6,)), *parts])


def compiled(*frozen: str, **options) -> keras.Model:
    model = network()
    for name in frozen:
        model.get_layer(name).trainable = False
    trained = [layer for layer in model.layers if layer.trainable]
    model.compile(
        GroupedOptimizer([(keras.optimizers.Adam(1e-2), trained)]), "sparse_categorical_crossentropy", **options
    )
    model.optimizer.build(model.trainable_variables)
    model.train_function = train_function(model)
    return model


def data_of(model: keras.Model, folder, mode: str = "memory", reports: list | None = None) -> CachedBatches:
    report = [].append if reports is None else reports.append
    settings = {"passes": 1, "batch_size": 8, "shuffle": True, "seed": 5}
    return CachedBatches(model, Split(X, Y), mode=mode, folder=folder, report=report, **settings)


def fit(model: keras.Model, data: CachedBatches, first: int = 0, last: int = 2) -> list[float]:
    batches = data.batches(first_epoch=first, epochs=last - first)
    fitted = model.fit(batches, steps_per_epoch=3, initial_epoch=first, epochs=last, shuffle=False, verbose=0)
    return fitted.history["loss"]


def test_a_model_is_trained_bit_for_bit_alike_on_features_and_on_examples(tmp_path):
    losses, weights = [], []
    for mode in ("off", "memory", "disk"):
        model = compiled("a", "b")
        losses.append(fit(model, data_of(model, tmp_path, mode)))
        weights.append([weight.numpy() for weight in model.weights])
    assert losses[0] == losses[1] == losses[2]
    for several in zip(*weights, strict=True):
        assert several[0].tobytes() == several[1].tobytes() == several[2].tobytes()


def test_the_function_on_features_is_kept_for_the_next_stretch_with_the_same_weights(tmp_path):
    model = compiled("a")
    data, plain = data_of(model, tmp_path), model.train_function
    functions = []
    for first in (0, 2):
        model.train_function = plain
        fit(model, data, first, first + 2)
        functions.append(model.train_function)
    assert functions[0] is functions[1]
    assert functions[0] is not plain


def test_the_features_of_a_later_phase_are_computed_in_the_same_pass(tmp_path):
    model, reports = compiled("a", "b"), []
    data = data_of(model, tmp_path, reports=reports)
    head = model.get_layer("head").trainable_variables
    b = model.get_layer("b").variables
    data.batches(first_epoch=0, epochs=2, later=[([*b, *head], ())])
    model.get_layer("b").trainable = True
    data.batches(first_epoch=2, epochs=2)
    assert len(reports) == 1, "the second phase computes nothing"


def test_a_model_without_a_frozen_part_is_trained_on_its_examples_and_only_a_cache_that_was_asked_for_says_why(
    tmp_path,
):
    for mode, expected in (("auto", []), ("memory", ["cache: not used, because there is no frozen layer"])):
        model, reports = compiled(), []
        plain = model.train_function
        fit(model, data_of(model, tmp_path, mode, reports))
        assert model.train_function is plain
        assert len(reports) == len(expected)
        assert all(report.startswith(start) for report, start in zip(reports, expected, strict=True))


def test_a_model_that_keeps_keras_own_loop_is_trained_on_its_examples(tmp_path):
    model, reports = compiled("a", run_eagerly=True), []
    plain = model.train_function
    fit(model, data_of(model, tmp_path, "memory", reports))
    assert model.train_function is plain


@pytest.mark.parametrize("mode", ["memory", "disk"])
def test_what_is_kept_is_reported_once_with_its_place(tmp_path, mode):
    model, reports = compiled("a"), []
    data = data_of(model, tmp_path, mode, reports)
    fit(model, data)
    fit(model, data, 2, 4)
    place = "in memory" if mode == "memory" else f"in `{tmp_path}`"
    assert reports == [
        f"cache: the frozen part is run once: 1 layer with weights, `a`; 768 bytes of features are kept {place}"
    ]


@pytest.mark.parametrize(("shuffle", "seed"), [(True, 5), (True, 6), (False, 5)])
def test_the_order_of_an_epoch_is_that_of_the_training_batches_with_the_same_seed(tmp_path, shuffle, seed):
    expected = training_batches(X, Y, batch_size=8, shuffle=shuffle, seed=seed, first_epoch=1)
    labels = [y.numpy().tolist() for _, y in expected.take(6)]
    for mode in ("off", "memory"):
        settings = {"passes": 1, "batch_size": 8, "shuffle": shuffle, "seed": seed}
        data = CachedBatches(compiled("a"), Split(X, Y), mode=mode, folder=tmp_path, report=[].append, **settings)
        assert [y.numpy().tolist() for _, y in data.batches(first_epoch=1, epochs=2).take(6)] == labels


def reports_of(model, tmp_path, *, mode="memory", passes=1, first=0, last=3, **options):
    reports: list = []
    settings = {"batch_size": 8, "shuffle": True, "seed": 5}
    data = CachedBatches(
        model, Split(X, Y), mode=mode, passes=passes, folder=tmp_path, report=reports.append, **settings
    )
    data.batches(first_epoch=first, epochs=last - first, **options)
    (report,) = reports
    return report


def noisy(layer) -> keras.Model:
    keras.utils.set_random_seed(1)
    parts = [layer, layers.Dense(8, name="a"), layers.Dense(3, "softmax", name="head")]
    model = keras.Sequential([keras.Input((6,)), *parts])
    model.get_layer("a").trainable = False
    model.compile(GroupedOptimizer([(keras.optimizers.SGD(0.1), model.get_layer("head"))]), "mse")
    model.optimizer.build(model.trainable_variables)
    model.train_function = train_function(model)
    return model


def test_random_layers_in_front_need_several_passes_or_inference_mode(tmp_path):
    assert "not used, because" in reports_of(noisy(layers.GaussianNoise(0.1)), tmp_path)
    assert "in 2 passes" in reports_of(noisy(layers.GaussianNoise(0.1)), tmp_path, passes=2)
    drop = layers.Dropout(0.5)
    assert "not used, because" in reports_of(noisy(drop), tmp_path)
    assert "the frozen part is run once" in reports_of(noisy(drop), tmp_path, inference=[drop])


def test_for_the_one_epoch_that_is_left_auto_keeps_nothing(tmp_path):
    assert "one epoch" in reports_of(compiled("a"), tmp_path, mode="auto", first=4, last=5)
    assert "are kept" in reports_of(compiled("a"), tmp_path, mode="auto", first=4, last=6)
