"""Isolation of chunks from global state that foreign code may set.

    with isolated("chunk's id", threads=1, device="cpu"):
        ...                  # random states from the id, library defaults, one thread
    with preserved():
        ...                  # as it was, and is again afterwards

Each state is a pair of functions, one that reads it and one that writes it, and the value that a chunk finds, where
that is not the process's own. What has no such pair stays with whoever changed it: attributes of modules that a study
replaces, threads that it leaves behind.
"""

# ruff: noqa: PLC0415 - torch is imported where a chunk runs, not where a report is rendered

from __future__ import annotations

import contextlib
import copy
import decimal
import gc
import locale
import logging
import multiprocessing
import os
import random
import resource
import signal
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from depthgauge import float32
from depthgauge.seeding import Purpose, seed_globals

_KEPT = object()  # a chunk finds what there is


@dataclass(frozen=True)
class State:
    """A piece of global state.

    Attributes:
        name: name of the state.
        read: gives its value, which later changes do not touch.
        write: sets it.
        start: the value that a chunk finds; the process's own where none is given.
        always: whether it is set without a look: a look is slow, or does not tell.
    """

    name: str
    read: Callable[[], Any]
    write: Callable[[Any], object]
    start: Any = _KEPT
    always: bool = False

    def restore(self, value: Any) -> None:
        """Sets it, if it is not so already: some setters are slow, or say that they are deprecated."""
        if self.always or self.read() != value:
            self.write(value)


# -- the interpreter ---------------------------------------------------------------------------------------------------


def _environment(value: dict[str, str]) -> None:
    for name in os.environ.keys() - value.keys():
        del os.environ[name]
    for name, text in value.items():
        if os.environ.get(name) != text:
            os.environ[name] = text
    time.tzset()


def _in_place(target: Any) -> Callable[[Any], None]:
    """Puts the old items back into the same list or dict, which others hold too."""

    def write(value: Any) -> None:
        target.clear()
        (target.update if isinstance(target, dict) else target.extend)(value)

    return write


def _handlers() -> dict[int, Any]:
    if threading.current_thread() is not threading.main_thread():
        return {}
    handlers = {number: signal.getsignal(number) for number in signal.valid_signals()}
    return {number: handler for number, handler in handlers.items() if handler is not None}


def _set_handlers(value: dict[int, Any]) -> None:
    for number, handler in value.items():
        if signal.getsignal(number) != handler:
            signal.signal(number, handler)


def _umask() -> int:
    before = os.umask(0o077)
    os.umask(before)
    return before


def _limits() -> dict[int, tuple[int, int]]:
    kinds = [getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_")]
    return {kind: resource.getrlimit(kind) for kind in kinds}


def _set_limits(value: dict[int, tuple[int, int]]) -> None:
    for kind, limits in value.items():
        if resource.getrlimit(kind) != limits:
            with contextlib.suppress(ValueError, OSError):  # a hard limit goes down only
                resource.setrlimit(kind, limits)


def _affinity() -> set[int]:
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()


def _set_affinity(value: set[int]) -> None:
    os.sched_setaffinity(0, value)


def _streams() -> tuple[Any, ...]:
    return sys.stdin, sys.stdout, sys.stderr, sys.excepthook, sys.unraisablehook, threading.excepthook


def _set_streams(value: tuple[Any, ...]) -> None:
    sys.stdin, sys.stdout, sys.stderr, sys.excepthook, sys.unraisablehook, threading.excepthook = value


class _Unclosable:
    """A stream that its users cannot close."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def close(self) -> None:
        self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _decimal() -> str:
    return repr(decimal.getcontext())


def _interpreter() -> Iterator[State]:
    context = decimal.getcontext().copy()
    logger = logging.getLogger()
    yield State("sys.path", lambda: list(sys.path), _in_place(sys.path))
    yield State("sys.argv", lambda: list(sys.argv), _in_place(sys.argv))
    yield State("recursion limit", sys.getrecursionlimit, sys.setrecursionlimit)
    yield State("digits of an int", sys.get_int_max_str_digits, sys.set_int_max_str_digits)
    yield State("switch interval", sys.getswitchinterval, sys.setswitchinterval)
    yield State("streams and hooks", _streams, _set_streams)
    yield State("environment", lambda: dict(os.environ), _environment)
    yield State("umask", _umask, os.umask)
    yield State("resource limits", _limits, _set_limits)
    yield State("CPU affinity", _affinity, _set_affinity)
    yield State("signal handlers", _handlers, _set_handlers)
    yield State("locale", lambda: locale.setlocale(locale.LC_ALL), lambda value: locale.setlocale(locale.LC_ALL, value))
    yield State("decimal context", _decimal, lambda _: decimal.setcontext(context))
    yield State("socket time-out", socket.getdefaulttimeout, socket.setdefaulttimeout)
    yield State("logging level", lambda: logger.level, logger.setLevel)
    yield State("logging disabled", lambda: logger.manager.disable, logging.disable)
    yield State("logging handlers", lambda: list(logger.handlers), _in_place(logger.handlers))
    yield State("garbage collection", gc.isenabled, lambda value: gc.enable() if value else gc.disable())
    yield State("garbage thresholds", gc.get_threshold, lambda value: gc.set_threshold(*value))
    yield State("start method", lambda: multiprocessing.get_start_method(allow_none=True), _set_start_method)
    yield State("random", random.getstate, random.setstate, always=True)


def _set_start_method(value: str | None) -> None:
    multiprocessing.set_start_method(value, force=True)


# -- libraries ---------------------------------------------------------------------------------------------------------


def _numpy() -> Iterator[State]:
    import numpy as np

    errors = {"divide": "warn", "over": "warn", "under": "ignore", "invalid": "warn"}  # as numpy comes
    legacy = np.random.get_state, np.random.set_state
    yield State("numpy random", *legacy, always=True)
    yield State("numpy errors", np.geterr, lambda value: np.seterr(**value), errors)
    yield State("numpy error call", np.geterrcall, np.seterrcall)
    yield State("numpy print options", np.get_printoptions, lambda value: np.set_printoptions(**value))


def _pandas() -> Iterator[State]:
    import pandas as pd

    def flat(options: dict[str, Any], above: str = "") -> dict[str, Any]:
        flattened: dict[str, Any] = {}
        for name, value in options.items():
            flattened |= flat(value, f"{above}{name}.") if isinstance(value, dict) else {f"{above}{name}": value}
        return flattened

    def read() -> dict[str, Any]:
        options: Any = pd.options.d
        return flat(copy.deepcopy(options))

    def write(value: dict[str, Any]) -> None:
        now = read()
        for name, option in value.items():
            if now[name] != option:
                pd.set_option(name, option)

    yield State("pandas options", read, write)


def _torch() -> Iterator[State]:
    import torch
    from torch.optim import optimizer  # which is no attribute there

    def default_device() -> str:
        return str(torch.get_default_device())

    def set_default_device(value: str) -> None:
        torch.set_default_device(None if value == "cpu" else value)

    def flush() -> bool:
        return float(torch.tensor(1e-323, dtype=torch.float64, device="cpu") * 1) == 0.0

    def deterministic() -> tuple[bool, bool]:
        return torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()

    def set_deterministic(value: tuple[bool, bool]) -> None:
        torch.use_deterministic_algorithms(value[0], warn_only=value[1])

    def anomaly() -> tuple[bool, bool]:
        return torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()

    yield State("torch random", torch.get_rng_state, torch.set_rng_state, always=True)
    yield State("torch dtype", torch.get_default_dtype, torch.set_default_dtype, torch.float32)
    yield State("torch device", default_device, set_default_device, "cpu")
    yield State("torch gradients", torch.is_grad_enabled, torch.set_grad_enabled, True)
    yield State("torch threads", torch.get_num_threads, torch.set_num_threads)
    yield State("torch float32", float32.read, float32.write, float32.FULL)
    # Subnormals are among what is measured.
    yield State("torch flushes subnormals", flush, torch.set_flush_denormal, False)
    yield State("torch deterministic", deterministic, set_deterministic, (False, False))
    yield State("torch anomaly mode", anomaly, lambda value: torch.set_anomaly_enabled(*value), (False, True))
    yield State("torch warns always", torch.is_warn_always_enabled, torch.set_warn_always)
    yield from _autocast("cpu")
    yield from _autocast("cuda")
    yield from _backends()
    for place in (torch.nn.modules.module, optimizer):
        for name, hooks in vars(place).items():
            if name.startswith("_global_") and isinstance(hooks, dict):
                yield State(f"torch {name.strip('_')}", hooks.copy, _in_place(hooks))


def _autocast(device: str) -> Iterator[State]:
    import torch

    def read() -> tuple[bool, torch.dtype, bool]:
        return torch.is_autocast_enabled(device), torch.get_autocast_dtype(device), torch.is_autocast_cache_enabled()

    def write(value: tuple[bool, torch.dtype, bool]) -> None:
        torch.set_autocast_enabled(device, value[0])
        torch.set_autocast_dtype(device, value[1])
        torch.set_autocast_cache_enabled(value[2])

    start = (False, torch.bfloat16 if device == "cpu" else torch.float16, True)
    yield State(f"torch autocast on {device}", read, write, start)


def _backends() -> Iterator[State]:
    import torch

    for place, name in (
        (torch.backends.cudnn, "enabled"),
        (torch.backends.cudnn, "benchmark"),
        (torch.backends.cudnn, "deterministic"),
        (torch.backends.mkldnn, "enabled"),
        (torch.utils.deterministic, "fill_uninitialized_memory"),
    ):

        def write(value: Any, place: Any = place, name: str = name) -> None:
            setattr(place, name, value)

        yield State(f"{place.__name__}.{name}", lambda place=place, name=name: getattr(place, name), write)  # type: ignore[misc] # mypy cannot infer a lambda with defaults
    yield State("attention fast path", torch.backends.mha.get_fastpath_enabled, torch.backends.mha.set_fastpath_enabled)
    for kind in ("flash", "mem_efficient", "math", "cudnn"):
        enabled = getattr(torch.backends.cuda, f"{kind}_sdp_enabled")
        yield State(f"attention {kind}", enabled, getattr(torch.backends.cuda, f"enable_{kind}_sdp"))


# -- all of it ---------------------------------------------------------------------------------------------------------


def states() -> tuple[State, ...]:
    """Every state of the libraries that are imported here."""
    libraries = {"numpy": _numpy, "pandas": _pandas, "torch": _torch}
    loaded = (states() for name, states in libraries.items() if name in sys.modules)
    return (*_interpreter(), *(state for library in loaded for state in library))


@contextlib.contextmanager
def preserved() -> Iterator[tuple[State, ...]]:
    """Restore every state after the block; yield them."""
    known = states()
    before = [state.read() for state in known]
    alarm = hasattr(signal, "setitimer") and signal.getitimer(signal.ITIMER_REAL)[0] == 0.0
    with same_folder(), stdout_to_stderr(), warnings.catch_warnings():
        try:
            yield known
        finally:
            with warnings.catch_warnings(), contextlib.ExitStack() as last:
                warnings.simplefilter("ignore")  # setters that say they are deprecated
                if alarm:
                    last.callback(signal.setitimer, signal.ITIMER_REAL, 0.0)
                for state, value in zip(known, before, strict=True):
                    last.callback(state.restore, value)  # each, whatever another raises


@contextlib.contextmanager
def stdout_to_stderr() -> Iterator[None]:
    """Send to stderr all that is printed within: stdout is for a command's answer, which a program reads.

    Streams and standard descriptors are afterwards what they are now, whoever closes or replaces them.
    """
    streams = sys.stdout, sys.stderr
    with contextlib.suppress(OSError, ValueError, AttributeError):
        sys.stdout.flush()  # what it holds is the answer's
    copies = {number: copied for number in range(3) if (copied := _copied(number)) is not None}
    if {1, 2} <= copies.keys():
        os.dup2(2, 1)
    sys.stdout = sys.stderr = sys.stderr and _Unclosable(sys.stderr)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = streams
        for number, copied in copies.items():
            os.dup2(copied, number)
            os.close(copied)


def _copied(descriptor: int) -> int | None:
    try:
        return os.dup(descriptor)
    except OSError:  # it is closed
        return None


@contextlib.contextmanager
def same_folder() -> Iterator[None]:
    """The working directory is afterwards what it is now: by what it is, for it may have been renamed or removed."""
    try:
        here = os.open(".", os.O_RDONLY)
    except OSError:  # one that may not be read: by its name, then
        yield
        return
    try:
        yield
    finally:
        os.fchdir(here)
        os.close(here)


@contextlib.contextmanager
def isolated(chunk: str, threads: int, device: str) -> Iterator[None]:
    """Give a chunk its random states, the libraries' defaults and `threads` threads; restore the process after it.

    Studies draw from generators of their own; this keeps one that forgot from depending on what ran before it.
    """
    import threadpoolctl  # type: ignore[import-untyped] # it has no type information
    import torch

    gpu = device != "cpu"
    with (
        preserved() as known,
        torch.random.fork_rng(devices=[torch.device(device).index or 0]) if gpu else contextlib.nullcontext(),
        threadpoolctl.threadpool_limits(threads),
    ):
        for state in known:
            if state.start is not _KEPT:
                state.restore(state.start)
        seed_globals(0, Purpose.UNGUARDED, chunk, device=device)
        torch.set_num_threads(threads)
        if gpu:
            # Atomic additions would make equal requests differ; operations that have no other way warn.
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True, warn_only=True)
        yield
