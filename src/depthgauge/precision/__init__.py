"""Low precision: where a module's errors arise, and arithmetic that the device lacks.

from depthgauge import precision

precision.bisect(model, x, torch.bfloat16).sort_values("own", ascending=False)     # which layers hurt
with precision.emulated("float8_e4m3fn"):                                          # rounded after every operator
    loss(model(x), y).backward()
"""

from depthgauge.precision.bisection import bisect
from depthgauge.precision.emulation import cast, emulated

__all__ = ["bisect", "cast", "emulated"]
