"""Two networks of this machine, joined by a link of limited bandwidth that may lose packets: for `bench_scale.py`.

Each is a network namespace of Linux with an end of a pair of virtual Ethernet devices. The bandwidth of each direction
is limited by a token bucket (`tc ... tbf`), and packets are dropped by a rule of `nft` where they leave, before they
are cut into frames: a lost packet may be 64 KB. It needs root, `ip` and `tc` (Debian: `iproute2`), and for losses `nft`
(`nftables`).
"""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

HOSTS = ("10.77.0.1", "10.77.0.2")


@contextmanager
def joined_networks(mbit: float, loss: float = 0.0) -> Iterator[list[list[str]]]:
    """Makes the two networks, and removes them afterwards.

    Args:
        mbit: Megabits a second of each direction, > 0.
        loss: The share of packets that is dropped, in [0, 1).

    Yields:
        What stands before a command that runs in each of them, whose addresses are `HOSTS`.

    Raises:
        SystemExit: The system does not allow it; it says why.
    """
    check_possible(loss)
    names = [f"finetune-{os.getpid()}-{number}" for number in range(2)]
    try:
        for name in names:
            _call("ip", "netns", "add", name)
        _call("ip", "link", "add", "wire", "netns", names[0], "type", "veth", "peer", "wire", "netns", names[1])
        for name, host in zip(names, HOSTS, strict=True):
            _call("ip", "-n", name, "addr", "add", f"{host}/24", "dev", "wire")
            for device in ("lo", "wire"):
                _call("ip", "-n", name, "link", "set", device, "up")
            # A bucket of 10 ms; what does not fit into 200 ms of it is dropped, as by a switch.
            bucket = max(16_000, round(mbit * 1e6 / 8 * 0.01))
            limit = ("rate", f"{mbit}mbit", "burst", str(bucket), "latency", "200ms")
            _call("tc", "-n", name, "qdisc", "add", "dev", "wire", "root", "tbf", *limit)
            if loss:
                inside = ("ip", "netns", "exec", name, "nft", "add")
                _call(*inside, "table", "inet", "loss")
                _call(*inside, "chain", "inet", "loss", "out", "{ type filter hook output priority 0; }")
                dropped = ("numgen", "random", "mod", "100000", "<", str(round(loss * 100_000)), "drop")
                _call(*inside, "rule", "inet", "loss", "out", *dropped)
        yield [["ip", "netns", "exec", name] for name in names]
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


def check_possible(loss: float = 0.0) -> None:
    """Checks that namespaces can be made here.

    Args:
        loss: The share of packets that shall be dropped.

    Raises:
        SystemExit: They cannot; it says why.
    """
    rule = "A link of limited bandwidth between two network namespaces is made by root, with `ip` and `tc`"
    if os.geteuid() != 0:
        raise SystemExit(f"{rule}. This process belongs to user {os.geteuid()}. Run it as root, or without `--link`.")
    programs = ["ip", "tc", *(["nft"] if loss else [])]
    if missing := [program for program in programs if shutil.which(program) is None]:
        raise SystemExit(
            f"{rule}, and packets are dropped by `nft`. Missing here: {', '.join(missing)}. Install `iproute2` and "
            "`nftables`, or leave out `--link`."
        )


def sent_bytes() -> int:
    """Returns how many bytes have left the network devices of this process' namespace, headers included."""
    with open("/proc/self/net/dev") as lines:
        return sum(int(line.rpartition(":")[2].split()[8]) for line in list(lines)[2:])


def _call(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"The link needs `{' '.join(command)}`, which fails here: {done.stderr.strip()}")
