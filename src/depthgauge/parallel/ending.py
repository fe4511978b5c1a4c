"""How ranks end: what each leaves behind for the process that launched it, and who ended the group."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Status = Literal["ok", "raised", "waited", "died", "hung", "stopped", "never"]
_SAYS: dict[Status, str] = {
    "ok": "ended well",
    "raised": "raised",
    "waited": "waited in vain for the others",
    "died": "died",
    "hung": "hung",
    "stopped": "was stopped, as another rank had ended",
    "never": "never started",
}
_CULPABLE: tuple[Status, ...] = ("died", "raised", "hung", "waited", "never")
_FRAME = re.compile(r'^  File "(?P<file>.+)", line (?P<line>\d+) in (?P<name>.+)$', re.MULTILINE)


@dataclass(frozen=True)
class End:
    """The end of one rank.

    Attributes:
        rank: its number.
        status: `ok`; `raised`; `waited`: raised as the others did not come; `died`; `hung`: at the limit; `stopped`: as
            another rank had ended; `never`: it never started.
        message: what it raised, the signal it died of, or where it hung.
        seconds: since it was called; NaN where it did not say.
    """

    rank: int
    status: Status
    message: str = ""
    seconds: float = float("nan")

    def __str__(self) -> str:
        """`rank 1 died: SIGKILL`."""
        return f"rank {self.rank} {_SAYS[self.status]}" + (f": {self.message}" if self.message else "")


def culprit(ends: Sequence[End]) -> End | None:
    """The rank that ended the group: one that died or raised before one that hung or waited; the earliest of these."""
    bad = [end for end in ends if end.status in _CULPABLE]
    return min(bad, key=lambda end: (_CULPABLE.index(end.status), end.seconds), default=None)


def read(folder: Path, rank: int, limit: float) -> End:
    """The end of a rank, from what it and its agent left in the folder."""
    try:
        left = json.loads((folder / f"end-{rank}.json").read_text())
        return End(rank, left["status"], left["message"], left["seconds"])
    except OSError:
        pass
    trace = _text(folder / f"trace-{rank}.txt")
    if trace is None:
        return End(rank, "never")
    frame = _FRAME.search(trace)
    where = f"in {frame['name']} ({Path(frame['file']).name}:{frame['line']})" if frame else ""
    if trace.startswith("Timeout"):
        return End(rank, "hung", f"for more than {limit:g} s {where}".strip())
    code = _codes(folder).get(rank)
    if code is None or code == -signal.SIGTERM:
        return End(rank, "stopped")
    fatal = re.search(r"^Fatal Python error: (.+)$", trace, re.MULTILINE)
    said = fatal[1] if fatal else signal.Signals(-code).name if code < 0 else f"exit code {code}"
    return End(rank, "died", f"{said} {where}".strip())


def _codes(folder: Path) -> dict[int, int]:
    """Exit codes by rank, as the agents noted them."""
    codes: dict[int, int] = {}
    for path in folder.glob("failures-*.json"):
        codes |= {int(rank): code for rank, code in json.loads(path.read_text()).items()}
    return codes


def _text(path: Path) -> str | None:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return None
