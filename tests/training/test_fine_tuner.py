"""Fine-tuning in three lines: each step by itself, and equal to what it is composed of."""

import doctest

import keras
import numpy as np
import pytest

import finetune
from finetune.errors import FinetuneError, GroupError, TrainingError
from finetune.groups.selectors import Selector
from finetune.training import fine_tuner as module
from finetune.training.lr_range.consensus import Verdict

GROUPS = ("stem", "body", "head")


def by_selectors(**more):
    return [
        Selector("stem", prefixes=("stem", "bn"), **more),
        Selector("body", prefixes=("body",)),
        Selector("head", rest=True),
    ]


@pytest.fixture
def tuner(tiny, rows):
    """Makes a `FineTuner` of the tiny model that prints nothing."""

    def make(*data, **more):
        keras.utils.set_random_seed(0)
        return finetune.FineTuner(tiny(), *(data or rows), **{"groups": by_selectors(), "verbose": False, **more})

    return make


def values(model):
    return {variable.path: variable.numpy() for variable in model.variables}


def assert_same(first, second):
    assert [name for name in first if not np.array_equal(first[name], second[name])] == []


def test_the_example_runs():
    assert doctest.testmod(module).failed == 0


def test_a_strategy_by_name_ends_with_the_bits_of_train_phases(tuner, tiny, rows):
    ours = tuner(optimizer="sgd", learning_rate=slice(2**-8, 2**-6), batch_size=30)
    result = ours.fit(strategy="gradual_unfreezing", epochs=4, shuffle=False)
    assert [record.train for record in result.records] == [("head",), ("body", "head"), GROUPS]
    assert all(record.frozen_unchanged for record in result.records)

    keras.utils.set_random_seed(0)
    model = tiny()
    groups = finetune.resolve_groups(model, by_selectors())
    sgd = {name: keras.optimizers.SGD(rate) for name, rate in ours.learning_rates.items()}
    model.compile(
        finetune.GroupedOptimizer({group.name: (sgd[group.name], group) for group in groups}),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
        jit_compile=False,
    )
    finetune.train_phases(model, groups, "gradual_unfreezing", *rows, epochs=4, batch_size=30, shuffle=False)
    assert_same(values(ours.model), values(model))


def test_equal_rates_end_with_the_bits_of_plain_keras_and_a_second_fit_goes_on(tuner, tiny, rows):
    ours = tuner(optimizer=keras.optimizers.Adam(1e-2))
    assert ours.learning_rates == {"stem": 1e-2, "body": 1e-2, "head": 1e-2}
    ours.fit(1, shuffle=False)
    ours.fit(2, shuffle=False)
    keras.utils.set_random_seed(0)
    model = tiny()
    model.compile(keras.optimizers.Adam(1e-2), "sparse_categorical_crossentropy", jit_compile=False)
    model.fit(*rows, epochs=3, verbose=0, shuffle=False)
    assert_same(values(ours.model), values(model))


def test_the_rate_of_a_range_test_is_applied_by_one_call_and_the_test_leaves_no_trace(tuner):
    ours = tuner(learning_rate=slice(1e-4, 1e-2))
    before = values(ours.model)
    tested = ours.lr_range(repeats=2)
    assert_same(before, values(ours.model))
    assert tested.suggestion == tested.learning_rates["head"]
    assert f"suggested for `head`: {tested.suggestion:.3g}" in str(tested)
    for rate in (tested, tested.suggestion):
        [phase] = ours.phases(2, rate)
        assert phase.rates == pytest.approx(tested.learning_rates)  # with the ratios of the groups
    assert ours.learning_rates["head"] == 1e-2  # for that call alone


def test_a_rate_is_not_trained_with_where_the_range_test_suggests_none(tuner):
    ours = tuner()
    verdict = Verdict(None, 0.0, "the curve is flat.")
    refused = module.RangeTest({}, {"all groups": verdict}, ours.learning_rates)
    for take in (lambda: refused.suggestion, lambda: ours.fit(1, refused)):
        with pytest.raises(TrainingError, match=r"suggests no rate. the curve is flat. Repeat it"):
            take()


def test_auto_measures_with_more_sweeps_where_one_is_too_noisy(tuner, monkeypatch):
    ours, asked = tuner(), []
    one = ours.lr_range(repeats=2)
    none = module.RangeTest({}, {"all groups": Verdict(None, 0.0, "no")}, ours.learning_rates)
    monkeypatch.setattr(ours, "lr_range", lambda **more: asked.append(more) or (one if more else none))
    [phase] = ours.phases(1, "auto")
    assert phase.rates == pytest.approx(one.learning_rates)
    assert asked == [{}, {"repeats": 5}]


def test_slices_mean_what_they_mean_in_fastai(tuner):
    ours = tuner()
    assert ours.phases(1, slice(1e-5, 1e-3))[0].rates == pytest.approx({"stem": 1e-5, "body": 1e-4, "head": 1e-3})
    assert ours.phases(1, slice(1e-3))[0].rates == pytest.approx({"stem": 1e-4, "body": 1e-4, "head": 1e-3})


def test_fine_tune_has_the_epochs_groups_and_rates_of_fastai(tuner):
    ours, seen = tuner(batch_size=30), []
    rates = keras.callbacks.LambdaCallback(
        on_train_batch_begin=lambda batch, logs: seen.append(ours.model.optimizer.learning_rates)
    )
    result = ours.fine_tune(2, 2e-3, callbacks=[rates])
    assert [(record.train, record.epochs) for record in result.records] == [(("head",), 1), (GROUPS, 2)]

    def cos(first, last, share):  # `SchedCos` of fastai
        return first + (1 + np.cos(np.pi * (1 - share))) * (last - first) / 2

    def one_cycle(peak, step, steps, pct_start, div, final=1e5):  # `fit_one_cycle`, by `combined_cos`
        at = step / steps
        up, down = at / pct_start, (at - pct_start) / (1 - pct_start)
        return cos(peak / div, peak, up) if at < pct_start else cos(peak, peak / final, down)

    of_head = [one_cycle(2e-3, step, 3, 0.99, 25) for step in range(3)]
    of_head += [one_cycle(1e-3, step, 6, 0.3, 5) for step in range(6)]
    np.testing.assert_allclose([rates["head"] for rates in seen], of_head, rtol=1e-5)
    np.testing.assert_allclose([rates["body"] for rates in seen[3:]], [rate / 10 for rate in of_head[3:]], rtol=1e-5)
    np.testing.assert_allclose([rates["stem"] for rates in seen[3:]], [rate / 100 for rate in of_head[3:]], rtol=1e-5)


def test_the_plan_shows_what_fit_does_with_the_same_arguments_and_trains_nothing(tuner):
    ours = tuner()
    before = values(ours.model)
    plan = ours.plan(4, slice(1e-5, 1e-3), strategy="lp_ft")
    assert [(phase.train, phase.epochs) for phase in plan.phases] == [(("head",), 2), (GROUPS, 2)]
    assert "1e-05" in str(plan)
    assert "moving statistics of BatchNormalization" in plan.advice[-1]  # which the stem has, and the head has not
    assert "restored" not in str(plan)
    assert repr(plan) == str(plan)
    assert_same(before, values(ours.model))
    alone = ours.plan(1, train="head")
    assert [row.frozen for row in alone.weights if row.name.startswith("body")] == [True, True]
    assert alone.advice == ()
    assert not alone.phases


def test_one_cycle_is_seen_in_the_lines_and_in_the_curve_of_the_rates(tuner, capsys):
    result = tuner(batch_size=10).fit(2, 1e-2, schedule="one_cycle", verbose=True)
    printed = " ".join(capsys.readouterr().out.split())
    assert "head 7.50e-03 (was 9.97e-03" in printed  # the peak lies between two of its nine steps
    rates = [row["learning_rate/head"] for row in result.rates]
    assert len(rates) == 18
    assert 9.7e-3 < max(rates) <= 1e-2
    assert rates[-1] < 2e-4
    assert list(result.history) == ["accuracy", "loss", *(f"learning_rate/{name}" for name in GROUPS)]
    assert repr(result).startswith("FitResult(2 epochs: accuracy ")


def test_a_dataset_of_images_in_folders_trains_with_its_validation_and_its_names(tmp_path, capsys):
    for name in "ab":
        (tmp_path / name).mkdir()
        for n in range(4):
            keras.utils.save_img(tmp_path / name / f"{n}.png", np.full((8, 8, 3), 10 * n), scale=False)
    layers = [keras.layers.Flatten(), keras.layers.Dense(2, activation="softmax", name="head")]
    model = keras.Sequential([keras.Input((8, 8, 3)), *layers])
    settings = {"image_size": (8, 8), "batch_size": 2, "validation_split": 0.5, "subset": "both", "seed": 1}
    both = keras.utils.image_dataset_from_directory(tmp_path, verbose=False, **settings)
    tuner = finetune.FineTuner(model, both)
    assert tuner.data.class_names == ("a", "b")
    assert "val_accuracy" in tuner.fit(1).history
    assert sorted(tuner.evaluate()) == ["accuracy", "loss"]  # on the rows to validate on
    assert "`sparse_categorical_crossentropy`" in capsys.readouterr().out


def test_examples_bring_their_test_rows_and_predictions_and_a_file_follow(tuner, rows, tmp_path):
    x, y = rows
    ours = tuner(finetune.Examples(x[:60], y[:60], x[60:], y[60:], class_names=("a", "b", "c")))
    ours.fit(1)
    metrics = ours.evaluate()
    assert ours.predict(x[:2]).shape == (2, 3)
    loaded = keras.models.load_model(ours.save(tmp_path / "model.keras"))
    assert loaded.evaluate(x[60:], y[60:], verbose=0, return_dict=True) == pytest.approx(metrics)


def test_a_compiled_model_keeps_its_loss_metrics_and_kind_of_optimizer_also_the_second_time(tiny, rows):
    model = tiny()
    model.compile(keras.optimizers.SGD(0.02, momentum=0.9), "sparse_categorical_crossentropy", metrics=["accuracy"])
    tuner = finetune.FineTuner(model, *rows, groups="layer", verbose=False)
    child = model.optimizer.group_optimizers["head"]
    assert (type(child).__name__, child.momentum, tuner.learning_rates["head"]) == ("SGD", 0.9, 0.02)
    again = finetune.FineTuner(model, *rows, groups="layer", verbose=False)  # a cell of a notebook, run once more
    assert again.learning_rates["head"] == 1e-3
    assert "accuracy" in again.fit(1).history


def test_frozen_groups_stay_frozen(tuner):
    ours = tuner(groups=by_selectors(frozen=True))
    before = values(ours.model)
    [record] = ours.fit(1).records
    changed = [name for name, value in values(ours.model).items() if not np.array_equal(value, before[name])]
    assert record.train == ("body", "head")
    assert not any("stem" in name or "bn" in name for name in changed)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda t, x, y: t.fit(1, lr=1e-3), "takes no argument `lr`. Received `lr`. It is called `learning_rate`"),
        (lambda t, x, y: t.fine_tune(1, freeze_epochs=2), "It is called `frozen_epochs`"),
        (lambda t, x, y: t.fit(2, strategy="gradual_unfreezin"), "`strategy` is not a known value.* Did you mean"),
        (lambda t, x, y: t.fit(strategy="lp_ft"), "`strategy` does not say how long its last phase is"),
        (lambda t, x, y: t.fit(1, strategy="lp_ft", train="head"), "A strategy says which groups train when"),
        (lambda t, x, y: t.fit(1, strategy=[finetune.Phase("head", 1)]), "each with its own `epochs`"),
        (lambda t, x, y: t.fit(1, train="hed"), "names `hed`, which is not a group.*Did you mean `head`"),
        (lambda t, x, y: t.fit(1, schedule="onecycle"), "Did you mean `one_cycle`"),
        (lambda t, x, y: t.evaluate(), "An evaluation needs rows that were not trained on"),
        (lambda t, x, y: t.save("model.h5"), "written to a `.keras` file. Received `model.h5`. Write `model.keras`"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_before_anything_is_trained(tuner, rows, make, message):
    ours = tuner()
    with pytest.raises(FinetuneError, match=message):
        make(ours, *rows)
    assert int(ours.model.optimizer.iterations) == 0


def test_a_plan_and_a_schedule_need_to_know_how_long_an_epoch_is(tuner, rows):
    def batches():
        while True:
            yield rows[0][:10], rows[1][:10]

    ours = tuner(batches(), loss="sparse_categorical_crossentropy")
    for ask in (lambda: ours.plan(1), lambda: ours.fit(1, schedule="one_cycle")):
        with pytest.raises(GroupError, match="unknown"):
            ask()
    assert ours.fit(2, schedule="one_cycle", steps_per_epoch=3).records[0].steps == 6
