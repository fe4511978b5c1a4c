"""Data parallelism: one device against many."""

from __future__ import annotations

from depthgauge.parts import study
from depthgauge.studies.data_parallel import faults

STUDY = study(
    "data_parallel",
    "Is training on several devices the same training as on one, and what does it buy?",
    (faults.PART,),
    caveats=("Faults: two to four ranks of one machine, talking by gloo; by NCCL none of it was run.",),
)
