import keras
import pytest

from finetune.training.monitor_interval import automatic_interval, measured_every


def dense(width, depth=1):
    layers = [keras.layers.Dense(width, name=f"dense_{number}") for number in range(depth)]
    return keras.Sequential([keras.Input((width,)), *layers])


def test_the_same_network_has_the_same_interval_and_a_larger_batch_a_shorter_one():
    model = dense(256)
    interval = automatic_interval(model, batch_size=512, steps=10**6)
    assert interval == automatic_interval(model, batch_size=512, steps=10**7)
    assert interval < automatic_interval(model, batch_size=1, steps=10**6)


def test_a_step_so_long_that_a_measurement_costs_little_else_is_measured_every_eighty_steps():
    assert automatic_interval(dense(4096), batch_size=10**6, steps=10**6) == 81  # 1.6 steps are 2 % of 80


def test_weights_of_a_convolution_count_at_each_of_its_places():
    def convolution(size):
        return keras.Sequential([keras.Input((size, size, 3)), keras.layers.Conv2D(16, 3)])

    few, many = (automatic_interval(convolution(size), batch_size=32, steps=10**6) for size in (8, 128))
    assert many < few


@pytest.mark.parametrize(("steps", "interval"), [(50, 5), (1000, 100)])
def test_a_short_training_of_a_small_network_gets_ten_rows(steps, interval):
    assert automatic_interval(dense(4), batch_size=4, steps=steps) == interval


def test_a_trial_of_a_few_steps_and_a_short_training_of_a_deep_network_get_none():
    assert automatic_interval(dense(4), batch_size=4, steps=49) > 49
    assert automatic_interval(dense(4, depth=30), batch_size=4, steps=80) > 80


def test_off_and_an_interval_beyond_the_training_measure_nothing():
    model, size = dense(4), {"batch_size": 4, "steps": 100}
    assert [measured_every(setting, model, **size) for setting in ("off", 101, 100, 7, "auto")] == [0, 0, 100, 7, 10]
