"""Functions that ranks call, as users have them: found by name, in a module of their own."""

import os
import time
from pathlib import Path

import torch
from torch import distributed


def report(group, factor):
    numbers = torch.full((3,), float(group.rank + 1))
    distributed.all_reduce(numbers)
    return {
        "rank": group.rank,
        "ranks": group.ranks,
        "sum": factor * float(numbers[0]),
        "pid": os.getpid(),
        "agent": os.getppid(),
        "threads": torch.get_num_threads(),
        "address": os.environ["MASTER_ADDR"],
        "listens": listens(),
    }


def listens():
    """Addresses at which this process listens, as the kernel lists them (127.0.0.1 is 0100007F)."""
    own = {link for each in Path("/proc/self/fd").iterdir() if (link := _link(each)).startswith("socket:")}
    lines = [
        line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/self/net/{name}").read_text().splitlines()
    ]
    return sorted({line[1].split(":")[0] for line in lines[1:] if line[3] == "0A" and f"socket:[{line[9]}]" in own})


def _link(path):
    try:
        return str(path.readlink())
    except OSError:
        return ""


def forget(group, folder):
    """The last rank never comes to the all-reduce."""
    Path(folder, f"{group.rank}.pid").write_text(str(os.getpid()))
    if group.rank == group.ranks - 1:
        sleep()
    distributed.all_reduce(torch.ones(3))


def sleep():
    while True:
        time.sleep(1)


def time_reductions(group, sizes, rounds):
    """Seconds of all-reduces by size and round."""
    total = torch.tensor([float(group.rank + 1)])
    distributed.all_reduce(total)
    seconds = []
    for size in sizes:
        numbers = torch.ones(size // 4)
        own = []
        for _ in range(rounds):
            distributed.barrier()
            start = time.perf_counter()
            distributed.all_reduce(numbers)
            own.append(time.perf_counter() - start)
        seconds.append(own)
    return {
        "sum": float(total),
        "address": os.environ["MASTER_ADDR"],
        "local": int(os.environ["LOCAL_RANK"]),
        "network": str(Path("/proc/self/ns/net").readlink()) if Path("/proc/self/ns/net").is_symlink() else "",
        "seconds": seconds,
    }
