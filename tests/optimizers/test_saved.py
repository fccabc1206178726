import re

import keras
import numpy as np
import pytest
import tensorflow as tf

from finetune.errors import GroupError
from finetune.groups.selectors import Selector, resolve_groups
from finetune.optimizers.grouped import GroupedOptimizer
from finetune.optimizers.saved import fitting_values

# NumPy 2 warns when Keras copies a TensorFlow variable to save it.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")
SGD, Adam = keras.optimizers.SGD, keras.optimizers.Adam
ONES = np.ones((1, 2), "f4")


def make_model(*names, units=2):
    """Layers of equal shape, so that only their names and places tell their variables apart."""
    keras.utils.set_random_seed(1)
    return keras.Sequential([keras.Input((2,)), *(keras.layers.Dense(units, name=name) for name in names)])


def step(model):
    with tf.GradientTape() as tape:
        loss = keras.ops.mean((model(ONES) - 3.0) ** 2)
    model.optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)


def message(make):
    with pytest.raises(GroupError) as error:
        make()
    return str(error.value)


def with_only(model, *names):
    for layer in model.layers:
        layer.trainable = layer.name in names
    return model.trainable_variables


def names_by_group(optimizer):
    return {
        child.name: [v.path.split("/")[-2] for v in child._trainable_variables if v.path.endswith("kernel")]
        for child in optimizer.group_optimizers.values()
    }


ALIKE = {"a": ["a"], "b": ["b"], "c": ["c"]}


def three_groups(model, **settings):
    rates = [keras.optimizers.schedules.ExponentialDecay(0.1, 2, 0.5), 0.2, 0.3]
    return GroupedOptimizer(
        {layer.name: (Adam(rate), layer) for rate, layer in zip(rates, model.layers, strict=True)}, **settings
    )


def test_a_config_makes_the_same_optimizer_again():
    model = make_model(*"abc")
    average = {"use_ema": True, "ema_momentum": 0.5, "ema_overwrite_frequency": 3}
    optimizer = three_groups(model, clipnorm=1.0, gradient_accumulation_steps=2, name="mine", **average)
    optimizer.build(model.trainable_variables)
    optimizer.learning_rate = 0.6
    config = keras.optimizers.serialize(optimizer)
    for again in (keras.optimizers.deserialize(config), keras.optimizers.get(config)):
        assert again.get_config() == optimizer.get_config()
        assert [type(child) for child in again.group_optimizers.values()] == [Adam] * 3
        assert again.learning_rates == pytest.approx({"a": 0.1, "b": 0.2, "c": 0.3})  # as in the beginning


def test_a_config_remembers_the_models_order_and_what_was_frozen():
    model = make_model(*"ab")
    first, last = model.layers
    optimizer = GroupedOptimizer({"last": (SGD(0.1), last), "first": (SGD(0.1), first)})
    optimizer.build(model.trainable_variables)
    first.trainable = False
    config = optimizer.get_config()
    for again in (GroupedOptimizer.from_config(config), GroupedOptimizer.from_config(config)):
        assert again.get_config() == config
    variable_keys = [variable_key for group in config["groups"] for variable_key in group["variables"]]
    assert [(variable_key["position"], variable_key["trainable"]) for variable_key in variable_keys] == [
        (2, True),
        (3, True),
        (0, False),
        (1, False),
    ]


def test_an_optimizer_that_chooses_by_path_chooses_the_same_for_a_frozen_part(tmp_path):
    model = make_model("special", "head")
    muon = keras.optimizers.Muon(0.1, exclude_layers=["special"])  # updated as by Adam, with one slot more
    model.compile(GroupedOptimizer({"all": (muon, model)}), loss="mse")
    model.layers[0].trainable = False
    model.optimizer.build(model.trainable_variables)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert [v.shape for v in loaded.optimizer.variables] == [v.shape for v in model.optimizer.variables]


@pytest.mark.sample(8)
@pytest.mark.parametrize("saved", ["abc", "bc", "a"])
@pytest.mark.parametrize("first", ["abc", "bc", "b"])
@pytest.mark.parametrize("listed", ["abc", "cba"])
def test_a_config_finds_its_variables_whatever_was_and_is_frozen(saved, first, listed):
    model, again = make_model(*"abc"), make_model(*"abc")
    layers = {layer.name: layer for layer in model.layers}
    optimizer = GroupedOptimizer({name: (SGD(0.1), layers[name]) for name in listed})
    optimizer.build(with_only(model, *saved))
    found = GroupedOptimizer.from_config(optimizer.get_config())
    for names in (first, "ab", "abc"):
        found.build(with_only(again, *names))
    assert names_by_group(found) == ALIKE
    variables = [v for child in found.group_optimizers.values() for v in child._trainable_variables]
    assert {id(v) for v in variables} == {id(v) for v in again.trainable_variables}


def test_weight_decay_stays_off_for_variables_that_come_later():
    model, again = make_model(*"ab"), make_model(*"ab")
    child = keras.optimizers.AdamW(0.1, weight_decay=0.5)
    child.exclude_from_weight_decay(var_names=["bias"])
    optimizer = GroupedOptimizer({"all": (child, model)})
    found = GroupedOptimizer.from_config(optimizer.get_config())
    for names in ("b", "ab"):
        found.build(with_only(again, *names))
        assert [s["weight_decay"] for s in found.get_config()["groups"][0]["variables"]] == [True, False] * 2
    biases = [layer.bias for layer in again.layers]
    for bias in biases:
        bias.assign([1.0, 1.0])
    found.apply([tf.zeros(v.shape) for v in again.trainable_variables], again.trainable_variables)
    assert [float(bias[0]) for bias in biases] == [1.0, 1.0]


def test_layers_that_keras_numbered_anew_are_found_by_their_position():
    model, again = (make_model(None, None, units=2) for _ in range(2))
    optimizer = GroupedOptimizer({"first": (SGD(0.1), model.layers[0]), "last": (SGD(0.1), model.layers[1])})
    found = GroupedOptimizer.from_config(optimizer.get_config())
    found.build(again.trainable_variables)
    for child, layer in zip(found.group_optimizers.values(), again.layers, strict=True):
        assert child._trainable_variables[0] is layer.kernel


def test_a_model_loaded_with_a_frozen_part_can_be_saved_and_loaded_again(tmp_path):
    model = make_model(*"abc")
    model.compile(three_groups(model), loss="mse")
    step(model)
    expected = [v.numpy() for v in model.optimizer.variables]
    with_only(model, "c")
    for n in range(3):
        model.save(tmp_path / f"{n}.keras")
        model = keras.models.load_model(tmp_path / f"{n}.keras")
    for found, value in zip(model.optimizer.variables, expected, strict=True):
        np.testing.assert_array_equal(found.numpy(), value)
    with_only(model, "a", "b", "c")
    model.compile(model.optimizer, loss="mse")
    step(model)
    assert names_by_group(model.optimizer) == ALIKE
    tf.train.Checkpoint(optimizer=model.optimizer).save(str(tmp_path / "checkpoint"))


def test_a_compiled_model_that_was_never_trained_can_be_saved_and_loaded(tmp_path):
    model = make_model(*"abc")
    model.compile(three_groups(model), loss="mse")
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    step(loaded)
    step(model)
    np.testing.assert_array_equal(loaded.layers[0].kernel.numpy(), model.layers[0].kernel.numpy())


def test_rates_that_were_written_come_back_with_the_state_and_keep_their_ratios(tmp_path):
    model = make_model(*"abc")
    model.compile(three_groups(model), loss="mse")
    model.optimizer.learning_rate = 0.6
    list(model.optimizer.group_optimizers.values())[1].learning_rate = 0.1
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras").optimizer
    assert loaded.learning_rates == pytest.approx({"a": 0.2, "b": 0.1, "c": 0.6})
    loaded.learning_rate = 0.3
    assert loaded.learning_rates == pytest.approx({"a": 0.1, "b": 0.05, "c": 0.3})


def test_rates_that_were_zero_in_the_file_keep_their_ratios(tmp_path):
    model = make_model(*"abc")
    model.compile(three_groups(model), loss="mse")
    model.optimizer.learning_rate = 0.0
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras").optimizer
    assert set(loaded.learning_rates.values()) == {0.0}
    loaded.learning_rate = 0.3
    assert loaded.learning_rates == pytest.approx({"a": 0.1, "b": 0.2, "c": 0.3})


def test_weights_alone_load_into_a_compiled_model(tmp_path):
    plain, model = make_model(*"abc"), make_model(*"abc")
    plain.save_weights(tmp_path / "plain.weights.h5")
    model.compile(three_groups(model), loss="mse")
    step(model)
    model.load_weights(tmp_path / "plain.weights.h5")
    assert int(model.optimizer.iterations) == 1


def test_the_state_of_another_optimizer_is_left_out_with_a_warning_and_the_weights_are_loaded(tmp_path):
    model, other = make_model(*"abc"), make_model(*"abc")
    other.compile(SGD(0.1), loss="mse")
    step(other)
    other.save_weights(tmp_path / "other.weights.h5")
    model.compile(three_groups(model), loss="mse")
    step(model)
    before = [v.numpy() for v in model.optimizer.variables]
    expected = (
        "An optimizer's state fits the optimizer it was saved from. The file holds 2 variables, this optimizer with the "
        "groups `a`, `b`, `c` has 17. Of the optimizer, nothing was loaded: its slots, its step and its learning rates are "
        "as they were. The weights of the model are not concerned. To go on with the training of the file, use the same "
        "groups and optimizers; to start from its weights alone, ignore this."
    )
    with pytest.warns(UserWarning, match=re.escape(expected)):
        model.load_weights(tmp_path / "other.weights.h5")
    for loaded, saved in zip(model.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(loaded, saved)
    for v, value in zip(model.optimizer.variables, before, strict=True):
        np.testing.assert_array_equal(v.numpy(), value)


def test_a_state_of_other_shapes_is_an_error():
    small, large = make_model("a"), make_model("a", units=3)
    optimizer, other = GroupedOptimizer([(Adam(0.1), small)]), GroupedOptimizer([(Adam(0.1), large)])
    other.build(large.trainable_variables)
    with pytest.raises(
        GroupError, match=r"The file holds 7 variables.* has 7, of other shapes\. Of the optimizer, nothing"
    ):
        optimizer.set_weights([v.numpy() for v in other.variables])


def test_weights_can_be_set_as_they_were_read():
    model = make_model(*"abc")
    model.compile(three_groups(model, use_ema=True), loss="mse")
    step(model)
    saved = [v.numpy() for v in model.optimizer.variables]
    step(model)
    model.optimizer.set_weights([value.tolist() for value in saved])
    for v, value in zip(model.optimizer.variables, saved, strict=True):
        np.testing.assert_array_equal(v.numpy(), value)


@pytest.mark.parametrize("wrap", [False, True])
def test_loss_scaling_state_comes_back_too(wrap, tmp_path):
    model = make_model(*"abc")
    optimizer = three_groups(model)
    model.compile(keras.optimizers.LossScaleOptimizer(optimizer) if wrap else optimizer, loss="mse")
    step(model)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    for v, other in zip(loaded.optimizer.variables, model.optimizer.variables, strict=True):
        np.testing.assert_array_equal(v.numpy(), other.numpy())


def test_a_config_that_calls_the_variables_seats_is_still_read():
    model = make_model(*"ab")
    config = GroupedOptimizer({"all": (SGD(0.1), model)}).get_config()
    old = {**config, "groups": [{**group, "seats": group["variables"]} for group in config["groups"]]}
    for group in old["groups"]:
        del group["variables"]
    assert GroupedOptimizer.from_config(old).get_config() == config


def test_a_state_without_the_steps_at_which_groups_started_gets_zeros():
    variables = [keras.Variable([1.0]), keras.Variable(3.0), keras.Variable([5, 5], dtype="int64")]
    values = fitting_values({"0": np.array([2.0]), "1": np.array(4.0)}, variables, ["a", "b"])
    assert [value.tolist() for value in values] == [[2.0], 4.0, [0, 0]]


def test_the_values_of_a_store_come_in_the_order_of_their_numbers():
    variables = [keras.Variable(float(i)) for i in range(11)]
    store = {str(i): np.float32(i) for i in sorted(range(11), key=str)}
    assert [float(value) for value in fitting_values(store, variables, ["a"])] == list(range(11))


def test_a_config_with_a_class_of_the_user_is_read_with_the_custom_objects_that_are_passed():
    class Own(SGD):
        pass

    config = GroupedOptimizer({"all": (Own(0.1), make_model(*"ab"))}).get_config()
    again = GroupedOptimizer.from_config(config, custom_objects={"Own": Own})
    assert type(again.group_optimizers["all"]) is Own


# -- Frozen one by one ------------------------------------------------------------------------------------------------


def frozen_in_part(model, **settings):
    """The kernel of `b` is in no group; what is in `c` is frozen though its group has it."""
    _, b, c = model.layers
    b.kernel.trainable = c.bias.trainable = False
    groups = resolve_groups(
        model, [Selector("low", prefixes=("b/kernel",), frozen=True), Selector("rest", rest=True, frozen=False)]
    )
    c.bias.trainable = False
    return GroupedOptimizer({"rest": (Adam(0.1), groups[1])}, **settings)


def trainable_paths(model):
    return ["/".join(v.path.split("/")[-2:]) for v in model.trainable_variables]


@pytest.mark.parametrize("wrap", [False, True], ids=["bare", "loss scale"])
def test_what_was_frozen_one_by_one_is_frozen_in_a_loaded_model_however_often(wrap, tmp_path):
    model = make_model(*"abc")
    optimizer = frozen_in_part(model)
    model.compile(keras.optimizers.LossScaleOptimizer(optimizer) if wrap else optimizer, loss="mse")
    expected = ["a/kernel", "a/bias", "b/bias", "c/kernel"]
    assert trainable_paths(model) == expected
    step(model)
    loaded = model
    for n in range(3):
        loaded.save(tmp_path / f"{n}.keras")
        loaded = keras.models.load_model(tmp_path / f"{n}.keras")
        assert trainable_paths(loaded) == expected
    for trained in (model, loaded):
        step(trained)
    for one, other in zip(model.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_what_is_opened_after_loading_stays_open(tmp_path):
    model = make_model(*"abc")
    layers = {layer.name: layer for layer in model.layers}
    layers["b"].kernel.trainable = False
    model.compile(GroupedOptimizer({name: (SGD(0.1), layer) for name, layer in layers.items()}), loss="mse")
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert "b/kernel" not in trainable_paths(loaded)
    loaded.layers[1].kernel.trainable = True
    step(loaded)
    assert "b/kernel" in trainable_paths(loaded)


def test_a_layer_that_was_frozen_as_a_whole_can_be_opened_after_loading(tmp_path):
    model = make_model(*"abc")
    model.compile(three_groups(model), loss="mse")
    model.trainable = False
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert trainable_paths(loaded) == []
    loaded.save(tmp_path / "again.keras")
    loaded = keras.models.load_model(tmp_path / "again.keras")
    for layer in loaded.layers:
        layer.trainable = True
    step(loaded)
    assert len(trainable_paths(loaded)) == 6


def test_a_variable_frozen_beside_bare_variables_is_frozen_again(tmp_path):
    model = make_model("a")
    model.layers[0].kernel.trainable = False
    model.compile(GroupedOptimizer({"bias": (SGD(0.1), model.layers[0].bias)}), loss="mse")
    model.save(tmp_path / "model.keras")
    assert trainable_paths(keras.models.load_model(tmp_path / "model.keras")) == ["a/bias"]


def test_variables_that_no_group_knows_are_an_error_where_the_model_is_not_loaded_with_its_optimizer(tmp_path):
    model = make_model("a")
    optimizer = GroupedOptimizer({"bias": (SGD(0.1), model.layers[0].bias)})
    again = GroupedOptimizer.from_config(optimizer.get_config())
    expected = "frozen one by one when the model was saved: Keras' files hold only whether a layer is trainable. Load"
    assert expected in message(lambda: again.build(make_model("a").trainable_variables))
