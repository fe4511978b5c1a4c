"""What foreign code raises: contained, told in one line, the machine's or the case's."""

from __future__ import annotations

import errno
import http.client
import os
import signal
import subprocess
import sys
import textwrap
import time
import urllib.error
from pathlib import Path

import numpy as np
import pytest
import torch

from depthgauge import running, store
from depthgauge.foreign import Escaped, as_line, by_machine, contained, describe_error
from depthgauge.study import Grid, Study
from depthgauge.verdict import Findings


class MuteError(Exception):
    def __str__(self):
        raise ZeroDivisionError


class LeavingError(Exception):
    def __str__(self):
        raise SystemExit(0)


class OddError(Exception):
    def __str__(self):
        return 3  # noqa: PLE0307 - which is wrong on purpose


RAISED = {
    "plain": (ValueError("two\nlines"), "ValueError: two lines"),
    "empty": (ValueError(), "ValueError"),
    "no UTF-8": (ValueError(os.fsdecode(b"no caf\xe9.txt")), r"ValueError: no caf\udce9.txt"),
    "raises": (MuteError(), "MuteError: its text cannot be shown, for it raises ZeroDivisionError"),
    "leaves": (LeavingError(), "LeavingError: its text cannot be shown, for it raises SystemExit"),
    "no text": (OddError(), "OddError: its text cannot be shown, for it raises TypeError"),
    "exit": (SystemExit(3), "SystemExit: 3"),
    "own": (type("Own", (BaseException,), {})("why"), "Own: why"),
    "generator": (GeneratorExit(), "GeneratorExit"),
    "interrupt": (KeyboardInterrupt("mine"), "KeyboardInterrupt: mine"),
}


@pytest.mark.parametrize(("error", "line"), RAISED.values(), ids=RAISED)
def test_whatever_is_raised_is_an_exception_and_one_line(error, line):
    with pytest.raises(Exception) as caught, contained():  # noqa: PT011 - any
        raise error
    assert describe_error(caught.value) == line
    line.encode()
    assert isinstance(caught.value, Escaped) == (not isinstance(error, Exception))


def test_text_that_cannot_be_shown_says_so():
    assert as_line("caf\udce9\n x") == r"caf\udce9 x"


def test_a_real_ctrl_c_passes_whatever_the_code_makes_of_it():
    def swallow():
        try:
            signal.raise_signal(signal.SIGINT)
        except BaseException:  # noqa: BLE001 - carelessness is what this tests
            return

    def translate():
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt as error:
            raise ValueError("stopped") from error

    before = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        for code in (swallow, translate, lambda: signal.raise_signal(signal.SIGINT)):
            with pytest.raises(KeyboardInterrupt), contained():
                code()
            assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def caused(by):
    error = RuntimeError("could not load")
    error.__cause__ = by
    return error


MACHINE = {
    "missing file": FileNotFoundError(errno.ENOENT, "no such file"),
    "permission": PermissionError(errno.EACCES, "denied"),
    "refused": ConnectionRefusedError(),
    "time-out": TimeoutError(),
    "URL": urllib.error.URLError("no network"),
    "cut off": http.client.IncompleteRead(b""),
    "memory": MemoryError(),
    "numpy memory": np._core._exceptions._ArrayMemoryError((2**50,), np.dtype(float)),
    "torch memory": torch.OutOfMemoryError("CUDA out of memory"),
    "torch's CPU": RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 1"),
    "cuBLAS": RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    "missing package": ModuleNotFoundError("no module"),
    "raised from one": caused(caused(PermissionError())),
}
CASE = {
    "value": ValueError("out of range"),
    "arithmetic": ZeroDivisionError(),
    "runtime": RuntimeError("shapes do not agree"),
    "exit": SystemExit(1),
    "recursion": RecursionError(),
    "raised from one": caused(ValueError()),
}


@pytest.mark.parametrize("error", MACHINE.values(), ids=MACHINE)
def test_failures_of_the_machine(error):
    assert by_machine(error)


@pytest.mark.parametrize("error", CASE.values(), ids=CASE)
def test_failures_of_the_case(error):
    assert not by_machine(error)


def test_a_circle_of_causes_ends():
    error = ValueError()
    error.__cause__ = caused(error)
    assert not by_machine(error)


# -- in a run ----------------------------------------------------------------------------------------------------------


def study(act, cases=("first", "bad", "last"), **grid):
    def run(cases, context):
        for case in cases:
            if case["k"] == "bad":
                act()
            yield case.rows("x", 1.0)

    return Study("made_here", "?", {"quick": (Grid({"k": cases}, **grid),)}, run, lambda _: Findings(()), list)


def raising(error):
    def act():
        raise error

    return act


@pytest.mark.parametrize("error", [error for error, _ in RAISED.values()], ids=RAISED)
@pytest.mark.parametrize("together", [(), ("k",)])
def test_whatever_a_case_raises_costs_that_case_alone(tmp_path, error, together):
    outcome = running.run(study(raising(error), together=together, chunk=3), out=tmp_path)
    frame = outcome.stored.frame("made_here").set_index("case")
    assert frame["status"].to_dict() == {"k=first": "ok", "k=bad": "error", "k=last": "ok"}
    assert frame["message"]["k=bad"].startswith(describe_error(error))


@pytest.mark.parametrize("error", MACHINE.values(), ids=MACHINE)
def test_what_the_machine_failed_in_is_tried_again_by_the_next_run(tmp_path, error):
    mended, out = tmp_path / "mended", tmp_path / "out"

    def act():
        if not mended.exists():
            raise error

    one = study(act)
    first = running.run(one, out=out)
    assert first.failed == {"machine": 1}
    mended.touch()
    second = running.run(one, out=out)
    assert (second.ran, second.reused, second.failed) == (1, 2, {})
    assert set(store.read(out).frame("made_here")["status"]) == {"ok"}


def test_a_batch_that_the_machine_could_not_hold_is_not_made_up_of_its_cases(tmp_path):
    calls = []

    def run(cases, context):
        calls.append(len(cases))
        if len(cases) > 1:
            raise MemoryError
        yield from (case.rows("x", 1.0) for case in cases)

    grids = {"quick": (Grid({"k": (1,)}, seeds=3, chunk=3),)}
    outcome = running.run(Study("made_here", "?", grids, run, list, list), out=tmp_path)
    assert calls == [3, 1, 1, 1, 3]
    assert outcome.failed == {"machine": 3}


PROGRAM = """
    import signal, sys, time
    from pathlib import Path
    from depthgauge.study import Grid, Study
    from depthgauge.verdict import Findings

    def run(cases, context):
        for case in cases:
            {run}
            yield case.rows("x", 1.0)

    def analyse(frame):
        {analyse}
        return Findings(())

    def plot(findings):
        {plot}
        return ()

    STUDY = Study(name="odd", question="?", presets={{"quick": (Grid({{"k": (0, 1)}}),)}}, run=run, analyse=analyse,
                  plot=plot)
"""


def write(folder: Path, *, run="pass", analyse="pass", plot="pass", before="") -> Path:
    path = folder / "odd.py"
    path.write_text(before + textwrap.dedent(PROGRAM.format(run=run, analyse=analyse, plot=plot)))
    return path


def depthgauge(folder, *words, **more):
    command = [sys.executable, "-m", "depthgauge", *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=120, **more)


@pytest.mark.parametrize("statement", ["sys.exit(0)", "raise KeyboardInterrupt", "raise BaseException('x')"])
@pytest.mark.parametrize("place", ["analyse", "plot", "before"])
def test_leaving_in_the_middle_of_a_study_is_told_and_never_0(tmp_path, forks, place, statement):
    write(tmp_path, **{place: f"import sys; {statement}\n"})
    done = forks.run(tmp_path, "run", "odd", "--studies", "odd.py", "--workers", "0", "--out", "x")
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert "depthgauge: " in done.stderr.splitlines()[-1]
    assert (tmp_path / "x" / "report" / "report.md").exists() == (place != "before")


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["0", "1"])
def test_a_child_that_a_case_forks_goes_no_further(tmp_path, workers):
    write(tmp_path, run="import os; os.fork()", analyse="import os; os.fork()", plot="import os; os.fork()")
    done = depthgauge(tmp_path, "run", "odd", "--studies", "odd.py", "--workers", workers, "--out", "x")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "x/report/index.html\nx/report/report.md\n"
    assert done.stderr.count("cases measured") == 1
    assert store.read(tmp_path / "x").frame("odd")["status"].tolist() == ["ok", "ok"]


@pytest.mark.parametrize("workers", ["0", "1"])
def test_what_a_study_prints_is_no_part_of_the_answer(tmp_path, forks, workers):
    prints = "import os; print('printed'); os.write(1, b'written\\n')"
    write(tmp_path, run=prints, analyse=prints, plot=prints, before=prints + "\n")
    done = forks.run(tmp_path, "run", "odd", "--studies", "odd.py", "--workers", workers, "--out", "x")
    assert (done.returncode, done.stdout) == (0, "x/report/index.html\nx/report/report.md\n"), done.stderr
    assert done.stderr.count("written") >= 4


@pytest.mark.slow
@pytest.mark.alone
def test_an_interrupt_of_a_case_s_own_stops_no_run_and_the_user_s_own_does(tmp_path, forks):
    write(tmp_path, run="if case['k'] == 0: raise KeyboardInterrupt")
    for workers in ("0", "1"):
        done = forks.run(tmp_path, "run", "odd", "--studies", "odd.py", "--workers", workers, "--out", workers)
        assert done.returncode == 0, done.stderr
        assert "1 case (error)" in done.stderr
    write(
        tmp_path,
        run="Path('there').touch()\n            try: time.sleep(60)\n            except BaseException: pass",
    )
    listening = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
    words = [sys.executable, "-m", "depthgauge", "run", "odd", "--studies", "odd.py", "--workers", "0", "--out", "y"]
    with subprocess.Popen(words, cwd=tmp_path, stderr=subprocess.PIPE, text=True, **listening) as process:
        while not (tmp_path / "there").exists():
            time.sleep(0.05)
            assert process.poll() is None, process.stderr.read()
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "run the same command to resume" in said
