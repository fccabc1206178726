import doctest
import importlib
import pkgutil

import keras
import numpy as np
import pytest
import tensorflow as tf

import finetune
from finetune import errors
from finetune.errors import FinetuneError, TrainingError, did_you_mean, nearest, printable, quote, reason


def modules():
    return [
        module.name for module in pkgutil.walk_packages(finetune.__path__, "finetune.") if "__main__" not in module.name
    ]


def test_every_example_in_the_docstrings_of_the_package_is_true():
    results = {name: doctest.testmod(importlib.import_module(name)) for name in modules()}
    assert {name for name, result in results.items() if result.failed} == set()
    assert sum(result.attempted for result in results.values()) > 20


def test_failed_training_exits_1_and_all_bad_input_2():
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, FinetuneError)]
    assert len(kinds) == 10
    failed = (TrainingError, errors.WriteError, errors.MachineError)
    assert {kind: kind.exit_code for kind in kinds} == {kind: 1 if kind in failed else 2 for kind in kinds}


def test_bad_input_is_a_value_error_too():
    assert issubclass(errors.GroupError, ValueError)
    assert issubclass(errors.RecipeError, ValueError)


def test_names_are_quoted_in_backticks_five_at_most():
    assert quote([]) == ""
    assert quote(["a"]) == "`a`"
    assert quote("abcde") == "`a`, `b`, `c`, `d`, `e`"
    assert quote("abcdefg") == "`a`, `b`, `c`, `d`, `e` and 2 more"
    assert quote([1, 2], limit=1) == "`1` and 1 more"


def test_the_nearest_names_come_best_first_and_only_if_they_are_near():
    assert nearest("blok_1", ["block_2", "block_1", "head"])[0] == "block_1"
    assert nearest("zzz", ["block_1"]) == []
    assert nearest("a", ["a", "a"]) == ["a"]
    assert did_you_mean("hed", ["stem", "head"]) == " Did you mean `head`?"
    assert did_you_mean("blok", ["block", "blob"]) == " Did you mean `block` or `blob`?"
    assert did_you_mean("zzz", ["head"]) == ""


# -- What others' errors say, in one line -----------------------------------------------------------------------------


def raised(call, *arguments, **named):
    with pytest.raises(Exception) as error:  # noqa: PT011 - whatever it is
        call(*arguments, **named)
    return error.value


def test_a_plain_message_stays_as_it_is_without_its_full_stop():
    assert reason(ValueError("Too wide.")) == "Too wide"
    assert reason(KeyError("a")) == "'a'"


def test_only_the_first_of_several_lines_is_kept():
    assert reason(ValueError("\n\nToo wide.\nReceived: 3\n")) == "Too wide"


def test_a_message_without_words_still_says_something():
    assert reason(ValueError()) == "the error has no message"


def test_a_long_message_is_cut():
    assert len(reason(ValueError("x" * 5000))) == 300


def test_an_error_of_a_layer_is_shown_without_the_frame_around_it(tiny):
    error = raised(tiny(), np.zeros((2, 5), "float32"))
    assert str(error).count("\n") > 3
    assert reason(error).startswith("Input 0 with name 'None' of layer 'stem' is incompatible with the layer: expected")
    assert "\x1b" not in reason(error)


def test_an_error_of_an_operation_is_shown_without_its_internal_names():
    error = raised(tf.matmul, tf.zeros((2, 3)), tf.zeros((2, 3)))
    assert "function_node" in str(error)
    assert reason(error) == "Matrix size-incompatible: In[0]: [2,3], In[1]: [2,3]"


def test_an_error_of_a_compiled_function_is_shown_without_its_traceback(tiny, rows):
    model = tiny()
    model.compile("sgd", loss="sparse_categorical_crossentropy")
    error = raised(model.fit, rows[0][:4], np.full(4, 7), verbose=0)
    assert len(str(error)) > 1000
    assert reason(error).startswith("Received a label value of 7 which is outside the valid range of [0, 3)")


def test_an_error_of_a_broken_config_is_shown_without_the_config():
    config = {"module": None, "class_name": "Unheard", "config": {}, "registered_name": "mine>Unheard"}
    error = raised(
        keras.saving.deserialize_keras_object,
        {
            **keras.saving.serialize_keras_object(keras.layers.Wrapper(keras.layers.Dense(1))),
            "config": {"layer": config},
        },
    )
    assert reason(error).startswith("Could not locate class 'Unheard'")
    assert "config" not in reason(error)


CONTROLS = ["\x00", "\x07", "\x1b", "\r", "\t", "\x7f", "\x9b", "\u202e", "\u2066", "\u2028", "\ufeff", "\udcff"]


@pytest.mark.parametrize("control", CONTROLS, ids=ascii)
def test_control_characters_of_names_are_shown_escaped_in_errors_and_nothing_else_is_changed(control):
    name = f"größe/核 👩\u200d💻{control}x"
    for text in (printable(name), quote([name]), str(FinetuneError(f"No `{name}`.")), str(TrainingError(name))):
        assert control not in text
        assert ascii(control)[1:-1] in text
        assert "größe/核 👩\u200d💻" in text


def test_a_line_break_of_a_name_forges_no_line_of_an_error():
    error = FinetuneError("first `a\nerror: all is fine`\nsecond")
    assert str(error).splitlines() == ["first `a\\nerror: all is fine`", "second"]


def test_every_kind_of_error_escapes():
    for kind in [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, FinetuneError)]:
        assert str(kind("\x1b]0;title\x07")) == "\\x1b]0;title\\x07"
