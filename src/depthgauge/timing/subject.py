"""A process that times statements on request: one JSON object a line in, one a line out.

It runs by its path, beside any revision of any project, so it imports nothing but the standard library.

    {"do": "prepare", "key": "b", "statement": "f(x)", "setup": "...", "pad": 4096}    -> {"first": 0.0021}
    {"do": "time", "key": "b", "calls": 10, "rounds": 5}                               -> {"seconds": [...]}
    {"do": "forget"}                                                                   -> {}

An error of the code that is timed comes back as {"error": "NameError: ...", "where": "setup"}.
"""

from __future__ import annotations

import ast
import gc
import itertools
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from typing import Any

Loop = Callable[[Iterable[None]], None]


class SubjectError(Exception):
    """An error that the timed code raised."""

    def __init__(self, where: str, error: BaseException) -> None:
        super().__init__(traceback.format_exception_only(error)[-1].strip())  # whatever its __str__ does
        self.where = where


class Subjects:
    """Statements with the names that their setup made."""

    def __init__(self) -> None:
        self.loops: dict[str, Loop] = {}
        self.held: list[Any] = []

    def prepare(self, *, key: str, statement: str, setup: str, pad: int) -> dict[str, Any]:
        """Runs the setup in a fresh namespace and the statement once.

        `pad` bytes are taken from the allocator before, so that the setup's data lie elsewhere each time.
        """
        self.held.append(bytearray(pad))
        names: dict[str, Any] = {"__name__": "__subject__"}
        try:
            exec(compile(setup, "<setup>", "exec"), names)  # noqa: S102 - the user's own code is what is timed
        except (Exception, SystemExit) as error:
            raise SubjectError("setup", error) from error
        try:
            self.loops[key] = _loop(statement, names)
            return {"first": self._seconds(key, 1)}
        except (Exception, SystemExit) as error:
            raise SubjectError("statement", error) from error

    def time(self, *, key: str, calls: int, rounds: int) -> dict[str, Any]:
        """Seconds of one call, for each round of so many calls."""
        gc.disable()
        try:
            return {"seconds": [self._seconds(key, calls) / calls for _ in range(rounds)]}
        except (Exception, SystemExit) as error:
            raise SubjectError("statement", error) from error
        finally:
            gc.enable()

    def forget(self) -> dict[str, Any]:
        """Forget every namespace."""
        self.loops.clear()
        self.held.clear()
        gc.collect()
        return {}

    def _seconds(self, key: str, calls: int) -> float:
        wait, loop = _synchronize(), self.loops[key]
        wait()
        start = time.perf_counter_ns()
        loop(itertools.repeat(None, calls))
        wait()
        return (time.perf_counter_ns() - start) * 1e-9


def _loop(statement: str, names: dict[str, Any]) -> Loop:
    """The statement in a loop, as a function whose globals are `names`."""
    tree = ast.parse("def timed(calls):\n    for _ in calls:\n        pass")
    function = tree.body[0]
    assert isinstance(function, ast.FunctionDef)
    body = function.body[0]
    assert isinstance(body, ast.For)
    body.body = ast.parse(statement, "<statement>").body or body.body
    made: dict[str, Any] = {}
    exec(compile(ast.fix_missing_locations(tree), "<statement>", "exec"), names, made)  # noqa: S102 - as above
    timed: Loop = made["timed"]
    return timed


def _synchronize() -> Callable[[], object]:
    """Waits for CUDA where the code that is timed uses it."""
    torch: Any = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        wait: Callable[[], object] = torch.cuda.synchronize
        return wait
    return _nothing


def _nothing() -> None:
    pass


def main() -> None:
    """Answers until the requests end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the driver's, which then ends the requests
    questions, answers = (
        os.fdopen(os.dup(0)),
        os.fdopen(os.dup(1), "w", buffering=1),
    )  # the timed code may close its own
    os.dup2(2, 1)  # what the timed code prints must not mix with the answers
    cores = {int(core) for core in sys.argv[1].split(",")} if len(sys.argv) > 1 and sys.argv[1] else set()
    if cores:
        os.sched_setaffinity(0, cores)
    sys.path[0] = ""  # the folder it was started in, as for `python -c`, in place of this file's own
    subjects = Subjects()
    requests: Mapping[str, Callable[..., dict[str, Any]]] = {
        "prepare": subjects.prepare,
        "time": subjects.time,
        "forget": subjects.forget,
    }
    for line in questions:
        request = json.loads(line)
        try:
            answer = requests[request.pop("do")](**request)
        except SubjectError as failed:
            answer = {"error": str(failed), "where": failed.where}
        try:
            answers.write(json.dumps(answer) + "\n")
        except BrokenPipeError:  # whoever asked has ended, with a variant that failed before
            os._exit(0)


if __name__ == "__main__":
    main()
