import keras
import numpy as np
import pytest
import tensorflow as tf

from finetune.commands.reference import write_reference
from finetune.errors import FinetuneError
from finetune.pretrained.reference_outputs import compare_outputs, read_reference


def refused(*arguments, **more):
    with pytest.raises(FinetuneError) as caught:
        write_reference(*arguments, **more)
    return str(caught.value)


@pytest.fixture
def rows_file(tmp_path):
    np.save(tmp_path / "rows.npy", np.ones((3, 6), "float32"))
    return tmp_path / "rows.npy"


def test_a_whole_model_gives_what_its_copy_agrees_with(tiny_files, rows_file, tmp_path):
    written = write_reference(tiny_files / "tiny.keras", tmp_path / "r.npz", inputs=rows_file)
    assert written == {"input": (3, 6), "output": (3, 3)}
    model = keras.models.load_model(tiny_files / "tiny.keras")
    assert compare_outputs(model, read_reference(tmp_path / "r.npz"), rtol=0, atol=1e-7) < 1e-7


def test_a_recipe_gives_its_first_test_rows_and_layers_by_name(recipe, tmp_path):
    assert write_reference(recipe, tmp_path / "r.npz", layers=["body"]) == {"input": (8, 6), "output/body": (8, 8)}


def test_the_restored_weights_of_a_recipe_count_and_fresh_ones_are_refused(recipe, tiny_files, tmp_path):
    restore = [f"restore.from={tiny_files / 'tiny.keras'}", "restore.verify=not_yet.npz"]
    assert set(write_reference(recipe, tmp_path / "r.npz", overrides=restore)) == {"input", "output"}
    message = refused(recipe, tmp_path / "x.npz", overrides=[*restore, "restore.exclude=[head]"])
    assert "`head/kernel`, `head/bias` are not restored." in message
    assert "`stem`, `bn`, `body`, `head`." in message
    assert not (tmp_path / "x.npz").exists()


def test_a_saved_model_gives_all_outputs_of_its_default_signature(rows_file, tmp_path):
    class Two(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec((None, 6), tf.float32, name="x")])
        def serve(self, x):
            return {"sum": tf.reduce_sum(x, 1), "double": 2 * x}

    module = Two()
    tf.saved_model.save(module, str(tmp_path / "m"), signatures=module.serve)
    assert "reach outside of it: none. If you trust it, add `--allow-code hub:" in refused(
        tmp_path / "m" / "saved_model.pb", tmp_path / "r.npz", inputs=rows_file
    )
    allowed = [f"hub:{tmp_path}/m"]
    written = write_reference(tmp_path / "m", tmp_path / "r.npz", inputs=rows_file, allow_code=allowed)
    assert written == {"input": (3, 6), "output/double": (3, 6), "output/sum": (3,)}
    np.testing.assert_array_equal(read_reference(tmp_path / "r.npz").outputs["sum"], [6, 6, 6])


def test_nothing_is_written_over_and_nothing_without_inputs(tiny_files, rows_file, tmp_path):
    model = tiny_files / "tiny.keras"
    assert "holds a network without example rows. Name a file of rows with `--input rows.npz`." in refused(
        model, tmp_path / "r.npz"
    )
    assert "End its name in `.npz`." in refused(model, tmp_path / "r.txt", inputs=rows_file)
    write_reference(model, tmp_path / "r.npz", inputs=rows_file)
    assert "Add `--overwrite`" in refused(model, tmp_path / "r.npz", inputs=rows_file)
    write_reference(model, tmp_path / "r.npz", inputs=rows_file, overwrite=True)
    (tmp_path / "broken.npy").write_bytes(b"no array")
    assert "broken.npy` cannot be read: " in refused(model, tmp_path / "s.npz", inputs=tmp_path / "broken.npy")


def test_outputs_that_are_no_numbers_are_refused(tiny_files, tmp_path):
    np.save(tmp_path / "rows.npy", np.full((3, 6), np.inf, "float32"))
    message = refused(tiny_files / "tiny.keras", tmp_path / "r.npz", inputs=tmp_path / "rows.npy")
    assert "Those of `output` are not. Use other inputs." in message
    assert not (tmp_path / "r.npz").exists()
