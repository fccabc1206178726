import keras
import numpy as np
import pytest
import tensorflow as tf

from finetune import export_hub
from finetune.errors import FinetuneError
from finetune.models.hub_models import make_hub_model


def saved(path, module, **options):
    tf.saved_model.save(module, str(path), **options)
    return path


def problem(call, *arguments, **options):
    with pytest.raises(FinetuneError) as error:
        call(*arguments, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


class Scaled(tf.Module):
    """Computes `2 * inputs`, of the shape with which it is made."""

    def __init__(self, shape):
        super().__init__()
        self.kernel = tf.Variable(2.0)
        self.__call__ = tf.function(lambda inputs: self.kernel * inputs, input_signature=[tf.TensorSpec(shape)])


def test_the_model_is_an_input_the_module_as_the_layer_hub_and_its_output(encoder, encoder_folder):
    model = make_hub_model(encoder_folder)
    assert [layer.name for layer in model.layers] == ["inputs", "hub"]
    assert (model.name, model.input_shape, model.output_shape) == ("hub_model", (None, 6), (None, 8))
    x = np.ones((3, 6), "float32")
    np.testing.assert_allclose(model(x), encoder(x), rtol=1e-6)


def test_a_signature_with_one_input_is_called_with_it_by_name(encoder_folder, encoder):
    model = make_hub_model(encoder_folder, signature="serving_default", output_key="outputs")
    x = np.ones((3, 6), "float32")
    np.testing.assert_allclose(model(x), encoder(x), rtol=1e-6)


def test_a_call_that_takes_a_dict_of_one_input_gets_one(tmp_path):
    x = keras.Input((4,), name="x")
    original = keras.Model({"x": x}, keras.layers.Dense(2)(x))
    model = make_hub_model(export_hub(original, tmp_path / "dict"))
    np.testing.assert_allclose(model(np.ones((3, 4))), original({"x": np.ones((3, 4))}), rtol=1e-6)


def test_the_input_has_the_type_of_the_module(tmp_path):
    class Words(tf.Module):
        def __init__(self):
            super().__init__()
            self.kernel = tf.Variable(2.0)

        @tf.function(input_signature=[tf.TensorSpec([None], tf.string)])
        def __call__(self, inputs):
            return self.kernel * tf.cast(tf.strings.length(inputs), tf.float32)[:, None]

    model = make_hub_model(saved(tmp_path / "words", Words()))
    assert model.input.dtype == "string"
    np.testing.assert_array_equal(model(tf.constant(["a", "bcd"])), [[2.0], [6.0]])


def test_a_module_of_several_inputs_is_no_model_of_a_recipe(tmp_path):
    module = tf.Module()
    module.kernel = tf.Variable(1.0)
    spec = tf.TensorSpec((None, 2))
    function = tf.function(lambda a, b: module.kernel * a + b).get_concrete_function(spec, spec)
    path = saved(tmp_path / "pair", module, signatures={"pair": function})
    assert problem(make_hub_model, path) == (
        f"A recipe feeds a single array to the network. `{path}` takes `{{a: float32 ?x2, b: float32 ?x2}}`. Name a "
        "`signature` that takes one array, or write a `builder` that uses `finetune.HubLayer`."
    )


@pytest.mark.parametrize("shape", [(None, None), None])
def test_a_shape_that_the_module_leaves_open_can_be_given(tmp_path, shape):
    class Open(tf.Module):
        def __init__(self):
            super().__init__()
            self.kernel = tf.Variable(1.0)

        @tf.function(input_signature=[tf.TensorSpec(shape)])
        def __call__(self, inputs):
            return self.kernel * inputs

    path = saved(tmp_path / "open", Open())
    assert make_hub_model(path, input_shape=[5]).output_shape == (None, 5)
    if shape is None:
        assert problem(make_hub_model, path).endswith(
            "was saved without it. Add `input_shape`, the shape of one row, e.g. `input_shape: [224, 224, 3]`."
        )


def test_a_shape_that_does_not_fit_the_module_is_refused_with_what_it_takes(encoder_folder):
    assert problem(make_hub_model, encoder_folder, input_shape=[5]) == (
        f"`input_shape` is the shape of a row that the SavedModel takes. `{encoder_folder}` takes `float32 ?x6`, batch "
        "first; received `[5]` for a row."
    )
    assert make_hub_model(encoder_folder, input_shape=[6]).input_shape == (None, 6)


def test_an_output_of_unknown_shape_is_an_error_that_asks_for_it(tmp_path):
    class Vague(tf.Module):
        def __init__(self):
            super().__init__()
            self.kernel = tf.Variable(2.0)

        @tf.function(input_signature=[tf.TensorSpec((None, 6))])
        def __call__(self, inputs):
            return tf.numpy_function(lambda x: x, [self.kernel * inputs], tf.float32)

    path = saved(tmp_path / "vague", Vague())
    assert "Add `output_shape`, without the batch" in problem(make_hub_model, path, allow_operations="PyFunc")
    assert make_hub_model(path, output_shape=[6], allow_operations="PyFunc").output_shape == (None, 6)


def test_several_outputs_need_a_key(tmp_path):
    x = keras.Input((4,), name="x")
    y = keras.layers.Dense(2)(x)
    path = export_hub(keras.Model(x, {"mean": y, "max": 2 * y}), tmp_path / "several")
    assert problem(make_hub_model, path) == (
        f"A recipe trains one output. `{path}` has `max`, `mean`; none is selected. Select one with `output_key`."
    )
    assert make_hub_model(path, output_key="max").output_shape == (None, 2)
