import numpy as np

from finetune.pretrained.formats.weight_file import StoredTensor


def unread():
    raise AssertionError("the values were read")


def test_a_weight_goes_by_its_name_in_the_file_until_it_is_made_from_others():
    assert StoredTensor("head/kernel", (2,), "float32", unread).in_file == "head/kernel"
    made = StoredTensor("lstm/bias", (2,), "float32", unread, origin=("lstm/bias_ih", "lstm/bias_hh"))
    assert made.in_file == "lstm/bias_ih + lstm/bias_hh"


def test_weights_are_compared_and_shown_without_reading_their_values():
    one, other = (StoredTensor("w", (2,), "float32", lambda n=n: np.full(2, n)) for n in (1, 2))
    assert one == other
    assert "read" not in repr(one)
    assert StoredTensor("w", (2,), "float32", unread) != StoredTensor("v", (2,), "float32", unread)
