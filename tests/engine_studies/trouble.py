"""A study whose cases do what their name says, unless DEPTHGAUGE_TEST_PEACE is set."""

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from depthgauge.study import Grid, Study
from depthgauge.verdict import Findings

KINDS = ("raise", "exit", "silent", "text", "once", "full", "thread")


def hang():
    time.sleep(600)


def crash():
    ctypes.string_at(0)


def act(case):
    kind = case.text("kind")
    seed = case.integer("seed")
    if kind == "fine" or os.environ.get("DEPTHGAUGE_TEST_PEACE"):
        return 1.0 + seed
    if seed == 0:  # of two cases in a chunk, one is at peace
        return 7.0
    if kind == "raise":
        raise ArithmeticError("two lines\nof explanation")
    if kind == "exit":
        sys.exit(3)
    if kind == "text":
        return "seven"
    if kind == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "once":  # dies the first time, is well the second
        marker = Path(os.environ["DEPTHGAUGE_TEST_MARKER"])
        if not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return 9.0
    if kind == "full":
        raise OSError(28, "No space left on device")
    if kind == "thread":  # which nobody ends
        threading.Thread(target=hang).start()
        return 9.0
    if kind == "spawn":
        child = subprocess.Popen(["sleep", "600"])
        Path(os.environ["DEPTHGAUGE_TEST_MARKER"]).write_text(str(child.pid))
        hang()
    if kind == "crash":
        crash()
    return None


def run(cases, context):
    for case in cases:
        value = act(case)
        if value is not None:
            yield case.rows("value", value)


def analyse(frame):
    return Findings(())


def plot(findings):
    return ()


STUDY = Study(
    name="trouble",
    question="Does the engine bear it?",
    presets={
        "quick": (Grid({"kind": ("fine", "raise")}, seeds=2, chunk=2),),
        **{kind: (Grid({"kind": ("fine", kind)}, seeds=2, chunk=2),) for kind in KINDS},
        "workers": (Grid({"kind": ("die", "fine", "spawn", "raise")}, seeds=2, chunk=2),),
        "fatal": (Grid({"kind": ("raise", "die")}, fixed={"seed": 1}),),
    },
    run=run,
    analyse=analyse,
    plot=plot,
)
