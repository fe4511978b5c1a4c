"""Data parallelism: one training on several ranks, held against the same on one."""

from __future__ import annotations

from depthgauge.parallel.comparison import compare
from depthgauge.parallel.ending import End
from depthgauge.parallel.group import Group
from depthgauge.parallel.launching import Outcome, launch
from depthgauge.parallel.naming import ParallelError
from depthgauge.parallel.norm import SyncBatchNorm
from depthgauge.parallel.same import same
from depthgauge.parallel.sameness import Compared, Row, Same

__all__ = [
    "Compared", "End", "Group", "Outcome", "ParallelError", "Row", "Same", "SyncBatchNorm", "compare", "launch", "same",
]  # fmt: skip
