"""Which kernel reads a tensor, and in what form."""

from __future__ import annotations

import torch

from depthgauge.probe.plain import PlainKernel
from depthgauge.probe.record import Kernel


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


def is_plain(tensor: torch.Tensor) -> bool:
    """Whether the tensor's numbers are just those in its memory, in any order and without gaps."""
    return tensor.layout is torch.strided and tensor.is_contiguous() and not tensor.is_neg()


def readable(tensor: torch.Tensor, native: tuple[torch.dtype, ...]) -> torch.Tensor:
    """The same numbers as a dense tensor of a native dtype, copied only where they are not so already.

    Complex numbers become their real and imaginary parts; half, bfloat16 and the eight-bit formats become float32,
    which holds them exactly, where they are not native; of a sparse tensor, the stored values are taken.
    """
    values = tensor.detach()
    if values.layout is not torch.strided:
        values = values.coalesce().values() if values.layout is torch.sparse_coo else values.values()
    if values.is_complex():
        values = torch.view_as_real(values.resolve_conj())
    if values.dtype not in native:
        values = values.to(torch.float32)
    if is_plain(values):
        return values
    values = values.resolve_neg()
    # Channels-last and transposed tensors have no gaps either: their memory is read in the order in which it lies.
    order = sorted(range(values.dim()), key=values.stride, reverse=True)
    return values.permute(order).contiguous()
