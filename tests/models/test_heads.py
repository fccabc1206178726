import keras
import numpy as np
import pytest
from keras import layers

from finetune import layer_tree
from finetune.errors import FinetuneError
from finetune.models.heads import add_head, inputs_of

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")


def backbone(*shape, name="net"):
    inputs = keras.Input(shape)
    return keras.Model(inputs, layers.Dense(4, name="body")(inputs), name=name)


def names(model):
    return [leaf.name for leaf in layer_tree(model).leaves]


def problem(*arguments, **options):
    with pytest.raises(FinetuneError) as error:
        add_head(*arguments, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_head_is_below_one_prefix_and_the_backbone_keeps_its_names():
    model = add_head(backbone(6), classes=3, units=[8, 5], dropout=0.2)
    head = ["head/hidden_0", "head/hidden_1", "head/output"]
    assert names(model) == [
        "body/kernel",
        "body/bias",
        *(f"{layer}/{name}" for layer in head for name in ("kernel", "bias")),
    ]
    assert (model.name, model.output_shape) == ("net", (None, 3))
    kinds = [type(layer).__name__ for layer in model.get_layer("head").layers]
    assert kinds == ["InputLayer", "Dropout", "Dense", "Dropout", "Dense", "Dropout", "Dense"]


@pytest.mark.parametrize(
    ("shape", "pooling", "oracle"),
    [
        ((6,), None, lambda x: x),
        ((5, 6), None, lambda x: x.mean(1)),
        ((5, 6), "max", lambda x: x.max(1)),
        ((5, 6), "first", lambda x: x[:, 0]),
        ((5, 6), "none", lambda x: x),
        ((3, 2, 6), None, lambda x: x.mean((1, 2))),
        ((3, 2, 6), "max", lambda x: x.max((1, 2))),
        ((2, 3, 2, 6), None, lambda x: x.mean((1, 2, 3))),
        ((3, 2, 6), "flatten", lambda x: x.reshape(len(x), -1)),
    ],
)
def test_pooling_brings_every_row_to_one_vector(shape, pooling, oracle):
    inputs = keras.Input(shape)
    model = add_head(keras.Model(inputs, layers.Identity()(inputs)), classes=2, pooling=pooling, activation="linear")
    x = np.random.default_rng(0).normal(size=(4, *shape)).astype("float32")
    kernel, bias = model.get_layer("head").get_layer("output").get_weights()
    np.testing.assert_allclose(model(x), oracle(x) @ kernel + bias, rtol=1e-4, atol=1e-5)


def test_pooling_that_does_not_fit_is_refused():
    assert problem(backbone(6), classes=2, pooling="max") == (
        "Pooling turns the backbone's output into one vector per row. The output of `net` has 2 axes, batch included, "
        "and `pooling: max` needs 3 to 5. Choose one of `none`, `flatten`."
    )
    assert "`pooling: first` needs 3." in problem(backbone(3, 2, 6), classes=2, pooling="first")


def test_the_last_activation_is_by_the_number_of_classes_unless_given():
    for options, expected in (
        ({"classes": 2}, "softmax"),
        ({"classes": 1}, "sigmoid"),
        ({"classes": 2, "activation": "linear"}, "linear"),
    ):
        output = add_head(backbone(6), **options).get_layer("head").get_layer("output")
        assert output.activation.__name__ == expected


def test_an_unknown_activation_is_refused_with_the_nearest():
    assert problem(backbone(6), classes=2, activation="sotfmax") == (
        "An activation is the name of a function in `keras.activations`. Received `sotfmax`. Did you mean `softmax` or "
        "`log_softmax`? For no activation, write `linear`."
    )
    assert "Received `rleu`. Did you mean `relu`" in problem(backbone(6), classes=2, hidden_activation="rleu")


def test_the_last_layer_is_float32_under_a_mixed_policy():
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = add_head(backbone(6), classes=2)
        assert model(np.ones((1, 6))).dtype == "float32"
    finally:
        keras.config.set_dtype_policy("float32")


def test_a_head_takes_the_place_of_an_old_one(tiny):
    said = problem(tiny(), classes=5)
    assert said == (
        "The head is the only layer named `head`. `tiny` already has a layer of that name. To replace it, name the layer "
        "before it: `after: body`."
    )
    old = tiny()
    model = add_head(old, classes=5, after="body")
    assert model.output_shape == (None, 5)
    assert names(model)[-2:] == ["head/output/kernel", "head/output/bias"]
    np.testing.assert_array_equal(model.get_layer("stem").kernel, old.get_layer("stem").kernel)
    assert "has no layer `bodi`; its last are `stem`, `bn`, `body`, `head`. Did you mean `body`?" in problem(
        tiny(), classes=5, after="bodi"
    )


def test_one_of_several_outputs_is_chosen():
    inputs = keras.Input((6,))
    several = keras.Model(inputs, {"a": layers.Dense(2)(inputs), "b": layers.Dense(3)(inputs)}, name="two")
    assert add_head(several, classes=2, output_key="b").get_layer("head").input_shape == (None, 3)
    assert problem(several, classes=2) == (
        "A recipe trains one output. `two` has `a`, `b`; none is selected. Select one with `output_key`."
    )
    assert "there is no `c`" in problem(several, classes=2, output_key="c")
    assert problem(backbone(6), classes=2, output_key="c").endswith("`net` has one. Remove it.")


def test_a_model_whose_output_is_not_known_is_refused():
    class Own(keras.Model):
        pass

    assert problem(Own(name="own"), classes=2).startswith(
        "A head can only be added to a functional or Sequential model. `own` is a `Own`"
    )


def test_a_backbone_that_is_called_elsewhere_too_keeps_its_inputs():
    net = backbone(6)
    first = inputs_of(net)
    net(keras.Input((6,)))
    assert inputs_of(net) is first
    assert add_head(net, classes=2).output_shape == (None, 2)


@pytest.mark.parametrize("pooling", ["average", "first"])
def test_a_model_with_a_head_opens_in_plain_keras(tmp_path, pooling):
    model = add_head(backbone(5, 6), classes=2, units=[3], dropout=0.1, pooling=pooling)
    model.save(tmp_path / "model.keras")
    x = np.ones((2, 5, 6), "float32")
    np.testing.assert_array_equal(keras.models.load_model(tmp_path / "model.keras")(x), model(x))


@pytest.mark.parametrize(("classes", "rescaling"), [(1, (2.0, 100.0)), (2, ([2.0, 3.0], [100.0, 0.0]))])
def test_a_head_gives_outputs_of_the_scale_that_is_asked_for(classes, rescaling, tmp_path):
    model = add_head(backbone(6), classes=classes, activation="linear", rescaling=rescaling)
    x = np.random.default_rng(0).normal(size=(3, 6)).astype("float32")
    head = model.get_layer("head")
    plain = keras.Model(head.inputs, head.get_layer("output").output)(model.get_layer("body")(x))
    np.testing.assert_allclose(model(x), np.asarray(plain) * rescaling[0] + rescaling[1], rtol=1e-6)
    model.save(tmp_path / "model.keras")
    np.testing.assert_array_equal(keras.models.load_model(tmp_path / "model.keras")(x), model(x))
