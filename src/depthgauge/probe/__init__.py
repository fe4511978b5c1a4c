"""Statistics of every tensor of a training run, at the speed of the hardware.

    from depthgauge import probe

    with probe.track(model, optimizer=optimizer) as record:
        for x, y in batches:
            optimizer.zero_grad()
            loss(model(x), y).backward()
            optimizer.step()

    record.summary("float16", loss_scale=2**10)           # a row for each layer, what float16 would lose, worst first
    record.plot("float16").savefig("record.png")          # where each layer's values lie between float16's limits
    record.to_frame()                                     # a row for each tensor seen
    record.fractions("float16", loss_scale=2**10)         # what float16 would lose of each, gradients at that scale
    record.loss_scale("float16")                          # the least and the greatest scale that lose next to nothing
    record.first_nonfinite()                              # where the first infinity or NaN appeared, and what led to it

    with probe.watch(model, optimizer, every=10, to="run.parquet"):      # a live run: see docs/watching.md
        train()

It works on any `nn.Module` and changes nothing that it computes; what it cannot read it counts and tells. See
docs/probe.md for what was tried.
"""

from depthgauge.probe.alarm import Alarm, AlarmWarning
from depthgauge.probe.columns import METRICS
from depthgauge.probe.destinations import scalars
from depthgauge.probe.loss_scale import LossScale
from depthgauge.probe.nonfinite import NonFinite
from depthgauge.probe.record import DIRECTIONS, Record
from depthgauge.probe.ring import NonFiniteWarning
from depthgauge.probe.tracking import UnreadWarning, track
from depthgauge.probe.unread import Unread
from depthgauge.probe.watching import Watch, watch
from depthgauge.probe.weight_layers import weight_layers

__all__ = [
    "DIRECTIONS",
    "METRICS",
    "Alarm",
    "AlarmWarning",
    "LossScale",
    "NonFinite",
    "NonFiniteWarning",
    "Record",
    "Unread",
    "UnreadWarning",
    "Watch",
    "scalars",
    "track",
    "watch",
    "weight_layers",
]
