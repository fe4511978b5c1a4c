"""Errors of code that is not depthgauge's: contained, described in one line, charged to the case or the machine.

    try:
        with contained():
            study.run(cases, context)
    except Exception as error:
        failed(describe_error(error), machine=by_machine(error))

A study may raise anything: `SystemExit`, `KeyboardInterrupt`, an exception whose text cannot be printed. That costs the
case or the section it came from. What a signal of the user's raised (Ctrl-C, a termination) passes as it is, even where
the study has caught it.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType

_NO_MEMORY = re.compile(r"out of memory|not enough memory|can.t allocate memory|_ALLOC_FAILED", re.IGNORECASE)
_CAUSES = 10  # exceptions that are followed from one to what it was raised from

Handler = Callable[[int, FrameType | None], object]


class Escaped(Exception):  # noqa: N818 - it says what happened to the exception that it holds
    """Stand-in for a study's exception that is no `Exception` and that no signal has raised.

    Attributes:
        error: the original exception.
    """

    def __init__(self, error: BaseException) -> None:
        super().__init__(error)
        self.error = error


@contextlib.contextmanager
def contained() -> Iterator[None]:
    """Let foreign code within the block raise nothing but an `Exception`, unless a signal's handler has raised.

    Raises:
        Escaped: in place of what is no `Exception`.
    """
    with undivided(), _signal_exceptions() as stops:
        try:
            yield
        except Exception:
            if not stops:
                raise
        except BaseException as error:
            if not stops:
                raise Escaped(error) from error
    if stops:  # whatever the code has made of it
        raise stops[0] from None


@contextlib.contextmanager
def undivided() -> Iterator[None]:
    """A child that the code within has forked and not ended ends with the block.

    It would go on as a second driver or worker: remove the first one's files, and write into the same directory.
    """
    here = os.getpid()
    try:
        yield
    finally:
        if os.getpid() != here:
            os._exit(1)


@contextlib.contextmanager
def _signal_exceptions() -> Iterator[list[BaseException]]:
    """Collect the exceptions that signal handlers raise within the block, for the handlers installed at its start."""
    stops: list[BaseException] = []
    if threading.current_thread() is not threading.main_thread():  # signals are the main thread's
        yield stops
        return

    def heard(handler: Handler) -> Handler:
        def handle(number: int, frame: FrameType | None) -> None:
            try:
                handler(number, frame)
            except BaseException as stop:
                stops.append(stop)
                raise

        return handle

    before = {number: signal.getsignal(number) for number in signal.valid_signals()}
    ours = {number: handler for number, handler in before.items() if callable(handler)}
    for number, handler in ours.items():
        signal.signal(number, heard(handler))
    try:
        yield stops
    finally:
        for number, handler in ours.items():
            signal.signal(number, handler)


def original(error: BaseException) -> BaseException:
    """Return the exception that foreign code raised, where `contained` has replaced it."""
    return error.error if isinstance(error, Escaped) else error


def describe_error(error: BaseException) -> str:
    """`ValueError: its text`, in one line that can be printed and stored, whatever the exception is."""
    error = original(error)
    text = as_line(error)
    return f"{as_line(type(error).__name__)}: {text}" if text else as_line(type(error).__name__)


def as_line(thing: object) -> str:
    """Return an exception's text in one line of UTF-8, or a note that it cannot be shown."""
    try:
        with contained():
            text = " ".join("".join(str(thing)).split())
    except Exception as error:  # noqa: BLE001 - its `__str__` is foreign code too
        return f"its text cannot be shown, for it raises {type(original(error)).__name__}"
    return text.encode("utf-8", "backslashreplace").decode()


def by_machine(error: BaseException) -> bool:
    """Tell whether the machine failed and not the case: memory, disk, network, a missing file or package.

    Such are `OSError` (with `PermissionError`, `ConnectionError`, `URLError` ...), `MemoryError`, `ImportError`, errors
    of `http.client`, torch's out of memory, and whatever was raised `from` one of them.
    """
    cause: BaseException | None = original(error)
    for _ in range(_CAUSES):
        if cause is None:
            return False
        if isinstance(cause, OSError | MemoryError | ImportError | http.client.HTTPException) or out_of_memory(cause):
            return True
        cause = cause.__cause__
    return False


def out_of_memory(error: BaseException) -> bool:
    """Tell whether memory was refused: by torch, or by Python."""
    if isinstance(error, MemoryError):
        return True
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and _NO_MEMORY.search(as_line(error)) is not None
