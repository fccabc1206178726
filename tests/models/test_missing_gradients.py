import keras
import numpy as np
import pytest
import tensorflow as tf

import finetune
from finetune import HubLayer
from finetune.build.layout import build_layout
from finetune.errors import FinetuneError
from finetune.keras_private import parse_saved_model
from finetune.models.missing_gradients import unsaved_gradients
from finetune.recipe.loader import load_recipe

X = np.ones((2, 4), "float32")
SAVE = "Save it again with `options=tf.saved_model.SaveOptions(experimental_custom_gradients=True)`, or freeze it and"


@tf.custom_gradient
def doubled(x):
    return 2.0 * x, lambda upstream: 7.0 * upstream


def overridden(y):
    with tf.compat.v1.get_default_graph().gradient_override_map({"Identity": "GradientOfAPackage"}):
        return tf.identity(y)


def area(y):
    return tf.raw_ops.ResizeArea(images=y[:, :, None, None], size=[3, 1])[:, :, 0, 0]


HOW = {
    "straight": doubled,
    "called": lambda y: tf.function(doubled)(y),
    "branch": lambda y: tf.cond(tf.reduce_sum(y) > 0.0, lambda: doubled(y), lambda: y),
    "loop": lambda y: tf.while_loop(lambda i, _: i < 1, lambda i, z: (i + 1, doubled(z)), (0, y))[1],
    "overridden": overridden,
    "prevented": lambda y: tf.raw_ops.PreventGradient(input=y, message="no"),
    "area": area,
    "unused": lambda y: (area(y), y)[1],
    "plain": lambda y: y,
}


class Net(tf.Module):
    """Multiplies by a matrix, and does something to the product."""

    def __init__(self, how):
        super().__init__()
        self.w, self.how = tf.Variable(tf.ones((4, 3)), name="w"), HOW[how]

    @tf.function(input_signature=[tf.TensorSpec((None, 4))])
    def __call__(self, x):
        return self.how(x @ self.w)


def saved(path, how="straight", *, with_gradients=False):
    options = tf.saved_model.SaveOptions(experimental_custom_gradients=with_gradients)
    with_package = how == "overridden" and with_gradients
    if with_package:
        tf.RegisterGradient("GradientOfAPackage")(lambda op, upstream: 7.0 * upstream)
    tf.saved_model.save(Net(how), str(path), options=options)
    return path


def fit(layer, before=False):
    inputs = keras.Input((4,))
    ends = keras.layers.Dense(4, use_bias=False) if before else keras.layers.Dense(1, kernel_initializer="ones")
    model = keras.Model(inputs, layer(ends(inputs)) if before else ends(layer(inputs)))
    model.compile(keras.optimizers.SGD(0.5), "mae", jit_compile=False)
    model.fit(X, np.zeros((2, *model.output_shape[1:])), verbose=0)
    return model


def refused(call):
    with pytest.raises(FinetuneError) as error:
        call()
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("how", ["straight", "called", "branch", "loop", "overridden", "prevented", "area"])
def test_a_module_without_a_gradient_that_it_needs_is_refused_before_it_trains(tmp_path, how):
    layer = HubLayer(saved(tmp_path / "module", how), name="hub")
    message = refused(lambda: fit(layer))
    assert message.startswith(
        "To train a network, TensorFlow needs the gradient of each of its operations. The SavedModel of `hub` was saved "
        "without those of `"
    )
    assert (SAVE in message) == (how in ("straight", "called", "branch", "loop"))
    assert layer.weights[0].numpy().tolist() == [[1.0] * 3] * 4
    assert layer(X, training=True).shape == (2, 3), "without a tape nothing is differentiated"


def test_the_operation_and_what_to_do_are_named(tmp_path):
    said = refused(lambda: fit(HubLayer(saved(tmp_path / "module", "area"), name="hub")))
    assert said.endswith(
        "without those of `ResizeArea (ResizeArea)`. Take a version that was saved for training, or freeze it and train "
        "what comes after it (`frozen: true`, `trainable=False`)."
    )


@pytest.mark.parametrize(("how", "moved"), [("straight", 7.0), ("loop", 7.0), ("unused", 1.0), ("plain", 1.0)])
def test_a_module_that_holds_its_gradients_trains_with_them(tmp_path, how, moved):
    layer = HubLayer(saved(tmp_path / "module", how, with_gradients=True), name="hub")
    fit(layer)
    np.testing.assert_allclose(1.0 - layer.weights[0].numpy(), 0.5 * moved, rtol=1e-6)


def test_a_frozen_module_needs_no_gradient_unless_a_layer_before_it_trains(tmp_path):
    layer = HubLayer(saved(tmp_path / "module"), name="hub", trainable=False)
    model = fit(layer)
    assert model.layers[-1].bias.numpy() == -0.5, "what comes after it trains"
    assert "CustomGradient" in refused(lambda: fit(layer, before=True))
    layer.trainable = True
    with pytest.raises(FinetuneError):
        fit(layer)


def test_a_gradient_of_the_process_with_the_same_number_is_not_taken_for_the_modules(tmp_path):
    path = saved(tmp_path / "module")
    [name] = unsaved_gradients(str(path))
    assert name.startswith("CustomGradient-")
    assert unsaved_gradients(str(saved(tmp_path / "complete", with_gradients=True))) == frozenset()
    # This process has it still: it is that of the function above. In another process it is that of anything.
    assert name in refused(lambda: fit(HubLayer(path, name="hub")))


def test_a_gradient_that_a_package_registers_by_name_serves(tmp_path):
    path = saved(tmp_path / "module", "overridden", with_gradients=True)
    graph = parse_saved_model(str(path)).meta_graphs[0].graph_def.library
    assert [each.registered_op_type for each in graph.registered_gradients] == ["GradientOfAPackage"]
    layer = HubLayer(path, name="hub")
    fit(layer)
    np.testing.assert_allclose(1.0 - layer.weights[0].numpy(), 3.5, rtol=1e-6)


def test_the_step_of_a_bare_module_says_which_operation_has_no_gradient(tmp_path):
    module = tf.saved_model.load(str(saved(tmp_path / "module", "area")))
    step = finetune.grouped_train_step(module, "mse", keras.optimizers.SGD(0.1), variables=[module.w])
    assert "It has none for one of them: No gradient defined for operation" in refused(
        lambda: step(X, np.zeros((2, 3)))
    )


@pytest.mark.parametrize("setting", ["optimizer: sgd, learning_rate: 0.1", "frozen: true"])
def test_a_recipe_that_trains_it_is_refused_at_its_model(tmp_path, monkeypatch, setting):
    monkeypatch.chdir(tmp_path)
    np.savez("d.npz", x_train=np.ones((8, 4), "float32"), y_train=np.arange(8) % 3, x_test=X, y_test=np.arange(2))
    path = saved(tmp_path / "module")
    (tmp_path / "r.yaml").write_text(
        f"model: {{hub: {path}, head: {{classes: 3}}}}\ndata: {{npz: d.npz}}\ntrain: {{epochs: 1}}\ngroups:\n"
        f"  - {{name: body, prefixes: [hub], {setting}}}\n"
        "  - {name: head, rest: true, optimizer: sgd, learning_rate: 0.1}\n"
    )
    recipe = load_recipe("r.yaml", allow_code=[f"hub:{path}"])
    if setting == "frozen: true":
        assert build_layout(recipe).plan
    else:
        assert refused(lambda: build_layout(recipe)).startswith("r.yaml:1:8: `model`: To train a network, TensorFlow")
