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


def through_a_file(schedule, **more):
    return json.loads(json.dumps({**describe_schedule(schedule, None), "rate": 0.25, **more}))


def test_the_schedule_that_an_optimizer_was_made_with_is_said_to_be_that():
    schedule = exponential_decay(0.1, decay_steps=2, decay_rate=0.5)
    saved = describe_schedule(schedule, schedule)
    other = constant(0.5)
    assert saved == {"initial": True}
    assert read_schedule(saved, other, None, "body") is other


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
    again = read_schedule(through_a_file(schedule), None, None, "body")
    assert type(again) is type(schedule)
    assert [float(again(step)) for step in range(6)] == [float(schedule(step)) for step in range(6)]


def test_an_equal_schedule_that_is_followed_already_stays_itself():
    present = exponential_decay(0.1, decay_steps=4, decay_rate=0.5)
    saved = through_a_file(exponential_decay(0.1, decay_steps=4, decay_rate=0.5))
    assert read_schedule(saved, None, present, "body") is present


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
        again = read_schedule(saved, None, None, "body")
    assert float(again(7)) == 0.25


def test_a_file_imports_nothing():
    config = {"module": "os", "class_name": "system", "config": {}, "registered_name": None}
    nested = keras.saving.serialize_keras_object(ExponentialDecay(0.1, 4, 0.5))
    nested["config"]["initial_learning_rate"] = config
    for saved in (config, nested):
        with pytest.warns(UserWarning, match="Group `body` followed `system`, which is a class that is not registered"):
            read_schedule({"config": saved, "rate": 0.1}, None, None, "body")


def test_the_function_that_is_followed_already_stays():
    def falling():
        return 0.1

    assert read_schedule(through_a_file(falling), None, falling, "body") is falling


def test_a_schedule_whose_class_has_changed_is_replaced_by_its_rate_with_a_warning():
    saved = through_a_file(Registered())
    saved["config"]["config"] = {"an_argument_that_was_renamed": 1}
    with pytest.warns(
        UserWarning, match=r"`Registered`, which is a class that has changed \(TypeError: .*\)\. It now has the rate"
    ):
        again = read_schedule(saved, None, None, "body")
    assert float(again(7)) == 0.25
