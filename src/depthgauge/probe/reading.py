"""Choice of the kernel that reads a tensor."""

from __future__ import annotations

from depthgauge.probe.kernel import Kernel
from depthgauge.probe.plain import PlainKernel


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
