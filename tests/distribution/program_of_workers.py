"""Runs in each of two real processes; writes what it has seen as JSON. What it shows is asserted in the tests."""

import json
import os
import signal
import sys
from pathlib import Path

from finetune.distribution.cluster import read_tf_config
from finetune.distribution.greeting import open_channel

cluster = read_tf_config()
channel = open_channel(cluster)

import keras  # noqa: E402 - after the greeting, as in a run
import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402

from finetune import GroupedOptimizer, GroupMonitor, NonFiniteGradients, Selector, resolve_groups  # noqa: E402
from finetune.data.batches import steps_per_epoch, training_batches  # noqa: E402
from finetune.distribution.exchanged_arrays import exchange_of  # noqa: E402
from finetune.distribution.loss_means import exact_means, in_share  # noqa: E402
from finetune.distribution.reductions import metrics_of_all, sum_step, written_statistics  # noqa: E402
from finetune.distribution.workers import join, leaving, training_together, workers  # noqa: E402
from finetune.training.fast.fast_loop import FastLoop  # noqa: E402
from finetune.training.features import cache  # noqa: E402
from finetune.training.features.cut import find_cut  # noqa: E402
from finetune.training.together import SameWeights  # noqa: E402

ROWS, BATCH = 17, 8  # the last batch has a single row
seen: dict = {}


def plain(tensor):
    return tf.cast(tensor, tf.float64).numpy().tolist()


def sums():
    index, share = cluster.index, workers()
    values = [
        tf.constant([[1.0, 2.0]]) * (index + 1),
        None,
        tf.constant(10 * (index + 1), tf.int64),
        tf.constant([0.5], tf.bfloat16),
        tf.IndexedSlices(tf.ones((index + 1, 2)) * (index + 1), tf.range(index + 1), tf.constant([4, 2])),
        tf.constant([index], tf.float32),
    ]
    dense, nothing, number, half, sparse, last = tf.function(lambda: share.sums(values), autograph=False)()
    seen["sums"] = [plain(dense), nothing, plain(number), plain(half), plain(tf.convert_to_tensor(sparse)), plain(last)]
    seen["sparse rows"] = sparse.indices.numpy().tolist()


def step():
    """Worker 0 has the whole batch."""
    of_batch, statistic = tf.constant(1.0 - cluster.index), tf.Variable([1.0])

    @tf.function(autograph=False)
    def run():
        before = statistic.read_value()
        statistic.assign_add([1.0 + 4 * cluster.index])
        changes = [(statistic, before)]
        loss, gradients = sum_step(workers(), of_batch, 3 * of_batch, [2.0 * of_batch[tf.newaxis], None], changes)
        return loss, gradients[0]

    loss, gradient = run()
    seen["step"] = [plain(loss), plain(gradient), plain(statistic)]


def metrics():
    metric, generator = keras.metrics.Mean(), keras.random.SeedGenerator(5)

    @tf.function(autograph=False)
    def run(value):
        with metrics_of_all(workers(), metric.variables):
            metric.update_state([value, value])
        with training_together(), exact_means(), in_share(tf.constant(1), tf.constant(0.5)):
            seed = tf.identity(generator.next())
        return metric.result(), seed

    results = [run(tf.constant(1.0 + 2 * cluster.index)) for _ in range(2)]
    seen["mean"], seen["seed inside"], seen["seed"] = (
        plain(results[-1][0]),
        plain(results[-1][1]),
        plain(generator.state),
    )
    seen["counted"] = plain(metric.count)


def written():
    model = keras.Sequential(
        [keras.Input((3,)), keras.layers.BatchNormalization(name="a"), keras.layers.BatchNormalization(name="b")]
    )
    model.layers[1].trainable = False
    found = []

    @tf.function(autograph=False)
    def run(x):
        model(x, training=True)
        found.extend(variable.path for variable in written_statistics(model.non_trainable_variables))

    run(tf.ones((2, 3)))
    seen["written"] = sorted(path.removeprefix(f"{model.name}/") for path in found)


def exchanged():
    given_to_all = exchange_of(workers())
    index = cluster.index
    nan = np.array([np.nan, 0.0], np.float32)
    arrays = [np.array([index, -0.0], np.float32), np.array([[True, index == 1, False]]), np.array([0.5], np.float16)]
    of_all = given_to_all(arrays)
    seen["exchanged"] = [[array.tolist() for array in of_one] for of_one in of_all]
    seen["exchanged bits"] = [str(of_all[1][0][1]), str(given_to_all([nan])[0][0][0])]


def features():
    """How many batches a worker computes alone and with the other, and whether the features are the same."""
    model, x = made(), np.random.default_rng(0).normal(size=(35, 4)).astype("float32")
    model.layers[0].trainable = False
    calls, compiled = [], cache._compiled

    def counted(front, spec):
        run = compiled(front, spec)
        return lambda batch: calls.append(len(batch[0]) == 8) or run(batch)  # others are of a few rows beforehand

    cache._compiled = counted
    found = []
    for together in (None, workers()):
        calls.clear()
        kept = cache.cached_features(find_cut(model), x, batch_size=8, mode="memory", workers=together)
        [rows] = kept.values.values()
        found += [sum(calls), rows.take(np.arange(35)).numpy().tobytes()]
    seen["features"] = [found[0], found[2], found[1] == found[3]]


def made(embeds=False, frozen_norm=False, masked=False, synchronized=False):
    keras.utils.set_random_seed(3)
    if masked:  # rows of different lengths, and a loss for each place
        embedding = keras.layers.Embedding(9, 5, mask_zero=True)
        return keras.Sequential([keras.Input((4,), dtype="int32"), embedding, keras.layers.Dense(3, name="head")])
    if synchronized:
        norm = keras.layers.BatchNormalization(synchronized=True)
        dense = keras.layers.Dense(5, activation="relu")
        return keras.Sequential([keras.Input((4,)), dense, norm, keras.layers.Dense(3, name="head")])
    if embeds:
        layers = [keras.Input((4,), dtype="int32"), keras.layers.Embedding(9, 5), keras.layers.Flatten()]
    else:
        layers = [keras.Input((4,)), keras.layers.Dense(5, activation="relu", kernel_regularizer="l2")]
    layers += [keras.layers.BatchNormalization(trainable=False)] if frozen_norm else []
    return keras.Sequential([*layers, keras.layers.Dense(3, name="head")])


def trained(
    together,
    *,
    rows=ROWS,
    float16=False,
    weights=False,
    network=(),
    kernels="exact",
    measured=False,
    bad_row=None,
    **options,
):
    """Returns the weights, and the metrics of three epochs with what was measured and left out in them."""
    random = np.random.default_rng(0)
    masked = "masked" in network
    x = (
        random.integers(0, 4 if masked else 9, (rows, 4))
        if masked or "embeds" in network
        else random.normal(size=(rows, 4)).astype("float32")
    )
    y = random.integers(0, 3, (rows, 4) if masked else rows)
    if bad_row is not None:
        x[bad_row, 0] = np.nan
    keras.config.set_dtype_policy("mixed_float16" if float16 else "float32")
    model = made(**dict.fromkeys(network, True))
    keras.config.set_dtype_policy("float32")
    body, head = model.layers[:-1], model.layers[-1:]
    adam, sgd = keras.optimizers.Adam(1e-2), keras.optimizers.SGD(1e-1, momentum=0.9)
    optimizer = GroupedOptimizer({"body": (adam, body), "head": (sgd, head)}, **options)
    if float16:
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=2.0**30)  # some steps overflow
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(
        optimizer, loss, metrics=["accuracy"], weighted_metrics=["accuracy"] if weights else None, steps_per_execution=2
    )
    batches = training_batches(
        x,
        y,
        batch_size=BATCH,
        seed=1,
        sample_weight=np.linspace(0, 2, rows).astype("float32") if weights else None,
        share=workers().share if together else (0, 1),
    )
    callbacks = [FastLoop(kernels), *([SameWeights(workers())] if together else [])]
    if measured or bad_row is not None:
        groups = resolve_groups(model, [Selector("body", layers="0:-1"), Selector("head", rest=True)])
        monitor, careful = GroupMonitor(groups, every_steps=2), NonFiniteGradients("skip", groups)
        callbacks.append(monitor if measured else careful)
    history = model.fit(batches, steps_per_epoch=steps_per_epoch(rows, BATCH), epochs=3, verbose=0, callbacks=callbacks)
    metrics = dict(history.history)
    if measured:
        assert monitor.said == [], monitor.said
        metrics["measured"] = monitor.table[:, 3:].ravel().tolist()
    if bad_row is not None:
        seen["left out"] = [careful.skipped, str(careful.first)]
    return [weight.numpy() for weight in model.weights], metrics


def compare(name, **case):
    alone, metrics_alone = trained(together=False, **case)
    workers().pads = (case.get("rows", ROWS) - 1) % BATCH + 1 < 2
    with training_together():
        both, metrics_both = trained(together=True, **case)
    difference = np.max([np.abs(a - b).max() for a, b in zip(alone, both, strict=True)])
    of_metrics = np.max([np.abs(np.subtract(values, metrics_both[key])).max() for key, values in metrics_alone.items()])
    seen.setdefault("trained", {})[name] = [float(difference), float(of_metrics)]


with leaving():
    signal.signal(signal.SIGTERM, lambda number, frame: seen.setdefault("signal", number))
    join(channel)
    os.kill(os.getpid(), signal.SIGTERM)
    for part in (sums, step, metrics, written, exchanged, features):
        part()
    compare("clipped, an empty part, measured", global_clipnorm=0.5, measured=True)
    compare("sparse", network=["embeds"], rows=13)
    averaged = {"gradient_accumulation_steps": 2, "use_ema": True}
    compare("accumulated, averaged, weighted, native", **averaged, weights=True, rows=13, kernels="native")
    compare("loss scale, frozen normalization", float16=True, network=["frozen_norm"], rows=16)
    compare("masked", network=["masked"])
    # A row of one worker that is no number, in the first step of a call: no worker makes it.
    compare("synchronized normalization, a step left out", network=["synchronized"], bad_row=2, rows=40)
    # Last, since it ends the training: a weight that a worker has changed.
    model = made()
    model.compile("sgd", "mse")
    if cluster.index:
        model.layers[0].bias.assign([1.0, 0.0, 0.0, 0.0, 0.0])
    try:
        same = SameWeights(workers())
        same.set_model(model)
        same.on_epoch_end(4)
    except Exception as error:
        seen["differs"] = f"{type(error).__name__}: {error}"
    folder = Path(sys.argv[1])
    (folder / f"{cluster.index}.json").write_text(json.dumps(seen))
    assert os.environ["TF_CONFIG"]
