"""Real runs of two and three processes; each of them shows several things, since TensorFlow takes seconds to start."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pytest

from finetune.commands.launch import launch_run
from finetune.commands.run import run
from finetune.errors import FinetuneError

RECIPE = """
seed: 7
model: {builder: finetune.examples.networks:mlp, arguments: {units: [8, 8]}, head: {classes: 3}}
data: {npz: rows.npz}
groups:
  - {name: body, prefixes: [hidden_0, hidden_1], optimizer: {name: sgd, momentum: 0.9}, learning_rate: 1.0e-2}
  - {name: head, rest: true, optimizer: adamw, learning_rate: 1.0e-3}
phases: [{train: head, epochs: 1}, {train: all, epochs: 2}]
train: {batch_size: 6, loss: sparse_categorical_crossentropy, metrics: [accuracy], global_clipnorm: 1.0, checkpoint_steps: 2}
report: {page: false}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("launch")
    x = np.random.default_rng(0).normal(size=(32, 4)).astype("float32")
    y = (x[:, 0] > 0).astype(int) + (x[:, 1] > 0)
    np.savez(
        folder / "rows.npz",
        x_train=x[:20],
        y_train=y[:20],
        x_validation=x[20:26],
        y_validation=y[20:26],
        x_test=x[26:],
        y_test=y[26:],
    )
    (folder / "recipe.yaml").write_text(RECIPE)
    return folder


def rows_of_metrics(out):
    return list(csv.DictReader((out / "metrics.csv").read_text().splitlines()))


def weights(out):
    return [weight.numpy() for weight in keras.models.load_model(out / "model.keras").weights]


def test_three_workers_fine_tune_what_one_process_does(folder):
    """20 rows in batches of 6: the last of an epoch has 2 rows for 3 workers."""
    alone, together, lines = folder / "alone", folder / "together", []
    run(folder / "recipe.yaml", alone)
    code = launch_run(folder / "recipe.yaml", 3, together, show=lambda line, is_error: lines.append(line))
    assert code == 0, "\n".join(lines)
    for a, b in zip(weights(alone), weights(together), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    for one, other in zip(rows_of_metrics(alone), rows_of_metrics(together), strict=True):
        np.testing.assert_allclose([float(v) for v in one.values()], [float(v) for v in other.values()], atol=2e-6)
    results = [json.loads((out / "result.json").read_text())["metrics"] for out in (alone, together)]
    np.testing.assert_allclose([*results[0].values()], [*results[1].values()], atol=1e-6)
    assert sorted(path.name for path in (together / "workers").iterdir()) == [
        f"worker-{index}.log" for index in range(3)
    ]
    assert {path.name for path in together.iterdir()} - {path.name for path in alone.iterdir()} == {"workers"}


def test_a_worker_that_is_killed_ends_the_others_and_a_run_of_another_number_goes_on(folder):
    """Killed with SIGKILL in the middle; a single process goes on where two were, and ends as one that was alone."""
    out, changes = folder / "killed", ["phases.1.epochs=24", "train.checkpoint_steps=20"]
    command = [
        sys.executable,
        "-m",
        "finetune",
        "launch",
        str(folder / "recipe.yaml"),
        "--workers",
        "2",
        "--out",
        str(out),
    ]
    command += [part for change in changes for part in ("--set", change)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        next(line for line in process.stdout if line.startswith("0: epoch 10/"))
        children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
        environments = {int(pid): Path(f"/proc/{pid}/environ").read_text() for pid in children}
        os.kill(next(pid for pid, text in environments.items() if '"index": 1' in text), signal.SIGKILL)
        begin = time.monotonic()
        _, errors = process.communicate(timeout=60)
    assert time.monotonic() - begin < 30
    assert process.returncode == 1
    assert "0: error: All workers of a run train together. Worker 1 (`127.0.0.1:" in errors
    assert "`) has ended without a word: it was killed, or its machine is gone. The weights after epoch" in errors
    assert "Begin all workers anew with `--resume`, which goes on from `" in errors
    assert "Worker 1 was ended by SIGKILL, and the others were ended after it." in errors
    run(folder / "recipe.yaml", out, overrides=changes, resume=True)
    assert "going on at epoch" in (out / "run.log").read_text()
    run(folder / "recipe.yaml", folder / "long", overrides=changes)
    for a, b in zip(weights(folder / "long"), weights(out), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)  # after 100 steps
    assert len(rows_of_metrics(out)) == 25


def test_workers_that_are_told_different_things_end_with_a_sentence_on_each(folder):
    from finetune.distribution.worker_processes import local_clusters

    processes = []
    for cluster in local_clusters(2):
        command = [sys.executable, "-m", "finetune", "run", str(folder / "recipe.yaml"), "--out", str(folder / "told")]
        command += ["--set", f"seed={7 + cluster.index}"]
        environment = os.environ | {"TF_CONFIG": cluster.to_tf_config()}
        processes.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
    errors = [process.communicate(timeout=100)[1] for process in processes]
    assert [process.returncode for process in processes] == [2, 2]
    assert errors[0] == errors[1]
    assert "seed: `7` at worker 0, `8` at worker 1" in errors[0]
    assert not (folder / "told").exists()


def test_a_wrong_recipe_starts_no_process(folder, monkeypatch):
    monkeypatch.chdir(folder)
    with pytest.raises(FinetuneError, match=r"`train\.epoch` is not a known key"):
        launch_run(folder / "recipe.yaml", 2, overrides=["train.epoch=3"])
    assert not (folder / "runs").exists()
