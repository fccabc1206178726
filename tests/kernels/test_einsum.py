"""Einsum as a matrix product against Keras and float64."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from finetune.kernels.einsum import einsum
from finetune.kernels.native_kernels import native_kernels

LENGTHS = dict(zip("abcdefgh", (2, 3, 4, 5, 6, 2, 3, 2), strict=True))

PRODUCTS = [
    "ab,bc->ac",
    "ab,bc->ca",
    "ab,cb->ac",
    "ba,bc->ac",
    "ba,cb->ca",
    "abc,cd->abd",
    "abc,cde->abde",  # a projection to heads
    "abcd,cde->abe",  # and back
    "abcd,dce->abe",
    "abc,dec->abde",
    "aecd,abcd->acbe",  # scores of attention, as `MultiHeadAttention` asks for them
    "acbe,aecd->abcd",  # and what is attended to
    "btnh,bsnh->bnts".translate(str.maketrans("btnhs", "abcde")),
    "abcde,aebf->adbcf",
    "abc,abc->a",
    "abc,abc->b",
    "a,a->",
    "abc,c->ab",
    "c,abc->ab",
    "abc , cd -> abd",
    "...c,cd->...d",
    "a...,ab->b...",
    "cd,...c->...d",
]


def operands(subscripts, seed=0):
    rng = np.random.default_rng(seed)
    terms = subscripts.replace(" ", "").replace("...", "gh").partition("->")[0].split(",")
    return [rng.normal(size=[LENGTHS[label] for label in term]) for term in terms]


@pytest.mark.parametrize("subscripts", PRODUCTS)
def test_errors_against_float64_are_at_most_twice_those_of_keras(function_held_to_float64, subscripts):
    function_held_to_float64("numpy.einsum", lambda a, b: keras.ops.einsum(subscripts, a, b), *operands(subscripts))


@pytest.mark.parametrize("subscripts", ["abc,cde->abde", "aecd,abcd->acbe", "...c,cd->...d", "abcd,cde->abe"])
def test_lengths_may_be_unknown(function_held_to_float64, subscripts):
    inputs = operands(subscripts)
    shapes = [[None] * x.ndim for x in inputs]
    function_held_to_float64("numpy.einsum", lambda a, b: keras.ops.einsum(subscripts, a, b), *inputs, shapes=shapes)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_errors_in_half_precision_are_those_of_the_type(function_held_to_float64, dtype):
    function_held_to_float64(
        "numpy.einsum", lambda a, b: keras.ops.einsum("abc,cde->abde", a, b), *operands("abc,cde->abde"), dtype=dtype
    )


def test_an_empty_batch_gives_an_empty_result():
    run = tf.function(lambda x, w: keras.ops.einsum("abc,cde->abde", x, w), autograph=False)
    with native_kernels() as native:
        assert run(tf.zeros((0, 3, 4)), tf.ones((4, 5, 6))).shape == (0, 3, 5, 6)
    assert native.functions == {"numpy.einsum"}


def test_what_is_known_of_the_shape_stays_known():
    spec = [tf.TensorSpec((None, None, 4)), tf.TensorSpec((4, 5, 6))]
    with native_kernels():
        graph = tf.function(lambda x, w: keras.ops.einsum("abc,cde->abde", x, w)).get_concrete_function(*spec)
    assert graph.structured_outputs.shape.as_list() == [None, None, 5, 6]


@pytest.mark.parametrize(
    "subscripts", ["ab,cd->abcd", "aab,bc->ac", "abc,cd->bd", "ab,bc,cd->ad", "...a,...a->...", "ab->ba", "ab,bc"]
)
def test_what_is_no_product_of_two_matrices_has_the_bits_of_keras(function_left_to_keras, subscripts):
    terms = subscripts.replace("...", "gh").partition("->")[0].split(",")
    same = {**LENGTHS, "b": 2} if "aab" in subscripts else LENGTHS
    inputs = [np.random.default_rng(n).normal(size=[same[x] for x in term]) for n, term in enumerate(terms)]
    function_left_to_keras(lambda *x: keras.ops.einsum(subscripts, *x), *inputs)


def test_operands_of_two_types_and_integers_have_the_bits_of_keras():
    cases = [(tf.ones((2, 3)), tf.ones((3, 4), tf.float16)), (tf.ones((2, 3), tf.int32), tf.ones((3, 4), tf.int32))]
    for a, b in cases:
        with native_kernels() as native:
            outputs = tf.function(lambda a, b: keras.ops.einsum("ab,bc->ac", a, b), autograph=False)(a, b)
        assert native.functions == set()
        assert outputs.dtype == keras.ops.einsum("ab,bc->ac", a, b).dtype


def test_lengths_that_do_not_fit_are_the_error_of_keras():
    @tf.function(autograph=False)
    def run(a, b):
        return keras.ops.einsum("ab,bc->ac", a, b)

    with native_kernels(), pytest.raises(ValueError, match="must be equal"):
        run(tf.ones((2, 3)), tf.ones((4, 5)))


def test_weights_get_one_product_as_gradient_where_tensorflow_multiplies_each_example():
    x, kernel = tf.ones((8, 3, 4)), keras.Variable(tf.ones((4, 5, 6)))

    @tf.function(autograph=False)
    def run(x):
        with tf.GradientTape() as tape:
            y = einsum("abc,cde->abde", x, kernel)
        return tape.gradient(y, kernel.value)

    kinds = [op.type for op in run.get_concrete_function(x).graph.get_operations()]
    assert kinds.count("MatMul") == 2
    assert not {"Einsum", "BatchMatMulV2"} & {*kinds}


def test_products_of_any_labels_are_those_of_numpy():
    rng = np.random.default_rng(0)
    lengths, computed = dict(zip("abcdef", (2, 3, 1, 4, 5, 2), strict=True)), 0
    while computed < 100:
        first, second = ("".join(rng.permutation([*lengths])[: rng.integers(1, 5)]) for _ in range(2))
        result = "".join(label for label in rng.permutation(sorted({*first, *second})) if rng.random() < 0.6)
        a, b = (rng.normal(size=[lengths[label] for label in labels]) for labels in (first, second))
        product = einsum(f"{first},{second}->{result}", tf.constant(a), tf.constant(b))
        if product is not None:
            computed += 1
            expected = np.einsum(f"{first},{second}->{result}", a, b)
            assert product.shape == expected.shape
            np.testing.assert_allclose(product, expected, rtol=1e-9, atol=1e-12, err_msg=f"{first},{second}->{result}")
