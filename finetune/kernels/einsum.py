"""Einsum of two operands as one matrix product.

A sum over labels that both operands have is a matrix product once the labels are sorted into those of the batch (in
both operands and the result), the rows (in the left operand alone), the summed and the columns (in the right alone):

    result[batch, rows, columns] = sum over summed of left[batch, rows, summed] right[batch, summed, columns]

`tf.einsum` computes the same inside its own operation, and differentiates it by two more. It folds no axis of a batch
into the rows, where the right operand has no batch: so it multiplies a kernel once for each example, and differentiates
it by a product for each example and a sum over them. Here such axes become rows of one matrix, and the weights'
gradient is one product.

References:
    `keras.ops.einsum`, which it stands for, and `tensorflow/core/kernels/linalg/einsum_op_impl.h`.
"""

import string
from dataclasses import dataclass
from functools import cache
from math import prod
from typing import Any

import tensorflow as tf

from finetune.kernels.shapes import lengths_of, reshape

_DTYPES = (tf.float16, tf.bfloat16, tf.float32, tf.float64)


@dataclass(frozen=True)
class Product:
    """An einsum as a matrix product; strings of labels, of which each names an axis.

    Attributes:
        swapped: Whether the right operand of the product is the first of the einsum.
        left: Labels of the left operand, as they are passed.
        right: Labels of the right operand, as they are passed.
        result: Labels of the result.
        batch: Labels of both operands and the result, in the order of the result.
        rows: Labels of the left operand and the result, in the order of the result.
        summed: Labels of both operands alone, in the order of the left.
        columns: Labels of the right operand and the result, in the order of the result.
    """

    swapped: bool
    left: str
    right: str
    result: str
    batch: str
    rows: str
    summed: str
    columns: str


def einsum(subscripts: str, *operands: Any, **options: Any) -> Any:
    """Computes a `keras.ops.einsum` of two tensors.

    Args:
        subscripts: The labels of the operands and of the result, such as `abc,cde->abde`.
        operands: The tensors, of one floating dtype.
        options: Keras passes them on to `tf.einsum`; the kernel takes none.

    Returns:
        The result; `None` where the kernel does not apply.
    """
    if len(operands) != 2 or options:
        return None
    if any(isinstance(operand, tf.SparseTensor | tf.RaggedTensor) for operand in operands):
        return None
    first, second = (tf.convert_to_tensor(operand) for operand in operands)
    if not all(x.shape.rank and x.dtype in _DTYPES for x in (first, second)):
        return None
    product = product_of(subscripts, first.shape.rank, second.shape.rank)
    if first.dtype != second.dtype or product is None:
        return None
    left, right = (second, first) if product.swapped else (first, second)
    length = _lengths(product, left, right)
    return None if length is None else _multiply(product, left, right, length)


@cache
def product_of(subscripts: str, first_rank: int, second_rank: int) -> Product | None:
    """Sorts the labels of an einsum.

    Args:
        subscripts: The labels of the operands and of the result.
        first_rank: Number of axes of the first operand.
        second_rank: Number of axes of the second operand.

    Returns:
        The labels by what they are to the product; `None` if the einsum is no matrix product.
    """
    inputs, arrow, result = subscripts.replace(" ", "").partition("->")
    terms = inputs.split(",")
    if not arrow or len(terms) != 2:
        return None
    first, second, result = _without_ellipsis(terms, result, (first_rank, second_rank))
    if any(len(set(labels)) != len(labels) for labels in (first, second, result)):
        return None
    if (len(first), len(second)) != (first_rank, second_rank) or not set(result) <= {*first, *second}:
        return None
    batch = "".join(label for label in result if label in first and label in second)
    # The operand whose own labels come first in the result is the left: then the result needs no transposition.
    free = [label for label in result if label not in batch]
    swapped = bool(free) and free[0] in second
    left, right = (second, first) if swapped else (first, second)
    rows = "".join(label for label in free if label in left)
    columns = "".join(label for label in free if label in right)
    summed = "".join(label for label in left if label not in result)
    if not summed or set(summed) != set(right) - set(result):
        return None  # an outer product, or a sum over one operand alone
    return Product(swapped, left, right, result, batch, rows, summed, columns)


def _without_ellipsis(terms: list[str], result: str, ranks: tuple[int, int]) -> tuple[str, str, str]:
    """Names the axes of an ellipsis by further labels, where one operand alone has it."""
    unused = [label for label in string.ascii_letters if label not in "".join([*terms, result])]
    for index, (term, rank) in enumerate(zip(terms, ranks, strict=True)):
        if "..." in term and "..." not in terms[1 - index]:
            labels = "".join(unused[: max(0, rank - len(term) + 3)])
            terms[index], result = term.replace("...", labels), result.replace("...", labels)
    return terms[0], terms[1], result


def _lengths(product: Product, left: tf.Tensor, right: tf.Tensor) -> dict[str, Any] | None:
    """Returns the length of each axis by its label, a tensor where it is not known; `None` where they do not fit."""
    lengths: dict[str, Any] = {}
    for labels, x in ((product.left, left), (product.right, right)):
        for label, length in zip(labels, lengths_of(x), strict=True):
            known = lengths.get(label)
            if isinstance(known, int) and isinstance(length, int) and length != known:
                return None  # Keras says what is wrong
            if not isinstance(known, int):
                lengths[label] = length
    return lengths


def _multiply(product: Product, left: tf.Tensor, right: tf.Tensor, length: dict[str, Any]) -> tf.Tensor:
    """Computes the product of the operands."""
    a, left_is_turned = _as_matrices(left, product.left, product.batch, product.rows, product.summed, length)
    b, right_is_turned = _as_matrices(right, product.right, product.batch, product.summed, product.columns, length)
    if product.batch:
        # Not `tf.matmul`: this operation broadcasts nothing, and so its gradient sums over nothing.
        y = tf.raw_ops.BatchMatMul(x=a, y=b, adj_x=left_is_turned, adj_y=right_is_turned)
    else:
        y = tf.matmul(a, b, transpose_a=left_is_turned, transpose_b=right_is_turned)
    labels = product.batch + product.rows + product.columns
    return _transposed(reshape(y, [length[label] for label in labels]), labels, product.result)


def _as_matrices(
    x: tf.Tensor, labels: str, batch: str, rows: str, columns: str, length: dict[str, Any]
) -> tuple[tf.Tensor, bool]:
    """Returns an operand as a batch of matrices, and whether they are transposed."""
    is_turned = labels[-1] in rows  # an axis that is last should stay last: to move it is slow
    if is_turned:
        rows, columns = columns, rows
    x = _transposed(x, labels, batch + rows + columns)
    sides = [prod(length[label] for label in side) for side in (rows, columns)]
    return reshape(x, [*(length[label] for label in batch), *sides]), is_turned


def _transposed(x: tf.Tensor, labels: str, wanted: str) -> tf.Tensor:
    return x if labels == wanted else tf.transpose(x, [labels.index(label) for label in wanted])
