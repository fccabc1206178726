"""What several replicas compute is what one computes: `replicas.py` trains on 1, 2 and 4, in a process of its own."""

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
def differences():
    """The largest difference of any weight, slot or metric from that of one replica, by the case and the replicas."""
    done = subprocess.run([sys.executable, PROGRAM], capture_output=True, text=True, check=False)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert lines, done.stderr[-3000:]
    return {line["case"]: line.get("worst") or line["error"] for line in lines}


CASES = [
    *("everything", "fewer_rows_than_replicas", "masked_tokens", "weighted_mean", "half_precision"),
]


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_replicas_train_as_one(differences, case):
    bound = 1e-3 if case == "half_precision" else 1e-6
    assert {"2", "4"} == differences[case].keys(), differences[case]
    assert all(worst < bound for worst in differences[case].values())


@pytest.mark.slow
def test_every_case_of_the_program_is_looked_at(differences):
    assert set(differences) == set(CASES)


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
