"""Notes which lines of depthgauge a process executes, for `tests/covered.py`; imported when an interpreter starts.

SlipCover rewrites a line's bytecode once, and back when it has run: coverage.py's trace function, on Python 3.11, slows
every opcode of every module by a third.
"""

from __future__ import annotations

import atexit
import importlib.util
import json
import os
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import slipcover

FOLDER = "PYTEST_COVERED"  # where processes leave their notes
# numba and torch.compile read the bytecode of functions in these files, and know no rewritten one.
COMPILED = (
    "probe/binades.py", "probe/blocks.py", "probe/hooks.py", "probe/lookup.py", "probe/pairs.py", "probe/planes.py",
    "probe/session.py", "probe/shuffles.py", "probe/table.py", "probe/turns.py", "probe/window.py",
)  # fmt: skip
# What runs nowhere but in processes that a test starts; to rewrite all that these import would take them half a second.
ONLY_THERE = (
    "__main__.py", "cli/__init__.py", "driver.py", "foreign.py", "places.py", "running.py", "worker.py",
    "probe/vectors.py",  # what numba's compiler calls, in the process that is the first to need a kernel
)  # fmt: skip
RANKS = ("parallel/", "studies/data_parallel/")  # likewise, most of it in the ranks of process groups


class OurFiles:
    """The files that are rewritten."""

    def __init__(self, package: Path, *, few: bool) -> None:
        self._package, self._few = package, few

    def matches(self, filename: str | Path | None) -> bool:
        """Asked by SlipCover for each file that is imported."""
        if filename is None or not Path(filename).is_relative_to(self._package):
            return False
        inside = Path(filename).relative_to(self._package)
        if self._few:
            return inside.as_posix() in ONLY_THERE or inside.as_posix().startswith(RANKS)
        return inside.suffix == ".py" and inside.as_posix() not in COMPILED


def begin(package: Path, folder: Path) -> None:
    """Rewrites what is imported from now on; leaves the notes when the process ends."""
    import slipcover

    started_by_a_test = "PYTEST_XDIST_WORKER" in os.environ
    # Branches need each file parsed again, four seconds for all: only where tests run, not in processes of theirs.
    notes = slipcover.Slipcover(branch=not started_by_a_test, exclude_lines=[])
    slipcover.ImportManager(notes, OurFiles(package, few=started_by_a_test)).__enter__()
    os.register_at_fork(after_in_child=notes.signal_child_process)
    atexit.register(lambda: leave(notes, folder))


def leave(notes: slipcover.Slipcover, folder: Path) -> None:
    """Writes the lines that were executed; absent branches as none executed, none missing."""
    if not folder.is_dir():  # the process has outlived the tests
        return
    os.chdir(folder)  # else files have names relative to where the process ended, which may be gone
    coverage = notes.get_coverage()
    coverage["meta"]["branch_coverage"] = True
    coverage["files"] = {name: file for name, file in coverage["files"].items() if file["executed_lines"]}
    for file in coverage["files"].values():
        file.setdefault("executed_branches", [])
        file.setdefault("missing_branches", [])
    if coverage["files"]:
        (folder / f"{uuid.uuid4()}.json").write_text(json.dumps(coverage))


if FOLDER in os.environ and (found := importlib.util.find_spec("depthgauge")) and found.origin:
    begin(Path(found.origin).parent, Path(os.environ[FOLDER]))
