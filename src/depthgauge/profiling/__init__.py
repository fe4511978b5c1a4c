"""The parts of a training step's time, down to the operator and the kernel.

    captured = capture(Training(model, loader), label="mine", folder=folder, ceilings=ceilings("cpu"), setting={})
    profile = analyse(captured, read(folder / captured.trace))
    profile.operators          # name, kind, calls, seconds, share, rates, and how near to the roofline
    profile.opportunities      # what could save time, and how much at most
    difference(profile, later).rows    # where a step has become slower, operator by operator

`capture` runs the training under torch.profiler and stores the trace, which TensorBoard and Perfetto open too, beside
the step's time without the profiler. `analyse` is a pure function of what was stored.
"""

from __future__ import annotations

from depthgauge.profiling.analysis import Profile, analyse
from depthgauge.profiling.capture import Capture, ProfileError, capture
from depthgauge.profiling.difference import Difference, difference
from depthgauge.profiling.opportunities import Opportunity
from depthgauge.trace import Trace, TraceError, parse, read

__all__ = [
    "Capture",
    "Difference",
    "Opportunity",
    "Profile",
    "ProfileError",
    "Trace",
    "TraceError",
    "analyse",
    "capture",
    "difference",
    "parse",
    "read",
]
