"""How much memory this process has, had at most, and may still use."""

import os
import resource
import sys
from contextlib import suppress
from pathlib import Path


def available_memory(
    meminfo: Path = Path("/proc/meminfo"),
    group: Path = Path("/sys/fs/cgroup"),
) -> int:
    """Returns the bytes of memory that this process may still use.

    That is the least of what the system reports as available and what the memory limit of a container leaves.

    Args:
        meminfo: What Linux reports of the memory.
        group: The limits of the container.
    """
    # `MemAvailable` includes the file cache, which is freed on demand; `sysconf` does not, but exists without `/proc`.
    limits = [os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")] if hasattr(os, "sysconf") else [2**31]
    with suppress(OSError, StopIteration, ValueError):
        lines = meminfo.read_text().splitlines()
        limits = [next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))]
    with suppress(OSError, ValueError):  # the file says `max` where there is no limit
        limits.append(int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    return max(min(limits), 0)


def peak_memory() -> int:
    """Returns the most bytes of memory that this process has had."""
    return _of_process("VmHWM")


def used_memory() -> int:
    """Returns the bytes of memory that this process has now; where the system does not say, the most it has had."""
    return _of_process("VmRSS")


def _of_process(figure: str) -> int:
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(figure))
    except (OSError, StopIteration, ValueError):  # no Linux
        used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return used if sys.platform == "darwin" else used * 1024
