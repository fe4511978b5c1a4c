"""The peak memory of a piece of work, and the bytes that a module keeps for its backward pass."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from depthgauge import environment
from depthgauge.timing.clocks import Device, Work

if TYPE_CHECKING:
    import torch

# ruff: noqa: PLC0415 - a CPU needs no torch here

_CLEAR, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


def peak_memory(work: Work, device: str | Device = "cpu") -> int | None:
    """Bytes that `work()` holds at its height beyond what was held before; None where the system does not tell.

    On CUDA what torch's allocator handed out. On a CPU the process's resident pages (Linux): what the allocator had at
    hand already does not show, so that a figure below a few MiB says little.

    Raises:
        DeviceError: there is no such device.
    """
    device = Device.named(device) if isinstance(device, str) else device
    if device.name.startswith("cuda"):
        import torch

        device.synchronize()
        torch.cuda.reset_peak_memory_stats(device.name)
        before = torch.cuda.memory_allocated(device.name)
        work()
        device.synchronize()
        return int(torch.cuda.max_memory_allocated(device.name) - before)
    try:
        _give_back()
        _CLEAR.write_text("5")  # sets the high-water mark back to what is resident now
        before = _resident("VmRSS")
        work()
        return max(0, _resident("VmHWM") - before)
    except (OSError, LookupError):
        return None


def peak_tensors(work: Work, device: str | Device = "cpu") -> int:
    """Bytes of the tensors that `work()` makes, at their height; the same on every call that makes the same tensors.

    On CUDA what torch's allocator handed out, as `peak_memory`. On a CPU each tensor is counted from the operation that
    makes it until nothing holds it: to the byte, but without the buffers that an operation needs within itself.
    Where the work lets go of what was there before, as of the last step's gradients, CUDA's figure is as much smaller
    than a CPU's: let a step end without its gradients (`zero_grad()` last), and both count them.

    Raises:
        DeviceError: there is no such device.
    """
    device = Device.named(device) if isinstance(device, str) else device
    if device.name.startswith("cuda"):
        return peak_memory(work, device) or 0
    import gc

    from depthgauge.timing.tensors import Alive

    collects = gc.isenabled()
    gc.disable()  # when it comes by, it frees what else would be held
    try:
        with Alive() as alive:
            work()
    finally:
        if collects:
            gc.enable()
    peak: int = alive.peak
    return peak


def room_for_tensors(device: str | Device = "cpu") -> float:
    """Bytes of tensors that a device still has room for.

    On CUDA what is free, and what torch's allocator has taken and holds no tensor. On a CPU the memory available to
    this process.

    Raises:
        DeviceError: there is no such device.
    """
    device = Device.named(device) if isinstance(device, str) else device
    if not device.name.startswith("cuda"):
        return environment.available_memory()
    import torch

    free, _ = torch.cuda.mem_get_info(device.name)
    return float(free + torch.cuda.memory_reserved(device.name) - torch.cuda.memory_allocated(device.name))


def saved_bytes(module: torch.nn.Module, x: torch.Tensor) -> int:
    """Bytes that autograd keeps of a forward pass for the backward one, as `saved_by`."""
    return saved_by(lambda: module(x.clone().requires_grad_()))


def saved_by(work: Work, but: Iterable[torch.Tensor] = ()) -> int:
    """Bytes that autograd keeps of `work()` for the backward pass; scalars do not count.

    Memory counts once, and whole: a view keeps all of what it is a view of, and what `expand` repeats lies there once.

    Args:
        work: a forward pass; what it returns is held until it has been counted.
        but: tensors whose memory does not count, such as weights and inputs, which are held anyway.
    """
    import torch

    from depthgauge.timing.tensors import storages

    saved: dict[int, int] = {}
    held = {storage.data_ptr() for tensor in but for storage in storages(tensor)}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        for storage in storages(tensor):
            if storage.nbytes() > tensor.element_size() and storage.data_ptr() not in held:
                saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = work()
    del result
    return sum(saved.values())


def _give_back() -> None:
    """Let the C library return free memory to the system, so that taking it again shows."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it
    if trim is not None:
        trim(0)


def _resident(name: str) -> int:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise LookupError(name)
