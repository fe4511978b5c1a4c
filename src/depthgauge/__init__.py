"""depthgauge: what a neural network's numbers do, before the GPU-hours are spent.

    from depthgauge import Training

Names of this package are imported when they are first used, so that `import depthgauge` imports no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from depthgauge.version import __version__

if TYPE_CHECKING:
    from depthgauge.coordinates import coordinate_check
    from depthgauge.planning import plan
    from depthgauge.workload import Training

__all__ = ["Training", "__version__", "coordinate_check", "plan"]

_PUBLIC = {  # name -> module that has it
    "Training": "depthgauge.workload", "coordinate_check": "depthgauge.coordinates", "plan": "depthgauge.planning",
}  # fmt: skip


def __getattr__(name: str) -> object:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'depthgauge' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_PUBLIC[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
