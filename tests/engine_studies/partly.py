"""When chunks ran: a study of which one grid must be alone."""

import time

from depthgauge.study import Grid, Study
from depthgauge.verdict import Findings


def run(cases, context):
    for case in cases:
        started = time.monotonic()
        time.sleep(1.0 if "beside" in case else 0.1)  # long enough for a second worker to come
        yield case.rows("started", started)
        yield case.rows("ended", time.monotonic())


def analyse(frame):
    return Findings(())


def plot(findings):
    return ()


STUDY = Study(
    name="partly",
    question="When did it run?",
    presets={"quick": (Grid({"alone": (0, 1, 2)}, exclusive=True), Grid({"beside": (0, 1, 2, 3)}))},
    run=run,
    analyse=analyse,
    plot=plot,
)
