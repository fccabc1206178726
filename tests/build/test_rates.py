import inspect

import pytest

from finetune.build.data import RunLength
from finetune.build.rates import build_rate, build_run_rate
from finetune.errors import GroupError
from finetune.optimizers.schedules import chain, make_schedule, schedule_functions, with_warmup
from finetune.recipe.extensions import Extension
from finetune.recipe.learning_rates import SCHEDULES, read_schedule

LENGTH = RunLength(epochs=10, steps_per_epoch=20)
STEPS = (0, 1, 10, 19, 20, 39, 40, 41, 50, 65, 99, 100, 101, 150, 199, 200, 250)


def rates_of(schedule):
    return [float(schedule(step)) for step in STEPS]


DECAY = {"initial": 1e-2, "decay_rate": 0.5}
# What a recipe writes with lengths in steps, and the arguments of the function it stands for.
WRITTEN = {
    "exponential_decay": {**DECAY, "decay_steps": 50, "staircase": True},
    "natural_exponential_decay": {**DECAY, "decay_steps": 50, "staircase": True},
    "inverse_time_decay": {**DECAY, "decay_steps": 50, "staircase": True},
    "polynomial_decay": {"initial": 1e-2, "decay_steps": 50, "end": 1e-3, "power": 2.0, "cycle": True},
    "piecewise_constant_decay": {"boundaries": [20, 100], "values": [1e-2, 1e-3, 1e-4]},
    "cosine_decay": {"initial": 1e-2, "decay_steps": 50, "alpha": 0.1},
    "cosine_decay_restarts": {"initial": 1e-2, "first_decay_steps": 50, "t_mul": 1.5, "m_mul": 0.9, "alpha": 0.1},
    "inverse_square_root": {"peak": 1e-2, "warmup_steps": 50},
    "slanted_triangular": {"peak": 1e-2, "total_steps": 50, "cut_fraction": 0.2, "ratio": 10.0},
    "one_cycle": {"peak": 1e-2, "total_steps": 50, "warmup_fraction": 0.3, "div": 10.0, "final_div": 1e3},
    "warmup_stable_decay": {
        "peak": 1e-2,
        "total_steps": 100,
        "decay_steps": 50,
        "warmup_steps": 20,
        "alpha": 0.1,
        "shape": "1-sqrt",
    },
    "constant": {"initial": 1e-2},
}


def built(name, **written):
    return build_rate(read_schedule({"schedule": name, **written}), LENGTH)


def test_every_schedule_of_the_schema_is_tried_here():
    assert {*WRITTEN, "chain"} == set(SCHEDULES)


@pytest.mark.parametrize("name", sorted({*SCHEDULES} - {"chain"}))
def test_a_schedule_of_a_recipe_is_the_function_of_that_name_with_all_its_arguments(name):
    assert rates_of(built(name, **WRITTEN[name])) == rates_of(make_schedule(name, **WRITTEN[name]))


def test_the_schema_and_the_functions_name_the_same_schedules_and_arguments():
    functions = schedule_functions()
    assert set(SCHEDULES) == set(functions) - {"with_warmup"}
    leading = {"warmup_steps", "warmup_from"}
    for name, model in SCHEDULES.items():
        written = {field for field in model.model_fields if not field.endswith(("_epochs", "_fraction"))}
        written |= {
            field for field in ("warmup_fraction", "cut_fraction") if name in ("one_cycle", "slanted_triangular")
        }
        written &= {*model.model_fields}
        written -= {"schedule"} | (leading if "warmup_from" in model.model_fields else set())
        written -= {"warmup_fraction"} if "warmup_steps" in model.model_fields else set()
        assert written == set(inspect.signature(functions[name]).parameters), name


def test_the_schema_and_the_functions_have_the_same_defaults():
    for name, model in SCHEDULES.items():
        for parameter in inspect.signature(schedule_functions()[name]).parameters.values():
            field = model.model_fields[parameter.name]
            if parameter.default is not parameter.empty:
                assert field.default == parameter.default, f"{name}.{parameter.name}"
            elif not parameter.name.endswith("_steps") and parameter.name != "boundaries":
                assert field.is_required(), f"{name}.{parameter.name}"


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        *((name, "decay") for name in SCHEDULES if "decay_steps" in WRITTEN.get(name, {})),
        ("cosine_decay_restarts", "first_decay"),
        ("inverse_square_root", "warmup"),
        ("slanted_triangular", "total"),
        ("one_cycle", "total"),
    ],
)
def test_a_length_in_epochs_or_as_a_fraction_of_the_run_is_the_same_in_steps(name, stem):
    rest = {key: value for key, value in WRITTEN[name].items() if key != f"{stem}_steps"}
    in_steps = rates_of(built(name, **rest, **{f"{stem}_steps": 50}))
    assert rates_of(built(name, **rest, **{f"{stem}_epochs": 2.5})) == in_steps
    assert rates_of(built(name, **rest, **{f"{stem}_fraction": 0.25})) == in_steps


@pytest.mark.parametrize("name", ["slanted_triangular", "one_cycle"])
def test_a_schedule_of_the_whole_run_is_as_long_as_the_run(name):
    assert rates_of(built(name, peak=1e-2)) == rates_of(make_schedule(name, peak=1e-2, total_steps=200))


def test_boundaries_have_three_spellings():
    values = [1e-2, 1e-3, 1e-4]
    expected = rates_of(make_schedule("piecewise_constant_decay", boundaries=[20, 100], values=values))
    assert rates_of(built("piecewise_constant_decay", values=values, boundaries_epochs=[1, 5])) == expected
    assert rates_of(built("piecewise_constant_decay", values=values, boundaries_fraction=[0.1, 0.5])) == expected


@pytest.mark.parametrize("warmup", [{"warmup_steps": 40}, {"warmup_epochs": 2}, {"warmup_fraction": 0.2}])
@pytest.mark.parametrize("name", sorted(name for name in WRITTEN if "warmup_from" in SCHEDULES[name].model_fields))
def test_a_warm_up_goes_in_front_of_any_schedule_that_has_none_of_its_own(name, warmup):
    plain = make_schedule(name, **WRITTEN[name])
    expected = rates_of(with_warmup(plain, 40, start=0.25))
    assert rates_of(built(name, **WRITTEN[name], **warmup, warmup_from=0.25)) == expected


def test_a_chain_is_made_of_schedules_each_with_its_own_lengths():
    parts = [
        {"schedule": "constant", "initial": 1e-3, "warmup_epochs": 1},
        {"schedule": "cosine_decay", "initial": 1e-2, "decay_fraction": 0.25},
    ]
    expected = chain(
        [
            with_warmup(make_schedule("constant", initial=1e-3), 20),
            make_schedule("cosine_decay", initial=1e-2, decay_steps=50),
        ],
        [60],
    )
    assert rates_of(built("chain", schedules=parts, boundaries_epochs=[3])) == rates_of(expected)


def test_a_number_stays_a_number():
    assert build_rate(1, LENGTH) == 1.0


BROKEN = "{schedule: piecewise_constant_decay, values: [1, 2, 3], boundaries_fraction: [0.01, 0.02]}"


def test_lengths_that_fall_together_in_a_short_run_are_reported_with_place_and_group(recipe, problem):
    assert problem(recipe, f"groups.body.learning_rate={BROKEN}").startswith(
        "tiny.yaml:6:5: group `body`: schedule `piecewise_constant_decay`: `boundaries` must be increasing whole numbers "
    )


def extended(rate, *extensions):
    parts = [Extension(by=by, at_steps=at, total_steps=total) for by, at, total in extensions]
    schedule = build_run_rate(rate, LENGTH, parts)
    return [float(schedule(step)) if callable(schedule) else schedule for step in STEPS]


def test_a_run_that_is_stretched_has_the_rates_of_its_new_length():
    cosine = read_schedule({"schedule": "cosine_decay", "initial": 1e-2, "decay_fraction": 1.0})
    assert extended(cosine) == rates_of(build_rate(cosine, LENGTH))


def test_an_appended_stretch_holds_the_last_rate_that_was_trained_with():
    cosine = read_schedule({"schedule": "cosine_decay", "initial": 1e-2, "decay_fraction": 1.0})
    before = make_schedule("cosine_decay", initial=1e-2, decay_steps=100)
    expected = [float(before(min(step, 99))) for step in STEPS]
    assert extended(cosine, ("append", 100, 100)) == expected
    assert extended(0.5, ("append", 100, 100)) == [0.5] * len(STEPS)


def test_a_cooldown_falls_in_a_straight_line_to_0_at_the_end_of_the_run():
    rates = extended(1e-2, ("cooldown", 100, 150))
    expected = [1e-2 * min(1, (200 - step) / 100) if step < 200 else 0 for step in STEPS]
    assert rates == pytest.approx(expected, rel=1e-6)
    # And one that comes after an appended stretch falls from what was held.
    twice = extended(1e-2, ("append", 50, 50), ("cooldown", 100, 150))
    assert twice == pytest.approx(expected, rel=1e-6)


def test_nothing_falls_from_0():
    with pytest.raises(GroupError, match="from the rate of its last step, which is 0 in step 101"):
        extended(
            read_schedule({"schedule": "polynomial_decay", "initial": 1.0, "decay_steps": 50, "end": 0.0}),
            ("cooldown", 101, 150),
        )
