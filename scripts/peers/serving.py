"""What the servers share: they answer every line with a number of steps by the seconds that these took, on two clocks.

It needs nothing but Python, as every server runs in an environment of its own.
"""

import resource
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

WARM_UP = 5


class Wanted(NamedTuple):
    """What a server was started for."""

    workload: str
    system: str
    groups: int


def wanted() -> Wanted:
    workload, system, groups = sys.argv[1:]
    return Wanted(workload, system, int(groups))


def cuts(things: int, groups: int) -> list[range]:
    """Cuts as many things into groups as `numpy.array_split` does: the first ones may hold one more."""
    size, more = divmod(things, groups)
    ends = [0]
    for group in range(groups):
        ends.append(ends[-1] + size + (group < more))
    return [range(begin, end) for begin, end in pairwise(ends)]


def peak_memory() -> float:
    """Returns this process' peak memory in MB. Linux counts that of the starting process into `ru_maxrss`."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(float(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def serve(step: Callable[[], object], finish: Callable[[], object] = lambda: None) -> None:
    """Warms up, says so, and makes steps until there is no more input.

    Args:
        step: Makes one step, perhaps without waiting for it.
        finish: Waits for all steps.
    """
    answers, sys.stdout = sys.stdout, sys.stderr  # what the frameworks print is not an answer
    for _ in range(WARM_UP):
        step()
    finish()
    children = resource.getrusage(resource.RUSAGE_CHILDREN)  # compilers
    print("ready", time.process_time() + children.ru_utime + children.ru_stime, peak_memory(), file=answers, flush=True)
    for line in sys.stdin:
        begun, processor = time.perf_counter(), time.process_time()
        for _ in range(int(line)):
            step()
        finish()
        print(time.perf_counter() - begun, time.process_time() - processor, file=answers, flush=True)
