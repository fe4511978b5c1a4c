"""Ends of ranks: what each leaves behind for the process that launched it, and who ended the group."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from depthgauge.parallel import stacks

Status = Literal["ok", "raised", "waited", "died", "left", "hung", "returned", "stopped", "never"]
_SAYS: dict[Status, str] = {
    "ok": "ended well",
    "raised": "raised {where}: {message}",
    "waited": "waited in vain {where} {message}",
    "died": "died {where}: {message}",
    "left": "ended without an answer",
    "hung": "hung {where} {message}",
    "returned": "returned while others waited for it",
    "stopped": "was stopped {where}, as another had ended",
    "never": "never started",
}
_GAP = re.compile(r" (?=[,:])|:$")  # where no place is known, or no message
_CULPABLE: tuple[Status, ...] = ("died", "raised", "left", "hung", "returned", "never", "waited")
_ENDED: tuple[Status, ...] = ("died", "raised", "left")  # by themselves, whatever the others did


@dataclass(frozen=True)
class End:
    """The end of one rank.

    Attributes:
        rank: its number.
        status: `ok`; `raised`; `waited`: the others did not come; `died`; `left`: it exited with code 0; `hung`: it did
            not come where others waited, or not within the limit; `returned`: before a collective where others waited;
            `stopped`: as another had ended; `never`: it never started.
        message: what it raised, the signal it died of, or how long it waited.
        seconds: since it was started; NaN where it did not say.
        where: where it was then, in the user's own code: `in work (steps.py:12)`.
        pid: of its process; None where it never started.
        waits: whether it was in a collective then, or may have been.
    """

    rank: int
    status: Status
    message: str = ""
    seconds: float = float("nan")
    where: str = ""
    pid: int | None = None
    waits: bool = False

    def __str__(self) -> str:
        """`rank 1 died: SIGKILL`, `rank 0 hung in work (steps.py:12)`."""
        said = _SAYS[self.status].format(where=self.where, message=self.message)
        return f"rank {self.rank} {_GAP.sub('', ' '.join(said.split()))}"


def culprit(ends: Sequence[End]) -> End | None:
    """The rank that ended the group: one that died or raised before one that hung or waited; the earliest of these."""
    bad = [end for end in ends if end.status in _CULPABLE]
    return min(bad, key=lambda end: (_CULPABLE.index(end.status), end.seconds), default=None)


def why(ends: Sequence[End]) -> str:
    """Say which rank ended the group and how, and who waited for it."""
    blamed = culprit(ends)
    if blamed is None:
        return ""
    if blamed.status in _ENDED:
        return str(blamed)
    return "; ".join([str(blamed), *(str(end) for end in ends if end.status == "waited" and end is not blamed)])


def read(folder: Path, ranks: int, limit: float, *, late: bool = False) -> tuple[End, ...]:
    """The ends of all ranks, from what they and their agents left in the folder.

    Args:
        folder: theirs.
        ranks: number of ranks.
        limit: seconds that the function had.
        late: whether they were stopped because they had not ended in time.
    """
    codes = _codes(folder)
    return _settled([_read(folder, rank, codes.get(rank), limit) for rank in range(ranks)], late=late)


def _read(folder: Path, rank: int, code: int | None, limit: float) -> End:
    """The end of one rank by itself."""
    trace = _text(folder / f"trace-{rank}.txt")
    head = re.match(r"pid (\d+) thread (0x[0-9a-f]+)\n(?:called\n)?(returned\n)?", trace)
    if head is None:
        return End(rank, "never")
    pid = int(head[1])
    if said := _text(folder / f"end-{rank}.json"):
        return End(rank, pid=pid, **json.loads(said))
    calls = stacks.dumped(trace, head[2])
    where = "" if head[3] else stacks.where(calls)
    waits = stacks.waits(calls) and not head[3]
    if re.search(r"^Timeout ", trace, re.MULTILINE):
        message = f"for more than {limit:g} s"
        return End(rank, "returned" if head[3] else "hung", message, where=where, pid=pid, waits=waits)
    if code == -signal.SIGTERM or (code is None and calls):
        return End(rank, "returned" if head[3] else "stopped", where=where, pid=pid, waits=waits)
    if code is None:
        return End(rank, "left", pid=pid)
    fatal = re.search(r"^Fatal Python error: (.+)$", trace, re.MULTILINE)
    said = fatal[1] if fatal else _signal(-code) if code < 0 else f"exit code {code}"
    died = End(rank, "died", said, where=where, pid=pid)
    seconds = _in_vain(folder, rank) if code == -signal.SIGABRT else 0.0
    return replace(died, status="waited", message=f"for {seconds:g} s", waits=True) if seconds else died


def _signal(number: int) -> str:
    """The name of a signal; those of real time have none but the first and the last."""
    return next((each.name for each in signal.Signals if each == number), f"signal {number}")


def _in_vain(folder: Path, rank: int) -> float:
    """Seconds that a collective waits, of a rank on CUDA that was aborted after as many; else 0.

    NCCL's watchdog aborts a process whose collective has waited too long, whatever its own code does meanwhile.
    """
    try:
        asked = json.loads((folder / "asked.json").read_text())
        called, aborted = ((folder / name).stat().st_mtime for name in (f"called-{rank}", f"trace-{rank}.txt"))
    except OSError:
        return 0.0
    patience = float(asked["patience"])
    return patience if asked["device"] == "cuda" and aborted - called >= patience else 0.0


def _settled(ends: Sequence[End], *, late: bool) -> tuple[End, ...]:
    """The ends, seen together: who of those that did not end by themselves kept the others waiting."""
    waited = any(end.status in ("waited", "hung") for end in ends) or late
    alone = any(end.status in _ENDED for end in ends)
    absent = [end.rank for end in ends if end.status in ("hung", "stopped") and not end.waits]
    returned = any(end.status == "returned" for end in ends)

    def settle(end: End) -> End:
        if end.status == "returned" and (alone or not waited or absent):
            return replace(end, status="stopped", message="")
        if end.status == "hung" and end.waits and (absent or alone or returned):
            return replace(end, status="waited")
        if end.status == "stopped" and waited and not alone:
            return replace(end, status="hung" if end.rank in absent else "waited")
        return end

    return tuple(map(settle, ends))


def _codes(folder: Path) -> dict[int, int]:
    """Exit codes by rank, as the agents noted them."""
    codes: dict[int, int] = {}
    for path in folder.glob("failures-*.json"):
        codes |= {int(rank): code for rank, code in json.loads(path.read_text()).items()}
    return codes


def _text(path: Path) -> str:
    """The text of a file; nothing where there is none."""
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
