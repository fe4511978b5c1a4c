"""Stacks of ranks: where each was in the user's own code, and whether it waited there for the others."""

from __future__ import annotations

import linecache
import re
import sysconfig
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from depthgauge.modules import is_installed

_HERE = Path(__file__).parent
_STANDARD = Path(sysconfig.get_path("stdlib"))
_TALKING = ("/torch/distributed/", "/torch/nn/parallel/distributed.py")
_BACKWARD = "_engine_run_backward"
_WRAPPERS = frozenset(("wrapper", "inner", "_fn", "decorate_context", "wrapped"))
_THREAD = re.compile(
    r"^(?P<current>Current thread|Thread) (?P<id>0x[0-9a-f]+).*\(most recent call first\):\n"
    r"(?P<calls>(?:  .*(?:\n|$))*)",
    re.MULTILINE,
)
_CALL = re.compile(r'^  File "(?P<file>.+)", line (?P<line>\d+) in (?P<name>.+)$', re.MULTILINE)


@dataclass(frozen=True)
class Call:
    """A call on a stack: its file, the line that it has come to, and its function's name."""

    file: str
    line: int
    name: str

    def __str__(self) -> str:
        """`work (steps.py:12)`."""
        return f"{self.name} ({Path(self.file).name}:{self.line})"


def dumped(trace: str, thread: str) -> tuple[Call, ...]:
    """The calls of a thread, the outermost first, as faulthandler has written them last; empty where it has not.

    Args:
        trace: the text with faulthandler's dumps.
        thread: the thread's identifier, as faulthandler spells it; of a crash it is the thread that crashed.
    """
    found = list(_THREAD.finditer(trace))
    crashed = [each for each in found if each["current"] != "Thread" and each["calls"]] if "Fatal " in trace else []
    own = crashed or [each for each in found if each["id"] == thread]
    if not own:
        return ()
    calls = [Call(each["file"], int(each["line"]), each["name"]) for each in _CALL.finditer(own[-1]["calls"])]
    return tuple(reversed(calls))


def raised(error: BaseException) -> tuple[Call, ...]:
    """The calls from which an error came, the outermost first."""
    return tuple(Call(each.filename, each.lineno or 0, each.name) for each in traceback.extract_tb(error.__traceback__))


def where(calls: Sequence[Call]) -> str:
    """Say where a rank was: `in work (steps.py:12)`, or `in all_reduce, called by work (steps.py:12)`.

    Empty where it had not come to a function that was launched.
    """
    at = _own(calls)
    if at < 0:
        return ""
    operation = next((_name(call) for call in calls[at + 1 :] if _talks(call) and call.name not in _WRAPPERS), "")
    return f"in {operation}, called by {calls[at]}" if operation else f"in {calls[at]}"


def waits(calls: Sequence[Call]) -> bool:
    """Tell whether a rank may have waited for others there: in a collective, or a backward pass with DDP's in it."""
    at = _own(calls)
    inner = calls[at + 1 :]
    return any(map(_talks, inner)) or (
        at >= 0 and not inner and ".wait(" in linecache.getline(calls[at].file, calls[at].line)
    )


def _own(calls: Sequence[Call]) -> int:
    """The place of the innermost call of the user's own code; where there is none, of depthgauge's; -1: of neither."""
    for own in (_is_users, _is_ours):
        if places := [place for place, call in enumerate(calls) if own(call)]:
            return places[-1]
    return -1


def _is_users(call: Call) -> bool:
    path = Path(call.file)
    if path.is_relative_to(_HERE.parent):
        return path.is_relative_to(_HERE.parent / "studies")
    installed = call.file.startswith("<") or is_installed(path)
    return not installed and not path.is_relative_to(_STANDARD)


def _is_ours(call: Call) -> bool:
    path = Path(call.file)
    return path.is_relative_to(_HERE.parent) and path.name not in ("rank.py", "agent.py", "naming.py")


def _talks(call: Call) -> bool:
    return call.name == _BACKWARD or any(place in call.file for place in _TALKING)


def _name(call: Call) -> str:
    return "backward" if call.name == _BACKWARD else call.name
