"""Wrong options of an LR range test are answered without TensorFlow, with what was received."""

import subprocess
import sys

import pytest

from finetune.errors import GroupError
from finetune.training.lr_range.limits import check_others, check_range


@pytest.mark.parametrize(("old", "new"), [("rest", "frozen"), ("stand", "constant")])
def test_an_old_name_for_what_the_others_do_is_an_error_that_says_the_new_name(old, new):
    with pytest.raises(GroupError, match=rf"Received others='{old}'\. `{old}` is now called `{new}`\."):
        check_others(old)


@pytest.mark.parametrize(
    ("start", "end", "steps", "repeats", "stop_factor"),
    [(0, 1, 9, 1, 4), (1e-3, 1e-3, 9, 1, 4), (1e-7, float("inf"), 9, 1, 4), (float("nan"), 1, 9, 1, 4)]
    + [(1e-7, 1, 1, 1, 4), (1e-7, 1, 9, 0, 4), (1e-7, 1, 9, 1, 1)],
)
def test_rates_that_do_not_rise_and_counts_that_are_none_are_refused(start, end, steps, repeats, stop_factor):
    with pytest.raises(
        GroupError, match=rf"Received start={start}, end={end}, steps={steps}, stop_factor={stop_factor}"
    ):
        check_range(start, end, steps, repeats, stop_factor)
    check_range(1e-30, 1e30, 2, 1, 1.1)


def test_they_need_no_tensorflow():
    code = "import sys, finetune.training.lr_range.limits; sys.exit('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
