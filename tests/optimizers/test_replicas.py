import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import tensorflow as tf

from finetune.optimizers.replicas import in_every_replica, update_once

REPLICAS = """
    import keras
    import numpy as np
    import tensorflow as tf
    from finetune.optimizers.grouped import GroupedOptimizer

    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    mirrored = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"], tf.distribute.ReductionToOneDevice())
    X = np.random.default_rng(0).integers(0, 5, (16, 3))
    Y = np.random.default_rng(1).standard_normal((16, 2)).astype("f4")

    def train(strategy, **settings):
        keras.utils.set_random_seed(1)
        with strategy.scope():
            layers = [keras.layers.Embedding(5, 4), keras.layers.Flatten(), keras.layers.Dense(2)]
            model = keras.Sequential([keras.Input((3,), dtype="int32"), *layers])
            optimizer = GroupedOptimizer({
                "body": (keras.optimizers.AdamW(0.1, weight_decay=0.1), layers[0]),
                "head": (keras.optimizers.SGD(keras.optimizers.schedules.ExponentialDecay(0.5, 2, 0.5)), layers[2]),
            }, **settings)
            optimizer.build(model.trainable_variables)
        model.compile(optimizer, loss="mse", jit_compile=False)
        model.fit(X, Y, batch_size=8, epochs=3, shuffle=False, verbose=0)
        return [v.numpy() for v in model.variables], int(keras.ops.convert_to_numpy(optimizer.iterations))

    for settings in [
        {},
        {"clipnorm": 0.05},
        {"merge_rows": True, "global_clipnorm": 0.05},
        {"gradient_accumulation_steps": 2, "global_clipnorm": 0.05},
        {"use_ema": True, "ema_momentum": 0.5, "ema_overwrite_frequency": 2},
    ]:
        (one, steps), (two, count) = train(tf.distribute.get_strategy(), **settings), train(mirrored, **settings)
        assert steps == count, settings
        worst = max(float(np.abs(a - b).max()) for a, b in zip(one, two))
        print(settings, "worst", worst)
        assert worst < 1e-6, (settings, worst)
"""


@pytest.mark.grid
@pytest.mark.slow
def test_two_replicas_train_as_one():
    program = [sys.executable, "-c", textwrap.dedent(REPLICAS)]  # a process of its own: devices are set once
    done = subprocess.run(program, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert done.stdout.count("worst") == 5


def test_with_one_replica_a_step_is_called_as_it_is():
    calls = []
    update_once(lambda gradients, variables: calls.append((gradients, variables)), [1], [2])
    in_every_replica(lambda *arguments: calls.append(arguments), 3, 4)
    assert calls == [([1], [2]), (3, 4)]


def test_outside_of_the_replicas_a_step_is_called_as_it_is():
    calls = []
    with tf.distribute.OneDeviceStrategy("CPU:0").scope():
        assert tf.distribute.get_replica_context() is None
        update_once(lambda gradients, variables: calls.append((gradients, variables)), [1], [2])
    assert calls == [([1], [2])]


def test_one_replica_is_not_merged_since_rules_expect_a_replica_context():
    contexts = []
    update_once(lambda *_: contexts.append(tf.distribute.in_cross_replica_context()), [tf.ones(1)], [])
    assert contexts == [False]


def test_a_rule_that_is_called_for_every_replica_is_in_a_replica_context():
    contexts = []
    with tf.distribute.OneDeviceStrategy("CPU:0").scope():
        in_every_replica(lambda: contexts.append(tf.distribute.in_cross_replica_context()))
    assert contexts == [False]
