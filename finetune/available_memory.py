"""How much memory this process may still use."""

import os
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
