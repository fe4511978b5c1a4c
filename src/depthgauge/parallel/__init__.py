"""Data parallelism: one training on several ranks, held against the same on one."""

from __future__ import annotations

from depthgauge.parallel.ending import End
from depthgauge.parallel.group import Group
from depthgauge.parallel.launching import Outcome, launch
from depthgauge.parallel.links import Link
from depthgauge.parallel.naming import ParallelError
from depthgauge.parallel.norm import SyncBatchNorm

__all__ = ["End", "Group", "Link", "Outcome", "ParallelError", "launch"]
__all__ = ["End", "Group", "Outcome", "ParallelError", "SyncBatchNorm", "launch"]
from depthgauge.parallel.traffic import Collective, Traffic, pretended, traffic

__all__ = [
    "Collective",
    "End",
    "Group",
    "Outcome",
    "ParallelError",
    "Traffic",
    "launch",
    "pretended",
    "traffic",
]
from depthgauge.parallel.steps import Layout, ddp_steps, room, time_steps

__all__ = ["End", "Group", "Layout", "Outcome", "ParallelError", "ddp_steps", "launch", "room", "time_steps"]
from depthgauge.parallel.prediction import StepModel
from depthgauge.parallel.steps import Layout, ddp_steps, room, time_steps

__all__ = [
    "End", "Group", "Layout", "Link", "Outcome", "ParallelError", "StepModel", "ddp_steps", "launch", "room",
    "time_steps",
]  # fmt: skip
