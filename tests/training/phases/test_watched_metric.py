"""A metric that is watched must be measured, except in epochs without validation."""

import numpy as np
import pytest

from finetune.errors import TrainingError
from finetune.training.phases.phase import Phase
from finetune.training.phases.plateau import Plateau
from finetune.training.phases.until import Until
from finetune.training.phases.watched_metric import validates_after


def test_a_metric_that_is_not_measured_is_an_error_that_names_those_that_are(tiny, rows, prepared, train):
    model = tiny()
    groups = prepared(model)
    with pytest.raises(TrainingError) as caught:
        train(model, groups, [Phase(epochs=2, until=Until("val_loss"))], rows)
    assert str(caught.value) == (
        "The metric that `until` watches must be measured. Received `val_loss`; measured are `loss`. Metrics that begin "
        "with `val_` need validation examples. Did you mean `loss`?"
    )


@pytest.mark.parametrize("frequency", [2, [2, 4]])
def test_until_and_plateau_wait_over_epochs_without_validation(tiny, rows, frequency, prepared, train, note_rates):
    model = tiny()
    groups = prepared(model)
    # No epoch counts as better than the first validation, which is after epoch 2: the phase ends after the next one.
    until, plateau = Until("val_loss", min_delta=100.0, patience=1), Plateau("val_loss", min_delta=100.0, patience=1)
    rates = note_rates()
    records = train(
        model,
        groups,
        [Phase(epochs=9, until=until, reduce_on_plateau=plateau)],
        rows,
        validation_data=rows,
        validation_freq=frequency,
        callbacks=rates,
    )
    assert records[0].epochs == 4
    assert rates.of("head")[-1] == pytest.approx(0.1)
    with pytest.raises(TrainingError, match="Received `val_los`; measured are"):
        train(
            model,
            groups,
            [Phase(epochs=4, until=Until("val_los"))],
            rows,
            validation_data=rows,
            validation_freq=frequency,
        )


@pytest.mark.parametrize(
    "ending", [{"until": Until("val_loss", patience=1)}, {"reduce_on_plateau": Plateau("val_loss")}]
)
def test_a_metric_that_is_no_number_in_every_epoch_is_an_error(tiny, rows, prepared, train, ending):
    model = tiny()
    groups = prepared(model)
    x, y = rows
    with pytest.raises(TrainingError, match="`val_loss` was none in all 2 epochs, so none of them counted as progress"):
        train(model, groups, [Phase(epochs=2, **ending)], rows, validation_data=(x, y, np.full(len(x), np.nan)))


@pytest.mark.parametrize(("frequency", "epochs"), [(1, [0, 1, 2, 3]), (2, [1, 3]), (3, [2]), ([1, 4], [0, 3])])
def test_fit_validates_after_the_epochs_that_its_frequency_says(frequency, epochs):
    assert [epoch for epoch in range(4) if validates_after(epoch, frequency)] == epochs
