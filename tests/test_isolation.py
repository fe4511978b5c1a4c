"""What a case sets globally does not reach the next chunk, nor the caller; a table of such states."""

# ruff: noqa: NPY002 - the global state is what is tested

from __future__ import annotations

import contextlib
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
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch.optim import optimizer

from depthgauge import float32, running
from depthgauge.isolation import isolated, preserved, states
from depthgauge.study import Grid, Study


def module_hook() -> None:
    torch.nn.modules.module.register_module_forward_hook(lambda *_: None)


def no_more_files() -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))


def elsewhere() -> None:
    os.chdir("/")


def random_numbers() -> list[float]:
    state = random.getstate(), np.random.get_state(), torch.get_rng_state()
    drawn = [random.random(), np.random.random(), float(torch.rand(()))]
    random.setstate(state[0])
    np.random.set_state(state[1])
    torch.set_rng_state(state[2])
    return drawn


def draw() -> None:
    random.random(), np.random.random(), torch.rand(())


# name: (what a careless case does, what it changes)
TABLE: dict[str, tuple[Callable[[], object], Callable[[], Any]]] = {
    "default device": (lambda: torch.set_default_device("meta"), lambda: str(torch.empty(1).device)),
    "default dtype": (lambda: torch.set_default_dtype(torch.float64), torch.get_default_dtype),
    "grad mode": (lambda: torch.set_grad_enabled(False), torch.is_grad_enabled),
    "deterministic mode": (
        lambda: torch.use_deterministic_algorithms(True), torch.are_deterministic_algorithms_enabled
    ),
    "anomaly mode": (lambda: torch.autograd.set_detect_anomaly(True), torch.is_anomaly_enabled),
    "autocast": (lambda: torch.set_autocast_enabled("cpu", True), lambda: torch.is_autocast_enabled("cpu")),
    "autocast dtype": (
        lambda: torch.set_autocast_dtype("cpu", torch.float16), lambda: torch.get_autocast_dtype("cpu")
    ),
    "matmul precision": (lambda: torch.set_float32_matmul_precision("medium"), torch.get_float32_matmul_precision),
    "convolutions in TF32": (
        lambda: setattr(torch.backends.cudnn, "allow_tf32", not torch.backends.cudnn.allow_tf32),
        lambda: torch.backends.cudnn.allow_tf32,
    ),
    "precision of all": (lambda: setattr(torch.backends, "fp32_precision", "bf16"), float32.read),
    "flushed subnormals": (
        lambda: torch.set_flush_denormal(True), lambda: float(torch.tensor(1e-323, dtype=torch.float64) * 1)
    ),
    "torch threads": (lambda: torch.set_num_threads(3), torch.get_num_threads),
    "cudnn": (lambda: setattr(torch.backends.cudnn, "benchmark", True), lambda: torch.backends.cudnn.benchmark),
    "attention": (lambda: torch.backends.cuda.enable_math_sdp(False), torch.backends.cuda.math_sdp_enabled),
    "attention of cuDNN": (
        lambda: torch.backends.cuda.enable_cudnn_sdp(False), torch.backends.cuda.cudnn_sdp_enabled
    ),
    "attention's fast path": (
        lambda: torch.backends.mha.set_fastpath_enabled(False), torch.backends.mha.get_fastpath_enabled
    ),
    "hooks of every optimizer": (
        lambda: optimizer.register_optimizer_step_pre_hook(lambda *_: None),
        lambda: len(optimizer._global_optimizer_pre_hooks),
    ),
    "hooks of every module": (module_hook, lambda: len(torch.nn.modules.module._global_forward_hooks)),
    "random states": (draw, random_numbers),
    "numpy errors": (lambda: np.seterr(all="raise"), np.geterr),
    "numpy print options": (lambda: np.set_printoptions(precision=2), lambda: np.get_printoptions()["precision"]),
    "pandas options": (
        lambda: pd.set_option("display.max_rows", 3), lambda: pd.get_option("display.max_rows")
    ),
    "environment": (lambda: os.environ.update(DEPTHGAUGE_LEFT="1"), lambda: os.environ.get("DEPTHGAUGE_LEFT")),
    "environment lost": (lambda: os.environ.pop("PATH"), lambda: os.environ.get("PATH")),
    "time zone": (lambda: (os.environ.update(TZ="Asia/Tokyo"), time.tzset()), lambda: time.localtime(0).tm_hour),
    "working directory": (elsewhere, os.getcwd),
    "umask": (lambda: os.umask(0o777), lambda: os.umask(os.umask(0o022)) and None),
    "warnings": (lambda: warnings.simplefilter("error"), lambda: list(warnings.filters)),
    "locale": (lambda: locale.setlocale(locale.LC_ALL, "C.UTF-8"), lambda: locale.setlocale(locale.LC_ALL)),
    "signal handlers": (
        lambda: signal.signal(signal.SIGUSR1, lambda *_: None), lambda: signal.getsignal(signal.SIGUSR1)
    ),
    "timer": (lambda: signal.setitimer(signal.ITIMER_REAL, 600), lambda: signal.getitimer(signal.ITIMER_REAL)[0]),
    "sys.path": (lambda: sys.path.insert(0, "/nowhere"), lambda: list(sys.path)),
    "sys.argv": (lambda: sys.argv.append("--left"), lambda: list(sys.argv)),
    "recursion limit": (lambda: sys.setrecursionlimit(5000), sys.getrecursionlimit),
    "stdout": (lambda: setattr(sys, "stdout", None), lambda: sys.stdout is None),
    "decimal context": (lambda: setattr(decimal.getcontext(), "prec", 5), lambda: decimal.getcontext().prec),
    "socket time-out": (lambda: socket.setdefaulttimeout(0.001), socket.getdefaulttimeout),
    "logging": (logging.disable, lambda: logging.root.manager.disable),
    "log handlers": (lambda: logging.root.addHandler(logging.NullHandler()), lambda: len(logging.root.handlers)),
    "garbage collection": (gc.disable, gc.isenabled),
    "start method": (
        lambda: multiprocessing.set_start_method("spawn", force=True),
        lambda: multiprocessing.get_start_method(allow_none=True),
    ),
    "open files": (no_more_files, lambda: resource.getrlimit(resource.RLIMIT_NOFILE)),
}  # fmt: skip


@pytest.mark.parametrize("name", TABLE)
def test_what_a_case_sets_reaches_neither_the_next_chunk_nor_the_caller(tmp_path, name):
    careless, look = TABLE[name]
    seen = []

    def run(cases, context):
        for case in cases:
            seen.append(look())
            yield case.rows("x", 1.0)
            if case["part"] == 1:
                careless()
                seen.append(look())

    study = Study("made_here", "?", {"quick": (Grid({"part": (0, 1, 2)}),)}, run, list, list)
    before = look()
    outcome = running.run(study, out=tmp_path)
    assert set(outcome.stored.frame("made_here")["status"]) == {"ok"}
    first, second, spoiled, third = seen
    if name not in {"umask", "random states"}:  # the one is looked at by setting it, the others differ by the chunk
        assert spoiled != second
        assert first == second == third
    assert look() == before
    again = running.run(study, out=tmp_path / "again")
    assert [*seen[:2], seen[3]] == [*seen[4:6], seen[7]]
    assert again.stored.frame("made_here").equals(outcome.stored.frame("made_here"))


def test_the_umask_is_that_of_before(tmp_path):
    before = os.umask(0o027)
    try:
        with preserved():
            os.umask(0o777)
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(before)


def test_what_a_case_prints_is_seen_beside_the_answer_and_its_streams_cannot_be_closed(tmp_path, capsys):
    def run(cases, context):
        for case in cases:
            sys.stderr.write("here\n")
            sys.stdout.write("there\n")
            sys.stdout.close()
            sys.stderr.close()
            yield case.rows("x", 1.0)

    running.run(Study("made_here", "?", {"quick": (Grid({"part": (1,)}),)}, run, list, list), out=tmp_path)
    sys.stderr.write("still\n")
    seen = capsys.readouterr()
    assert (seen.out, seen.err) == ("", "here\nthere\nstill\n")


@pytest.mark.parametrize("closed", [(), (1,), (2,), (0, 1, 2)])
def test_standard_descriptors_are_those_of_before_whoever_closes_them(tmp_path, capfd, closed):
    def run(cases, context):
        for case in cases:
            os.write(1, b"raw\n")
            for descriptor in closed:
                os.close(descriptor)
            (context.scratch / "file").write_text("gets the number of a closed one")
            yield case.rows("x", 1.0)

    before = [os.fstat(descriptor) for descriptor in range(3)]
    outcome = running.run(Study("made_here", "?", {"quick": (Grid({"part": (1, 2)}),)}, run, list, list), out=tmp_path)
    assert (outcome.rows, outcome.failed) == (2, {})
    assert [os.fstat(descriptor).st_ino for descriptor in range(3)] == [status.st_ino for status in before]
    assert capfd.readouterr() == ("", "raw\nraw\n")


def test_a_case_that_raises_leaves_nothing_either(tmp_path):
    def run(cases, context):
        for case in cases:
            np.seterr(all="raise")
            torch.set_default_dtype(torch.float64)
            if case["seed"] == 1:
                raise ValueError("no")
            yield case.rows("x", float(torch.zeros(1).element_size()))

    study = Study("made_here", "?", {"quick": (Grid({"part": (1,)}, seeds=3, chunk=3),)}, run, list, list)
    before = np.geterr(), torch.get_default_dtype()
    frame = running.run(study, out=tmp_path).stored.frame("made_here")
    assert frame["status"].tolist() == ["ok", "error", "ok"]
    assert (np.geterr(), torch.get_default_dtype()) == before


def test_a_folder_that_is_gone_is_left_for_the_one_of_before(tmp_path):
    before = Path.cwd()
    with preserved():
        (tmp_path / "scratch").mkdir()
        os.chdir(tmp_path / "scratch")
        (tmp_path / "scratch").rmdir()
    assert Path.cwd() == before


def test_a_chunk_finds_the_defaults_whatever_its_caller_has_set():
    with preserved():
        torch.set_default_dtype(torch.float64)
        np.seterr(all="raise")
        torch.set_grad_enabled(False)
        with isolated("some", 1, "cpu"):
            assert torch.get_default_dtype() == torch.float32
            assert np.geterr()["under"] == "ignore"
            assert torch.is_grad_enabled()
        assert torch.get_default_dtype() == torch.float64
        assert np.geterr()["under"] == "raise"


def test_every_state_is_read_and_written_alike():
    names = [state.name for state in states()]
    assert len(set(names)) == len(names)
    with preserved():
        for state in states():
            value = state.read()
            state.write(value)
            if not state.always:
                assert state.read() == value, state.name


def test_one_that_cannot_be_restored_keeps_no_other_from_it(monkeypatch):
    before = torch.get_default_dtype()
    with contextlib.suppress(OSError), preserved() as known:
        torch.set_default_dtype(torch.float64)
        sys.setrecursionlimit(4321)
        broken = next(state for state in known if state.name == "recursion limit")
        object.__setattr__(broken, "write", lambda _: (_ for _ in ()).throw(OSError("no")))
    assert torch.get_default_dtype() == before
    sys.setrecursionlimit(1000)
