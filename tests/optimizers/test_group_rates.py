import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.errors import GroupError
from finetune.keras_private import held_rate
from finetune.optimizers.grouped import GroupedOptimizer

schedules = keras.optimizers.schedules


def grouped(*rates):
    """One group of one variable for each rate, input to output."""
    return GroupedOptimizer([(keras.optimizers.SGD(rate), tf.Variable([0.0])) for rate in rates])


def rates(optimizer):
    return list(optimizer.learning_rates.values())


def at(optimizer, step):
    optimizer.iterations.assign(step)
    return optimizer


def test_writing_the_rate_scales_all_groups_by_the_same_ratio():
    optimizer = grouped(0.01, 0.04, 0.1)
    optimizer.learning_rate = 0.05
    assert rates(optimizer) == pytest.approx([0.005, 0.02, 0.05])
    assert float(optimizer.learning_rate) == pytest.approx(0.05)


def test_a_rate_of_zero_silences_all_groups_and_keeps_their_ratios():
    optimizer = grouped(0.01, 0.1)
    optimizer.learning_rate = 0
    assert rates(optimizer) == [0, 0]
    optimizer.learning_rate = 1.0
    assert rates(optimizer) == pytest.approx([0.1, 1.0])


def test_a_group_moved_alone_keeps_its_new_ratio():
    optimizer = grouped(0.01, 0.1)
    optimizer.group_optimizers["group_0"].learning_rate = 0.05
    assert rates(optimizer) == pytest.approx([0.05, 0.1])
    optimizer.learning_rate = 0.2
    assert rates(optimizer) == pytest.approx([0.1, 0.2])
    optimizer.group_optimizers["group_0"].learning_rate = 0.02
    optimizer.learning_rate = 0.1
    assert rates(optimizer) == pytest.approx([0.01, 0.1])


def test_a_group_silenced_alone_stays_silent():
    optimizer = grouped(0.01, 0.1)
    optimizer.group_optimizers["group_0"].learning_rate = 0.0
    optimizer.learning_rate = 0.2
    assert rates(optimizer) == pytest.approx([0, 0.2])


def test_a_group_moved_alone_while_all_are_silent_goes_back_to_the_ratio_it_had():
    optimizer = grouped(0.01, 0.1)
    optimizer.learning_rate = 0.0
    optimizer.group_optimizers["group_0"].learning_rate = 0.05
    assert rates(optimizer) == pytest.approx([0.05, 0.0])
    optimizer.learning_rate = 0.2
    assert rates(optimizer) == pytest.approx([0.02, 0.2])


def test_a_last_group_silenced_alone_speaks_again_with_its_old_ratio():
    optimizer = grouped(0.01, 0.1)
    optimizer.group_optimizers["group_1"].learning_rate = 0.0
    optimizer.learning_rate = 0.2
    assert rates(optimizer) == pytest.approx([0.02, 0.2])


def test_a_rate_too_small_for_float32_keeps_the_ratios():
    optimizer = grouped(1e-6, 0.1)
    optimizer.learning_rate = 1e-42
    optimizer.learning_rate = 5e-324
    optimizer.learning_rate = 0.2
    assert rates(optimizer) == pytest.approx([2e-6, 0.2])


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf"), 1e39, np.float32(-1e-3)])
def test_a_rate_that_is_none_is_refused_and_nothing_changes(value):
    optimizer = grouped(0.01, 0.1)
    with pytest.raises(GroupError, match="A learning rate is finite and not negative, in every group"):
        optimizer.learning_rate = value
    assert rates(optimizer) == pytest.approx([0.01, 0.1])


def test_a_rate_that_another_group_cannot_follow_is_refused_with_the_rates_it_would_give():
    optimizer = grouped(1.0, 1e-10)
    with pytest.raises(GroupError) as error:
        optimizer.learning_rate = 1e30
    assert str(error.value) == (
        "A learning rate is finite and not negative, in every group. Received `1e+30` for the last group, 1e+40 times "
        "its rate: the groups would get `1e+40`, `1e+30`. No rate was changed."
    )


@pytest.mark.parametrize("value", [schedules.ExponentialDecay(0.1, 1, 0.5), lambda: 0.1])
def test_a_schedule_for_all_groups_is_refused(value):
    with pytest.raises(GroupError, match=r"Each group has its own rate or schedule\. Received `.*Write a number"):
        grouped(0.1).learning_rate = value


def test_a_schedule_given_to_a_child_afterwards_is_refused_at_the_next_step_and_write():
    optimizer = grouped(0.01, 0.1)
    optimizer.group_optimizers["group_0"].learning_rate = schedules.ExponentialDecay(0.1, 1, 0.5)
    with pytest.raises(GroupError, match=r"before the `GroupedOptimizer` is made.*`group_0`\. Write a number, or make"):
        optimizer.learning_rate = 0.1
    with pytest.raises(GroupError, match="Received another schedule afterwards for `group_0`"):
        optimizer.apply([tf.ones(1), tf.ones(1)])


@pytest.mark.parametrize("make", [float, np.float32, tf.constant, keras.Variable])
def test_any_kind_of_number_can_be_written(make):
    optimizer = grouped(0.01, 0.1)
    optimizer.learning_rate = make(0.5)
    assert rates(optimizer) == pytest.approx([0.05, 0.5])


# -- With schedules ---------------------------------------------------------------------------------------------------


def test_a_scheduled_rate_is_the_schedule_times_a_multiplier():
    optimizer = grouped(schedules.ExponentialDecay(0.1, 2, 0.5, staircase=True), 0.1)
    optimizer.learning_rate = 0.2
    assert rates(at(optimizer, 0)) == pytest.approx([0.2, 0.2])
    assert rates(at(optimizer, 2)) == pytest.approx([0.1, 0.2])
    optimizer.learning_rate = 0.1
    assert rates(at(optimizer, 4)) == pytest.approx([0.025, 0.1])


def test_a_written_rate_holds_at_the_step_where_it_is_written():
    optimizer = grouped(0.1, schedules.ExponentialDecay(0.1, 2, 0.5, staircase=True))
    at(optimizer, 2).learning_rate = 0.2  # the schedule gives 0.05
    assert rates(optimizer) == pytest.approx([0.4, 0.2])
    assert rates(at(optimizer, 4)) == pytest.approx([0.4, 0.1])


def test_a_child_with_a_schedule_can_be_moved_alone():
    optimizer = grouped(schedules.ExponentialDecay(0.1, 2, 0.5, staircase=True), 0.1)
    at(optimizer, 2).group_optimizers["group_0"].learning_rate = 0.01
    assert rates(optimizer) == pytest.approx([0.01, 0.1])
    optimizer.learning_rate = 0.2
    assert rates(at(optimizer, 4)) == pytest.approx([0.01, 0.2])


def test_a_callable_rate_has_a_multiplier_too():
    optimizer = grouped(lambda: 0.1, 0.1)
    optimizer.learning_rate = 0.2
    assert rates(optimizer) == pytest.approx([0.2, 0.2])


warm_up = schedules.PolynomialDecay(0.0, 10, 0.1)  # rises from 0


def test_a_rate_written_where_the_schedule_gives_zero_is_left_with_a_warning():
    optimizer = grouped(0.01, warm_up)
    with pytest.warns(
        UserWarning, match=r"`0\.5` was not written: it is a multiple of the group's schedule, which gives 0"
    ):
        optimizer.learning_rate = 0.5
    assert rates(at(optimizer, 10)) == pytest.approx([0.01, 0.1])
    optimizer.learning_rate = 0.5
    assert rates(optimizer) == pytest.approx([0.05, 0.5])


def test_a_scheduler_that_halves_a_rate_of_zero_changes_nothing():
    optimizer = grouped(0.01, warm_up)
    optimizer.learning_rate = float(optimizer.learning_rate) / 2
    assert rates(at(optimizer, 10)) == pytest.approx([0.01, 0.1])


def test_a_child_alone_is_left_with_a_warning_where_its_schedule_gives_zero():
    optimizer = grouped(warm_up, 0.1)
    with pytest.warns(UserWarning, match="was not written"):
        optimizer.group_optimizers["group_0"].learning_rate = 0.5
    assert rates(at(optimizer, 10)) == pytest.approx([0.1, 0.1])


# -- Always -----------------------------------------------------------------------------------------------------------

positive = st.floats(1e-8, 1.0)
written = st.one_of(st.just(0.0), st.floats(0, 1e30), st.floats(0, 1e-37), st.floats(1e-6, 1.0))


@settings(deadline=None, max_examples=40)
@given(st.lists(positive, min_size=2, max_size=4), st.lists(written, max_size=6), st.booleans())
def test_the_ratios_survive_any_writes_of_the_rate(initial, writes, scheduled):
    optimizer = grouped(*(schedules.ExponentialDecay(r, 3, 0.5) if scheduled else r for r in initial))
    for step, value in enumerate(writes):
        optimizer.learning_rate = value
        at(optimizer, step)
    at(optimizer, 0).learning_rate = initial[-1]
    np.testing.assert_allclose(rates(optimizer), initial, rtol=1e-6)


# -- Rates that are exchanged -----------------------------------------------------------------------------------------


def test_a_group_is_given_another_rate_and_gets_its_own_back():
    optimizer = grouped(0.1, schedules.ExponentialDecay(0.4, 1, 0.5))
    optimizer.reschedule("group_0", schedules.ExponentialDecay(0.8, 1, 0.5))
    optimizer.reschedule("group_1", 0.3)
    assert rates(at(optimizer, 2)) == pytest.approx([0.2, 0.3])
    optimizer.reschedule("group_0")
    optimizer.reschedule("group_1")
    assert rates(optimizer) == pytest.approx([0.1, 0.1])


def test_an_exchanged_schedule_counts_from_now_if_asked_to():
    optimizer = at(grouped(0.1, 0.2), 5)
    optimizer.reschedule("group_0", schedules.ExponentialDecay(0.8, 1, 0.5), from_now=True)
    optimizer.reschedule("group_1", schedules.ExponentialDecay(0.8, 1, 0.5))
    assert rates(at(optimizer, 6)) == pytest.approx([0.4, 0.8 * 0.5**6])


def test_a_compiled_step_reads_from_where_a_schedule_counts():
    optimizer = grouped(0.1)
    fall = schedules.ExponentialDecay(0.8, 1, 0.5)
    optimizer.reschedule("group_0", fall, from_now=True)
    rate = tf.function(lambda: tf.convert_to_tensor(optimizer.group_optimizers["group_0"].learning_rate))
    assert float(rate()) == pytest.approx(0.8)
    optimizer.iterations.assign(3)
    assert float(rate()) == pytest.approx(0.1)
    optimizer.reschedule("group_0", fall, from_now=True)
    assert float(rate()) == pytest.approx(0.8)
    assert rate.experimental_get_tracing_count() == 1


def test_a_number_can_warm_up_from_now():
    optimizer = at(grouped(0.1), 7)
    optimizer.reschedule("group_0", 0.4, warmup_steps=4)
    assert [rates(at(optimizer, step))[0] for step in (7, 8, 11, 20)] == pytest.approx([0.0, 0.1, 0.4, 0.4])


def test_what_scales_all_groups_scales_an_exchanged_rate_until_it_is_taken_back():
    optimizer = grouped(0.1, 0.2)
    optimizer.learning_rate = 0.1
    optimizer.reschedule("group_0", 0.6)
    assert rates(optimizer) == pytest.approx([0.3, 0.1])
    optimizer.reset_rates()
    assert rates(optimizer) == pytest.approx([0.6, 0.2])


def test_exchanging_rates_changes_nothing_in_what_is_saved():
    optimizer = grouped(0.1, schedules.ExponentialDecay(0.4, 1, 0.5))
    optimizer.build(optimizer.group_variables)
    before = [variable.path for variable in optimizer.variables]
    optimizer.reschedule("group_0", schedules.ExponentialDecay(0.8, 1, 0.5), from_now=True)
    optimizer.reschedule("group_1", 0.3)
    assert [variable.path for variable in optimizer.variables] == before


@pytest.mark.parametrize("rate", [0.5, schedules.ExponentialDecay(0.5, 10, 0.5)], ids=["number", "schedule"])
def test_a_share_of_a_rate_is_taken_of_the_whole_rate_each_time_and_scaled_with_the_others(rate):
    optimizer = grouped(rate, 1.0)
    optimizer.learning_rate = 2.0
    optimizer.share_rate("group_0", 0.5)
    assert rates(optimizer) == pytest.approx([0.5, 2.0])
    optimizer.share_rate("group_0", 0.25)
    assert rates(optimizer) == pytest.approx([0.25, 2.0])
    optimizer.learning_rate = 1.0
    assert rates(optimizer) == pytest.approx([0.125, 1.0])
    optimizer.reset_rates()
    assert rates(optimizer) == pytest.approx([0.125, 1.0])


def test_a_scaled_schedule_is_saved_as_its_schedule():
    schedule = schedules.ExponentialDecay(0.5, 10, 0.5)
    held = held_rate(grouped(schedule, 0.1).group_optimizers["group_0"])
    assert held.get_config() == {"schedule": keras.saving.serialize_keras_object(schedule)}


def test_a_rate_that_is_set_after_a_reset_is_that_rate():
    optimizer = grouped(0.1, 0.2)
    optimizer.learning_rate = 0.02
    optimizer.reset_rates()
    assert rates(optimizer) == pytest.approx([0.1, 0.2])
    optimizer.reschedule("group_0", 0.4)
    assert rates(optimizer) == pytest.approx([0.4, 0.2])


def test_a_tape_does_not_record_the_step_from_which_a_schedule_counts():
    optimizer = grouped(0.1)
    optimizer.reschedule("group_0", schedules.ExponentialDecay(0.8, 1, 0.5), from_now=True)
    with tf.GradientTape() as tape:
        tf.convert_to_tensor(optimizer.group_optimizers["group_0"].learning_rate)
    assert tape.watched_variables() == ()
