"""Batch size: what it costs and what it buys."""

from __future__ import annotations

from depthgauge.parts import study
from depthgauge.studies.batch_size import throughput

STUDY = study(
    "batch_size",
    "How large a batch, and what does it buy?",
    (throughput.PART,),
    caveats=("Throughput: small presets, on one thread of this device; another device stops gaining elsewhere.",),
)
