"""A real network that makes its inputs of raw rows (a KerasHub task with a preprocessor), and files that fail or stay."""

import resource
import shutil

import keras
import pytest

from finetune.training.checkpoints.checkpoint_file import checkpoint_files, read_checkpoint


@pytest.fixture
def killed_at():
    """Returns a function that makes the folder of a process which is killed after an epoch's step that it has written."""

    def make(moment, written, folder):
        folder.mkdir()
        for path in reversed(checkpoint_files(written)):
            shutil.copy(path, folder)
            position = read_checkpoint(path).document["position"]
            if (position["epoch"], position["step"]) == moment:
                return
        pytest.fail(f"no checkpoint of {moment}")

    return make


@pytest.fixture
def text_classifier():
    """Returns a function that makes a tiny BERT classifier of strings, compiled, always with the same weights."""
    keras_hub = pytest.importorskip("keras_hub")
    words = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]", "the", "good", "bad", "film", "fox"]

    def make(optimizer):
        keras.utils.set_random_seed(0)
        tokenizer = keras_hub.models.BertTokenizer(vocabulary=words, lowercase=True)
        preprocessor = keras_hub.models.BertTextClassifierPreprocessor(tokenizer, sequence_length=6)
        sizes = {"num_layers": 1, "num_heads": 2, "hidden_dim": 8, "intermediate_dim": 8, "max_sequence_length": 6}
        backbone = keras_hub.models.BertBackbone(vocabulary_size=len(words), dropout=0.0, **sizes)
        model = keras_hub.models.BertTextClassifier(backbone, num_classes=2, preprocessor=preprocessor)
        model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        return model

    return make


@pytest.fixture
def small_files():
    """Returns a function that limits the size of files this process may write, and returns what undoes it."""

    def limit_to(limit):
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
        return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limit_to


@pytest.fixture
def at_epochs(small_files):
    """Returns a function that makes a callback which lets files be no larger in some epochs than a limit in bytes."""

    def make(first, last, limit):
        undo = []
        return keras.callbacks.LambdaCallback(
            on_epoch_begin=lambda epoch, logs: undo.append(small_files(limit)) if epoch == first else None,
            on_epoch_end=lambda epoch, logs: undo.pop()() if epoch == last else None,
        )

    return make
