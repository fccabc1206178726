import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.errors import RestoreError
from finetune.pretrained.formats.weight_file import StoredTensor
from finetune.pretrained.transforms import Transform, apply_transforms


def tensor(name, *shape, dtype="float32"):
    array = np.random.default_rng(len(name)).normal(size=shape).astype(dtype)
    return StoredTensor(name, shape, dtype, lambda: array, position=(0, 1), aliases=("other",), locations=("there",))


def applied(tensors, *rules):
    """What comes out by name; its shape and type must be what its values have."""
    found = apply_transforms(tensors, rules)
    for made in found:
        values = made.read()
        assert (values.shape, values.dtype.name) == (made.shape, made.dtype)
    return {made.name: made for made in found}


def refused(tensors, *rules):
    with pytest.raises(RestoreError) as caught:
        apply_transforms(tensors, rules)
    return str(caught.value)


def test_axes_are_put_in_another_order():
    kernel = tensor("conv/kernel", 2, 3, 4)
    made = applied([kernel], Transform((".*/kernel",), transpose=(2, 0, 1)))["conv/kernel"]
    np.testing.assert_array_equal(made.read(), np.transpose(kernel.read(), (2, 0, 1)))
    assert made.steps == ("transpose [2, 0, 1]",)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize(
    ("wanted", "shape"), [((4, 3), (4, 3)), ((2, -1), (2, 6)), ((-1,), (12,)), ((1, 12, 1), (1, 12, 1))]
)
def test_a_shape_is_counted_in_the_order_asked_for(order, wanted, shape):
    kernel = tensor("kernel", 3, 4)
    made = applied([kernel], Transform(("kernel",), reshape=wanted, order=order))["kernel"]
    np.testing.assert_array_equal(made.read(), kernel.read().reshape(shape, order=order))


@pytest.mark.parametrize(
    ("split", "axis", "cuts"), [(3, 1, [2, 4]), ((1, 5), 1, [1]), (2, 0, [2]), ((1, 2, 1), -2, [1, 3])]
)
def test_parts_get_names_of_their_own(split, axis, cuts):
    parts = len(cuts) + 1
    names = tuple(rf"\1/{'qkv'[i]}" for i in range(parts))
    made = applied([tensor("a/qkv", 4, 6)], Transform(("(.*)/qkv",), names, split=split, axis=axis))
    expected = np.split(tensor("a/qkv", 4, 6).read(), cuts, axis=axis)
    for i, part in enumerate(expected):
        np.testing.assert_array_equal(made[f"a/{'qkv'[i]}"].read(), part)
        assert made[f"a/{'qkv'[i]}"].origin == ("a/qkv",)


def test_one_weight_of_each_pattern_is_joined_in_the_order_of_the_patterns():
    every = [tensor(f"{layer}/{part}", 2, width) for layer in "ab" for part, width in (("k", 1), ("q", 3))]
    made = applied(every, Transform((r"(.)/q", r"(.)/k"), (r"\1/qk",), concatenate=True, axis=1))
    assert {name: t.shape for name, t in made.items()} == {"a/qk": (2, 4), "b/qk": (2, 4)}
    np.testing.assert_array_equal(made["b/qk"].read(), np.concatenate([every[3].read(), every[2].read()], axis=1))
    assert made["b/qk"].in_file == "b/q + b/k"


def test_a_joined_weight_takes_the_place_of_the_first_and_other_weights_stay_where_they_are():
    every = [tensor(name, 2) for name in ("x", "k", "y", "q", "z")]
    made = applied(every, Transform(("q", "k"), ("qk",), concatenate=True))
    assert list(made) == ["x", "y", "qk", "z"]
    np.testing.assert_array_equal(made["y"].read(), every[2].read())


@pytest.mark.parametrize("joined", [{"add": True}, {"concatenate": True}])
def test_weights_of_two_types_become_one_of_the_wider_type(joined):
    every = [tensor("half", 2, dtype="float16"), tensor("single", 2)]
    assert applied(every, Transform(("half", "single"), ("both",), **joined))["both"].dtype == "float32"


def test_weights_are_added():
    one, two = tensor("lstm/bias_ih", 8), tensor("lstm/bias_hh_", 8)
    made = applied([one, two], Transform(("(.*)/bias_ih", "(.*)/bias_hh_"), (r"\1/bias",), add=True))
    np.testing.assert_array_equal(made["lstm/bias"].read(), one.read() + two.read())
    assert (made["lstm/bias"].in_file, made["lstm/bias"].steps) == ("lstm/bias_ih + lstm/bias_hh_", ("add",))


def test_rules_follow_one_another_and_the_steps_are_reported_in_order():
    made = applied(
        [tensor("w", 4, 6)],
        Transform(("w",), ("up", "down"), split=2),
        Transform(("down",), transpose=(1, 0)),
        Transform(("down",), ("kernel",), reshape=(3, 2, 2)),
    )
    assert made["kernel"].steps == ("split 2 along axis 0, part 2", "transpose [1, 0]", "reshape [3, 2, 2]")
    assert (made["up"].origin, made["kernel"].origin) == (("w",), ("w",))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int8"])
def test_the_type_stays(dtype):
    assert applied([tensor("w", 2, 2, dtype=dtype)], Transform(("w",), transpose=(1, 0)))["w"].dtype == dtype


def test_a_new_name_drops_what_else_the_file_knew_and_the_same_name_keeps_it():
    kept, renamed = (
        applied([tensor("w", 2, 2)], Transform(("w",), to, transpose=(1, 0))).popitem()[1] for to in ((), ("v",))
    )
    assert (kept.aliases, kept.locations, kept.position) == (("other",), ("there",), (0, 1))
    assert (renamed.aliases, renamed.locations, renamed.position) == ((), (), None)


def test_nothing_is_read_before_the_values_are_asked_for():
    def read():
        raise AssertionError("read")

    unread = StoredTensor("w", (2, 4), "float32", read)
    rules = [Transform(("w",), transpose=(1, 0)), Transform(("w",), ("a", "b"), split=2)]
    assert [made.shape for made in apply_transforms([unread], rules)] == [(2, 2), (2, 2)]


def test_a_pattern_must_match_a_whole_name():
    message = refused([tensor("body/kernel", 2, 2)], Transform(("kernel",), transpose=(1, 0)))
    assert message == (
        "Each rule of `transform` must match whole names of weights, and `kernel` (transpose [1, 0]) matches none. "
        "The names after the earlier rules are `body/kernel`."
    )
    assert "and `b` (add) matches none" in refused([tensor("a", 2)], Transform(("a", "b"), ("c",), add=True))


@pytest.mark.parametrize(
    ("rule", "told"),
    [
        (Transform((".*",), transpose=(1, 0, 2)), "`transpose [1, 0, 2]` does not fit `w (4, 6)`."),
        (Transform((".*",), reshape=(-1, 5)), "`reshape [-1, 5]` does not fit `w (4, 6)`, `long (4, 6, 2)`"),
        (Transform(("w",), ("a", "b", "c"), split=(1, 2, 3), axis=0), "`split [1, 2, 3] along axis 0` does not fit"),
        (Transform(("w",), ("a", "b"), split=2, axis=2), "`split 2 along axis 2` does not fit `w (4, 6)`"),
        (Transform(("w", "long"), ("a",), add=True), "`add` does not fit `w (4, 6) and long (4, 6, 2)`"),
        (Transform(("w", "long"), ("a",), concatenate=True), "`concatenate along axis 0` does not fit"),
        (Transform(("w|long", "w"), ("a",), add=True), "matches no weight, or several, for `a`"),
        (Transform(("(w)",), (r"\2",), transpose=(1, 0)), r"needs valid new names. `\2`: invalid group reference"),
        (Transform(("(w",), transpose=(1, 0)), "`(w`: missing ), unterminated subpattern"),
    ],
    ids=str,
)
def test_a_rule_that_does_not_fit_is_reported_with_the_weights_and_their_shapes(rule, told):
    assert told in refused([tensor("w", 4, 6), tensor("long", 4, 6, 2)], rule)


@given(st.permutations(range(3)), st.lists(st.integers(1, 4), min_size=3, max_size=3))
def test_axes_that_are_put_back_give_the_same_weight(axes, shape):
    kernel = tensor("w", *shape)
    there, back = (
        Transform(("w",), transpose=tuple(axes)),
        Transform(("w",), transpose=tuple(np.argsort(axes).tolist())),
    )
    np.testing.assert_array_equal(applied([kernel], there, back)["w"].read(), kernel.read())


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.integers(0, 1))
def test_what_is_split_and_joined_again_is_the_same_weight(sizes, axis):
    shape = (sum(sizes), 3) if axis == 0 else (3, sum(sizes))
    kernel, names = tensor("w", *shape), tuple(f"part{i}" for i in range(len(sizes)))
    split = Transform(("w",), names, split=tuple(sizes), axis=axis)
    made = applied([kernel], split, Transform(names, ("w",), concatenate=True, axis=axis))
    np.testing.assert_array_equal(made["w"].read(), kernel.read())


def test_lists_are_taken_as_yaml_has_them():
    assert Transform(["w"], reshape=[2, 12]) == Transform(("w",), reshape=(2, 12))
    assert Transform(["w"], ["a", "b"], split=[2, 4]) == Transform(("w",), ("a", "b"), split=(2, 4))
    (kernel,) = apply_transforms([tensor("w", 6, 4)], [Transform("w", transpose=[1, 0])])
    assert kernel.shape == (4, 6)  # a tuple, as the shapes of variables are: a list would not be equal to it
