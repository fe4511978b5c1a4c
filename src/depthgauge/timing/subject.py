"""A process that times statements on request: one JSON object a line in, one a line out.

It runs by its path, beside any revision of any project, so it imports nothing but the standard library.

    {"do": "prepare", "key": "b", "statement": "f(x)", "setup": "...", "pad": 4096}    -> {"first": 0.0021}
    {"do": "time", "key": "b", "calls": 10, "rounds": 5}                               -> {"seconds": [...]}
    {"do": "why", "key": "b", "by": "operator"}       -> {"by": "function", "parts": [["f", 1, 0.09]]}
    {"do": "forget"}                                                                   -> {}

`prepare` takes a `device`, too: torch's default one, and a name in the namespace.

An error of the code that is timed comes back as {"error": "NameError: ...", "where": "setup"}.
"""

from __future__ import annotations

import ast
import contextlib
import cProfile
import gc
import itertools
import json
import math
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

Loop = Callable[[Iterable[None]], None]
Part = tuple[str, float, float]  # name, calls and seconds in one call of the statement

_PROFILED, _MOST_CALLS = 0.03, 1000  # of a round under the profiler: seconds, and calls at most
_LAUNCHES = ("cuda", "cuLaunch", "Activity Buffer")  # events beside operators that CUDA's profiler has
_ROUNDS = 7  # the quickest counts: neighbours disturb the others


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

    def prepare(self, *, key: str, statement: str, setup: str, pad: int, device: str = "") -> dict[str, Any]:
        """Runs the setup in a fresh namespace and the statement once.

        `pad` bytes are taken from the allocator before, so that the setup's data lie elsewhere each time.
        """
        self.held.append(bytearray(pad))
        names: dict[str, Any] = {"__name__": "__subject__"}
        try:
            if device:
                names["device"] = _on(device)
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

    def why(self, *, key: str, by: str) -> dict[str, Any]:
        """The parts of one call's time under a profiler: by torch's operator, or else by Python's function."""
        try:
            loop = self.loops[key]
            calls = min(max(1, math.ceil(_PROFILED / max(self._seconds(key, 1), 1e-9))), _MOST_CALLS)
            if by == "operator" and (parts := _operators(loop, calls)):
                return {"by": by, "parts": parts}
            return {"by": "function", "parts": _functions(loop, calls)}
        except (Exception, SystemExit) as error:
            raise SubjectError("statement", error) from error

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


def _on(device: str) -> str:
    """Makes it torch's default device, and CUDA's current one, for which the clock waits."""
    import torch  # noqa: PLC0415 - statements without a device need none

    torch.set_default_device(device)
    asked = torch.device(device)
    if asked.type == "cuda" and asked.index is not None:  # without a number it is the current one already
        torch.cuda.set_device(asked)
    return device


def _operators(loop: Loop, calls: int) -> list[Part]:
    """Each operator's own time, and what is left of a call; nothing where torch runs none."""
    torch: Any = sys.modules.get("torch")
    if torch is None:
        return []
    from torch.profiler import ProfilerActivity, profile  # noqa: PLC0415 - as above

    wait = _synchronize()
    on_device = wait is not _nothing
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_device else [])]
    rounds = []
    with silent():  # torch's profiler tells of each start
        for _ in range(_ROUNDS):
            with profile(activities=activities) as seen:
                start = time.perf_counter()
                loop(itertools.repeat(None, calls))
                wait()
                rounds.append(((time.perf_counter() - start) / calls, seen))
    whole, seen = min(rounds, key=lambda one: one[0])
    every = seen.key_averages()
    ran_there = any(each.self_device_time_total > 0 for each in every)  # not where only the setup used the device
    own = "self_device_time_total" if ran_there else "self_cpu_time_total"
    parts: list[Part] = [
        (str(each.key), each.count / calls, getattr(each, own) * 1e-6 / calls)
        for each in every
        if str(each.device_type).endswith("CPU") and not str(each.key).startswith(_LAUNCHES)
    ]
    if not parts:
        return []
    return [*parts, ("nothing computes", 0.0, max(0.0, whole - sum(seconds for _, _, seconds in parts)))]


def _functions(loop: Loop, calls: int) -> list[Part]:
    """Each Python function's own time."""
    wait, rounds = _synchronize(), []
    for _ in range(_ROUNDS):
        profiler = cProfile.Profile()
        with profiler:
            loop(itertools.repeat(None, calls))
            wait()
        found = [each for each in profiler.getstats() if not _ours(each.code)]
        rounds.append([(_named(each.code), each.callcount / calls, each.inlinetime / calls) for each in found])
    return min(rounds, key=lambda parts: sum(seconds for _, _, seconds in parts))


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Drop what native code writes to stderr within the block: Kineto reports every start and stop of a profiler."""
    with contextlib.suppress(ValueError, OSError, AttributeError):  # it may be closed, or nothing that is flushed
        sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _ours(code: Any) -> bool:
    if isinstance(code, str):
        return "_lsprof" in code
    return code.co_filename in (__file__, cProfile.__file__)


def _named(code: Any) -> str:
    if isinstance(code, str):  # a built-in function
        return code
    if code.co_filename in ("<unknown>", "<statement>"):
        return "the statement itself" if code.co_name == "timed" else f"{code.co_name} of the statement"
    return f"{code.co_name} ({os.path.basename(code.co_filename)}:{code.co_firstlineno})"  # noqa: PTH119 - no path


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
        "why": subjects.why,
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
