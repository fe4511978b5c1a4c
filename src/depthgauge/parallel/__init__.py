"""Data parallelism: one training on several ranks, held against the same on one."""

from __future__ import annotations

from depthgauge.parallel.comparison import compare
from depthgauge.parallel.ending import End
from depthgauge.parallel.group import Group, device_for
from depthgauge.parallel.launching import Outcome, launch
from depthgauge.parallel.links import Link
from depthgauge.parallel.naming import ParallelError
from depthgauge.parallel.norm import SyncBatchNorm
from depthgauge.parallel.prediction import StepModel
from depthgauge.parallel.same import same
from depthgauge.parallel.sameness import Compared, Row, Same
from depthgauge.parallel.steps import Layout, ddp_steps, room, time_steps
from depthgauge.parallel.traffic import Collective, Traffic, pretended, traffic

__all__ = [
    "Collective", "Compared", "End", "Group", "Layout", "Link", "Outcome", "ParallelError", "Row", "Same", "StepModel",
    "SyncBatchNorm", "Traffic", "compare", "ddp_steps", "device_for", "launch", "pretended", "room", "same",
    "time_steps", "traffic",
]  # fmt: skip
