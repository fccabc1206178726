import keras
import tensorflow as tf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from finetune import GroupMonitor, resolve_groups
from finetune.optimizers.grouped import GroupedOptimizer
from finetune.training.callbacks import LearningRateLogger
from finetune.training.tensorboard_log import TensorBoardLog


def compiled(model):
    body, head = (keras.optimizers.SGD(1e-3), model.layers[:-1]), (keras.optimizers.SGD(1e-2), model.layers[-1])
    optimizer = GroupedOptimizer({"body": body, "head": head})
    model.compile(optimizer, loss="sparse_categorical_crossentropy", metrics=["accuracy"], run_eagerly=True)
    return model


def fit(model, rows, *callbacks, epochs=2, **more):
    return model.fit(*rows, batch_size=30, epochs=epochs, verbose=0, callbacks=list(callbacks), **more).history


def curves(folder):
    accumulator = EventAccumulator(str(folder), size_guidance={"tensors": 0})
    accumulator.Reload()
    tags = accumulator.Tags()["tensors"]
    return {tag: [(e.step, float(tf.make_ndarray(e.tensor_proto))) for e in accumulator.Tensors(tag)] for tag in tags}


def test_tensorboard_gets_the_curves_that_keras_own_callback_writes_and_no_rate_twice(tiny, rows, tmp_path):
    keras_own = keras.callbacks.TensorBoard(str(tmp_path / "keras"), write_graph=False)
    ours = TensorBoardLog(tmp_path / "ours")
    fit(compiled(tiny()), rows, LearningRateLogger(), keras_own, ours, validation_split=0.3)
    for part in ("train", "validation"):
        expected = curves(tmp_path / "keras" / part)
        doubled = {tag for tag in expected if tag == "epoch_learning_rate" or "evaluation_" in tag}
        assert curves(tmp_path / "ours" / part) == {tag: row for tag, row in expected.items() if tag not in doubled}
    assert {"epoch_loss", "epoch_learning_rate/body"} <= set(curves(tmp_path / "ours" / "train"))


def test_what_was_measured_of_the_groups_is_in_the_same_file_by_steps(tiny, rows, tmp_path):
    model = compiled(tiny())
    monitor = GroupMonitor(resolve_groups(model, by="layer"), every_steps=2)
    log = TensorBoardLog(tmp_path, rows_of_steps=monitor.rows_since)
    fit(model, rows, monitor, log, epochs=2)
    log.close()
    assert len([*(tmp_path / "train").iterdir()]) == 1
    written = curves(tmp_path / "train")
    for tag, column in {
        "batch_loss": "loss",
        "gradient_norm/head": "gradient_norm/head",
        "drift/bn": "drift/bn",
    }.items():
        expected = [(row["step"], float(tf.constant(row[column]))) for row in monitor.rows]
        assert written[tag] == expected
    assert [step for step, _ in written["drift/bn"]] == [2, 4, 6]


def test_logs_for_tensorboard_that_cannot_be_written_for_a_while_go_on_in_another_file(tiny, rows, tmp_path, at_epochs):
    said = []
    log = TensorBoardLog(tmp_path / "logs", said.append)
    fit(compiled(tiny()), rows, log, at_epochs(1, 1, 200), epochs=4)
    assert sorted(step for step, _ in curves(tmp_path / "logs" / "train")["epoch_loss"]) == [0, 2, 3]
    assert len(said) == 1
    assert "Training goes on" in said[0]


def test_after_several_failures_few_epochs_try_to_write_a_log(tmp_path):
    (tmp_path / "logs").write_text("in the way")
    said = []
    log = TensorBoardLog(tmp_path / "logs", said.append)
    for epoch in range(100):
        log.on_epoch_end(epoch, {"loss": 1.0})
    assert (len(said), log._gap) == (1, 128)
