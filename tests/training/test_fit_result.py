"""The figures of a training of a `FineTuner`."""

import keras
import numpy as np

import finetune


def trained(tiny, rows, *arguments, callbacks=(), **settings):
    keras.utils.set_random_seed(0)
    tuner = finetune.FineTuner(tiny(), *rows, groups="layer", verbose=False)
    return tuner.fit(*arguments, callbacks=list(callbacks), **settings)


def test_the_rates_within_an_epoch_are_drawn_where_they_are_known(tiny, rows):
    result = trained(tiny, rows, 2, schedule="one_cycle")
    [rates] = [axis for axis in result.plot().axes if axis.get_title(loc="left") == "learning rate"]
    x, y = rates.lines[-1].get_xdata(), rates.lines[-1].get_ydata()
    assert [round(float(at), 3) for at in x] == [0.5, 0.833, 1.167, 1.5, 1.833, 2.167]  # epoch 1 is from 0.5 to 1.5
    assert float(np.argmax(y)) == 2
    assert rates.get_xlim() == (0.5, 2.5)
    assert result.history["learning_rate/head"] == [row["learning_rate/head"] for row in result.rows]


def test_rates_that_something_else_has_written_are_those_that_were_read(tiny, rows):
    plateau = keras.callbacks.ReduceLROnPlateau("loss", patience=0, min_delta=10)
    result = trained(tiny, rows, 3, schedule="one_cycle", callbacks=[plateau])
    assert {int(row["epoch"] + 0.5) for row in result.rates} < {1, 2, 3}
    [rates] = [axis for axis in result.plot().axes if axis.get_title(loc="left") == "learning rate"]
    assert len(rates.lines[-1].get_xdata()) == 3


def test_a_picture_is_written_and_phases_are_numbered(tiny, rows, tmp_path):
    result = trained(tiny, rows, 3, strategy="gradual_unfreezing")
    assert [row["phase"] for row in result.rows] == [1, 2, 3]
    assert result.trained[1] == ("head",)
    assert repr(result).endswith("frozen tensors bit-identical)")
    result.plot(tmp_path / "curves")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["curves.png", "curves.svg"]
