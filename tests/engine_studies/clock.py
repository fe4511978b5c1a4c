"""When chunks ran: one study that others may run beside, and one that must be alone (the preset's fixed part says)."""

import time

from depthgauge.study import Grid, Study
from depthgauge.verdict import Findings


def run(cases, context):
    for case in cases:
        started = time.monotonic()
        time.sleep(case.number("seconds"))
        yield case.rows("started", started)
        yield case.rows("ended", time.monotonic())


def analyse(frame):
    return Findings(())


def plot(findings):
    return ()


STUDY = Study(
    name="clock",
    question="When did it run?",
    presets={
        "quick": (Grid({"part": tuple(range(4))}, fixed={"seconds": 0.1}),),
        "slow": (Grid({"part": tuple(range(16))}, fixed={"seconds": 0.15}),),
        "stuck": (Grid({"part": (0, 1)}, fixed={"seconds": 0.0}), Grid({"part": (2, 3)}, fixed={"seconds": 600.0})),
    },
    run=run,
    analyse=analyse,
    plot=plot,
    exclusive=True,
)
