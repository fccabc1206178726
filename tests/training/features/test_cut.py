import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

from finetune import HubLayer
from finetune.training.features.cut import Cut, Front, NoCut, Tail, find_cut

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")


def sequential(*parts, frozen=(), shape=(6,)):
    model = keras.Sequential([keras.Input(shape), *parts], name="net")
    return freeze(model, *frozen)


def freeze(model, *names):
    for layer in model._flatten_layers(include_self=False):
        if layer.name in names:
            layer.trainable = False
    return model


def dense(name, width=6):
    return layers.Dense(width, name=name)


def ahead(model, **options):
    cut = find_cut(model, **options)
    assert isinstance(cut, Cut), cut
    return [step.name for step in cut.front if step.operation is not None]


def why_not(model, **options):
    cut = find_cut(model, **options)
    assert isinstance(cut, NoCut), cut
    return cut.reason


def test_the_cut_lies_behind_the_last_layer_that_needs_to_run_but_once():
    model = sequential(dense("a"), layers.ReLU(name="relu"), dense("b"), dense("head"), frozen=("a", "b"))
    assert ahead(model) == ["a", "relu", "b"]
    cut = find_cut(model)
    assert cut.layers == ("a", "b")
    assert [step.name for step in cut.tail] == ["head"]
    assert len(cut.crossing) == 1


def test_a_frozen_layer_behind_a_trained_one_is_not_in_front():
    assert ahead(sequential(dense("a"), dense("b"), dense("c"), frozen=("a", "c"))) == ["a"]


def test_a_layer_frozen_in_part_is_trained():
    model = sequential(dense("a"), dense("b"), dense("c"), frozen=("a",))
    model.get_layer("b").bias.trainable = False
    assert ahead(model) == ["a"]


def test_what_is_trained_can_be_said_for_a_phase_to_come():
    model = sequential(dense("a"), dense("b"), dense("c"), frozen=("a", "b"))
    b, c = model.get_layer("b"), model.get_layer("c")
    assert ahead(model, trained=[*b.trainable_weights, *c.trainable_weights, b.kernel]) == ["a"]


def test_frozen_batch_normalization_is_in_front_and_a_live_one_behind():
    parts = [dense("a"), layers.BatchNormalization(name="bn"), dense("head")]
    assert ahead(sequential(*parts, frozen=("a", "bn"))) == ["a", "bn"]


def test_batch_normalization_that_moves_its_statistics_though_nothing_of_it_is_trained_is_behind():
    parts = [dense("a"), layers.BatchNormalization(center=False, scale=False, name="bn"), dense("head")]
    model = sequential(*parts, frozen=("a",))
    assert ahead(model) == ["a"]
    assert find_cut(model).stopped_by == ("`bn` updates its statistics in training",)


def test_a_skip_connection_over_the_cut_lets_two_tensors_cross_it():
    inputs = keras.Input((6,))
    a = dense("a")(inputs)
    b = dense("b")(a)
    model = keras.Model(inputs, dense("head")(layers.Add(name="add")([a, dense("c")(b)])))
    freeze(model, "a", "b")
    assert ahead(model) == ["a", "b"]
    assert len(find_cut(model).computed) == 2


def test_an_input_that_the_rest_reads_crosses_without_being_kept():
    inputs = keras.Input((6,))
    model = keras.Model(inputs, dense("head")(layers.Add()([dense("t")(inputs), dense("a")(inputs)])))
    freeze(model, "a")
    cut = find_cut(model)
    assert isinstance(cut, Cut)
    assert 0 in cut.crossing
    assert 0 not in cut.computed
    assert len(cut.computed) == 1


def test_a_cheap_operation_on_what_crosses_anyway_is_left_to_the_rest():
    inputs = keras.Input((6,))
    a = dense("a")(inputs)
    model = keras.Model(inputs, dense("head")(layers.Add()([a, ops.square(a)])))
    freeze(model, "a")
    cut = find_cut(model)
    assert isinstance(cut, Cut)
    assert len(cut.computed) == 1


def test_the_cut_may_lie_inside_of_nested_models():
    inner = keras.Sequential([keras.Input((6,)), dense("a"), dense("b")], name="inner")
    outer = keras.Sequential([keras.Input((6,)), inner, dense("c")], name="outer")
    model = sequential(outer, dense("head"), frozen=("a",))
    assert ahead(model) == ["outer/inner/a"]
    assert [step.name for step in find_cut(model).tail] == ["outer/inner/b", "outer/c", "head"]


def test_a_layer_used_twice_may_be_on_both_sides():
    twice, inputs = dense("twice"), keras.Input((6,))
    first = twice(inputs)
    model = keras.Model(inputs, dense("head")(twice(dense("t")(first))))
    freeze(model, "twice")
    cut = find_cut(model)
    assert ahead(model) == ["twice"]
    assert [step.name for step in cut.tail] == ["t", "twice", "head"]


@pytest.mark.parametrize(
    "noise", [layers.Dropout(0.1), layers.GaussianNoise(0.1), layers.RandomFlip(), layers.SpatialDropout2D(0.1)]
)
def test_layers_that_draw_random_numbers_stop_the_cut_and_are_named(noise):
    noise.name = "noise"
    flat = [layers.Flatten(), dense("head")]
    model = sequential(layers.Conv2D(2, 1, name="a"), noise, dense("b"), *flat, frozen=("a", "b"), shape=(4, 4, 3))
    assert ahead(model) == ["a"]
    kind = type(noise).__name__
    assert find_cut(model).stopped_by == (f"`noise` draws random numbers in training (`{kind}`)",)


def test_dropout_in_front_of_all_leaves_nothing_and_is_the_reason():
    model = sequential(layers.Dropout(0.1, name="drop"), dense("a"), dense("head"), frozen=("a",))
    assert why_not(model) == (
        "there is no frozen layer with weights that can be run beforehand: `drop` draws random numbers in training (`Dropout`)"
    )


def test_dropout_with_a_rate_of_0_and_recurrent_layers_without_any_stop_nothing():
    parts = [layers.Dropout(0.0), layers.LSTM(4, name="lstm"), dense("head")]
    assert ahead(sequential(*parts, frozen=("lstm",), shape=(3, 6)))[-1] == "lstm"
    parts[1] = layers.LSTM(4, dropout=0.1, name="lstm")
    assert "`lstm` draws random numbers" in why_not(sequential(*parts, frozen=("lstm",), shape=(3, 6)))


def test_dropout_inside_of_attention_counts():
    for rate, expected in ((0.0, True), (0.1, False)):
        inputs = keras.Input((4, 6))
        x = layers.MultiHeadAttention(2, 3, dropout=rate, name="attention")(inputs, inputs)
        model = freeze(keras.Model(inputs, dense("head")(x)), "attention")
        assert isinstance(find_cut(model), Cut) is expected


def test_dropout_that_the_caller_switches_off_does_not_count_and_is_run_so():
    drop = layers.Dropout(0.5, name="drop")
    model = sequential(drop, dense("a"), dense("head"), frozen=("a",))
    assert ahead(model, inference=[drop]) == ["drop", "a"]
    assert find_cut(model, inference=[drop]).inference == {id(drop)}


def test_random_layers_may_be_in_front_for_several_passes_but_no_dropout_at_the_end():
    parts = [layers.GaussianNoise(0.1, name="noise"), dense("a"), layers.Dropout(0.5, name="drop"), dense("head")]
    model = sequential(*parts, frozen=("a",))
    assert ahead(model, allow_random=True) == ["noise", "a"]
    assert find_cut(model, allow_random=True).random == ("noise",)


def test_several_dropouts_at_the_end_of_the_front_are_all_left_to_the_tail():
    drops = [layers.Dropout(0.5, name="drop"), layers.Dropout(0.2, name="drop_again")]
    model = sequential(dense("a"), *drops, dense("head"), frozen=("a",))
    cut = find_cut(model, allow_random=True)
    assert ahead(model, allow_random=True) == ["a"]
    assert [step.name for step in cut.tail] == ["drop", "drop_again", "head"]
    assert cut.random == ()


def test_a_layer_that_adds_to_the_loss_is_behind():
    parts = [dense("a"), layers.Dense(6, activity_regularizer="l2", name="b"), dense("head")]
    model = sequential(*parts, frozen=("a", "b"))
    assert ahead(model) == ["a"]
    assert find_cut(model).stopped_by == ("`b` adds to the loss",)


def test_a_frozen_hub_layer_is_one_step_in_front(encoder_folder):
    hub = HubLayer(encoder_folder, name="hub")
    model = sequential(hub, dense("head"))
    hub.trainable = False
    assert ahead(model) == ["hub"]


def test_a_hub_layer_frozen_in_part_is_behind(encoder_folder):
    hub = HubLayer(encoder_folder, name="hub")
    model = sequential(dense("a"), hub, dense("head"), frozen=("a",))
    hub.parts[0].trainable = False
    assert ahead(model) == ["a"]


def test_without_a_frozen_layer_in_front_there_is_nothing_to_gain():
    reason = "there is no frozen layer with weights that can be run beforehand, because the first layers are trained"
    assert why_not(sequential(dense("a"), dense("b"))) == reason
    assert why_not(sequential(layers.Rescaling(2.0), dense("a"), dense("b"), frozen=("b",))) == reason


class Own(keras.Model):
    def __init__(self):
        super().__init__(name="own")
        self.dense = layers.Dense(2)

    def call(self, x):
        return self.dense(x)


class OwnStep(keras.Model):
    def train_step(self, data):
        return {}


def test_models_that_do_more_than_their_graph_are_left_alone():
    own = Own()
    own(ops.ones((2, 6)))
    assert why_not(own) == "`own` has its own `call`: only functional and Sequential models can be cut"
    inputs = keras.Input((6,))
    model = OwnStep(inputs, dense("head")(dense("a")(inputs)), name="own")
    assert why_not(freeze(model, "a")) == "`own` has its own `train_step`, which may use the inputs themselves"


def test_a_cut_says_what_it_is():
    model = sequential(dense("a"), dense("b"), dense("head"), frozen=("a", "b"))
    assert str(find_cut(model)) == "2 layers with weights, the last of them `b`"
    assert str(find_cut(sequential(dense("a"), dense("head"), frozen=("a",)))) == "1 layer with weights, `a`"


# -- Both sides -------------------------------------------------------------------------------------------------------

X = np.random.default_rng(0).standard_normal((5, 6))


def both_sides(model, x=X, training=False, **options):
    """What the front computes, and the output of the tail for it."""
    cut = find_cut(model, **options)
    features = Front(cut, cut.computed)(x, training=training)
    return features, Tail(cut)(features, training=training)


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_the_tail_of_the_front_is_the_model_bit_for_bit_in_every_type(dtype):
    parts = [layers.Dense(6, dtype=dtype, name=name) for name in ("a", "b", "head")]
    model = sequential(*parts, frozen=("a",))
    x = keras.ops.convert_to_tensor(X, dtype)
    (values, masks), output = both_sides(model, x)
    assert masks == {}
    assert [keras.backend.standardize_dtype(value.dtype) for value in values.values()] == [dtype]
    assert keras.backend.standardize_dtype(output.dtype) == dtype
    np.testing.assert_array_equal(np.asarray(output, "float64"), np.asarray(model(x), "float64"))


def test_the_tail_drops_out_only_in_training():
    model = sequential(dense("a"), layers.Dropout(0.5, name="drop"), dense("head"), frozen=("a",))
    cut = find_cut(model)
    features, tail = Front(cut, cut.computed)(X), Tail(cut)
    np.testing.assert_array_equal(tail(features), model(X))
    assert not np.array_equal(tail(features, training=True), model(X))


def test_dropout_in_the_tail_that_the_caller_switches_off_does_nothing():
    drop = layers.Dropout(0.5, name="drop")
    model = sequential(dense("a"), dense("b"), drop, dense("head"), frozen=("a",))
    _, output = both_sides(model, training=True, inference=[drop])
    np.testing.assert_array_equal(output, model(X))


def test_a_mask_that_hangs_on_what_crosses_reaches_the_tail():
    tokens = np.random.default_rng(0).integers(0, 3, (5, 4))
    embedding = layers.Embedding(3, 4, mask_zero=True, name="a")
    encoder = keras.Sequential([keras.Input((4,), dtype="int32"), embedding], name="encoder")
    inputs = keras.Input((4,), dtype="int32")
    model = freeze(keras.Model(inputs, dense("head")(layers.GRU(3)(encoder(inputs)))), "a")
    cut = find_cut(model)
    values, masks = Front(cut, cut.computed)(tokens)
    np.testing.assert_array_equal(next(iter(masks.values())), tokens != 0)
    kept = {number: tf.identity(value) for number, value in values.items()}  # as from a file, without the mask
    np.testing.assert_array_equal(Tail(cut)((kept, masks)), model(tokens))


def test_a_layer_of_the_front_that_acts_only_in_training_acts_in_the_front():
    model = sequential(layers.GaussianNoise(1.0, name="noise"), dense("a"), dense("head"), frozen=("a",))
    cut = find_cut(model, allow_random=True)
    front = Front(cut, cut.computed)
    (noisy,), (quiet,) = (values.values() for values, _ in (front(X), front(X, training=False)))
    assert np.abs(noisy - quiet).max() > 0.1
