"""Features of a frozen part in shares: each worker computes those of some batches, and all of them get all.

Bit for bit they are those that each would compute for itself, in as little time as there are workers, for as many bytes
as they are. A worker that kept them from before, as the chief of a run that was killed, computes them as the others do.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import Any

import numpy as np

from finetune.distribution.exchanged_arrays import exchange_of
from finetune.distribution.workers import Workers


def missing_anywhere(workers: Workers | None, numbers: Sequence[int]) -> set[int]:
    """Returns the numbers of the values that a worker lacks.

    Args:
        workers: All workers; `None` for a process alone.
        numbers: Those that this one lacks.
    """
    of_all = [numbers] if workers is None else workers.channel.exchange(list(numbers), "which features are kept")
    return {*chain.from_iterable(of_all)}


def kept_everywhere(workers: Workers | None, numbers: Sequence[int], reason: str) -> tuple[list[int], str]:
    """Returns the numbers of the values that all workers have room for, and why there are none if one has none.

    Args:
        workers: All workers; `None` for a process alone.
        numbers: Those that this one has room for.
        reason: Why it can keep none; empty otherwise.
    """
    if workers is None:
        return list(numbers), reason
    of_all = workers.channel.exchange([list(numbers), reason], "what of the features can be kept")
    common = [number for number in numbers if all(number in each for each, _ in of_all)]
    return common, next((reason for _, reason in of_all if reason), "")


def outputs_in_order(
    batches: Callable[[tuple[int, int]], Iterable[Any]],
    steps: int,
    outputs: Callable[[Any], list[np.ndarray]],
    workers: Workers | None,
) -> Iterator[list[np.ndarray]]:
    """Yields what a function returns for each batch; of several workers each calls it for its share of the batches.

    Args:
        batches: Returns the batches, from the begin again after the last, of which it takes each so many from a number
            on: `(0, 1)` are all, `(1, 3)` the second, the fifth and so on. All are of the same size.
        steps: How many there are.
        outputs: Returns arrays, of the same types and shapes for each batch.
        workers: All workers; `None` for a process alone.
    """
    if workers is None:
        yield from map(outputs, islice(batches((0, 1)), steps))
        return
    given_to_all = exchange_of(workers)
    # The last round may have fewer batches than there are workers: nobody takes what the others compute in it.
    mine = islice(batches(workers.share), -(-steps // len(workers)))
    yield from islice(chain.from_iterable(given_to_all(outputs(batch)) for batch in mine), steps)
