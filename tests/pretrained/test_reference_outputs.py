import keras
import numpy as np
import pytest
from keras import layers

from finetune.errors import FinetuneError, RestoreError
from finetune.pretrained.reference_outputs import as_arrays, compare_outputs, outputs_of, read_reference


@pytest.fixture(scope="module")
def model():
    return keras.Sequential(
        [keras.Input((3,)), layers.Dense(4, name="body"), layers.Dense(2, name="head")], name="small"
    )


@pytest.fixture
def rows():
    return {"": np.random.default_rng(0).normal(size=(5, 3)).astype("float32")}


def written(path, arrays):
    np.savez(path, **arrays)
    return path


def refused(call, *arguments, **more):
    with pytest.raises(RestoreError) as caught:
        call(*arguments, **more)
    return str(caught.value)


def test_outputs_of_a_network_and_of_its_layers_are_written_and_agree_with_it(model, rows, tmp_path):
    outputs = outputs_of(model, rows) | outputs_of(model, rows, ["body"])
    reference = read_reference(written(tmp_path / "r.npz", as_arrays(rows, outputs)))
    assert {name: array.shape for name, array in reference.outputs.items()} == {"": (5, 2), "body": (5, 4)}
    assert compare_outputs(model, reference, rtol=0, atol=1e-7) < 1e-7


def test_a_network_with_named_inputs_and_outputs_is_compared_by_these_names(tmp_path):
    inputs = {"one": keras.Input((2,), name="one"), "two": keras.Input((3,), name="two")}
    joined = layers.Concatenate()(list(inputs.values()))
    model = keras.Model(inputs, {"a": layers.Dense(2)(joined), "b": layers.Dense(1)(joined)})
    rows = {"one": np.ones((4, 2), "float32"), "two": np.ones((4, 3), "float32")}
    reference = read_reference(written(tmp_path / "r.npz", as_arrays(rows, outputs_of(model, rows))))
    assert set(reference.outputs) == {"a", "b"}
    assert compare_outputs(model, reference) < 1e-6


def test_behaviour_that_is_only_for_training_is_left_out(rows):
    model = keras.Sequential([keras.Input((3,)), layers.Dropout(0.9)])
    np.testing.assert_array_equal(outputs_of(model, rows)[""], rows[""])


@pytest.mark.parametrize("output", ["", "body"])
def test_a_difference_is_reported_with_its_size_and_how_many_values_are_off(output, model, rows, tmp_path):
    outputs = {name: array.copy() for name, array in outputs_of(model, rows, [output]).items()}
    outputs[output][0, :2] += 0.5
    reference = read_reference(written(tmp_path / "r.npz", as_arrays(rows, outputs)))
    name = f"`output/{output}`" if output else "`output`"
    message = refused(compare_outputs, model, reference)
    assert (
        f"{name} differs by up to 0.5, and 2 of its {outputs[output].size} values by more than 1e-05 + 0.0001 x the value."
        in message
    )
    assert compare_outputs(model, reference, rtol=0, atol=0.6) == pytest.approx(0.5, rel=1e-5)


def test_not_a_number_never_agrees(model, rows, tmp_path):
    outputs = {"": np.full((5, 2), np.nan, "float32")}
    reference = read_reference(written(tmp_path / "r.npz", as_arrays(rows, outputs)))
    assert "10 of its 10 values" in refused(compare_outputs, model, reference, atol=1e9)


def test_another_shape_and_an_unknown_layer_are_reported(model, rows, tmp_path):
    wrong = read_reference(written(tmp_path / "r.npz", as_arrays(rows, {"": np.zeros((5, 7))})))
    assert "`output` has shape (5, 2) instead of (5, 7)." in refused(compare_outputs, model, wrong)
    unknown = read_reference(written(tmp_path / "r.npz", as_arrays(rows, {"boddy": np.zeros((5, 4))})))
    assert "It has no `boddy`. Did you mean `body`?" in refused(compare_outputs, model, unknown)
    assert "It has no `x`. There are `body`, `head`." in refused(outputs_of, model, rows, ["x"])


def test_inputs_that_do_not_go_through_are_reported_with_their_shape(model):
    message = refused(outputs_of, model, {"": np.zeros((5, 9), "float32")})
    assert message.startswith(
        "Reference inputs must be inputs of the model. It does not take `input` of shape (5, 9): "
    )


def test_a_subclassed_model_gives_its_own_output_alone(rows):
    class Own(keras.Model):
        def __init__(self):
            super().__init__(name="own")
            self.body = layers.Dense(2, name="body")

        def call(self, x):
            return self.body(x)

    model = Own()
    assert outputs_of(model, rows)[""].shape == (5, 2)
    assert "`own` is a `Own`. Take the model's own output." in refused(outputs_of, model, rows, ["body"])


@pytest.mark.parametrize(
    ("arrays", "held"),
    [
        ({"x": np.zeros(2)}, "`x`"),
        ({"input": np.zeros(2)}, "`input`"),
        ({"output": np.zeros(2), "y": np.zeros(2)}, "`output`, `y`"),
    ],
)
def test_a_file_without_inputs_or_outputs_is_refused_with_what_it_holds(arrays, held, tmp_path):
    message = refused(read_reference, written(tmp_path / "r.npz", arrays))
    assert f"r.npz` holds {held}. Write one with `finetune reference`." in message


def test_a_missing_or_damaged_file_is_refused(tmp_path):
    assert "There is no `" in refused(read_reference, tmp_path / "none.npz")
    (tmp_path / "r.npz").write_bytes(b"PK\x03\x04 and no more")
    np.savez(tmp_path / "p.npz", input=np.array([None]), output=np.zeros(2))
    np.save(tmp_path / "r.npy", np.zeros(2))
    for name in ("r.npz", "p.npz", "r.npy"):
        assert f"{name}` cannot be read: " in refused(read_reference, tmp_path / name)


def test_a_small_file_that_would_fill_the_memory_is_refused(tmp_path):
    np.savez_compressed(tmp_path / "bomb.npz", input=np.zeros((110_000_000,), "uint8"), output=np.zeros(1))
    with pytest.raises(FinetuneError, match=r"`.*bomb.npz` holds 110,000,\d+. If you trust it, raise the limit"):
        read_reference(tmp_path / "bomb.npz")
