import numpy as np
import pytest
from keras.optimizers import schedules as keras_schedules

from finetune.errors import GroupError
from finetune.optimizers.schedule_arguments import check_names, checked
from finetune.optimizers.schedules import (
    chain,
    constant,
    exponential_decay,
    make_schedule,
    one_cycle,
    piecewise_constant_decay,
    with_warmup,
)


def message(call):
    with pytest.raises(GroupError) as caught:
        call()
    return str(caught.value)


def test_unknown_and_missing_arguments_are_reported_together_with_the_form():
    assert message(lambda: make_schedule("exponential_decay", initial=0.1, decay_step=3, staircase=True)) == (
        "schedule `exponential_decay` does not take `decay_step` and requires `decay_steps`, `decay_rate`. "
        "Its form is `exponential_decay(initial, decay_steps, decay_rate, staircase=False)`. "
        "Did you mean `decay_steps` or `decay_rate`?"
    )
    assert message(lambda: make_schedule("constant", initial=0.1, zzz=1)) == (
        "schedule `constant` does not take `zzz`. Its form is `constant(initial)`. Write exactly these names."
    )


def test_all_broken_bounds_are_reported_at_once():
    assert message(lambda: exponential_decay(0.0, -5, 0.96)) == (
        "schedule `exponential_decay`: `initial` must be a finite number above 0, received `0.0`; "
        "`decay_steps` must be a whole number of at least 1, received `-5`. "
        "Its form is `exponential_decay(initial, decay_steps, decay_rate, staircase=False)`. "
        "To keep a group unchanged, write `frozen: true`, not a rate of 0."
    )


def test_a_rate_that_yaml_took_for_text_is_explained():
    assert message(lambda: make_schedule("cosine_decay", initial="1e-5", decay_steps=10)) == (
        "schedule `cosine_decay`: `initial` must be a finite number above 0, received `'1e-5'`. "
        "Its form is `cosine_decay(initial, decay_steps, alpha=0.0)`. "
        "Write numbers as numbers; YAML reads `1e-5` as text, `1.0e-5` as a number."
    )


def test_a_number_where_a_schedule_belongs_is_sent_to_constant():
    told = message(lambda: with_warmup(0.001, 10))
    assert "`schedule` must be a learning rate schedule, as `constant` makes one, received `0.001`" in told


def test_boundaries_that_do_not_fit_their_pieces_are_counted():
    assert message(lambda: piecewise_constant_decay([10, 20], [0.1, 0.2])) == (
        "schedule `piecewise_constant_decay`: `values` must have 1 entry more than `boundaries`, which lie between them. "
        "Received 2 `values` and 2 `boundaries`. Write 3 `values`."
    )
    assert "Received 3 `schedules` and 1 `boundaries`." in message(lambda: chain([constant(0.1)] * 3, [10]))


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("name", "arguments", "broken"),
    [
        ("constant", {"initial": NAN}, "initial"),
        ("constant", {"initial": INF}, "initial"),
        ("constant", {"initial": -0.1}, "initial"),
        ("constant", {"initial": True}, "initial"),
        ("constant", {"initial": None}, "initial"),
        ("exponential_decay", {"initial": 0.1, "decay_steps": 10, "decay_rate": 0}, "decay_rate"),
        ("exponential_decay", {"initial": 0.1, "decay_steps": 2.5, "decay_rate": 0.9}, "decay_steps"),
        ("natural_exponential_decay", {"initial": 0.1, "decay_steps": 0, "decay_rate": 0.9}, "decay_steps"),
        ("inverse_time_decay", {"initial": 0.1, "decay_steps": 9, "decay_rate": 1, "staircase": 1}, "staircase"),
        ("polynomial_decay", {"initial": 0.1, "decay_steps": 10, "end": -0.1}, "end"),
        ("polynomial_decay", {"initial": 0.1, "decay_steps": 10, "power": 0}, "power"),
        ("cosine_decay", {"initial": 0.1, "decay_steps": 10, "alpha": 1.5}, "alpha"),
        ("cosine_decay_restarts", {"initial": 0.1, "first_decay_steps": 10, "t_mul": 0.5}, "t_mul"),
        ("cosine_decay_restarts", {"initial": 0.1, "first_decay_steps": 10, "m_mul": 0}, "m_mul"),
        ("slanted_triangular", {"peak": 0.1, "total_steps": 10, "cut_fraction": 0.0}, "cut_fraction"),
        ("slanted_triangular", {"peak": 0.1, "total_steps": 10, "cut_fraction": 1.0}, "cut_fraction"),
        ("slanted_triangular", {"peak": 0.1, "total_steps": 10, "ratio": 0.5}, "ratio"),
        ("one_cycle", {"peak": 0.1, "total_steps": 10, "warmup_fraction": 1}, "warmup_fraction"),
        ("one_cycle", {"peak": 0.1, "total_steps": 10, "final_div": 0}, "final_div"),
        ("inverse_square_root", {"peak": 0.1, "warmup_steps": True}, "warmup_steps"),
        ("with_warmup", {"schedule": constant(0.1), "warmup_steps": 5, "start": -1}, "start"),
        ("chain", {"schedules": [constant(0.1), 0.1], "boundaries": [3]}, "schedules"),
        ("chain", {"schedules": [constant(0.1)], "boundaries": []}, "boundaries"),
        ("piecewise_constant_decay", {"boundaries": [10, 10], "values": [0.1, 0.2, 0.3]}, "boundaries"),
        ("piecewise_constant_decay", {"boundaries": 10, "values": [0.1, 0.2]}, "boundaries"),
        ("piecewise_constant_decay", {"boundaries": [10], "values": [0.1, 0.0]}, "values"),
    ],
)
def test_a_bound_is_checked_when_the_schedule_is_made(name, arguments, broken):
    told = message(lambda: make_schedule(name, **arguments))
    assert told.startswith(f"schedule `{name}`: `{broken}` must be ")
    assert told.count("received") == 1
    assert f"Its form is `{name}(" in told


def test_a_schedule_altered_in_its_file_is_checked_when_it_is_read():
    config = keras_schedules.serialize(one_cycle(0.1, 10))
    config["config"]["arguments"]["peak"] = -1.0
    assert "`peak` must be a finite number above 0, received `-1.0`" in message(
        lambda: keras_schedules.deserialize(config)
    )


def test_arguments_become_plain_numbers_that_a_file_can_hold():
    arguments = {"initial": np.float32(0.5), "decay_steps": np.int64(7), "decay_rate": 1, "staircase": True}
    plain = checked(exponential_decay, arguments)
    assert plain == {"initial": 0.5, "decay_steps": 7, "decay_rate": 1.0, "staircase": True}
    assert [type(value) for value in plain.values()] == [float, int, float, bool]
    assert checked(chain, {"schedules": [constant(0.1), constant(0.2)], "boundaries": (np.int32(3),)})[
        "boundaries"
    ] == [3]


def test_names_that_a_function_takes_pass():
    check_names(exponential_decay, {"initial": None, "decay_steps": None, "decay_rate": None})


@pytest.mark.parametrize(
    "arguments",
    [
        {"name": "cosine_decay", "initial": 0.1, "decay_steps": 1, "alpha": 1},
        {"name": "cosine_decay", "initial": 0.1, "decay_steps": 1, "alpha": 0},
        {"name": "polynomial_decay", "initial": 0.1, "decay_steps": 4, "end": 0},
        {"name": "slanted_triangular", "peak": 0.1, "total_steps": 10, "ratio": 1},
        {"name": "piecewise_constant_decay", "boundaries": [1], "values": [0.1, 0.2]},
    ],
)
def test_bounds_that_belong_to_the_range_are_accepted(arguments):
    name, *_ = arguments.values()
    rate = make_schedule(name, **{key: value for key, value in arguments.items() if key != "name"})
    assert np.isfinite(float(rate(1)))


def test_text_among_other_wrong_arguments_is_explained_too():
    said = message(lambda: make_schedule("exponential_decay", initial="1e-5", decay_steps=0, decay_rate=0.5))
    assert "YAML reads `1e-5` as text" in said
