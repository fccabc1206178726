"""Examples in `.npz` files: what a file must hold, and what is said when it does not."""

import numpy as np
import pytest

from finetune.data import npz
from finetune.data.npz import read_npz, read_npz_splits
from finetune.errors import DataError, FinetuneError


def arrays(**changes):
    """Four training rows, two test rows, two validation rows; a change to `None` leaves an array out."""
    rows = {"train": 4, "test": 2, "validation": 2}
    made = {f"x_{part}": np.ones((n, 3), np.float32) for part, n in rows.items()}
    made |= {f"y_{part}": np.arange(n) for part, n in rows.items()} | changes
    return {name: array for name, array in made.items() if array is not None}


@pytest.fixture
def write(tmp_path):
    def write(name="data.npz", **changes):
        np.savez(tmp_path / name, **arrays(**changes))
        return tmp_path / name

    return write


def message(path):
    with pytest.raises(DataError) as caught:
        read_npz(path)
    return str(caught.value)


def test_a_file_gives_back_the_arrays_that_were_written(write):
    examples = read_npz(write())
    for name, array in arrays().items():
        np.testing.assert_array_equal(getattr(examples, name), array)


def test_validation_rows_may_be_left_out(write):
    examples = read_npz(write(x_validation=None, y_validation=None))
    assert examples.x_validation is None
    assert examples.y_validation is None


def test_arrays_of_other_names_are_left_alone(write):
    assert len(read_npz(write(class_names=np.array(["cat", "dog"]))).x_train) == 4


def test_examples_may_be_text(write):
    text = {f"x_{part}": np.array(["a b"] * n) for part, n in {"train": 4, "test": 2, "validation": 2}.items()}
    assert read_npz(write(**text)).x_test[0] == "a b"


def test_a_missing_array_is_reported_with_the_names_found(write):
    said = message(write(y_test=None, x_validation=None, y_validation=None))
    assert "must hold the arrays `x_train`, `y_train`, `x_test`, `y_test`, or `x` and `y`; `y_test` are missing" in said
    assert "It holds `x_train`, `x_test`, `y_train`." in said


def test_a_misspelt_array_is_reported_with_the_nearest_name(write):
    said = message(write(x_validation=None, y_validation=None, x_validate=np.ones((2, 3))))
    assert "also holds `x_validate`. Did you mean `x_validation` or" in said


def test_rows_that_disagree_are_reported_with_both_counts(write):
    said = message(write(y_train=np.arange(3), y_test=np.arange(5)))
    assert "`x_train` with 4 rows and `y_train` with 3; `x_test` with 2 rows and `y_test` with 5" in said


def test_an_empty_array_is_an_error(write):
    said = message(write(x_test=np.ones((0, 3)), y_test=np.arange(0)))
    assert "`x_test` that is empty, shape (0, 3); `y_test` that is empty, shape (0,)" in said


def test_values_that_are_not_finite_are_counted(write):
    assert "`x_train` with 2 values that are not finite" in message(write(x_train=np.array([[1, np.nan, np.inf]] * 1)))


def test_rows_of_another_shape_are_reported_with_both_shapes(write):
    assert "`x_test` of shape (5,) per row and `x_train` of (3,)" in message(write(x_test=np.ones((2, 5))))


def test_validation_inputs_without_targets_are_an_error(write):
    assert "`y_validation` are missing" in message(write(y_validation=None))


def test_a_missing_file_is_reported_with_its_neighbours(write):
    path = write("digits.npz")
    said = message(path.with_name("digit.npz"))
    assert "does not exist" in said
    assert "holds `digits.npz`. Did you mean `digits.npz`?" in said


def test_a_file_in_a_missing_folder_is_an_error(tmp_path):
    assert "holds no `.npz` file" in message(tmp_path / "nowhere" / "data.npz")


def test_python_objects_are_never_unpickled(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (pytest.fail, ("the pickle was loaded",))

    changed = arrays(x_train=np.array([Bomb()] * 4, dtype=object))
    np.savez(tmp_path / "data.npz", **changed)
    assert "not of Python objects" in message(tmp_path / "data.npz")


@pytest.mark.parametrize("content", [b"", b"x_train,y_train\n1,2\n", b"PK\x03\x04 and then nothing"])
def test_a_file_of_another_kind_is_an_error(tmp_path, content):
    (tmp_path / "data.npz").write_bytes(content)
    assert "must be a readable `.npz` file" in message(tmp_path / "data.npz")


def test_a_truncated_file_is_an_error(write):
    path = write(x_train=np.random.default_rng(0).random((4, 3000)))
    path.write_bytes(path.read_bytes()[:-200])
    assert "must be a readable `.npz` file" in message(path)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_damaged_array_is_an_error(tmp_path, save):
    path = tmp_path / "data.npz"
    save(path, **arrays(x_train=np.random.default_rng(0).random((4, 300))))
    content = bytearray(path.read_bytes())
    content[200:210] = b"damaged..."
    path.write_bytes(content)
    assert "must be a readable `.npz` file" in message(path)


def test_a_folder_is_an_error(tmp_path):
    assert "must be a readable `.npz` file" in message(tmp_path)


def test_a_single_array_is_an_error(tmp_path):
    with (tmp_path / "data.npz").open("wb") as file:
        np.save(file, np.ones(3))
    assert "an `.npz` file of named arrays; received a single array" in message(tmp_path / "data.npz")


def test_a_model_with_several_inputs_has_an_array_for_each_in_every_split(write):
    parts = {f"x_{split}": None for split in ("train", "test", "validation")}
    for split, rows in {"train": 4, "test": 2, "validation": 2}.items():
        parts |= {f"x_{split}/ids": np.arange(rows), f"x_{split}/mask": np.ones((rows, 2))}
    examples = read_npz(write(**parts))
    assert {name: array.shape for name, array in examples.x_train.items()} == {"ids": (4,), "mask": (4, 2)}
    assert examples.x_test["ids"].tolist() == [0, 1]


def test_an_array_that_is_whole_and_has_parts_is_an_error(write):
    assert "holds `x_train` and `x_train/ids`" in message(write(**{"x_train/ids": np.arange(4)}))


def test_weights_of_the_rows_and_names_of_the_classes_are_read(write):
    examples = read_npz(write(weights_train=np.arange(4.0), class_names=np.array(["cat", "dog"])))
    assert examples.train.weights.tolist() == [0, 1, 2, 3]
    assert examples.test.weights is None
    assert examples.class_names == ("cat", "dog")


def test_rows_that_are_still_to_be_split_are_x_and_y(tmp_path):
    x, y = np.arange(12.0).reshape(6, 2), np.arange(6)
    np.savez(tmp_path / "a.npz", x=x, y=y, weights=y / 2, class_names=list("abcdef"))
    splits, class_names = read_npz_splits(tmp_path / "a.npz")
    assert list(splits) == [""]
    np.testing.assert_array_equal(splits[""].x, x)
    np.testing.assert_array_equal(splits[""].weights, y / 2)
    assert class_names == tuple("abcdef")
    np.savez(tmp_path / "b.npz", **{"x/ids": x, "x/mask": x, "y": y})
    assert list(read_npz_splits(tmp_path / "b.npz")[0][""].x) == ["ids", "mask"]
    np.savez(tmp_path / "c.npz", x=x)
    with pytest.raises(DataError, match=r"or `x` and `y`; `y` are missing\. It holds `x`"):
        read_npz_splits(tmp_path / "c.npz")


def test_large_arrays_stay_in_the_file_where_it_is_not_compressed(tmp_path, monkeypatch):
    monkeypatch.setattr(npz, "MAPPED", 100)
    arrays = {
        "x_train": np.random.default_rng(0).normal(size=(40, 3)),
        "y_train": np.arange(40),
        "x_test": np.ones((2, 3)),
        "y_test": np.arange(2),
    }
    arrays["x_validation"], arrays["y_validation"] = (
        np.asfortranarray(np.random.default_rng(1).normal(size=(9, 3))),
        np.arange(9),
    )
    np.savez(tmp_path / "a.npz", **arrays)
    np.savez_compressed(tmp_path / "b.npz", **arrays)
    mapped, loaded = read_npz(tmp_path / "a.npz"), read_npz(tmp_path / "b.npz")
    assert isinstance(mapped.x_train, np.memmap)
    assert not isinstance(loaded.x_train, np.memmap)
    for name, array in arrays.items():
        np.testing.assert_array_equal(getattr(mapped, name), array)
        np.testing.assert_array_equal(getattr(loaded, name), array)


def test_a_small_file_that_would_fill_the_memory_is_refused(tmp_path):
    np.savez_compressed(tmp_path / "bomb.npz", x_train=np.zeros((110_000_000,), "uint8"))
    with pytest.raises(FinetuneError, match=r"`.*bomb.npz` holds 110,000,\d+. If you trust it, raise the limit"):
        read_npz(tmp_path / "bomb.npz")
