import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from finetune.checksum import checksum
from finetune.errors import RestoreError
from finetune.groups.layer_tree import layer_tree
from finetune.pretrained.restore import restore
from finetune.pretrained.transforms import Transform

# Keras itself saves by `np.array(variable)`, which NumPy 2.4 warns of.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def functional(classes=3):
    """Two towers with layers of the same names, automatic names, attention, and BatchNorm."""
    tokens = keras.Input((4, 6))
    left, right = (keras.Sequential([layers.Input((6,)), layers.Dense(6, name="same")], name=n) for n in ("le", "ri"))
    x = layers.TimeDistributed(left)(tokens) + layers.TimeDistributed(right)(tokens)
    x = layers.MultiHeadAttention(2, 3, name="attention")(x, x)
    x = layers.Bidirectional(layers.LSTM(2))(x)
    x = layers.Dense(4)(layers.Dense(4)(x))
    x = layers.BatchNormalization(name="bn")(x)
    return keras.Model(tokens, layers.Dense(classes, name="head")(x))


def nested(classes=3):
    """Two functional models inside another one, with layers of the same names."""

    def backbone(name):
        inputs = keras.Input((4, 6))
        x = layers.DepthwiseConv1D(3, name="deep")(inputs)
        return keras.Model(inputs, layers.Conv1D(2, 1, name="conv")(x), name=name)

    inputs = keras.Input((4, 6))
    x = layers.Concatenate()([backbone("one")(inputs), backbone("two")(inputs)])
    x = layers.GlobalAveragePooling1D()(x)
    return keras.Model(inputs, layers.Dense(classes, name="head")(x))


def sequential(classes=3):
    """Automatic names only."""
    conv = [
        layers.Conv1D(3, 2),
        layers.BatchNormalization(),
        layers.Dropout(0.1),
        layers.Conv1D(3, 2),
        layers.Flatten(),
    ]
    return keras.Sequential([keras.Input((4, 6)), *conv, layers.Dense(classes)])


class Block(layers.Layer):
    def __init__(self, width):
        super().__init__()
        self.attention = layers.MultiHeadAttention(1, 2)
        self.parts = [layers.Dense(5), layers.Dropout(0.1), layers.Dense(width, name="out")]
        self.scale = self.add_weight(shape=(), initializer="ones")

    def build(self, shape):
        self.attention.build(shape, shape)
        for part in self.parts:
            part.build(shape)
            shape = part.compute_output_shape(shape)

    def call(self, x):
        y = self.attention(x, x)
        for part in self.parts:
            y = part(y)
        return x + self.scale * y


class Subclassed(keras.Model):
    """Parts in attributes, lists and dicts, before and after `layers` in the alphabet."""

    def __init__(self, classes=3):
        super().__init__()
        self.blocks = [Block(6), Block(6)]
        self.towers = [Block(6), layers.LayerNormalization()]
        self.by_name = {"x": layers.Dense(2), "y": layers.Dense(2)}
        self.rnn = layers.Bidirectional(layers.GRU(2))
        self.seq = keras.Sequential([layers.Dense(3), layers.BatchNormalization(name="bn")])
        self.bias = self.add_weight(shape=(6,), name="offset")
        self.classifier = layers.Dense(classes, name="head")

    def call(self, x):
        x = x + self.bias
        for part in (*self.blocks, *self.towers):
            x = part(x)
        x = self.rnn(self.by_name["x"](x) + self.by_name["y"](x))
        return self.classifier(self.seq(x))


def subclassed(classes=3):
    model = Subclassed(classes)
    model(np.zeros((1, 4, 6), "float32"))
    return model


MODELS = {builder.__name__: builder for builder in (functional, nested, sequential, subclassed)}


def trained(builder):
    """A compiled model with Adam's slots, all values random."""
    model = builder()
    model.compile("adam", "mse", metrics=["mae"])
    model.optimizer.build(model.trainable_variables)
    rng = np.random.default_rng(0)
    for variable in (*model.weights, *model.optimizer.variables[2:]):
        variable.assign(rng.normal(size=variable.shape))
    return model


def saved(model, kind, folder):
    if kind == "checkpoint":
        return tf.train.Checkpoint(net=model, step=tf.Variable(3)).save(str(folder / "ckpt"))
    path = folder / f"model{kind}"
    # Keras' legacy saver stops at two slots of one name, which towers with layers of the same names give.
    unique = len({weight.path for weight in model.weights}) == len(model.weights)
    model.save_weights(path) if kind == ".weights.h5" else model.save(path, include_optimizer=unique)
    return path


def scramble(model, seed=1):
    rng = np.random.default_rng(seed)
    for weight in model.weights:
        weight.assign(rng.normal(size=weight.shape))


def values(model):
    return {leaf.name: leaf.variable.numpy() for leaf in layer_tree(model).leaves}


@pytest.fixture(scope="module", params=MODELS)
def twins(request):
    """A trained model and one built before by the same code: Keras numbers their layers differently."""
    model = MODELS[request.param]()
    return trained(MODELS[request.param]), model


@pytest.mark.parametrize("kind", [".keras", ".weights.h5", ".h5", "checkpoint"])
def test_every_weight_comes_back_from_every_format_whatever_the_model_and_its_automatic_names(twins, kind, tmp_path):
    source, model = twins
    scramble(model)
    restore(model, saved(source, kind, tmp_path))
    for ours, theirs in zip(model.weights, source.weights, strict=True):
        np.testing.assert_array_equal(ours.numpy(), theirs.numpy(), err_msg=ours.path)


@pytest.fixture
def small():
    model = keras.Sequential([keras.Input((3,)), layers.Dense(4, name="body"), layers.Dense(2, name="head")])
    scramble(model)
    return model


def variant(classes=2, dtype="float32"):
    return keras.Sequential(
        [
            keras.Input((3,)),
            layers.Dense(4, name="body", dtype=dtype),
            layers.Dense(classes, name="head", dtype=dtype),
        ]
    )


def test_the_same_weights_come_back_by_the_tree_alone_when_the_names_tell_enough(small, tmp_path):
    model = variant()
    report = restore(layer_tree(model), saved(small, ".weights.h5", tmp_path))
    assert [weight.how for weight in report.restored] == ["layer and index"] * 4
    np.testing.assert_array_equal(model.weights[0].numpy(), small.weights[0].numpy())


def test_a_shape_conflict_in_an_excluded_layer_is_none_and_its_fresh_weights_stay_bit_for_bit(small, tmp_path):
    model = variant(classes=5)
    fresh = values(model)
    report = restore(model, saved(small, ".keras", tmp_path), exclude=["head"])
    assert report.excluded == {name: checksum(fresh[name]) for name in ("head/kernel", "head/bias")}
    np.testing.assert_array_equal(values(model)["head/kernel"], fresh["head/kernel"])
    np.testing.assert_array_equal(values(model)["body/kernel"], values(small)["body/kernel"])
    assert report.unused == ()


def test_nothing_is_assigned_when_anything_does_not_fit(small, tmp_path):
    model = variant(classes=5)
    fresh = values(model)
    with pytest.raises(RestoreError, match="nothing was restored"):
        restore(model, saved(small, ".weights.h5", tmp_path))
    assert all(np.array_equal(fresh[name], value) for name, value in values(model).items())


def test_a_file_with_damaged_values_leaves_the_model_as_it_was(small, tmp_path):
    prefix = tf.train.Checkpoint(model=small).write(str(tmp_path / "ckpt"))
    data = tmp_path / "ckpt.data-00000-of-00001"
    content = bytearray(data.read_bytes())
    content[80] ^= 1  # among the values of the head
    data.write_bytes(content)
    model = variant()
    fresh = values(model)
    with pytest.raises(
        RestoreError,
        match=r"must be complete and undamaged. Reading `.*` from `.*ckpt` failed: .* Nothing was restored",
    ):
        restore(model, prefix)
    assert all(np.array_equal(fresh[name], value) for name, value in values(model).items())


def test_the_report_holds_the_checksums_of_the_fresh_the_filed_and_the_restored_weight(small, tmp_path):
    model = variant()
    fresh = values(model)
    kernel = restore(model, saved(small, ".weights.h5", tmp_path)).restored[0]
    assert (kernel.name, kernel.source, kernel.shape) == ("body/kernel", "body/0", (3, 4))
    assert kernel.before == checksum(fresh["body/kernel"])
    assert kernel.file == kernel.after == checksum(small.weights[0]) == checksum(model.weights[0])


def test_the_report_is_plain_data(small, tmp_path):
    report = restore(variant(), saved(small, ".weights.h5", tmp_path), exclude=["head"])
    plain = json.loads(json.dumps(report.to_json()))
    assert plain == report.to_json()
    assert plain["kind"] == "keras-weights"
    assert plain["restored"][0]["shape"] == [3, 4]
    assert list(plain["excluded"]) == ["head/kernel", "head/bias"]


def test_the_summary_tells_all_in_one_line(small, tmp_path):
    path = saved(small, ".weights.h5", tmp_path)
    assert (
        restore(variant(), path).summary() == f"4 weights restored from {path} (keras-weights), read back bit for bit"
    )
    report = restore(variant(dtype="bfloat16"), path, exclude=["head"])
    summary = report.summary()
    assert repr(report) == f"RestoreReport({summary})"
    assert summary.endswith("read back bit for bit, 2 of them cast, 2 excluded")


@pytest.mark.parametrize(("there", "here"), [("float32", "bfloat16"), ("bfloat16", "float32"), ("float16", "float32")])
def test_values_are_cast_only_to_the_type_of_the_model_and_the_report_says_from_which(there, here, tmp_path):
    source, model = variant(dtype=there), variant(dtype=here)
    scramble(source)
    report = restore(model, saved(source, ".weights.h5", tmp_path))
    assert {(weight.cast_from, weight.dtype) for weight in report.restored} == {(there, here)}
    expected = source.weights[0].numpy().astype(model.weights[0].numpy().dtype)
    np.testing.assert_array_equal(model.weights[0].numpy(), expected)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("kind", [".weights.h5", "checkpoint"])
def test_short_floats_come_back_as_they_are(kind, dtype, tmp_path):
    source, model = variant(dtype=dtype), variant(dtype=dtype)
    scramble(source)
    report = restore(model, saved(source, kind, tmp_path))
    assert {weight.cast_from for weight in report.restored} == {""}
    assert checksum(model.weights[0]) == checksum(source.weights[0])


def test_a_frozen_model_is_restored_like_any_other(small, tmp_path):
    model = variant()
    model.trainable = False
    restore(model, saved(small, ".weights.h5", tmp_path))
    np.testing.assert_array_equal(model.weights[0].numpy(), small.weights[0].numpy())


def test_allowed_weights_may_be_missing_and_unused(small, tmp_path):
    model = keras.Sequential([keras.Input((3,)), layers.Dense(4, name="body"), layers.Dense(5, name="other")])
    report = restore(model, saved(small, ".weights.h5", tmp_path), allow_missing=["other"], allow_unused=["head"])
    assert report.missing == ("other/kernel", "other/bias")
    assert report.unused == ("head/0", "head/1")
    assert "2 missing (61.0% of the parameters), 2 unused" in report.summary()


class Tied(layers.Layer):
    """Two weights with one storage."""

    def build(self, shape):
        storage = tf.Variable(tf.zeros(2))
        self.one, self.two = (keras.Variable(storage, name=name) for name in ("one", "two"))


@pytest.mark.parametrize(
    ("exclude", "told"),
    [((), "`tied/one` differ from the file"), (("tied/one",), "`tied/one` changed although they are excluded")],
)
def test_a_weight_that_does_not_hold_what_it_should_fails_the_proof(exclude, told, tmp_path):
    class Untied(layers.Layer):
        def build(self, shape):
            self.one, self.two = (self.add_weight(shape=(2,), name=name) for name in ("one", "two"))

    source, model = (keras.Sequential([keras.Input((2,)), kind(name="tied")]) for kind in (Untied, Tied))
    scramble(source)
    with pytest.raises(RestoreError, match=told):
        restore(model, saved(source, ".weights.h5", tmp_path), exclude=exclude)


class Tower(tf.Module):
    def __init__(self):
        super().__init__(name="tower")
        self.weight = tf.Variable(tf.random.normal((2, 3)))
        self.parts = [tf.Module(), tf.Module()]
        for part in self.parts:
            part.scale = tf.Variable(tf.random.normal((3,)), name="s")


def test_a_bare_module_is_restored_whatever_the_checkpoint_calls_it(tmp_path):
    source, model = Tower(), Tower()
    path = tf.train.Checkpoint(anything=source, step=tf.Variable(5)).save(str(tmp_path / "ckpt"))
    report = restore(model, path)
    assert len(report.restored) == 3
    for ours, theirs in zip(model.variables, source.variables, strict=True):
        np.testing.assert_array_equal(ours.numpy(), theirs.numpy())


# -- Rules, coverage, reference outputs -------------------------------------------------------------------------------


@pytest.fixture
def foreign(small, tmp_path):
    """The small model's weights as PyTorch would name and lay them out."""
    body, bias, head, head_bias = (weight.numpy() for weight in small.weights)
    arrays = {"net.0.weight": body.T, "net.0.bias": bias, "net.1.weight": head.T, "net.1.bias": head_bias}
    np.savez(tmp_path / "foreign.npz", **arrays, extra=np.ones(2))
    return tmp_path / "foreign.npz"


RENAME = {r"net\.0\.": "body/", r"net\.1\.": "head/", "weight": "kernel"}
TRANSPOSE = [Transform((".*/kernel",), transpose=(1, 0))]


def test_foreign_names_and_layouts_are_brought_in_by_rules_and_the_report_says_how(small, foreign):
    model = variant()
    report = restore(model, foreign, rename=RENAME, transform=TRANSPOSE, allow_unused=["extra"])
    assert [(weight.source, weight.how) for weight in report.restored[:2]] == [
        ("net.0.weight", "rename, transpose [1, 0]"),
        ("net.0.bias", "rename"),
    ]
    assert report.unused == ("extra",)
    for ours, theirs in zip(model.weights, small.weights, strict=True):
        np.testing.assert_array_equal(ours.numpy(), theirs.numpy())


def test_a_part_of_a_dotted_name_may_be_allowed_to_go_unused(foreign):
    model = keras.Sequential([keras.Input((3,)), layers.Dense(4, name="body")])
    for allowed in ("net.1", "net/1"):
        report = restore(
            model,
            foreign,
            rename=RENAME,
            transform=TRANSPOSE[:0] + [Transform(("body/kernel",), transpose=(1, 0))],
            allow_unused=[allowed, "extra"],
        )
        assert report.unused == ("net.1.weight", "net.1.bias", "extra")


def test_outputs_are_compared_and_a_model_that_gives_others_gets_its_fresh_weights_back(small, foreign, tmp_path):
    rows = np.random.default_rng(0).normal(size=(5, 3)).astype("float32")
    np.savez(tmp_path / "r.npz", input=rows, output=small(rows).numpy())
    square = keras.Sequential([keras.Input((3,)), layers.Dense(3, name="body"), layers.Dense(2, name="head")])
    fresh, settings = values(square), {"rename": RENAME, "allow_unused": ["extra"], "verify": tmp_path / "r.npz"}
    with np.load(foreign) as file:
        arrays = dict(file) | {
            "net.0.weight": np.arange(9.0).reshape(3, 3),
            "net.0.bias": np.zeros(3),
            "net.1.weight": np.ones((2, 3)),
        }
    np.savez(foreign, **arrays)
    np.savez(
        tmp_path / "r.npz", input=rows, output=rows @ arrays["net.0.weight"].T @ np.ones((3, 2)) + arrays["net.1.bias"]
    )
    head = Transform(("head/kernel",), transpose=(1, 0))
    with pytest.raises(RestoreError, match=r"must compute the outputs in `.*r.npz`. `output` differs by up to"):
        restore(square, foreign, transform=[head], **settings)
    assert all(np.array_equal(fresh[name], value) for name, value in values(square).items())
    report = restore(square, foreign, transform=TRANSPOSE, **settings)
    assert report.difference < 1e-5
    assert report.summary().endswith(f"outputs agree with {tmp_path / 'r.npz'} (within {report.difference:.2g})")


def test_a_tree_cannot_be_compared(small, foreign):
    with pytest.raises(RestoreError, match="Received its layer tree"):
        restore(
            layer_tree(variant()), foreign, rename=RENAME, transform=TRANSPOSE, allow_unused=["extra"], verify="r.npz"
        )


def test_too_small_a_share_is_refused_whatever_may_be_missing(small, tmp_path):
    model = keras.Sequential([keras.Input((3,)), layers.Dense(4, name="body"), layers.Dense(5, name="other")])
    path, allowed = saved(small, ".weights.h5", tmp_path), {"allow_missing": ["other"], "allow_unused": ["head"]}
    with pytest.raises(
        RestoreError, match=r"At least 90.0% of .* \(`min_coverage: 0.9`\), and 39.0% would. .*`other/kernel`"
    ):
        restore(model, path, min_coverage=0.9, **allowed)
    report = restore(model, path, min_coverage=0.39, **allowed)
    assert report.coverage == pytest.approx(16 / 41)
    assert restore(model, path, min_coverage=1.0, exclude=["other"], allow_unused=["head"]).coverage == 1.0


def test_weights_of_an_lstm_without_a_cell_in_their_names_are_found(tmp_path):
    model = keras.Sequential([keras.Input((2, 3)), layers.LSTM(2, name="rnn")])
    arrays = {
        f"rnn/{name}": np.ones(weight.shape)
        for name, weight in zip(("kernel", "recurrent_kernel", "bias"), model.weights, strict=True)
    }
    np.savez(tmp_path / "m.npz", **arrays)
    assert {weight.how for weight in restore(model, tmp_path / "m.npz").restored} == {"alias"}


@pytest.mark.slow
def test_restoring_holds_a_few_weights_of_a_large_file_at_a_time_and_never_the_file():
    script = Path(__file__).resolve().parents[2] / "scripts" / "bench_restore.py"
    environment = os.environ | {"PYTHONPATH": str(script.parent.parent)}
    command = [sys.executable, str(script), "--matrices", "12"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    rises = [int(rise) for rise in re.findall(r"(\d+) MB more", done.stdout)]
    assert len(rises) == 2
    assert max(rises) < 140  # of 201 MB


def test_a_keras_file_with_a_lambda_gives_its_weights_and_its_code_is_not_run(tmp_path):
    body = [keras.Input((3,)), layers.Dense(4, name="body"), layers.Lambda(lambda x: x + 1, name="code")]
    source = keras.Sequential(body)
    source.save(tmp_path / "m.keras")
    with zipfile.ZipFile(tmp_path / "m.keras") as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    files["config.json"] = b"[not even json"
    with zipfile.ZipFile(tmp_path / "m.keras", "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    model = keras.Sequential([keras.Input((3,)), layers.Dense(4, name="body")])
    assert len(restore(model, tmp_path / "m.keras").restored) == 2
    np.testing.assert_array_equal(model.weights[0].numpy(), source.weights[0].numpy())


def test_a_shape_that_rules_made_is_reported_with_these_rules(foreign):
    model = variant()
    with pytest.raises(
        RestoreError, match=r"is \(4, 2\) in the model and \(2, 4\) after `transpose \[0, 1\]` \(`net.1"
    ):
        restore(
            model,
            foreign,
            rename=RENAME,
            allow_unused=["extra"],
            transform=[Transform(("body/kernel",), transpose=(1, 0)), Transform(("head/kernel",), transpose=(0, 1))],
        )


@pytest.mark.parametrize("change", ["vanish", "grow"])
def test_a_file_that_changes_while_it_is_read_does_not_say_that_nothing_was_restored(tmp_path, monkeypatch, change):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3, name="a"), keras.layers.Dense(1, name="b")])
    path = tmp_path / "w.npz"
    shapes = {leaf.name: tuple(leaf.variable.shape) for leaf in layer_tree(model).leaves}
    np.savez(path, **{name: np.ones(shape, "float32") for name, shape in shapes.items()})
    checked = []

    def changing(value):
        checked.append(value)
        # The values of the file and the fresh ones have been read: the first reading is over.
        if len(checked) == 2 * len(model.weights):
            path.unlink()
            if change == "grow":
                np.savez(path, **{name: np.ones((1, *shape), "float32") for name, shape in shapes.items()})
        return checksum(value)

    monkeypatch.setattr("finetune.pretrained.restore.checksum", changing)
    why = r"its shape is \(1, 2, 3\) instead of \(2, 3\)" if change == "grow" else ""
    with pytest.raises(
        RestoreError, match=rf"Reading `a/kernel` from .*{why}.* It changed while it was read.*build the model again"
    ):
        restore(model, path)


def test_how_far_outputs_may_differ_can_be_chosen(small, tmp_path):
    rows = np.random.default_rng(0).normal(size=(5, 3)).astype("float32")
    path = saved(small, ".weights.h5", tmp_path)
    outputs = small(rows).numpy()
    np.savez(tmp_path / "scaled.npz", input=rows, output=outputs * 1.01)
    np.savez(tmp_path / "moved.npz", input=rows, output=outputs + 0.01)
    for reference, widened in (("scaled.npz", {"verify_rtol": 0.02}), ("moved.npz", {"verify_atol": 0.02})):
        with pytest.raises(RestoreError, match="`output` differs by up to"):
            restore(variant(), path, verify=tmp_path / reference)
        assert restore(variant(), path, verify=tmp_path / reference, **widened).difference > 1e-3


@pytest.mark.parametrize(
    ("dtype", "fits", "overflows", "shown"),
    [("float16", 65504, 65520, "6.55e+04"), ("bfloat16", 3e38, 3.4e38, "3.4e+38"), ("float32", 3e38, 1e39, "1e+39")],
)
def test_a_value_that_becomes_infinite_in_the_model_s_type_is_an_error_and_nothing_is_restored(
    dtype, fits, overflows, shown, tmp_path
):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, name="body", dtype=dtype)])
    before = [np.copy(weight.numpy()) for weight in model.weights]
    np.savez(tmp_path / "w.npz", **{"body/kernel": [[1.0, -overflows], [2.0, 3.0]], "body/bias": np.zeros(2)})
    with pytest.raises(RestoreError) as caught:
        restore(model, tmp_path / "w.npz")
    assert str(caught.value) == (
        "The weights of a file must be finite in the model's type. Values that are finite in "
        f"`{tmp_path / 'w.npz'}` become infinite: `body/kernel` ({shown} in `{dtype}`). Nothing was restored. Build the "
        "model in `float32` or `bfloat16` (`mixed_float16` keeps its weights in `float32`), or scale the values."
    )
    for old, weight in zip(before, model.weights, strict=True):
        np.testing.assert_array_equal(old, weight.numpy())
    np.savez(tmp_path / "w.npz", **{"body/kernel": np.full((2, 2), float(fits)), "body/bias": np.zeros(2)})
    assert "2 of them cast" in restore(model, tmp_path / "w.npz").summary()
    assert np.isfinite(model.get_weights()[0].astype("float32")).all()


def test_what_is_infinite_in_the_file_is_not_reported_as_an_overflow(tmp_path):
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(2, name="body", dtype="float16")])
    np.savez(tmp_path / "w.npz", **{"body/kernel": np.array([[np.inf, 1.0]]), "body/bias": np.zeros(2)})
    with pytest.raises(
        RestoreError, match=r"`body/kernel`: 1 of 2 values are no finite numbers, the first at \[0, 0\]: inf"
    ):
        restore(model, tmp_path / "w.npz")


def test_all_weights_that_overflow_are_named_at_once_five_at_most(tmp_path):
    parts = [keras.layers.Dense(1, name=f"d{i}", dtype="float16") for i in range(4)]
    model = keras.Sequential([keras.Input((1,)), *parts])
    arrays = {
        f"d{i}/{name}": np.full(shape, 1e6) for i in range(4) for name, shape in (("kernel", (1, 1)), ("bias", (1,)))
    }
    np.savez(tmp_path / "w.npz", **arrays)
    with pytest.raises(RestoreError, match=r"`d2/kernel` \(1e\+06 in `float16`\) and 3 more\. Nothing was restored"):
        restore(model, tmp_path / "w.npz")


def normalized(name=None):
    """Keras saves the kernel with SpectralNormalization and with the layer in it."""
    layer = keras.layers.SpectralNormalization(keras.layers.Dense(3), name=name)
    model = keras.Sequential([keras.Input((4,)), layer, keras.layers.Dense(2)])
    for number, weight in enumerate(model.weights):
        weight.assign(np.random.default_rng(number).normal(size=weight.shape))
    return model


@pytest.mark.parametrize("name", [None, "sn"])
@pytest.mark.parametrize("file", ["m.weights.h5", "m.keras"])
def test_a_weight_that_two_layers_share_is_restored_from_a_file_that_holds_it_twice(name, file, tmp_path):
    source, model = normalized(name), normalized(name)
    source.save(tmp_path / file) if file == "m.keras" else source.save_weights(tmp_path / file)
    for weight in model.weights:
        weight.assign(np.zeros(weight.shape))
    report = restore(model, tmp_path / file)
    assert (len(report.restored), report.unused) == (len(model.weights), ())
    for ours, theirs in zip(model.weights, source.weights, strict=True):
        np.testing.assert_array_equal(ours.numpy(), theirs.numpy())


def test_a_shared_weight_with_two_values_in_the_file_is_an_error(tmp_path):
    model = normalized("sn")
    model.save_weights(tmp_path / "m.weights.h5")
    with h5py.File(tmp_path / "m.weights.h5", "r+") as file:
        file["layers/spectral_normalization/layer/vars/0"][0, 0] += 1
    before = [np.copy(weight.numpy()) for weight in model.weights]
    with pytest.raises(RestoreError) as caught:
        restore(model, tmp_path / "m.weights.h5")
    assert str(caught.value) == (
        "A weight that several layers share has one value, and a file that holds it several times must agree. In "
        f"`{tmp_path / 'm.weights.h5'}` these differ: `sn/kernel (sn/layer/0)`. Nothing was restored. Save the file again "
        "from one model."
    )
    for old, weight in zip(before, model.weights, strict=True):
        np.testing.assert_array_equal(old, weight.numpy())


# -- Values that are no numbers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "index", "value", "told"),
    [
        ("stem", 0, np.nan, "`stem/kernel`: 1 of "),
        ("bn", 2, np.inf, "`bn/moving_mean`: 1 of "),
        ("bn", 3, np.nan, "`bn/moving_variance`: 1 of "),
    ],
)
def test_a_file_with_values_that_are_no_numbers_is_refused_and_nothing_is_assigned(
    tiny, tmp_path, layer, index, value, told
):
    source, model = tiny(), tiny()
    values = source.get_layer(layer).get_weights()
    values[index].flat[0] = value
    source.get_layer(layer).set_weights(values)
    source.save_weights(tmp_path / "w.weights.h5")
    before = [weight.numpy() for weight in model.weights]
    with pytest.raises(RestoreError, match="must be finite numbers") as caught:
        restore(model, tmp_path / "w.weights.h5")
    assert told in str(caught.value)
    assert all(np.array_equal(old, weight.numpy()) for old, weight in zip(before, model.weights, strict=True))
    restore(model, tmp_path / "w.weights.h5", exclude=[layer])


@pytest.mark.parametrize("dtype", ["datetime64[s]", "U", "complex64", "S4"])
def test_dates_text_and_complex_numbers_are_no_weights(tiny, tmp_path, dtype):
    source, model = tiny(), tiny()
    arrays = {weight.path.split("/", 1)[1]: weight.numpy() for weight in source.weights}
    np.savez(tmp_path / "good.npz", **arrays)
    restore(model, tmp_path / "good.npz")
    before = [weight.numpy() for weight in model.weights]
    arrays["body/kernel"] = (arrays["body/kernel"] * 0).astype(dtype)
    np.savez(tmp_path / "w.npz", **arrays)
    with pytest.raises(
        RestoreError, match=r"text and dates are not taken for each other: .* 1 weight differs: `body/kernel`"
    ):
        restore(model, tmp_path / "w.npz")
    assert all(np.array_equal(old, weight.numpy()) for old, weight in zip(before, model.weights, strict=True))
