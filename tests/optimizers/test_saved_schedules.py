import json
import re

import keras
import pytest
from keras.optimizers.schedules import ExponentialDecay, LearningRateSchedule

from finetune.optimizers.saved_schedules import describe_schedule, read_schedule
from finetune.optimizers.schedules import chain, constant, exponential_decay, with_warmup


class Unregistered(LearningRateSchedule):
    def __call__(self, step):
        return 0.1

    def get_config(self):
        return {}


@keras.saving.register_keras_serializable("tests")
class Registered(Unregistered):
    pass


class WithoutConfig(LearningRateSchedule):
    def __call__(self, step):
        return 0.1


def counter(step=3):
    return keras.Variable(step, dtype="int64", trainable=False)


def through_a_file(schedule, step=None, **more):
    described = describe_schedule(schedule, None, counter() if step is None else step)
    return json.loads(json.dumps({**described, "rate": 0.25, **more}))


def test_the_schedule_that_an_optimizer_was_made_with_is_said_to_be_that():
    schedule = exponential_decay(0.1, decay_steps=2, decay_rate=0.5)
    saved = describe_schedule(schedule, schedule, counter())
    other = constant(0.5)
    assert saved == {"initial": True}
    assert read_schedule(saved, other, None, counter(), "body") is other


@pytest.mark.parametrize(
    "schedule",
    [
        ExponentialDecay(0.1, 4, 0.5),
        exponential_decay(0.1, decay_steps=4, decay_rate=0.5, staircase=True),
        chain([with_warmup(ExponentialDecay(0.1, 4, 0.5), 2), constant(0.3)], [4]),
        Registered(),
    ],
    ids=["keras", "ours", "nested", "registered"],
)
def test_a_schedule_that_keras_can_save_is_made_again(schedule):
    again = read_schedule(through_a_file(schedule), None, None, counter(), "body")
    assert type(again) is type(schedule)
    assert [float(again(step)) for step in range(6)] == [float(schedule(step)) for step in range(6)]


def test_an_equal_schedule_that_is_followed_already_stays_itself():
    present = exponential_decay(0.1, decay_steps=4, decay_rate=0.5)
    saved = through_a_file(exponential_decay(0.1, decay_steps=4, decay_rate=0.5))
    assert read_schedule(saved, None, present, counter(), "body") is present


@pytest.mark.parametrize(
    ("schedule", "reason"),
    [
        (lambda: 0.1, "`<lambda>`, which is a function or has no `get_config`"),
        (WithoutConfig(), "`WithoutConfig`, which is a function or has no `get_config`"),
        (Unregistered(), "`Unregistered`, which is a class that is not registered with"),
    ],
    ids=["function", "no config", "not registered"],
)
def test_a_schedule_that_cannot_be_made_again_leaves_its_rate_with_a_warning(schedule, reason):
    saved = through_a_file(schedule)
    advice = "0.25, and keeps it. Call `optimizer.reschedule('body', schedule)` to go on with the schedule."
    with pytest.warns(UserWarning, match=f"Group `body` followed {reason}.*{re.escape(advice)}$"):
        again = read_schedule(saved, None, None, counter(), "body")
    assert float(again(7)) == 0.25


def test_a_file_imports_nothing():
    config = {"module": "os", "class_name": "system", "config": {}, "registered_name": None}
    nested = keras.saving.serialize_keras_object(ExponentialDecay(0.1, 4, 0.5))
    nested["config"]["initial_learning_rate"] = config
    for saved in (config, nested):
        with pytest.warns(UserWarning, match="Group `body` followed `system`, which is a class that is not registered"):
            read_schedule({"config": saved, "rate": 0.1}, None, None, counter(), "body")


def test_the_function_that_is_followed_already_stays():
    def falling():
        return 0.1

    assert read_schedule(through_a_file(falling), None, falling, counter(), "body") is falling


def test_a_schedule_whose_class_has_changed_is_replaced_by_its_rate_with_a_warning():
    saved = through_a_file(Registered())
    saved["config"]["config"] = {"an_argument_that_was_renamed": 1}
    with pytest.warns(
        UserWarning, match=r"`Registered`, which is a class that has changed \(TypeError: .*\)\. It now has the rate"
    ):
        again = read_schedule(saved, None, None, counter(), "body")
    assert float(again(7)) == 0.25


def named_alike(rate):
    return lambda: rate


def test_two_functions_of_one_name_are_one_schedule_only_if_they_give_the_same_rates():
    followed, saved = named_alike(0.1), through_a_file(named_alike(0.1))
    assert read_schedule(saved, None, followed, counter(), "body") is followed
    message = (
        "A file holds a schedule only if Keras can make it again. Group `body` followed `<lambda>`, which is a function "
        "or has no `get_config`. Here `<lambda>` gives another rate: 0.3 at step 0, and 0.1 when it was saved. It now has "
        "the rate of the moment of saving, 0.25, and keeps it. Call `optimizer.reschedule('body', schedule)` to go on "
        "with the schedule."
    )
    with pytest.warns(UserWarning, match=f"^{re.escape(message)}$"):
        again = read_schedule(saved, None, named_alike(0.3), counter(), "body")
    assert float(again(7)) == 0.25


def test_functions_that_read_the_step_are_compared_at_the_steps_of_the_file_and_the_counter_stays():
    step, later = counter(5), counter(0)

    def falling(counter, decay_rate):
        return lambda: 0.1 * decay_rate ** (int(counter.numpy()) // 10)

    saved = through_a_file(falling(step, 0.5), step)
    followed = falling(later, 0.5)
    assert read_schedule(saved, None, followed, later, "body") is followed
    with pytest.warns(UserWarning, match="gives another rate: .* at step 150, and "):  # the same up to step 9
        read_schedule(saved, None, falling(later, 0.9), later, "body")
    assert (int(step.numpy()), int(later.numpy())) == (5, 0)


def test_a_function_that_ends_is_compared_where_it_gives_a_rate():
    step, rates = counter(2), [0.3, 0.2, 0.1]

    def listed():
        return rates[int(step.numpy())]

    saved = through_a_file(listed, step)
    assert saved["samples"] == [[0, 0.3], [1, 0.2], [2, 0.1]]
    assert read_schedule(saved, None, listed, step, "body") is listed
    del rates[2]
    with pytest.warns(UserWarning, match="gives another rate: none at step 2, and 0.1 when it was saved"):
        read_schedule(saved, None, listed, step, "body")


def test_a_class_without_a_config_is_compared_by_its_rates():
    class Falling(LearningRateSchedule):
        def __init__(self, rate):
            self.rate = rate

        def __call__(self, step):
            return self.rate / (step + 1)

    followed = Falling(0.5)
    assert read_schedule(through_a_file(Falling(0.5)), None, followed, counter(), "body") is followed
    with pytest.warns(UserWarning, match="Here `Falling` gives another rate: 0.4 at step 0, and 0.5"):
        read_schedule(through_a_file(Falling(0.5)), None, Falling(0.4), counter(), "body")


@pytest.mark.parametrize("present", [True, False])
def test_a_class_that_gives_other_rates_from_the_same_config_is_replaced_by_its_rate(present, monkeypatch):
    saved = through_a_file(Registered())
    monkeypatch.setattr(Registered, "__call__", lambda self, step: 0.7)
    with pytest.warns(UserWarning, match="`Registered`, which is a class that gives another rate here: 0.7 at step 0"):
        again = read_schedule(saved, None, Registered() if present else None, counter(), "body")
    assert float(again(7)) == 0.25


def test_a_file_of_an_older_version_has_no_samples_and_is_compared_by_name():
    saved, followed = through_a_file(named_alike(0.1)), named_alike(0.3)
    del saved["samples"]
    assert read_schedule(saved, None, followed, counter(), "body") is followed
