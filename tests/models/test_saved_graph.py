import base64
import io
import zipfile

import numpy as np
import pytest
import tensorflow as tf

from finetune.errors import FinetuneError
from finetune.models.saved_graph import pack_graph, unpack_graph


class Scaled(tf.Module):
    """Doubles its inputs; its attributes are saved with it."""

    def __init__(self, **tracked):
        super().__init__()
        for name, value in tracked.items():
            setattr(self, name, value)

    @tf.function(input_signature=[tf.TensorSpec((None, 2))])
    def __call__(self, inputs):
        return 2.0 * inputs


def saved(path, module):
    tf.saved_model.save(module, str(path))
    return str(path)


def test_a_packed_graph_is_the_module_with_zeros_for_weights(tmp_path):
    module = Scaled(kernel=tf.Variable(tf.random.normal((300, 300))), steps=tf.Variable(7))
    text = pack_graph(saved(tmp_path / "module", module))
    assert len(text) < 20_000
    assert text == pack_graph(str(tmp_path / "module"))
    again = tf.saved_model.load(unpack_graph(text, tmp_path / "cache"))
    assert not np.any(again.kernel.numpy())
    assert again.steps.numpy() == 7
    np.testing.assert_array_equal(again(tf.ones((1, 2))), [[2.0, 2.0]])


def test_the_text_does_not_depend_on_the_weights_the_folder_or_the_date(tmp_path):
    texts = set()
    for number in range(2):
        module = Scaled(kernel=tf.Variable(tf.fill((3, 3), float(number))))
        folder = saved(tmp_path / f"module_{number}", module)
        (tmp_path / f"module_{number}" / "fingerprint.pb").unlink()  # a random number of TensorFlow's
        data = (tmp_path / "module_0" / "saved_model.pb").read_bytes()
        (tmp_path / f"module_{number}" / "saved_model.pb").write_bytes(data)
        texts.add(pack_graph(folder))
    assert len(texts) == 1
    with zipfile.ZipFile(io.BytesIO(base64.b64decode(texts.pop()))) as archive:
        assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_numbers_of_every_floating_type_become_zeros_and_others_are_kept(tmp_path):
    module = Scaled(
        half=tf.Variable(tf.ones(2, tf.float16)),
        brain=tf.Variable(tf.ones(2, tf.bfloat16)),
        wave=tf.Variable(tf.ones(2, tf.complex64)),
        flags=tf.Variable([True, False]),
        words=tf.Variable(["a", "b"]),
    )
    again = tf.saved_model.load(unpack_graph(pack_graph(saved(tmp_path / "module", module)), tmp_path / "cache"))
    for name in ("half", "brain", "wave"):
        assert getattr(again, name).numpy().tolist() == [0, 0]
        assert getattr(again, name).dtype == getattr(module, name).dtype
    assert again.flags.numpy().tolist() == [True, False]
    assert again.words.numpy().tolist() == [b"a", b"b"]


def test_tables_and_assets_are_packed_with_the_graph(tmp_path):
    (tmp_path / "words.txt").write_text("good\nbad\n")
    kinds = (tf.string, tf.lookup.TextFileIndex.WHOLE_LINE, tf.int64, tf.lookup.TextFileIndex.LINE_NUMBER)
    table = tf.lookup.StaticHashTable(tf.lookup.TextFileInitializer(str(tmp_path / "words.txt"), *kinds), -1)

    class Words(tf.Module):
        def __init__(self):
            super().__init__()
            self.table, self.kernel = table, tf.Variable(1.0)

        @tf.function(input_signature=[tf.TensorSpec([None], tf.string)])
        def __call__(self, inputs):
            return self.table.lookup(inputs)

    again = tf.saved_model.load(unpack_graph(pack_graph(saved(tmp_path / "words", Words())), tmp_path / "cache"))
    assert again(tf.constant(["bad", "so"])).numpy().tolist() == [1, -1]


@pytest.mark.slow
def test_the_zeros_of_a_large_network_are_unpacked_though_they_pack_a_thousandfold(tmp_path):
    text = pack_graph(saved(tmp_path / "large", Scaled(kernel=tf.Variable(tf.ones(27 * 2**20)))))
    assert len(text) < 2**20
    assert tf.saved_model.load(unpack_graph(text, tmp_path / "cache")).kernel.shape == (27 * 2**20,)


def test_a_graph_is_unpacked_once(tmp_path):
    text = pack_graph(saved(tmp_path / "module", Scaled(kernel=tf.Variable(1.0))))
    folder = unpack_graph(text, tmp_path / "cache")
    assert unpack_graph(text, tmp_path / "cache") == folder
    assert sum(path.is_dir() for path in (tmp_path / "cache").iterdir()) == 1


def test_a_text_that_is_not_a_packed_graph_is_refused(tmp_path):
    with pytest.raises(FinetuneError, match="cannot be read"):
        unpack_graph(base64.b64encode(b"PK\x03\x04 and nothing more").decode(), tmp_path / "cache")
    with pytest.raises(ValueError, match="base64"):
        unpack_graph("not base64!", tmp_path / "cache")
