"""What is wrong is found before a run begins, and leaves no folder, and a former run as it was."""

from pathlib import Path

import numpy as np
import pytest

import finetune
from finetune.errors import FinetuneError, RecipeError

# NumPy 2 warns when Keras copies a TensorFlow variable to save it.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")


def test_bad_input_leaves_the_former_run_as_it_was_even_when_overwriting(recipe, snapshot, former_run):
    before = snapshot("out")
    with pytest.raises(FinetuneError):
        finetune.run(recipe, "out", overwrite=True, overrides=["groups.body.prefixes=[bdy]"])
    assert snapshot("out") == before


@pytest.mark.parametrize(
    "override",
    [
        *("train.epochs=0", "model.keras_file=nowhere.keras", "data.npz=nowhere.npz", "groups.body.prefixes=[bdy]"),
        *("groups.body.optimizer={name: sgd, momentun: 1}", "train.loss=mze", "train.loss=categorical_crossentropy"),
        *("restore={from: nowhere.h5}", "data={builder: os:getcwd}", "train.validation_fraction=0.999"),
    ],
)
def test_bad_input_is_one_of_our_errors_and_leaves_no_folder_behind(recipe, override, names_in):
    with pytest.raises(FinetuneError) as error:
        finetune.run(recipe, "out" if "data" in override else None, overrides=[override])
    assert error.value.exit_code == 2
    assert names_in(".") == {"tiny.yaml"}


@pytest.fixture
def other_rows(rows):
    """Writes other examples into the working directory and returns the override that names them."""

    def write(x=lambda x: x, y_train=lambda y: y, y_test=lambda y: y):
        inputs, labels = x(rows[0]), rows[1]
        np.savez(
            "other.npz",
            x_train=inputs[:60],
            y_train=y_train(labels[:60]),
            x_test=inputs[60:],
            y_test=y_test(labels[60:]),
        )
        return f"data.npz={Path('other.npz').absolute()}"

    return write


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"x": lambda x: x[:, :5]}, "`tiny` takes `6` values per row; the data have `5` values"),
        (
            {"y_train": lambda y: y + 1},
            "`model.keras_file`: A network has an output for each class. The model gives 3 classes, numbered `0` to `2`, and `y_train` has `3`, too.",
        ),
        ({"y_test": lambda y: y + 1}, "and `y_test` has `3`, too. These have no output. Number them from 0"),
        (
            {"y_train": lambda y: np.eye(3)[y], "y_test": lambda y: np.eye(3)[y]},
            "takes the number of the class of each row.",
        ),
    ],
)
def test_examples_that_do_not_fit_are_bad_input_for_run_and_plan(recipe, other_rows, change, told):
    override = other_rows(**change)
    for call in (
        lambda: finetune.run(recipe, "out", overrides=[override]),
        lambda: finetune.plan(recipe, overrides=[override]),
    ):
        with pytest.raises(RecipeError) as error:
            call()
        assert told in str(error.value)
        assert str(error.value).startswith("tiny.yaml:")
        assert "\n" not in str(error.value)
    assert not Path("out").exists()
