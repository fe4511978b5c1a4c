"""Choice of the kernel that reads a tensor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from depthgauge.probe.kernel import Kernel
from depthgauge.probe.plain import PlainKernel


class Beside(Kernel, Protocol):
    """A kernel whose `observe` may read later."""

    def end_step(self) -> None:
        """Wait for the step's rows, and decide which tensors may wait from now on."""

    def close(self) -> None:
        """Read what waits, and end the thread."""


def kernel_for(device: str) -> Kernel:
    """The fastest kernel there is for tensors on that device, for instance `"cuda:0"`."""
    try:
        if device == "cpu":
            from depthgauge.probe.compiled import CompiledKernel  # noqa: PLC0415 # numba takes half a second

            return CompiledKernel()
        if device.startswith("cuda"):
            from depthgauge.probe.fused import FusedKernel  # noqa: PLC0415 # triton is there with CUDA only

            return FusedKernel(device)
    except ImportError:
        pass
    return PlainKernel()


def kernel_beside(miss: Callable[[int, Exception], None]) -> Beside | None:
    """A kernel that reads main memory beside the step; None where no processor is left for it.

    Args:
        miss: takes the slot of a tensor that could not be read, and why.
    """
    try:
        from depthgauge.probe import beside  # noqa: PLC0415 # numba takes half a second
    except ImportError:
        return None
    return beside.BesideKernel(miss) if beside.pays() else None
