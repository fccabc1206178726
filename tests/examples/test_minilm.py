import keras
import numpy as np
import pytest

from finetune.examples.minilm import classifier, encoder
from finetune.groups.layer_tree import layer_tree


@pytest.fixture(scope="module")
def small():
    return encoder(num_layers=1, vocabulary=50, max_length=16)


def test_sentences_become_vectors_of_length_one(small):
    tokens = np.array([[5, 6, 7, 0], [8, 9, 0, 0]], "int32")
    np.testing.assert_allclose(np.linalg.norm(small(tokens), axis=1), 1, rtol=1e-5)


def test_filling_up_changes_nothing(small):
    short, filled = np.array([[5, 6, 7]], "int32"), np.array([[5, 6, 7, 0, 0, 0]], "int32")
    np.testing.assert_allclose(small(short), small(filled), atol=1e-6)


def test_the_weights_are_named_by_layer_and_part(small):
    tree = layer_tree(small)
    assert len(tree.leaves) == 5 + 16
    assert {"embeddings/word/embeddings", "layer_0/attention/query/kernel", "layer_0/output_norm/gamma"} <= set(
        tree.by_name
    )


def test_a_classifier_has_a_head_and_opens_with_plain_keras(tmp_path):
    model = classifier(num_classes=3, num_layers=1, vocabulary=50, max_length=16)
    model.save(tmp_path / "m.keras")
    tokens = np.array([[5, 6, 7, 0]], "int32")
    np.testing.assert_allclose(keras.models.load_model(tmp_path / "m.keras")(tokens), model(tokens), atol=1e-6)
    assert layer_tree(model).layers[-1] == "head"


def test_a_classifier_of_pairs_tells_its_texts_apart_and_has_the_same_weights():
    sizes = {"num_layers": 1, "vocabulary": 50, "max_length": 16}
    pairs, single = classifier(pairs=True, **sizes), classifier(**sizes)
    assert [leaf.name for leaf in layer_tree(pairs).leaves] == [leaf.name for leaf in layer_tree(single).leaves]
    pairs.set_weights(single.get_weights())
    tokens = np.array([[5, 6, 7, 0]], "int32")
    inputs = {"token_ids": tokens, "segment_ids": np.zeros_like(tokens)}
    np.testing.assert_allclose(pairs(inputs), single(tokens), atol=1e-6)
    inputs["segment_ids"] = np.array([[0, 1, 1, 0]], "int32")
    assert np.abs(pairs(inputs).numpy() - single(tokens).numpy()).max() > 1e-5
