"""depthgauge: what a neural network's numbers do, before the GPU-hours are spent.

    import depthgauge
    result = depthgauge.run("gradient_flow")

Names of this package, modules too, are imported when they are first used; `import depthgauge` loads no torch.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING

from depthgauge.version import __version__

if TYPE_CHECKING:
    from depthgauge.checking import Checked, check
    from depthgauge.coordinates import coordinate_check
    from depthgauge.planning import plan
    from depthgauge.results import Result, run
    from depthgauge.workload import Training

__all__ = ["Checked", "Result", "Training", "__version__", "check", "coordinate_check", "plan", "run"]

_PUBLIC = {  # name -> module that has it
    "Training": "depthgauge.workload", "coordinate_check": "depthgauge.coordinates", "plan": "depthgauge.planning",
    "run": "depthgauge.results", "Result": "depthgauge.results", "check": "depthgauge.checking",
    "Checked": "depthgauge.checking",
}  # fmt: skip


def __getattr__(name: str) -> object:
    if name in _PUBLIC:
        value = globals()[name] = getattr(import_module(_PUBLIC[name]), name)
        return value
    module = f"{__name__}.{name}"
    if name.startswith("_") or find_spec(module) is None:
        raise AttributeError(f"module 'depthgauge' has no attribute {name!r}")
    return import_module(module)  # depthgauge.probe, without an import of its own


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
