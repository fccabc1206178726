"""What the system and a container leave, whichever is less."""

import os

import numpy as np

from finetune.available_memory import available_memory, peak_memory, used_memory


def test_available_memory_is_what_this_machine_has_at_most():
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0 < available_memory() <= total


def test_available_memory_is_the_least_of_what_the_system_and_the_container_leave(tmp_path):
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:       9000 kB\nMemFree:        1000 kB\nMemAvailable:   7000 kB\n")
    (tmp_path / "memory.current").write_text("1000000\n")
    for limit, expected in (("max", 7000 * 1024), ("5000000", 4_000_000), ("90000000", 7000 * 1024), ("500000", 0)):
        (tmp_path / "memory.max").write_text(f"{limit}\n")
        assert available_memory(meminfo, tmp_path) == expected
    pages = available_memory(tmp_path / "none", tmp_path / "none")
    assert 0 < pages <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def test_the_peak_of_memory_grows_with_what_is_used():
    before = peak_memory()
    used = np.ones(max(before, 2**28), np.uint8)
    assert peak_memory() >= used_memory()
    assert peak_memory() >= before + used.nbytes / 2
