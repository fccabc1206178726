"""Names that Keras does not know."""

import keras
import pytest

from finetune.models import nearest_names
from finetune.models.nearest_names import offer_names

METRICS = [name for name, value in vars(keras.metrics).items() if callable(value)]
LOSSES = [name for name, value in vars(keras.losses).items() if callable(value)]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("f1", " Keras calls it `f1_score`."),
        ("RMSE", " Keras calls it `root_mean_squared_error`."),
        ("roc_auc", " Keras calls it `auc`."),
        ("acuracy", None),
        ("huber_loss", None),
        ("categorical", None),
        ("zzz", ""),
    ],
)
def test_a_metric_is_answered_with_what_keras_calls_it(name, said):
    answer = offer_names(name, [*METRICS, "accuracy"], LOSSES, "a loss")
    assert answer == said if said is not None else True
    assert said is not None or answer.startswith((" Did you mean", " Those"))


def test_a_metric_in_place_of_a_loss_is_called_one():
    assert offer_names("accuracy", LOSSES, ["accuracy"], "a metric") == " It is a metric."
    assert offer_names("smooth_l1", LOSSES, METRICS, "a metric") == " Keras calls it `huber`."


def test_every_name_that_is_offered_is_one_of_keras():
    offered = {name.removeprefix("{name: ").partition(",")[0] for name in nearest_names._ELSEWHERE.values()}
    plain = {each.lower().replace("_", "") for each in (*METRICS, *LOSSES)}
    assert {name for name in offered if name.replace("_", "") not in plain} == set()
