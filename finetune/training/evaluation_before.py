"""Which test rows are evaluated before training: enough to compare with, and not more work than the training."""

import numpy as np

from finetune.data.examples import Split

_LEAST = 1000  # rows, where there are as many
_SHARE = 0.1  # of the rows that are trained on, all epochs together: a step costs about three times an evaluation


def rows_before(test: Split, setting: bool | str, *, trained: int, batch_size: int) -> Split:
    """Returns the test rows to evaluate before training.

    Args:
        test: All test rows.
        setting: `True` for all rows; `False` for a single batch, which only shows that they fit the model; `auto`.
        trained: Rows that the training takes, each as often as it is taken, >= 1.
        batch_size: Rows in a batch of the evaluation.
    """
    count = {True: len(test), False: batch_size}.get(setting, max(_LEAST, int(_SHARE * trained)))  # pyright: ignore
    if count >= len(test):
        return test
    if setting is False:
        return test.select(slice(count))
    # Not the first ones: folders and tables are often sorted by class.
    return test.select(np.linspace(0, len(test) - 1, count).astype(np.int64))
