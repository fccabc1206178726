"""`FastLoop` trains a model in `fit` as Keras does, keeps its function between fits, and leaves Keras' own behind."""

from dataclasses import dataclass

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from finetune.errors import TrainingError
from finetune.optimizers.grouped import GroupedOptimizer
from finetune.training.fast.compiled_steps import FastFunction
from finetune.training.fast.fast_loop import FastLoop, takes_forward, train_function

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")
Adam, SGD = keras.optimizers.Adam, keras.optimizers.SGD


def dense():
    return keras.Sequential(
        [keras.Input((6,)), *(layers.Dense(6, activation="tanh") for _ in range(4)), layers.Dense(3)]
    )


def a_group_each(model):
    return GroupedOptimizer([(Adam(0.05 / (i + 1)), layer) for i, layer in enumerate(model.layers)])


def compiled(**options):
    keras.utils.set_random_seed(3)
    model = dense()
    model.compile(a_group_each(model), "mse", **options)
    return model


def test_the_train_function_is_a_fast_one_where_the_model_allows_it():
    model = compiled()
    model.train_function = train_function(model)
    assert isinstance(model.train_function, FastFunction)
    assert takes_forward(model)


def test_the_train_function_is_keras_own_where_the_model_needs_it_and_takes_no_other_forward_pass():
    model = compiled(run_eagerly=True)
    model.train_function = train_function(model)
    assert not isinstance(model.train_function, FastFunction)
    assert not takes_forward(model)
    with pytest.raises(TrainingError, match="it runs eagerly"):
        train_function(model, forward=model)


def test_a_second_fit_compiles_nothing_and_a_freeze_compiles_anew():
    model = compiled()
    model.fit(np.ones((8, 6), "f4"), np.ones((8, 3), "f4"), batch_size=4, verbose=0, callbacks=[FastLoop()])
    first = vars(model)["_finetune_function"]
    x, y = np.ones((8, 6), "f4"), np.ones((8, 3), "f4")
    model.fit(x, y, batch_size=4, verbose=0, callbacks=[FastLoop()])
    assert vars(model)["_finetune_function"] is first
    model.layers[0].trainable = False
    before = model.layers[0].kernel.numpy()
    with pytest.warns(UserWarning, match="^`trainable` was changed after `compile`"):
        model.fit(x, y, batch_size=4, verbose=0, callbacks=[FastLoop()])
    assert vars(model)["_finetune_function"] is not first
    np.testing.assert_array_equal(model.layers[0].kernel.numpy(), before)


def test_an_epoch_of_a_dataset_that_repeats_has_exactly_its_steps():
    model = compiled(steps_per_execution=4)
    x = np.ones((20, 6), "f4")
    data = tf.data.Dataset.from_tensor_slices((x, x[:, :3])).batch(4).repeat()
    model.fit(data, steps_per_epoch=6, epochs=2, verbose=0, callbacks=[FastLoop()], shuffle=False)
    assert int(model.optimizer.iterations) == 12


class Interrupt(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        if batch >= 3:
            raise KeyboardInterrupt


def test_after_an_interrupt_a_plain_fit_makes_all_its_steps_and_the_next_fast_one_gives_keras_function_back():
    model = compiled(steps_per_execution=2)
    x, y = tf.ones((20, 6)), tf.ones((20, 3))
    with pytest.raises(KeyboardInterrupt):
        model.fit(x, y, batch_size=4, verbose=0, callbacks=[FastLoop(), Interrupt()])
    before = int(model.optimizer.iterations)
    model.fit(x, y, batch_size=4, verbose=0)
    assert int(model.optimizer.iterations) - before == 5
    model.fit(x, y, batch_size=4, verbose=0, callbacks=[FastLoop()])
    assert not isinstance(model.train_function, FastFunction)


def test_a_function_that_is_kept_makes_as_many_steps_a_call_as_the_model_is_compiled_for_now():
    model = keras.Sequential([keras.Input((6,)), layers.Dense(3, activity_regularizer="l2")])
    optimizer = GroupedOptimizer([(SGD(0.1), model)])
    for together in (1, 4):
        model.compile(optimizer, steps_per_execution=together)
        model.fit(tf.ones((24, 6)), batch_size=4, verbose=0, callbacks=[FastLoop()])
    assert int(optimizer.iterations) == 12


def test_a_model_that_fit_builds_keeps_its_own_loop():
    model = keras.Sequential([layers.Dense(3)])
    model.compile(GroupedOptimizer([(SGD(0.1), model)]), "mse")
    loop = FastLoop()
    model.fit(tf.ones((8, 6)), tf.ones((8, 3)), verbose=0, callbacks=[loop])
    assert loop.reason == "it is not built yet"
    assert int(model.optimizer.iterations) == 1


def test_trainable_that_was_changed_without_a_new_compile_is_warned_of(tiny, rows):
    model = tiny()
    model.compile(keras.optimizers.SGD(0.1), "sparse_categorical_crossentropy")
    model.fit(*rows, verbose=0, callbacks=[FastLoop()])
    model.get_layer("head").trainable = False
    with pytest.warns(UserWarning, match="changed after `compile`") as caught:
        model.fit(*rows, verbose=0, callbacks=[FastLoop()])
    assert [str(warning.message) for warning in caught] == [
        "`trainable` was changed after `compile` for `tiny/head/kernel`, `tiny/head/bias`. Keras' own loop ignores that "
        "until `compile` is called again; the fast loop trains what is trainable now. Call `model.compile`."
    ]
    model.compile(model.optimizer, "sparse_categorical_crossentropy")
    model.fit(*rows, verbose=0, callbacks=[FastLoop()])


def test_a_schedule_without_a_hash_trains_again_and_again():
    @dataclass
    class Halving(keras.optimizers.schedules.LearningRateSchedule):
        start: float

        def __call__(self, step):
            return self.start * 0.5 ** tf.cast(step, "float32")

    model = dense()
    model.compile(GroupedOptimizer([(keras.optimizers.SGD(Halving(0.1)), model)]), "mse")
    x, y = np.ones((8, model.input_shape[-1]), "float32"), np.ones((8, model.output_shape[-1]), "float32")
    for _ in range(2):
        model.fit(x, y, verbose=0, callbacks=[FastLoop()])
    assert int(model.optimizer.iterations) == 2


CALLBACKS = {
    # At this rate the loss soon rises and is no number any more, so that weights of an earlier epoch are put back.
    "early stopping": (
        1.0,
        {},
        lambda path: [keras.callbacks.EarlyStopping("loss", patience=9, restore_best_weights=True)],
    ),
    "averages swapped in": (
        0.05,
        {"use_ema": True, "ema_momentum": 0.9},
        lambda path: [
            keras.callbacks.ModelCheckpoint(path / "best.weights.h5", save_weights_only=True),
            keras.callbacks.SwapEMAWeights(swap_on_epoch=True),
        ],
    ),
    "accumulation with averages": (0.05, {"use_ema": True, "gradient_accumulation_steps": 3}, lambda path: []),
}


@pytest.mark.parametrize("kind", CALLBACKS)
def test_callbacks_that_exchange_the_weights_between_epochs_give_the_bits_of_keras_own_optimizer(kind, tmp_path):
    rate, options, callbacks = CALLBACKS[kind]
    x = np.random.default_rng(0).normal(size=(24, 6)).astype("float32")
    results = {}
    for way in ("keras", "fast"):
        keras.utils.set_random_seed(3)
        model = keras.Sequential([keras.Input((6,)), layers.Dense(6), layers.BatchNormalization(), layers.Dense(3)])
        groups = [(SGD(rate), layer) for layer in model.layers]
        model.compile(
            SGD(rate, **options) if way == "keras" else GroupedOptimizer(groups, **options),
            "mse",
            steps_per_execution=2,
        )
        (tmp_path / way).mkdir()
        called = [*callbacks(tmp_path / way), *([FastLoop()] if way == "fast" else [])]
        validation = (x, x[:, :3])
        history = model.fit(
            x, x[:, :3], batch_size=4, epochs=4, shuffle=False, verbose=0, validation_data=validation, callbacks=called
        )
        losses = history.history["loss"]
        assert kind != "early stopping" or np.nanargmin(losses) < 3
        saved = keras.models.clone_model(model)
        if kind == "averages swapped in":
            saved.load_weights(tmp_path / way / "best.weights.h5")
        results[way] = [
            losses,
            history.history["val_loss"],
            *(w.numpy() for w in (*model.weights, *(saved.weights if "swapped" in kind else ()))),
        ]
    for expected, received in zip(results["keras"], results["fast"], strict=True):
        np.testing.assert_array_equal(received, expected)


def convolutional(**options):
    keras.utils.set_random_seed(3)
    model = keras.Sequential(
        [keras.Input((6, 6, 2)), layers.Conv2D(4, 3), layers.BatchNormalization(), layers.Flatten(), layers.Dense(3)]
    )
    model.compile(GroupedOptimizer([(SGD(0.1), model)]), "mse", **options)
    return model


IMAGES = np.random.default_rng(0).normal(size=(24, 6, 6, 2)).astype("float32"), np.ones((24, 3), "float32")


def test_native_kernels_train_and_validate_to_within_rounding_and_repeat_their_own_bits():
    histories = []
    for kernels in ("exact", "native", "native"):
        model, loop = convolutional(), FastLoop(kernels=kernels)
        fitted = model.fit(*IMAGES, epochs=2, verbose=0, callbacks=[loop], validation_data=IMAGES, batch_size=8)
        histories.append([value for values in fitted.history.values() for value in values])
        assert loop.native == ({} if kernels == "exact" else {"BatchNormalization": 1})
    np.testing.assert_allclose(histories[1], histories[0], rtol=1e-5)
    assert histories[1] == histories[2] != histories[0]


def test_after_native_kernels_a_model_trains_and_evaluates_with_the_bits_of_keras():
    models = [convolutional(), convolutional()]
    for model, kernels in zip(models, ("exact", "native"), strict=True):
        model.fit(*IMAGES, verbose=0, callbacks=[FastLoop(kernels=kernels)], validation_data=IMAGES)
    models[1].set_weights(models[0].get_weights())
    for callbacks in ([], [FastLoop()]):
        losses = [model.fit(*IMAGES, verbose=0, callbacks=callbacks, shuffle=False).history["loss"] for model in models]
        assert losses[0] == losses[1]
    assert models[0].evaluate(*IMAGES, verbose=0) == models[1].evaluate(*IMAGES, verbose=0)


def test_a_model_with_a_training_step_of_its_own_runs_native_kernels_in_it():
    class Own(keras.Model):
        def train_step(self, data):
            return super().train_step(data)

    inputs = keras.Input((6, 6, 2))
    model = Own(inputs, layers.Dense(3)(layers.Flatten()(layers.BatchNormalization()(inputs))))
    model.compile(SGD(0.1), "mse")
    loop = FastLoop(kernels="native")
    model.fit(*IMAGES, verbose=0, callbacks=[loop])
    assert (loop.reason, loop.native) == ("`Own` has its own `train_step`", {"BatchNormalization": 1})
    model.fit(*IMAGES, verbose=0, callbacks=[FastLoop()])


def test_native_kernels_train_a_transformer_on_texts_of_several_lengths_and_repeat_their_own_bits():
    tokens = keras.Input((None,), dtype="int32")
    rows = np.random.default_rng(0).integers(1, 20, (12, 7))
    rows[4:8, 5:] = 0
    y = np.random.default_rng(1).normal(size=(12, 1)).astype("float32")
    lengths = [7, 5, 7]
    batches = tf.data.Dataset.from_generator(
        lambda: ((rows[4 * i : 4 * i + 4, :n], y[4 * i : 4 * i + 4]) for i, n in enumerate(lengths)),
        output_signature=(tf.TensorSpec((None, None), tf.int64), tf.TensorSpec((None, 1))),
    ).apply(tf.data.experimental.assert_cardinality(3))

    def transformer():
        keras.utils.set_random_seed(0)
        x = keras.layers.Embedding(20, 8, mask_zero=True)(tokens)
        attended = keras.layers.MultiHeadAttention(2, 4, dropout=0.1)(x, x)
        x = keras.layers.LayerNormalization()(keras.layers.Add()([x, attended]))
        x = keras.layers.Dense(8)(keras.layers.Dense(16, activation="gelu")(x))
        model = keras.Model(tokens, keras.layers.Dense(1)(keras.layers.GlobalAveragePooling1D()(x)))
        model.compile(keras.optimizers.Adam(1e-2), loss="mse")
        return model

    losses = []
    for kernels in ("exact", "native", "native"):
        model, loop = transformer(), FastLoop(kernels=kernels)
        losses.append(model.fit(batches, epochs=2, shuffle=False, verbose=0, callbacks=[loop]).history["loss"])
        assert loop.native == ({} if kernels == "exact" else {"Dense": 2, "EinsumDense": 4, "LayerNormalization": 1})
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)
    assert losses[1] == losses[2]


def test_kernels_of_another_name_are_refused():
    with pytest.raises(TrainingError, match="Received `kernels='fast'`"):
        FastLoop(kernels="fast")
