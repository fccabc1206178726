"""What many tests share. Settings that TensorFlow reads when it is imported come first."""

import gc
import os
import signal
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
# Test processes run side by side, one a core: threads of their own would only get in each other's way.
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")
os.environ.setdefault("TF_NUM_INTEROP_THREADS", "1")

# How long an example takes says more about what else the machine does than about the code.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    # A shell starts what runs in the background so. Programs that the tests start would inherit it, and never end.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser):
    parser.addoption("--grid", action="store_true", help="run all members of long grids (marks `grid`, `sample`)")


def pytest_collection_modifyitems(config, items):
    """Leaves out what is marked `grid`, and all but n members of a test marked `sample(n)`, unless all is asked for."""
    if config.getoption("--grid"):
        return
    left_out = [item for item in items if item.get_closest_marker("grid")]
    tests = {}
    for item in items:
        if item.get_closest_marker("sample") and item not in left_out:
            tests.setdefault(item.nodeid.partition("[")[0], []).append(item)
    for members in tests.values():
        (count,) = members[0].get_closest_marker("sample").args
        kept = {round(place) for place in np.linspace(0, len(members) - 1, count)}  # as far apart as can be
        left_out += [member for place, member in enumerate(members) if place not in kept]
    config.hook.pytest_deselected(items=left_out)
    without = {*left_out}
    items[:] = [item for item in items if item not in without]


def pytest_collection_finish():
    """Takes the modules of TensorFlow and of the tests, which stay, out of what Python searches for garbage.

    A search of all of them takes a third of a second, and `keras.utils.clear_session` makes one each time. While a step
    is traced, Python searches every few milliseconds and finds little: a twentieth of the time of a small run.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 10, 10)


RECIPE = """\
seed: 3
model: {keras_file: FOLDER/tiny.keras}
data: {npz: FOLDER/rows.npz}
groups:
  - {name: stem, prefixes: [stem, bn], frozen: true}
  - name: body
    prefixes: [body]
    optimizer: {name: momentum, momentum: 0.9}
    learning_rate: {schedule: exponential_decay, initial: 1.0e-2, decay_steps: 4, decay_rate: 0.5, staircase: true}
  - {name: head, rest: true, optimizer: adamw, learning_rate: 2.0e-2}
train: {epochs: 2, batch_size: 16, loss: sparse_categorical_crossentropy, metrics: [accuracy]}
"""


@pytest.fixture
def tiny():
    """Makes the model `stem`, `bn`, `body`, `head`: 6 numbers in, 3 classes out, 10 weights."""
    return tiny_model


@pytest.fixture
def rows():
    """90 rows of 6 numbers and their classes 0, 1, 2, which can be learned."""
    return tiny_rows()


@pytest.fixture(scope="session")
def tiny_files(tmp_path_factory):
    """A folder with `tiny.keras`, `rows.npz` (60 training, 30 test rows) and `tiny.yaml`, a recipe for them; read only."""
    import keras

    folder = tmp_path_factory.mktemp("tiny")
    keras.utils.set_random_seed(0)
    tiny_model().save(folder / "tiny.keras")
    x, y = tiny_rows()
    np.savez(folder / "rows.npz", x_train=x[:60], y_train=y[:60], x_test=x[60:], y_test=y[60:])
    (folder / "tiny.yaml").write_text(RECIPE.replace("FOLDER/", ""))
    return folder


@pytest.fixture
def recipe(tiny_files, tmp_path, monkeypatch):
    """A recipe file for the tiny model, alone in the working directory: 2 epochs of 4 steps."""
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text(RECIPE.replace("FOLDER", str(tiny_files)))
    return Path("tiny.yaml")


@pytest.fixture
def encoder():
    """Makes a new `encoder_model` with the weights of those in `encoder_folder`."""
    return encoder_model()


@pytest.fixture(scope="session")
def encoder_folder(tmp_path_factory):
    """A SavedModel of `encoder_model`, in the form that TensorFlow Hub reuses; read only."""
    from finetune import export_hub

    return export_hub(encoder_model(), tmp_path_factory.mktemp("hub") / "encoder")


def encoder_model():
    import keras
    from keras import layers

    keras.utils.set_random_seed(5)
    parts = [
        keras.Input((6,)),
        layers.Dense(8, name="stem"),
        layers.BatchNormalization(momentum=0.5, name="bn"),
        layers.Dense(8, activation="relu", kernel_regularizer=keras.regularizers.L2(0.1), name="body"),
    ]
    return keras.Sequential(parts, name="encoder")


def tiny_model():
    import keras
    from keras import layers

    parts = [
        keras.Input((6,)),
        layers.Dense(8, name="stem"),
        layers.BatchNormalization(name="bn"),
        layers.Dense(8, activation="relu", name="body"),
        layers.Dense(3, activation="softmax", name="head"),
    ]
    return keras.Sequential(parts, name="tiny")


def tiny_rows():
    classes = np.arange(90) % 3
    noise = np.random.default_rng(0).normal(size=(90, 6)).astype("float32")
    return noise + np.eye(3, 6, dtype="float32")[classes] * 2, classes
