"""A refusal begins with the place of the key that it is about, whoever raises it, and says which key that is."""

import numpy as np
import pytest

import finetune
from finetune.errors import DataError, FinetuneError, GroupError, LockError, RestoreError, TrainingError
from finetune.recipe.error_places import has_place, located, located_at
from finetune.recipe.loader import load_recipe

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")


@pytest.fixture
def loaded(recipe):
    return load_recipe(recipe, overrides=["restore={from: a.h5, exclude: [head]}", "train.use_ema=true"])


def raised(loaded, keys, error):
    with pytest.raises(FinetuneError) as caught, located(loaded, *keys):
        raise error
    return caught.value


def test_an_error_gets_the_place_of_the_door_and_keeps_its_class(loaded):
    error = raised(loaded, ("groups",), GroupError("Something is wrong."))
    assert (type(error), str(error)) == (GroupError, "tiny.yaml:5:3: `groups`: Something is wrong.")
    assert str(raised(loaded, ("train", "loss"), DataError("No."))) == "tiny.yaml:11:42: `train.loss`: No."


def test_a_key_that_the_message_names_gets_its_own_place(loaded):
    for text in ("`exclude: [x]` matches nothing.", "`restore.exclude` is wrong.", "In `exclude`, `from` is no name."):
        error = raised(loaded, ("restore", "from"), RestoreError(text))
        assert str(error) == f"--set restore: `restore.exclude`: {text}"
    assert str(raised(loaded, ("restore", "from"), RestoreError("A `file`."))).startswith(
        "--set restore: `restore.from`: "
    )
    assert (
        str(raised(loaded, ("train",), DataError("`use_ema` fails.")))
        == "--set train.use_ema: `train.use_ema`: `use_ema` fails."
    )


def test_a_key_that_was_not_written_has_the_place_of_what_was(loaded):
    assert str(raised(loaded, ("train", "jit_compile"), DataError("No."))).startswith("tiny.yaml:11:8: `train`: ")
    assert str(raised(loaded, ("phases",), GroupError("No."))).startswith("tiny.yaml:2:8: `model`: ")


def test_the_innermost_place_stays_and_other_errors_pass_as_they_are(loaded):
    @located_at("model")
    def outer(recipe):
        with located(recipe, "data"):
            raise DataError("No.")

    with pytest.raises(DataError, match=r"^tiny\.yaml:3:7: `data`: No\.$"):
        outer(loaded)
    for error in (TrainingError("It failed."), LockError("Locked."), DataError("other/tiny.yaml:1:1: x")):
        text = str(error)
        assert str(raised(loaded, ("data",), error)).endswith(text)
    assert str(raised(loaded, ("data",), TrainingError("It failed."))) == "It failed."
    assert has_place("--set restore: x", loaded._tree)
    assert not has_place("x: y", loaded._tree)


def test_values_that_follow_from_a_strategy_and_break_a_rule_are_refused(recipe):
    with pytest.raises(FinetuneError) as caught:
        finetune.plan(recipe, overrides=["groups={by: layer, peak: 1e-3, decay: 1e30, optimizer: sgd}"])
    assert str(caught.value).startswith(
        "--set groups: `groups`: the `learning_rate` that follows from it must be between 1.2e-38 and 3.4e38"
    )


# What is wrong, and the key whose place the refusal has. One line for each way to be refused that builds something.
REFUSED = [
    ("model.keras_file=rows.npz", "model.keras_file"),
    ("model={builder: 'finetune.examples.digits:small_cnn', arguments: {x: 1}}", "model"),
    ("model={application: ResNet50, weights: none, arguments: {x: 1}}", "model"),
    ("model.head={classes: 3, after: nothing}", "model.head"),
    ("data.npz=tiny.keras", "data.npz"),
    ("data.npz=empty.npz", "data.npz"),
    ("data.npz=narrow.npz", "data"),
    ("data={keras_dataset: mnist, split: {test: 0.5}}", "data"),
    ("data.limit=1", "data"),
    ("data.class_weight={x: 1.0}", "data.class_weight"),
    ("data.augment=[{layer: RandomFlip}]", "data.augment"),
    ("restore={from: rows.npz}", "restore"),
    ("restore={from: tiny.keras, exclude: [nothing]}", "restore"),
    ("restore={from: tiny.keras, rename: {nothing: x}}", "restore"),
    ("restore={from: tiny.keras, verify: rows.npz}", "restore"),
    ("groups.stem.prefixes=[nothing]", "groups.stem.prefixes"),
    ("groups={by: block, peak: 1e-3, optimizer: sgd}", "groups"),
    ("groups={by: layer, peak: 1e-3, decay: 1e30, optimizer: sgd}", "groups"),
    ("groups.body.optimizer={name: lion, beta_1: [1]}", "groups.body.optimizer"),
    ("phases=[{train: [head], epochs: 2, until: {monitor: val_loss}}]", "phases"),
    ("train.metrics=[{name: accuracy, x: 1}]", "train.metrics"),
    ("train.loss=binary_crossentropy", "train.loss"),
    ("train.loss={name: huber, x: 1}", "train.loss"),
    ("train.mixed_precision=float16", "train.mixed_precision"),
    ("train.gradient_accumulation_steps=999", "train.gradient_accumulation_steps"),
    ("train.validation_fraction=0.999", "train.validation_fraction"),
]


@pytest.mark.parametrize(("override", "key"), REFUSED, ids=[override for override, _ in REFUSED])
def test_every_refusal_has_the_place_of_its_key(recipe, tiny_files, override, key):
    for name in ("tiny.keras", "rows.npz"):
        (recipe.parent / name).write_bytes((tiny_files / name).read_bytes())
    np.savez("empty.npz", x_train=np.zeros((0, 6)), y_train=[], x_test=np.zeros((0, 6)), y_test=[])
    np.savez("narrow.npz", x_train=np.zeros((9, 2)), y_train=[0, 1, 2] * 3, x_test=np.zeros((3, 2)), y_test=[0, 1, 2])
    with pytest.raises(FinetuneError) as caught:
        finetune.plan(recipe, overrides=[override])
    first = str(caught.value).splitlines()[0]
    assert caught.value.exit_code == 2
    written = override.partition("=")[0]
    assert first.startswith((f"--set {written}: ", "tiny.yaml:")), first
    assert key.rpartition(".")[2] in first.partition(": ")[2] or written.startswith(key)
