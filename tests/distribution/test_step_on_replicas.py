"""What several replicas compute is what one computes: `replicas.py` trains on 1 and 2 (with `--grid` 4), in a process of its own."""

import json
import subprocess
import sys
from pathlib import Path

import keras
import pytest
import tensorflow as tf

from finetune.distribution.step_on_replicas import WHOLE_BATCH, moving_variables

PROGRAM = Path(__file__).with_name("replicas.py")


@pytest.fixture(scope="module")
def differences(request):
    """The largest difference of any weight, slot or metric from that of one replica, by the case and the replicas."""
    sample = [] if request.config.getoption("--grid") else ["--sample"]
    done = subprocess.run([sys.executable, PROGRAM, *sample], capture_output=True, text=True, check=False)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert lines, done.stderr[-3000:]
    return {line["case"]: line.get("worst") or line["error"] for line in lines}


def test_replicas_train_as_one_with_all_that_an_optimizer_has(differences):
    assert differences["everything"].keys() == {"2", "4"}
    assert max(differences["everything"].values()) < 1e-6


def test_a_batch_with_fewer_rows_than_replicas_is_weighted_as_on_one(differences):
    assert differences["fewer_rows_than_replicas"].keys() == {"2", "4"}
    assert max(differences["fewer_rows_than_replicas"].values()) < 1e-6


@pytest.mark.parametrize(
    "case",
    [
        *("masked_tokens", "weighted_mean", "moving_mean_of_local_batch_norm"),
        *("phases_of_the_users_own_model", "learning_rates", "a_loop_of_ones_own"),
        *("a_trial_of_precision", "steps_of_ones_own", "measured_groups", "steps_left_out"),
        "overflow_on_the_last_replica",
    ],
)
def test_several_replicas_compute_what_one_does(differences, case):
    assert max(differences[case].values()) < 1e-6


def test_mixed_precision_differs_by_its_rounding(differences):
    assert max(differences["half_precision"].values()) < 1e-3


def test_training_on_replicas_goes_on_bit_for_bit(differences):
    assert {*differences["going_on"].values()} == {0.0}


def test_frozen_groups_send_nothing(differences):
    head, scalars, body, norm = 8 * 3 + 3, 3, 5 * 8 + 8 + 2 * 8, 2 * 8 + 2 * (2 * 8 + 2 * 8)
    [(frozen, trained)] = differences["sent"].values()
    assert frozen == head + scalars
    assert trained == head + scalars + body + norm  # moving statistics; moments and their gradients


def test_a_single_replica_has_the_whole_batch():
    x, loss = {"a": None, "b": tf.zeros((3, 2))}, tf.constant(2.0)
    assert int(WHOLE_BATCH.rows(x)) == 3
    assert WHOLE_BATCH.total(loss) is loss
    assert WHOLE_BATCH.counted(x) is x


def test_moving_statistics_are_those_of_layers_that_are_not_frozen():
    norms = [keras.layers.BatchNormalization(name="a"), keras.layers.BatchNormalization(name="b")]
    model = keras.Sequential([keras.Input((2,)), *norms, keras.layers.Dropout(0.5), keras.layers.Dense(1)], name="m")
    assert [v.path for v in moving_variables(model)] == [
        *("m/a/moving_mean", "m/a/moving_variance", "m/b/moving_mean", "m/b/moving_variance"),
    ]
    norms[0].trainable = False
    model.layers[-1].kernel.trainable = False  # frozen, and not updated by the forward pass
    assert [v.path for v in moving_variables(model)] == ["m/b/moving_mean", "m/b/moving_variance"]
