import pytest

from finetune.pretrained.formats.not_weights import is_counter, is_in_optimizer_or_metrics, is_random_state, is_slot


@pytest.mark.parametrize(
    "name",
    ["global_step", "beta1_power", "training/beta2_power_1", "iterations", "iter", "save_counter", "learning_rate"]
    + ["dynamic_scale", "step_counter", "beta_1", "bn/num_batches_tracked", "decay"],
)
def test_counters_and_rates_of_every_library_are_recognised_below_any_scope(name):
    assert is_counter(name)


@pytest.mark.parametrize("name", ["temperature", "scale", "step_size", "my_iterations", "decay/kernel", "beta"])
def test_a_scalar_weight_is_not_a_counter(name):
    assert not is_counter(name)


ALL_NAMES = {"dense/kernel", "dense/bias"}


@pytest.mark.parametrize(
    "name",
    ["dense/kernel/Adam", "dense/kernel/Adam_1", "dense/bias/Momentum", "dense/kernel/anything"]
    + ["train/dense/kernel/RMSProp", "a/b/dense/kernel/Adagrad", "dense/kernel/Ftrl_1", "x/ExponentialMovingAverage"],
)
def test_what_is_below_another_weight_is_its_slot(name):
    assert is_slot(name, ALL_NAMES)


@pytest.mark.parametrize("name", ["dense/kernel", "Adam/kernel", "other/kernel/Adam", "train/dense/kernel/other"])
def test_a_weight_is_not_a_slot_because_of_an_optimizer_s_name_alone(name):
    assert not is_slot(name, ALL_NAMES)


def test_states_of_random_generators_are_recognised_anywhere_in_a_name():
    names = ["dropout/seed_generator/state", "seed_generator_state", "a/_random_generator", "random/_state_var"]
    assert all(map(is_random_state, names))
    assert not is_random_state("seeds/kernel")
    assert not is_random_state("my_seed_generator_net/kernel")


@pytest.mark.parametrize(
    ("path", "expected"),
    [("opt_state/0/kernel", True), ("model/optimizer/1", True), ("a/_optimizer/b", True), ("x/keras_api/y", True)]
    + [("metrics/total", True), ("optimizer_net/kernel", False), ("body/kernel", False), ("body/optimizer", False)],
)
def test_only_what_lies_below_an_optimizer_or_metrics_belongs_to_them(path, expected):
    assert is_in_optimizer_or_metrics(path.split("/")) is expected
