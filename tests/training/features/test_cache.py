import json
import resource
from contextlib import contextmanager

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from finetune import HubLayer
from finetune.data.batches import steps_per_epoch, training_batches
from finetune.errors import TrainingError
from finetune.examples.digits import small_cnn
from finetune.examples.minilm import classifier
from finetune.training.features.cache import Features, cached_features
from finetune.training.features.cut import Cut, NoCut, find_cut
from finetune.training.features.store import FeatureStore

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

DATA = np.random.default_rng(0)
X = DATA.normal(size=(24, 6)).astype("float32")
Y = np.arange(24) % 3
TOKENS = DATA.integers(1, 50, (24, 7))
TOKENS[::3, 4:] = 0


def features_of(model, x=X, *, batch_size=8, cut=None, **options):
    found = cached_features(cut or find_cut(model), x, batch_size=batch_size, **options)
    assert isinstance(found, Features), found
    return found


def reason(model, x=X, *, batch_size=8, cut=None, **options):
    found = cached_features(cut or find_cut(model), x, batch_size=batch_size, **options)
    assert isinstance(found, NoCut), found
    return found.reason


def compiled(model, *frozen, loss="sparse_categorical_crossentropy"):
    for layer in model._flatten_layers(include_self=False):
        if layer.name in frozen:
            layer.trainable = False
    model.compile(keras.optimizers.Adam(1e-2), loss, jit_compile=False)
    return model


def train(model, batches, forward, steps, epochs=2):
    """Trains as `fit` does, with `forward` in the place of the model; returns the losses and all weights."""

    @tf.function(reduce_retracing=True)
    def step(batch):
        x, y = batch
        with tf.GradientTape() as tape:
            loss = model.compute_loss(x, y, forward(x, training=True), training=True)
        weights = model.trainable_weights
        model.optimizer.apply_gradients(zip(tape.gradient(loss, weights), weights, strict=True))
        return loss

    model.optimizer.build(model.trainable_variables)
    losses = [float(step(batch)) for batch in batches.take(steps * epochs)]
    return losses, [weight.numpy() for weight in model.weights]


def both_ways(make, x=X, y=Y, batch_size=8, **options):
    """Trains the same model without and with cached features."""
    steps, found = steps_per_epoch(24, batch_size), []
    for cached in (False, True):
        keras.utils.set_random_seed(1)
        model = make()
        features = features_of(model, x, batch_size=batch_size, **options) if cached else None
        order = {"batch_size": batch_size, "seed": 5}
        batches = features.batches(y, **order) if features else training_batches(x, y, **order)
        found.append(train(model, batches, features.tail if features else model, steps))
    return found


def assert_same_bits(found):
    (losses, weights), (other_losses, other_weights) = found
    assert losses == other_losses
    assert losses[0] != losses[-1]
    for one, other in zip(weights, other_weights, strict=True):
        assert one.tobytes() == other.tobytes()


def sequential():
    parts = [layers.Dense(8, name="a"), layers.BatchNormalization(name="bn"), layers.Dense(8, "relu", name="b")]
    model = keras.Sequential([keras.Input((6,)), *parts, layers.Dense(3, "softmax", name="head")])
    model.get_layer("bn").moving_mean.assign(np.arange(8) / 8)
    return compiled(model, "a", "bn")


def skipping():
    inputs = keras.Input((6,))
    a = layers.Dense(8, name="a")(inputs)
    c = layers.Dense(8, name="c")(layers.Dense(8, "relu", name="b")(a))
    return compiled(keras.Model(inputs, layers.Dense(3, "softmax")(layers.Add()([a, c]))), "a", "b")


def nested():
    parts = [layers.Dense(8, name="a"), layers.Dense(8, "relu", name="b"), layers.Dropout(0.5)]
    backbone = keras.Sequential([keras.Input((6,)), *parts], name="backbone")
    inputs = keras.Input((6,))
    return compiled(keras.Model(inputs, layers.Dense(3, "softmax")(backbone(inputs))), "a")


def regularized():
    options = {"kernel_regularizer": "l2", "activity_regularizer": "l2"}
    parts = [layers.Dense(8, kernel_regularizer="l2", name="a"), layers.Dense(8, **options), layers.Dense(3, "softmax")]
    return compiled(keras.Sequential([keras.Input((6,)), *parts]), "a")


def mixed():
    policy = keras.DTypePolicy("mixed_bfloat16")
    parts = [layers.Dense(8, dtype=policy, name="a"), layers.Dense(8, "relu", dtype=policy), layers.Dense(3, "softmax")]
    return compiled(keras.Sequential([keras.Input((6,)), *parts]), "a")


@pytest.mark.parametrize("make", [sequential, skipping, nested, regularized, mixed])
def test_training_on_features_is_training_bit_for_bit(make):
    assert_same_bits(both_ways(make))


@pytest.mark.parametrize("place", ["memory", "disk"])
def test_so_it_is_with_an_incomplete_last_batch_and_from_either_place(tmp_path, place):
    assert_same_bits(both_ways(sequential, batch_size=7, mode=place, store=FeatureStore(tmp_path / "cache")))


def test_several_inputs_and_outputs_are_trained_bit_for_bit():
    def make():
        left, right = keras.Input((6,), name="left"), keras.Input((4,), name="right")
        both = layers.Concatenate()([layers.Dense(8, name="a")(left), layers.Dense(8, name="b")(right)])
        classes = layers.Dense(3, "softmax", name="classes")(both)
        value = layers.Dense(1, name="value")(layers.Concatenate()([both, right]))
        model = keras.Model({"left": left, "right": right}, {"classes": classes, "value": value})
        return compiled(model, "a", "b", loss={"classes": "sparse_categorical_crossentropy", "value": "mse"})

    x = {"left": X, "right": DATA.normal(size=(24, 4))}
    assert_same_bits(both_ways(make, x, {"classes": Y, "value": DATA.normal(size=(24, 1))}))


def masked():
    # Keras writes masks into the graph of a model, but not across the border of a nested one: there they hang on tensors.
    parts = [layers.Embedding(50, 4, mask_zero=True, name="a"), layers.LSTM(5, return_sequences=True, name="b")]
    encoder = keras.Sequential([keras.Input((7,), dtype="int32"), *parts], name="encoder")
    inputs = keras.Input((7,), dtype="int32")
    return compiled(keras.Model(inputs, layers.Dense(3, "softmax")(layers.LSTM(5)(encoder(inputs)))), "a", "b")


@pytest.mark.slow
def test_masks_are_kept_beside_the_features(tmp_path):
    assert_same_bits(both_ways(masked, TOKENS, mode="disk", store=FeatureStore(tmp_path)))
    model = masked()
    features = features_of(model, TOKENS)
    (mask,) = features.masks.values()
    np.testing.assert_array_equal(mask.take(tf.range(24)), TOKENS != 0)
    ((values, masks), _) = next(iter(features.batches(Y, batch_size=24, shuffle=False)))
    whole = model(TOKENS)
    np.testing.assert_array_equal(features.tail((values, masks)), whole)
    without = features.tail(({number: tf.identity(value) for number, value in values.items()}, {}))
    assert np.abs(without - whole).max() > 1e-3


@pytest.mark.slow
def test_a_hub_layer_in_front_is_trained_bit_for_bit(encoder_folder):
    def make():
        hub = HubLayer(encoder_folder, name="hub")
        model = keras.Sequential([keras.Input((6,)), hub, layers.Dense(3, "softmax")])
        for part in hub.every_part():
            part.trainable = False
        return compiled(model)

    assert_same_bits(both_ways(make))


@pytest.mark.slow
def test_transformer_layers_in_front_are_trained_bit_for_bit():
    def make():
        return compiled(classifier(num_classes=3, num_layers=2, vocabulary=50, max_length=8), "embeddings", "layer_0")

    assert_same_bits(both_ways(make, TOKENS))


@pytest.mark.slow
def test_convolutions_in_front_are_trained_bit_for_bit():
    images = DATA.normal(size=(24, 28, 28, 1)).astype("float32")
    assert_same_bits(both_ways(lambda: compiled(small_cnn(3), "conv1", "bn1", "conv2", "bn2"), images))


@pytest.mark.slow
def test_fit_trains_on_features_and_evaluates_the_whole_model():
    losses = []
    for cached in (False, True):
        keras.utils.set_random_seed(1)
        model = sequential()
        if cached:
            features = features_of(model)
            batches, forward = features.batches(Y, batch_size=8, seed=5), features.tail

            def step(batch, model=model, forward=forward):
                x, y = batch
                with tf.GradientTape() as tape:
                    loss = model.compute_loss(x, y, forward(x, training=True), training=True)
                model._loss_tracker.update_state(loss, sample_weight=8)
                weights = model.trainable_weights
                model.optimizer.apply_gradients(zip(tape.gradient(loss, weights), weights, strict=True))
                return model.get_metrics_result()

            function = tf.function(step)
            model.train_function = lambda batches, function=function: function(next(batches))
        else:
            batches = training_batches(X, Y, batch_size=8, seed=5)
        history = model.fit(
            batches, steps_per_epoch=3, epochs=2, shuffle=False, verbose=0, validation_data=(X, Y)
        ).history
        losses.append((history["loss"], history["val_loss"]))
    assert losses[0] == losses[1]


def augmented():
    keras.utils.set_random_seed(3)
    parts = [layers.GaussianNoise(0.5, name="noise"), layers.Dense(4, name="a"), layers.Dense(3, "softmax")]
    return compiled(keras.Sequential([keras.Input((6,)), *parts]), "a")


def test_several_random_passes_take_turns_by_epoch():
    model = augmented()
    features = features_of(model, cut=find_cut(model, allow_random=True), passes=2)
    found = [x[0] for x, _ in features.batches(Y, batch_size=24, shuffle=False).take(4)]
    values = [next(iter(x.values())).numpy() for x in found]
    assert np.abs(values[0] - values[1]).max() > 0.1
    np.testing.assert_array_equal(values[0], values[2])
    np.testing.assert_array_equal(values[1], values[3])
    assert features.nbytes == 2 * 24 * 4 * 4


def test_without_random_layers_one_pass_is_kept():
    assert features_of(sequential(), passes=3).passes == 1


def test_what_is_kept_is_announced_with_its_size_before_it_is_made():
    told = []
    features = features_of(sequential(), report=told.append, on_batch=lambda done, total: told.append((done, total)))
    assert features.nbytes == 24 * 8 * 4
    assert told == [
        "the frozen part is run once: 2 layers with weights, the last of them `bn`; 768 bytes of features are kept in memory",
        *((1, 3), (2, 3), (3, 3)),
    ]


def counting(told):
    return lambda done, total: told.append(done)


def test_features_are_used_again_as_long_as_nothing_has_changed():
    model, store, runs = sequential(), FeatureStore(), []
    for _ in range(2):
        features_of(model, store=store, on_batch=counting(runs))
    assert runs == [1, 2, 3]
    assert features_of(model, store=store).seconds == 0
    model.get_layer("a").bias.assign(np.ones(8))
    features_of(model, store=store, on_batch=counting(runs))
    features_of(model, X + 1, store=store, on_batch=counting(runs))
    assert runs == [1, 2, 3] * 3
    assert len(store.kept) == 1  # the others were let go of


def test_files_are_used_again_by_a_later_run(tmp_path):
    runs = []
    for _ in range(2):
        keras.utils.set_random_seed(0)
        model = compiled(
            keras.Sequential([keras.Input((6,)), layers.Dense(4, name="a"), layers.Dense(3, name="h")]), "a"
        )
        features_of(model, store=FeatureStore(tmp_path), mode="disk", on_batch=counting(runs))
    assert runs == [1, 2, 3]


def test_one_run_makes_the_features_of_later_phases_too():
    model, store, runs = sequential(), FeatureStore(), []
    model.get_layer("b").trainable = False
    head = find_cut(model)
    model.get_layer("b").trainable = True
    later = find_cut(model)
    first = features_of(model, cut=head, later=[later], store=store, on_batch=counting(runs))
    second = features_of(model, cut=later, store=store, on_batch=counting(runs))
    assert runs == [1, 2, 3]
    assert first.values.keys() != second.values.keys()
    alone = features_of(model, cut=later)
    for number, rows in second.values.items():
        np.testing.assert_array_equal(rows.take(tf.range(24)), alone.values[number].take(tf.range(24)))


def test_a_later_phase_may_freeze_more_than_the_first():
    model, store, runs = sequential(), FeatureStore(), []
    first = find_cut(model)
    model.get_layer("b").trainable = False
    later = find_cut(model)
    features_of(model, cut=first, later=[later], store=store, on_batch=counting(runs))
    kept = features_of(model, cut=later, store=store, on_batch=counting(runs))
    assert runs == [1, 2, 3]
    alone = features_of(model, cut=later)
    for number, rows in kept.values.items():
        np.testing.assert_array_equal(rows.take(tf.range(24)), alone.values[number].take(tf.range(24)))


def test_features_of_later_phases_are_left_out_where_they_do_not_fit():
    model = sequential()
    model.get_layer("b").trainable = False
    head = find_cut(model)
    model.get_layer("b").trainable = True
    later, store = find_cut(model), FeatureStore()
    features_of(model, cut=head, later=[later], store=store, memory=4 * 1000)
    assert len(store.kept) == 1


def test_where_they_do_not_fit_there_are_none():
    model = sequential()
    assert reason(model, memory=1000) == (
        "they take 768 bytes, which is more than 25% of the 1 kB of memory that are available, and nothing on disk"
    )
    assert reason(model, mode="off") == "`cache` is `off`"


@contextmanager
def files_of_at_most(nbytes):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_turns_them_off_and_leaves_no_file(tmp_path):
    store = FeatureStore(tmp_path / "cache")
    with files_of_at_most(500):
        assert reason(sequential(), mode="disk", store=store) == (
            f"writing the features to `{tmp_path / 'cache'}` failed: File too large"
        )
    assert not (tmp_path / "cache").exists()


def test_a_run_that_is_interrupted_leaves_no_file(tmp_path):
    def interrupt(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        features_of(sequential(), mode="disk", store=FeatureStore(tmp_path / "cache"), on_batch=interrupt)
    assert not (tmp_path / "cache").exists()


def test_no_memory_turns_them_off():
    def fail(done, total):
        raise MemoryError

    assert reason(sequential(), on_batch=fail) == "the features do not fit into memory"


def test_a_device_without_memory_turns_them_off_too():
    def fail(done, total):
        raise tf.errors.ResourceExhaustedError(None, None, "no memory left")

    assert reason(sequential(), on_batch=fail) == "the features do not fit into memory"


def test_the_time_that_it_took_is_counted_from_the_start_of_the_run():
    assert 0 < features_of(sequential()).seconds < 60


@pytest.mark.slow
def test_masks_are_used_again_with_their_features():
    model, store = masked(), FeatureStore()
    first, second = (features_of(model, TOKENS, store=store) for _ in range(2))
    assert len(first.masks) == len(second.masks) == 1
    assert second.seconds == 0


def test_for_one_epoch_they_are_not_made_unless_asked_for():
    assert reason(sequential(), epochs=1) == "there is only one epoch, which reads every feature once"
    features_of(sequential(), epochs=1, mode="memory")


class Odd(layers.Layer):
    """A layer that is not what it seems."""

    def __init__(self, how):
        super().__init__(name="odd")
        self.how = how
        self.count = self.add_weight(shape=(), initializer="zeros", trainable=False, name="count")
        self.trainable = False

    def call(self, x):
        if self.how == "random":
            return x + tf.random.normal(tf.shape(x))
        if self.how == "statistics":
            self.count.assign_add(1.0)
        if self.how == "loss":
            self.add_loss(tf.reduce_sum(x))
        if self.how == "batch":
            return x - tf.reduce_mean(x * tf.cast(tf.range(tf.shape(x)[0]), x.dtype)[:, None], axis=0, keepdims=True)
        return tf.reduce_sum(x, axis=0, keepdims=True) if self.how == "rows" else x

    def compute_output_shape(self, shape):
        return shape


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ("random", "the frozen part returns other outputs when it is run again on the same examples"),
        ("statistics", "the frozen part updates its statistics when it is run"),
        ("loss", "`odd` adds to the loss"),
        ("batch", "the frozen part returns other outputs for an example when the other examples change"),
        ("rows", "what crosses the cut has no row for every example"),
    ],
)
def test_a_layer_of_ones_own_that_is_not_what_it_seems_is_found_out(how, why):
    model = keras.Sequential([keras.Input((6,)), Odd(how), layers.Dense(4, name="a"), layers.Dense(3, "softmax")])
    assert reason(compiled(model, "a")) == why


def test_one_random_value_among_several_that_cross_is_enough():
    inputs = keras.Input((6,))
    a, odd = layers.Dense(4, name="a")(inputs), Odd("random")(inputs)
    model = keras.Model(inputs, [layers.Dense(3)(a), layers.Dense(3)(odd)])
    assert reason(compiled(model, "a")) == (
        "the frozen part returns other outputs when it is run again on the same examples"
    )


def test_without_a_cut_its_reason_is_reported():
    assert reason(None, cut=NoCut("because")) == "because"


def test_a_misspelt_mode_is_refused():
    with pytest.raises(
        TrainingError, match=r"`cache` must be one of `auto`, `off`, `memory`, `disk`.*Received `ram` and 1"
    ):
        cached_features(NoCut(""), X, batch_size=8, mode="ram")


def test_the_model_is_not_changed_by_being_cut_and_run():
    model = sequential()
    assert isinstance(find_cut(model), Cut)
    before = json.dumps(model.get_config(), default=str), [weight.numpy().tobytes() for weight in model.weights]
    features_of(model)
    assert before == (
        json.dumps(model.get_config(), default=str),
        [weight.numpy().tobytes() for weight in model.weights],
    )
