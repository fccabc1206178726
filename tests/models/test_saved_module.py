import numpy as np
import pytest
import tensorflow as tf

from finetune.errors import FinetuneError
from finetune.models.saved_module import load_saved_module, takes_training


class Scaled(tf.Module):
    def __init__(self, **tracked):
        super().__init__()
        for name, value in tracked.items():
            setattr(self, name, value)

    @tf.function(input_signature=[tf.TensorSpec((None, 2))])
    def __call__(self, inputs):
        return 2.0 * inputs


def saved(path, module, **options):
    tf.saved_model.save(module, str(path), **options)
    return path


def problem(call, *arguments, **options):
    with pytest.raises(FinetuneError) as error:
        call(*arguments, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_saved_model_without_variables_is_refused(tmp_path):
    path = saved(tmp_path / "constant", Scaled())
    assert problem(load_saved_module, path) == (
        f"A network has variables to train. `{path}` has none: it contains constants only. Perhaps its weights were turned into "
        "constants when it was saved."
    )


def test_a_saved_model_that_can_neither_be_called_nor_has_a_signature_is_refused(tmp_path):
    module = tf.Module()
    module.kernel = tf.Variable(1.0)
    path = saved(tmp_path / "mute", module)
    assert problem(load_saved_module, path).startswith(
        f"A SavedModel is run by calling it or through a signature. `{path}` has neither a traced `__call__` nor a signature."
    )


def test_of_several_signatures_one_must_be_chosen(tmp_path):
    module = tf.Module()
    module.kernel = tf.Variable(1.0)
    function = tf.function(lambda x: module.kernel * x).get_concrete_function(tf.TensorSpec((None,)))
    path = saved(tmp_path / "several", module, signatures={"a": function, "b": function})
    assert problem(load_saved_module, path).endswith(f"`{path}` has `a`, `b`. Select one with `signature`.")
    assert load_saved_module(path, signature="b").signature == "b"


@pytest.mark.parametrize("damage", ["graph", "index", "no variables"])
def test_a_damaged_saved_model_is_one_short_error(tmp_path, damage):
    path = saved(tmp_path / "damaged", Scaled(kernel=tf.Variable(tf.ones((50, 50)))))
    if damage == "graph":
        data = (path / "saved_model.pb").read_bytes()
        (path / "saved_model.pb").write_bytes(data[: len(data) // 2])
    elif damage == "index":
        (path / "variables" / "variables.index").write_bytes(b"not an index")
    else:
        (path / "variables" / "variables.data-00000-of-00001").unlink()
    assert f"`{path}` cannot be loaded: " in problem(load_saved_module, path)


def test_whether_a_function_takes_training_is_seen_in_its_arguments():
    assert takes_training(tf.function(lambda x, training=False: x))
    assert takes_training(lambda x, training: x)
    assert not takes_training(tf.function(lambda x: x))


def test_a_module_that_was_saved_for_inference_alone_is_run_so_whatever_is_asked(tmp_path):
    class Inference(tf.Module):
        def __init__(self):
            super().__init__()
            self.kernel = tf.Variable(2.0)

        @tf.function
        def __call__(self, inputs, training=False):
            return self.kernel * inputs

    module = Inference()
    module.__call__.get_concrete_function(tf.TensorSpec((None, 2)), training=False)
    loaded = load_saved_module(saved(tmp_path / "inference", module))
    np.testing.assert_array_equal(loaded(tf.ones((1, 2)), training=True), [[2.0, 2.0]])
