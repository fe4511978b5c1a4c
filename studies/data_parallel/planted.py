"""Faults planted in a rank of a group that reduces: what it does, and when."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from depthgauge.parallel import Group

STEPS, AT = 4, 2  # all-reduces, and the one in whose middle the fault is
NUMBERS = 4_000_000  # of an all-reduce: it takes several milliseconds
USUAL_PORTS = (29500, 29400)  # of torch's rendezvous, where nobody asks for others


@dataclass(frozen=True)
class Fault:
    """A fault, and how a group ends by it.

    Attributes:
        does: what the rank does in the middle of an all-reduce; None: nothing, the group is sound.
        status: the end of that rank, as `depthgauge.parallel.End` has it.
        patience: seconds that a collective waits for the others.
        limit: seconds that the ranks have.
        ended_by: what ends the group: `at once`, `patience` or `limit`.
    """

    does: Callable[[], object] | None
    status: str
    patience: float = 20.0
    limit: float = 30.0
    ended_by: str = "at once"

    @property
    def time_out(self) -> float:
        """Seconds after which the group has to end."""
        return {"patience": self.patience, "limit": self.limit}.get(self.ended_by, 0.0)


def kill() -> None:
    """Die as by the kernel's out-of-memory killer."""
    os.kill(os.getpid(), signal.SIGKILL)


def crash() -> None:
    """Crash in native code."""
    ctypes.string_at(0)


def fail() -> None:
    """Raise an error of the training's own.

    Raises:
        FloatingPointError: always.
    """
    raise FloatingPointError("the loss is not finite")


def leave() -> None:
    """Exit with a code, past every handler."""
    os._exit(3)


def sleep() -> None:
    """Hang until stopped."""
    while True:
        time.sleep(1)


class Return(Exception):  # noqa: N818 - no error: it leaves the loop
    """An early return from the training."""


def stop_early() -> None:
    """Return while the others go on, as a rank whose data loader is shorter.

    Raises:
        Return: always.
    """
    raise Return


FAULTS = {
    "killed": Fault(kill, "died"),
    "raises": Fault(fail, "raised"),
    "crashes": Fault(crash, "died"),
    "exits": Fault(leave, "died"),
    "hangs": Fault(sleep, "hung", patience=2.0, ended_by="patience"),
    "outlasts the limit": Fault(sleep, "hung", limit=4.0, ended_by="limit"),
    "returns early": Fault(stop_early, "returned", patience=2.0, ended_by="patience"),
    "none, usual ports taken": Fault(None, "ok"),
}


def reduce(group: Group, fault: str, note: str) -> float:
    """Reduce in every rank, and in the last one, in the middle of it, do as the fault says.

    Returns:
        The mean of the numbers, (1 + ... + ranks) / ranks.
    """
    numbers = torch.full((NUMBERS,), float(group.rank + 1), device=group.device)
    does = FAULTS[fault].does if group.rank == group.ranks - 1 else None
    try:
        for step in range(STEPS):
            going: Any = distributed.all_reduce(numbers, async_op=True)
            if step == AT and does:
                Path(note).write_text(repr(time.time()))
                does()
            going.wait()
            numbers /= group.ranks
    except Return:
        pass
    return float(numbers.mean())


@contextmanager
def taken(ports: tuple[int, ...] = USUAL_PORTS) -> Iterator[None]:
    """Hold ports of loopback that are free."""
    held = []
    try:
        for port in ports:
            held.append(socket.socket())
            try:
                held[-1].bind(("127.0.0.1", port))
                held[-1].listen()
            except OSError:  # somebody else has taken it
                continue
        yield
    finally:
        for each in held:
            each.close()


def runs(pid: int) -> bool:
    """Tell whether a process runs; one that has ended and waits for its parent does not."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except ProcessLookupError:
        return False
    except OSError:  # there is no /proc
        return True
