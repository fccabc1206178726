"""What an LR range test can be asked for. Free of TensorFlow, so that a wrong option is answered before it starts."""

from finetune.errors import GroupError, did_you_mean

OTHERS = ("frozen", "constant")
STOP_FACTOR = 4.0
_LOWEST, _HIGHEST = 1e-30, 1e30  # rates that float32 holds, with room for the ratios of the groups


def check_others(others: str) -> None:
    """Raises a GroupError unless `others` is `frozen` or `constant`."""
    if others not in OTHERS:
        renamed = {"rest": "frozen", "stand": "constant"}.get(others)
        hint = f" `{others}` is now called `{renamed}`." if renamed else did_you_mean(others, OTHERS)
        raise GroupError(
            "While one group is swept, the `others` are `frozen`, or train at their own `constant` rates. "
            f"Received others={others!r}.{hint}"
        )


def check_range(start: float, end: float, steps: int, repeats: int, stop_factor: float = STOP_FACTOR) -> None:
    """Checks the rates and the counts of an LR range test.

    Args:
        start: The first learning rate.
        end: The last one.
        steps: Steps of a sweep, >= 2.
        repeats: Sweeps, >= 1.
        stop_factor: A sweep stops when its smoothed loss exceeds this many times its best; > 1.

    Raises:
        GroupError: The rates do not rise within what float32 holds, or a count is not possible.
    """
    if not (_LOWEST <= start < end <= _HIGHEST and steps >= 2 and stop_factor > 1 and repeats >= 1):
        raise GroupError(
            "An LR range test raises the rate from `start` > 0 to a higher `end`, both between 1e-30 and 1e30, in at "
            "least 2 `steps`. It stops at `stop_factor` > 1 times the best loss, and `repeats` is at least 1. "
            f"Received start={start}, end={end}, steps={steps}, stop_factor={stop_factor}, repeats={repeats}. The "
            "usual range is 1e-7 to 10 in 100 steps."
        )
